// Decoupled dynamic filter and its gradients; the formulas are those of __init__.py beside this file.
// Source: Zhou et al., "Decoupled Dynamic Filter Networks", CVPR 2021 (arXiv 2104.14107).
//
// An image is a clip of one frame. Runs of pixels are counted over the image that a kernel writes (or whose pixels its
// sums run over); the other image, from which windows are taken, has a size and strides of its own. The filter of the
// channels comes as (B, K*K, C), contiguous.
//
// Defined ahead of this text, besides what common.cuh says:
//   ADD     1: the filters are added; 0: multiplied
//   STRIDED 1: the windows of a run are read one by one; 0: the stride is 1 and they share their loads

#include "window.cuh"

#if CHANNELS_LAST
#define FIRST_CHANNEL first_channel()
#define CHANNEL_STEP (LANES * VECTOR)
#define CHANNEL(c, stride) (c)
#define WEIGHT(p, k) weights.value[threadIdx.x / LANES][0][p][k]
#else
#define FIRST_CHANNEL (Offset)SLICE
#define CHANNEL_STEP SLICES
#define CHANNEL(c, stride) ((c) * (stride).c)
#define WEIGHT(p, k) weights.value[0][p][k]
#endif
// A window is walked along the direction of its run, line by line across it.
#define TAP(across, along) (CHANNELS_LAST ? (across) * KERNEL_SIZE + (along) : (along) * KERNEL_SIZE + (across))

// The image from which windows are taken, and where: around pixel * step, or (adjoint) around those pixels whose
// pixel * step is here. `reach` is the distance of neighbouring taps.
struct Windows {
  Offset H, W;
  Strides stride;
  Offset step, reach;
  bool adjoint;

  // The tap of the filters that belongs to window offset k.
  __device__ int tap(int k) const { return adjoint ? WINDOW - 1 - k : k; }

  // Moves (h, w) from a pixel of the run to its neighbour at window offset k; false where there is none.
  __device__ bool move(int k, Offset& h, Offset& w) const {
    const Offset scale = adjoint || !STRIDED ? 1 : step;
    h = h * scale + (k / KERNEL_SIZE - HALF_WINDOW) * reach;
    w = w * scale + (k % KERNEL_SIZE - HALF_WINDOW) * reach;
    if (h < 0 || w < 0) return false;
    if (adjoint && STRIDED) {
      if (h % step || w % step) return false;
      h /= step;
      w /= step;
    }
    return h < H && w < W;
  }
};

__device__ inline void clear(Accumulator (&v)[VECTOR]) {
#pragma unroll
  for (int e = 0; e < VECTOR; ++e) v[e] = 0;
}

// Pixel p of a run, zero outside.
__device__ inline void pixel(
    const Element* from, const Shape& shape, const Strides& stride, const Run& run, int p, Accumulator (&v)[VECTOR]) {
  clear(v);
  if (run.inside(shape, p)) load(from + (run.h + p * run.step_h) * stride.h + (run.w + p * run.step_w) * stride.w, v);
}

// The neighbour of pixel p at window offset k, zero outside.
__device__ inline void neighbour(
    const Element* from, const Windows& windows, const Run& run, int p, int k, Accumulator (&v)[VECTOR]) {
  clear(v);
  Offset h = run.h + p * run.step_h, w = run.w + p * run.step_w;
  if (windows.move(k, h, w)) load(from + h * windows.stride.h + w * windows.stride.w, v);
}

// Calls use(p, t, v) with the neighbour v at tap t of line `across` of the window of every pixel p of a run.
template <class Use>
__device__ inline void for_each_neighbour(
    const Element* from, const Windows& windows, const Run& run, int across, const Use& use) {
  Accumulator v[VECTOR];
#if STRIDED
#pragma unroll
  for (int p = 0; p < PIXELS; ++p)
#pragma unroll
    for (int t = 0; t < KERNEL_SIZE; ++t) {
      neighbour(from, windows, run, p, TAP(across, t), v);
      use(p, t, v);
    }
#else
#pragma unroll
  for (int u = 0; u < PIXELS + KERNEL_SIZE - 1; ++u) {
    // The neighbour of `first` is that of the next pixels too, one tap less along the run for each.
    const int first = u < KERNEL_SIZE ? 0 : u - KERNEL_SIZE + 1;
    neighbour(from, windows, run, first, TAP(across, u - first), v);
#pragma unroll
    for (int p = 0; p < PIXELS; ++p)
      if (u - p >= 0 && u - p < KERNEL_SIZE) use(p, u - p, v);
  }
#endif
}

// A line of the channels' filter.
__device__ inline void load_line(
    const Element* filter, const Windows& windows, Offset C, int across, Accumulator (&line)[KERNEL_SIZE][VECTOR]) {
#pragma unroll
  for (int t = 0; t < KERNEL_SIZE; ++t) load(filter + (int64)windows.tap(TAP(across, t)) * C, line[t]);
}

