// Frame-wise aggregation and its gradient. `former(t)` is max(t - 1, 0).
// Source: Long et al., "Dynamic Temporal Filtering in Video Models" (arXiv 2211.08252); the formulas are those of
// __init__.py beside this file.

#include "correlation.cuh"

// Frame-wise aggregation in one pass over device memory: the work of frame t correlates it with frame t - 1, and while
// both are still in the cache writes enriched frame t - 1. Frame 0, which enriches nothing, copies the last frame.
KERNEL enrich(
    const Element* x, Element* enriched, Element* correlation, STRIDE_PARAMETERS(x), STRIDE_PARAMETERS(o),
    SHAPE_PARAMETERS) {
  const Maps<Element> maps{correlation, STRIDES(o)};
  WEIGHTS_STORAGE Weights<1> weights;
  FOR_EACH_RUN(PIXELS) {
    const Run run = locate<PIXELS>(shape, wide, work);
    const Element* clip = x + run.b * xb;
    const Element* query = clip + former(run.t) * xt;
    Accumulator sum[PIXELS][WINDOW];
    dot(query, clip + run.t * xt, shape, stride, run, sum);
    reduce(sum);
    const int p = owned_pixel();
    if (owns()) {
#pragma unroll
      for (int k = 0; k < WINDOW; ++k) sum[0][k] /= C;
      if (run.inside(shape, p))
#pragma unroll
        for (int k = 0; k < WINDOW; ++k)
          if (stores(k))
            maps.at(run.b, k, run.t, run.h + p * run.step_h, run.w + p * run.step_w) = narrow(sum[0][k]);
      softmax(sum[0], sum[0]);
    }
    Element* out = enriched + run.b * xb;
    if (run.t == 0) {
      copy(clip + (T - 1) * xt, shape, stride, run, out + (T - 1) * xt);
    } else {
      exchange(sum[0], weights);
      const Element* const source[1] = {clip + run.t * xt};
      gather<1>(query, source, weights, shape, stride, run, out + (run.t - 1) * xt);
    }
  }
}

// First half of the gradient of frame-wise aggregation: attention and the whole gradient of the correlation, kept
// unrounded as maps (B, 2 K*K, T, H, W). `correlation` is the saved output; `gradient_correlation` may be null.
KERNEL enrich_backward_maps(
    const Element* gradient, const Element* x, const Element* correlation, const Element* gradient_correlation,
    Accumulator* out, STRIDE_PARAMETERS(x), STRIDE_PARAMETERS(c), STRIDE_PARAMETERS(g), STRIDE_PARAMETERS(o),
    SHAPE_PARAMETERS) {
  const Maps<const Element> correlations{correlation, STRIDES(c)}, gradients{gradient_correlation, STRIDES(g)};
  const Maps<Accumulator> maps{out, STRIDES(o)};
  FOR_EACH_RUN(PIXELS) {
    const Run run = locate<PIXELS>(shape, wide, work);
    const int64 t = run.t;
    Accumulator sum[PIXELS][WINDOW], attention[WINDOW];
    // Frame 0 enriches nothing, so its attention has no gradient; every thread of a block is in the same frame.
    if (t > 0) {
      dot(gradient + run.b * xb + (t - 1) * xt, x + run.b * xb + t * xt, shape, stride, run, sum);
      reduce(sum);
    }
    const int p = owned_pixel();
    const Offset h = run.h + p * run.step_h, w = run.w + p * run.step_w;
    if (!owns() || !run.inside(shape, p)) continue;
#pragma unroll
    for (int k = 0; k < WINDOW; ++k) attention[k] = widen(correlations.at(run.b, k, t, h, w));
    softmax(attention, attention);
    Accumulator mean = 0;
    if (t > 0)
#pragma unroll
      for (int k = 0; k < WINDOW; ++k) mean += attention[k] * sum[0][k];
#pragma unroll
    for (int k = 0; k < WINDOW; ++k)
      if (stores(k)) {
        Accumulator total = t > 0 ? attention[k] * (sum[0][k] - mean) : Accumulator(0);
        if (gradient_correlation) total += widen(gradients.at(run.b, k, t, h, w));
        maps.at(run.b, k, t, h, w) = attention[k];
        maps.at(run.b, WINDOW + k, t, h, w) = total;
      }
  }
}

struct EnrichmentWeights {
  CorrelationWeights<const Accumulator> correlation;
  __device__ Accumulator operator()(int source, int k, Offset h, Offset w) const {
    if (source < 2) return correlation(source, k, h, w);
    const CorrelationWeights<const Accumulator>& c = correlation;
    return c.t > 0 ? mirrored(c.gradient, c.shape, c.b, 0, k, c.t, h, w) : Accumulator(0);
  }
};

// Second half: the gradient for x, from the residual, the aggregation and both factors of the correlation.
KERNEL enrich_backward(
    const Element* gradient, const Element* x, const Accumulator* maps_in, Element* out, STRIDE_PARAMETERS(x),
    STRIDE_PARAMETERS(m), SHAPE_PARAMETERS) {
  const Maps<const Accumulator> maps{maps_in, STRIDES(m)};
  WEIGHTS_STORAGE Weights<3> weights;
  FOR_EACH_RUN(PIXELS_BACKWARD) {
    const Run run = locate<PIXELS_BACKWARD>(shape, wide, work);
    const int64 clip = run.b * xb, t = run.t;
    fill<3>(
        EnrichmentWeights{CorrelationWeights<const Accumulator>{maps, WINDOW, shape, run.b, t}}, shape, run, weights);
    const Element* const source[3] = {
        x + clip + former(t) * xt, t + 1 < T ? x + clip + (t + 1) * xt : nullptr,
        t > 0 ? gradient + clip + (t - 1) * xt : nullptr};
    gather<3>(gradient + clip + t * xt, source, weights, shape, stride, run, out + clip + t * xt);
  }
}
