"""CUDA C++ kernels of the operators: sources, their rendering, and their launch through CuPy's NVRTC.

* ``*.cuh``, ``kernels.cu``: the sources, one text for every dtype, layout and window;
* ``source``: chooses a variant for a tensor and renders its text (pure functions, tested without a GPU);
* ``runtime``: compiles with CuPy on first use and launches on torch's current stream;
* ``library``: the kernels as torch custom operators with shape functions and gradients.

``docs/benchmarks.md`` counts their bytes and operations.

Importing needs neither CuPy nor a GPU.
"""