// The pixels' filter: of the pixel itself, or (adjoint) of the neighbour.
struct PixelFilter {
  Maps<const Element> maps;
  Windows windows;
  int64 b;
  __device__ Accumulator operator()(int, int k, Offset h, Offset w) const {
    if (windows.adjoint && !windows.move(k, h, w)) return 0;
    return widen(maps.at(b, windows.tap(k), 0, h, w));
  }
};

__device__ inline void filter_run(
    const Element* from, const Element* filter, const Weights<1>& weights, const Shape& shape, const Windows& windows,
    const Strides& stride, const Run& run, Element* out) {
  for (Offset c = FIRST_CHANNEL; c < shape.C; c += CHANNEL_STEP) {
    Accumulator sum[PIXELS][VECTOR];
#pragma unroll
    for (int p = 0; p < PIXELS; ++p) clear(sum[p]);
#pragma unroll
    for (int across = 0; across < KERNEL_SIZE; ++across) {
      Accumulator line[KERNEL_SIZE][VECTOR];
      load_line(filter + c, windows, shape.C, across, line);
      for_each_neighbour(
          from + CHANNEL(c, windows.stride), windows, run, across, [&](int p, int t, const Accumulator* v) {
            const Accumulator weight = WEIGHT(p, TAP(across, t));
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) sum[p][e] += (ADD ? line[t][e] + weight : line[t][e] * weight) * v[e];
          });
    }
#pragma unroll
    for (int p = 0; p < PIXELS; ++p)
      if (run.inside(shape, p))
        store(
            sum[p], out + CHANNEL(c, stride) + (run.h + p * run.step_h) * stride.h + (run.w + p * run.step_w) * stride.w);
  }
}

// What all kernels take behind their pointers: a flag, the windows, strides of the runs' image (x) and of the maps (m).
#define WINDOW_PARAMETERS int64 adjoint, int64 step, int64 reach, int64 from_h, int64 from_w, STRIDE_PARAMETERS(f)
#define WINDOWS                                                                                      \
  Windows {                                                                                          \
    (Offset) from_h, (Offset)from_w, STRIDES(f), (Offset)step, (Offset)reach, (bool)adjoint          \
  }

// The filter (adjoint 0) and its gradient for the features (adjoint 1: `from` is the output's gradient).
KERNEL filter(
    const Element* from, const Element* channel_filter, const Element* pixel_filter, Element* out, WINDOW_PARAMETERS,
    STRIDE_PARAMETERS(x), STRIDE_PARAMETERS(m), SHAPE_PARAMETERS) {
  const Maps<const Element> maps{pixel_filter, STRIDES(m)};
  const Windows windows = WINDOWS;
  WEIGHTS_STORAGE Weights<1> weights;
  FOR_EACH_RUN(PIXELS) {
    const Run run = locate<PIXELS>(shape, wide, work);
    fill<1>(PixelFilter{maps, windows, run.b}, shape, run, weights);
    filter_run(
        from + run.b * fb, channel_filter + run.b * WINDOW * C, weights, shape, windows, stride, run, out + run.b * xb);
  }
}

__device__ inline void dot_run(
    const Element* gradient, const Element* from, const Element* filter, const Shape& shape, const Windows& windows,
    const Strides& stride, const Run& run, Accumulator (&sum)[PIXELS][WINDOW]) {
#pragma unroll
  for (int p = 0; p < PIXELS; ++p)
#pragma unroll
    for (int k = 0; k < WINDOW; ++k) sum[p][k] = 0;
  for (Offset c = FIRST_CHANNEL; c < shape.C; c += CHANNEL_STEP) {
    Accumulator q[PIXELS][VECTOR];
#pragma unroll
    for (int p = 0; p < PIXELS; ++p) pixel(gradient + CHANNEL(c, stride), shape, stride, run, p, q[p]);
#pragma unroll
    for (int across = 0; across < KERNEL_SIZE; ++across) {
      Accumulator line[KERNEL_SIZE][VECTOR];
      if (!ADD) load_line(filter + c, windows, shape.C, across, line);
      for_each_neighbour(
          from + CHANNEL(c, windows.stride), windows, run, across, [&](int p, int t, const Accumulator* v) {
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) sum[p][TAP(across, t)] += q[p][e] * (ADD ? v[e] : line[t][e] * v[e]);
          });
    }
  }
}

// Gradient for the pixels' filter: out(b, k, p) = sum_c gradient(c, p) * x(c, neighbour k of p) [* filter(c, k)].
KERNEL pixel_filter_gradient(
    const Element* gradient, const Element* from, const Element* channel_filter, Element* out, WINDOW_PARAMETERS,
    STRIDE_PARAMETERS(x), STRIDE_PARAMETERS(m), SHAPE_PARAMETERS) {
  const Maps<Element> maps{out, STRIDES(m)};
  const Windows windows = WINDOWS;
  FOR_EACH_RUN(PIXELS) {
    const Run run = locate<PIXELS>(shape, wide, work);
    Accumulator sum[PIXELS][WINDOW];
    dot_run(
        gradient + run.b * xb, from + run.b * fb, channel_filter + run.b * WINDOW * C, shape, windows, stride, run, sum);
    reduce(sum);
    const int p = owned_pixel();
    if (owns() && run.inside(shape, p))
#pragma unroll
      for (int k = 0; k < WINDOW; ++k)
        if (stores(k))
          maps.at(run.b, k, 0, run.h + p * run.step_h, run.w + p * run.step_w) = narrow(sum[0][k]);
  }
}

