// The kernels. Source: Long et al., "Dynamic Temporal Filtering in Video Models" (arXiv 2211.08252); the formulas are
// those of dtf/ops/*/__init__.py, and `former(t)` is max(t - 1, 0).
//
// Two primitives serve every operator and every gradient: `dot` reduces over channels (window sums of products),
// `gather` streams over channels (window sums with given weights). All clips of one launch share the strides `x*`.
// Nothing is accumulated through memory, so the results do not depend on the order of threads.
//
// Arguments are 8 bytes each: pointers and 64-bit integers. A grid of any size covers the work.

#define SHAPE_PARAMETERS int64 B, int64 C, int64 T, int64 H, int64 W, int64 dilation, int64 wide
#define STRIDE_PARAMETERS(name) int64 name##b, int64 name##c, int64 name##t, int64 name##h, int64 name##w
#define SHAPE \
  Shape { B, T, (Offset)C, (Offset)H, (Offset)W, (Offset)dilation }
#define STRIDES(name) \
  Strides { name##b, name##c, name##t, (Offset)name##h, (Offset)name##w }
#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)

// Loops over (clip, frame, tile); `run` is this thread's share.
#define FOR_EACH_RUN(count)                                                                        \
  const Shape shape = SHAPE;                                                                       \
  const Strides stride = STRIDES(x);                                                               \
  const int64 frames = B * T, works = frames * count_tiles<count>(shape, wide);                    \
  for (int64 work = blockIdx.x; work < works; work += gridDim.x)

__device__ inline int64 former(int64 t) { return t > 0 ? t - 1 : 0; }

// out(b, k, t) = scale * sum_c query(b, c, t') * key(b, c, t, + offset k).
// former_mean 1: t' = former(t) and scale = 1 / C (temporal correlation); 0: t' = t and scale = 1 (gradient of the
// aggregation's attention).
KERNEL correlate(
    const Element* query, const Element* key, Element* out, int64 former_mean, STRIDE_PARAMETERS(x),
    STRIDE_PARAMETERS(o), SHAPE_PARAMETERS) {
  const Maps<Element> maps{out, STRIDES(o)};
  FOR_EACH_RUN(PIXELS) {
    const Run run = locate<PIXELS>(shape, wide, work);
    const Element* clip = key + run.b * xb;
    Accumulator sum[PIXELS][WINDOW];
    dot(query + run.b * xb + (former_mean ? former(run.t) : run.t) * xt, clip + run.t * xt, shape, stride, run, sum);
    reduce(sum);
    const int p = owned_pixel();
    if (owns() && run.inside(shape, p))
#pragma unroll
      for (int k = 0; k < WINDOW; ++k)
        if (stores(k))
          maps.at(run.b, k, run.t, run.h + p * run.step_h, run.w + p * run.step_w) =
              narrow(former_mean ? sum[0][k] / C : sum[0][k]);
  }
}

// Window k of the pixel at offset k, seen from that pixel, is window K*K - 1 - k.
template <class Value>
__device__ inline Accumulator mirrored(
    const Maps<Value>& maps, const Shape& shape, int64 b, int first, int k, int64 t, Offset h, Offset w) {
  h += (k / KERNEL_SIZE - HALF_WINDOW) * shape.dilation;
  w += (k % KERNEL_SIZE - HALF_WINDOW) * shape.dilation;
  if (h < 0 || h >= shape.H || w < 0 || w >= shape.W) return 0;
  return widen(maps.at(b, first + WINDOW - 1 - k, t, h, w));
}

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

// How frame t of x enters the correlation: as keys of frame t (with the former frame as query), as query of frame
// t + 1, and at t = 0 as its own query.
template <class Value>
struct CorrelationWeights {
  Maps<Value> gradient;
  int first;
  Shape shape;
  int64 b, t;
  __device__ Accumulator as_key(int k, Offset h, Offset w) const {
    Accumulator weight = mirrored(gradient, shape, b, first, k, t, h, w);
    if (t == 0) weight += widen(gradient.at(b, first + k, 0, h, w));
    return weight / shape.C;
  }
  __device__ Accumulator as_query(int k, Offset h, Offset w) const {
    return t + 1 < shape.T ? widen(gradient.at(b, first + k, t + 1, h, w)) / shape.C : Accumulator(0);
  }
  __device__ Accumulator operator()(int source, int k, Offset h, Offset w) const {
    return source == 0 ? as_key(k, h, w) : as_query(k, h, w);
  }
};

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
