"""What operators share: sums over windows in torch, headers of their kernels, their compilation and launch.

* ``window``: window sums in torch, in pieces that fit a cache;
* ``*.cuh``: loads and stores, windows and weights, one text for every dtype, layout and window;
* ``source``: chooses a variant for a tensor and renders an operator's text (pure functions);
* ``runtime``: compiles with CuPy on first use and launches on torch's current stream;
* ``launch``: launches over the window of a clip.

``docs/benchmarks.md`` counts bytes and operations. Importing needs neither CuPy nor a GPU.
"""