// Adds what the threads of a block hold of the same channels up and stores it, for tap `k` of every channel; all threads
// of a block come here together. Channels last: the runs of a tile meet in shared memory; planar: the columns of a warp
// by shuffles.
__device__ inline void store_partial(
    const Accumulator (&held)[VECTOR], Offset c, bool live, Offset C, Accumulator* out) {
#if CHANNELS_LAST
  __shared__ Accumulator meeting[THREADS][VECTOR];
  __syncthreads();  // the previous tap's readers are done
#pragma unroll
  for (int e = 0; e < VECTOR; ++e) meeting[threadIdx.x][e] = held[e];
  __syncthreads();
  if (live && threadIdx.x < LANES)
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) {
      Accumulator total = 0;
      for (int group = 0; group < GROUPS; ++group) total += meeting[group * LANES + threadIdx.x][e];
      out[c + e] = total;
    }
#else
  Accumulator total = held[0];
#pragma unroll
  for (int distance = COLUMNS / 2; distance > 0; distance /= 2)
    total += __shfl_xor_sync(0xffffffffu, total, distance);
  if (live && COLUMN == 0) out[c] = total;
#endif
}

__device__ inline void correlate_tiles(
    const Element* gradient, const Element* from, const Maps<const Element>& maps, const Shape& shape,
    const Windows& windows, const Strides& stride, Offset wide, int64 first, int64 last, Accumulator* out) {
  // Every thread takes part in every round: what it holds of channels beyond the last is zero.
  for (Offset base = 0; base < shape.C; base += CHANNEL_STEP) {
    const Offset c = base + FIRST_CHANNEL;
    const bool live = c < shape.C;
#pragma unroll
    for (int across = 0; across < KERNEL_SIZE; ++across) {
      Accumulator sum[KERNEL_SIZE][VECTOR];
#pragma unroll
      for (int t = 0; t < KERNEL_SIZE; ++t) clear(sum[t]);
      for (int64 work = first; live && work < last; ++work) {
        const Run run = locate<PIXELS>(shape, wide, work);
        Accumulator q[PIXELS][VECTOR], weight[PIXELS][KERNEL_SIZE];
#pragma unroll
        for (int p = 0; p < PIXELS; ++p) {
          pixel(gradient + run.b * stride.b + CHANNEL(c, stride), shape, stride, run, p, q[p]);
#pragma unroll
          for (int t = 0; t < KERNEL_SIZE; ++t)
            weight[p][t] = !ADD && run.inside(shape, p)
                               ? widen(maps.at(
                                     run.b, TAP(across, t), 0, run.h + p * run.step_h, run.w + p * run.step_w))
                               : Accumulator(0);
        }
        for_each_neighbour(
            from + run.b * windows.stride.b + CHANNEL(c, windows.stride), windows, run, across,
            [&](int p, int t, const Accumulator* v) {
#pragma unroll
              for (int e = 0; e < VECTOR; ++e) sum[t][e] += (ADD ? q[p][e] : weight[p][t] * q[p][e]) * v[e];
            });
      }
#pragma unroll
      for (int t = 0; t < KERNEL_SIZE; ++t)
        store_partial(sum[t], c, live, shape.C, out + (int64)TAP(across, t) * shape.C);
    }
  }
}

// Gradient for the channels' filter, first of two stages: out(b, chunk, k, c) = sum over the pixels p of `chunk`
// tiles of gradient(c, p) * x(c, neighbour k of p) [* filter(k, p)]. The chunks are then added up.
KERNEL channel_filter_gradient(
    const Element* gradient, const Element* from, const Element* pixel_filter, Accumulator* out, int64 chunk,
    WINDOW_PARAMETERS, STRIDE_PARAMETERS(x), STRIDE_PARAMETERS(m), SHAPE_PARAMETERS) {
  const Maps<const Element> maps{pixel_filter, STRIDES(m)};
  const Windows windows = WINDOWS;
  const Shape shape = SHAPE;
  const Strides stride = STRIDES(x);
  const int64 tiles = count_tiles<PIXELS>(shape, wide), chunks = (tiles + chunk - 1) / chunk;
  for (int64 part = blockIdx.x; part < B * chunks; part += gridDim.x) {
    const int64 image = part / chunks * tiles, first = part % chunks * chunk;
    const int64 last = first + chunk < tiles ? first + chunk : tiles;
    correlate_tiles(
        gradient, from, maps, shape, windows, stride, wide, image + first, image + last, out + part * WINDOW * C);
  }
}
