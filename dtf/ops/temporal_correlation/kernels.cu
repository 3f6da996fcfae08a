// Temporal correlation and its gradient. `former(t)` is max(t - 1, 0).
// Source: Long et al., "Dynamic Temporal Filtering in Video Models" (arXiv 2211.08252); the formulas are those of
// __init__.py beside this file.

#include "correlation.cuh"

// out(b, k, t) = (1 / C) * sum_c x(b, c, former(t)) * x(b, c, t, + offset k).
KERNEL correlate(const Element* x, Element* out, STRIDE_PARAMETERS(x), STRIDE_PARAMETERS(o), SHAPE_PARAMETERS) {
  const Maps<Element> maps{out, STRIDES(o)};
  FOR_EACH_RUN(PIXELS) {
    const Run run = locate<PIXELS>(shape, wide, work);
    const Element* clip = x + run.b * xb;
    correlate_run(clip + former(run.t) * xt, clip + run.t * xt, C, shape, stride, run, maps);
  }
}

// Gradient of temporal correlation for x.
KERNEL correlate_backward(
    const Element* x, const Element* gradient, Element* out, STRIDE_PARAMETERS(x), STRIDE_PARAMETERS(g),
    SHAPE_PARAMETERS) {
  const Maps<const Element> maps{gradient, STRIDES(g)};
  WEIGHTS_STORAGE Weights<2> weights;
  FOR_EACH_RUN(PIXELS_BACKWARD) {
    const Run run = locate<PIXELS_BACKWARD>(shape, wide, work);
    const Element* clip = x + run.b * xb;
    fill<2>(CorrelationWeights<const Element>{maps, 0, shape, run.b, run.t}, shape, run, weights);
    const Element* const source[2] = {
        clip + former(run.t) * xt, run.t + 1 < T ? clip + (run.t + 1) * xt : nullptr};
    gather<2>(nullptr, source, weights, shape, stride, run, out + run.b * xb + run.t * xt);
  }
}
