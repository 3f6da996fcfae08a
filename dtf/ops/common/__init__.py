"""What operators share: sums over windows in torch, headers of their kernels, their compilation and launch.

* ``window``: window sums in torch, in pieces that fit a cache;
* ``sampling``: bilinear samples at deformed places, in torch;
* ``*.cuh``: loads and stores, windows and weights, one text for every dtype, layout and window;
* ``source``: chooses a variant for a tensor and renders an operator's text (pure functions);
* ``runtime``: compiles with CuPy on first use and launches on torch's current stream;
* ``launch``, ``launch_samples``: launches over the window of a clip, and over samples.

``docs/benchmarks.md`` counts bytes and operations. Importing needs neither CuPy nor a GPU.
"""
