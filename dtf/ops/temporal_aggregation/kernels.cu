// Temporal aggregation and its gradients.
// Source: Long et al., "Dynamic Temporal Filtering in Video Models" (arXiv 2211.08252); the formulas are those of
// __init__.py beside this file.

#include "window.cuh"

struct AggregationWeights {
  Maps<const Element> attention;
  Shape shape;
  int64 b, t, adjoint;
  __device__ Accumulator operator()(int, int k, Offset h, Offset w) const {
    if (adjoint) return mirrored(attention, shape, b, 0, k, t, h, w);
    return widen(attention.at(b, k, t, h, w));
  }
};

// Temporal aggregation (adjoint 0) and its gradient for x (adjoint 1: x is the output's gradient).
KERNEL aggregate(
    const Element* x, const Element* attention, Element* out, int64 adjoint, STRIDE_PARAMETERS(x),
    STRIDE_PARAMETERS(a), SHAPE_PARAMETERS) {
  const Maps<const Element> maps{attention, STRIDES(a)};
  WEIGHTS_STORAGE Weights<1> weights;
  FOR_EACH_RUN(PIXELS) {
    const Run run = locate<PIXELS>(shape, wide, work);
    const int64 frame = run.b * xb + run.t * xt;
    fill<1>(AggregationWeights{maps, shape, run.b, run.t, adjoint}, shape, run, weights);
    const Element* const source[1] = {x + frame};
    gather<1>(nullptr, source, weights, shape, stride, run, out + frame);
  }
}

// Gradient for the attention: out(b, k, t) = sum_c gradient(b, c, t) * x(b, c, t, + offset k).
KERNEL aggregate_backward_attention(
    const Element* gradient, const Element* x, Element* out, STRIDE_PARAMETERS(x), STRIDE_PARAMETERS(o),
    SHAPE_PARAMETERS) {
  const Maps<Element> maps{out, STRIDES(o)};
  FOR_EACH_RUN(PIXELS) {
    const Run run = locate<PIXELS>(shape, wide, work);
    const int64 frame = run.b * xb + run.t * xt;
    correlate_run(gradient + frame, x + frame, 1, shape, stride, run, maps);
  }
}
