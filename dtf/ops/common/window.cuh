// What kernels over the window of a clip share: their parameters, the loop over runs of pixels, and the two primitives
// of the layout. `dot` reduces over channels (window sums of products), `gather` streams over channels (window sums with
// given weights). All clips of one launch share the strides `x*`. Nothing is accumulated through memory, so the results
// do not depend on the order of threads.
//
// Arguments are 8 bytes each: pointers and 64-bit integers. A grid of any size covers the work.

#include "common.cuh"
#if CHANNELS_LAST
#include "channels_last.cuh"
#else
#include "planar.cuh"
#endif

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

// Window k of the pixel at offset k, seen from that pixel, is window K*K - 1 - k.
template <class Value>
__device__ inline Accumulator mirrored(
    const Maps<Value>& maps, const Shape& shape, int64 b, int first, int k, int64 t, Offset h, Offset w) {
  h += (k / KERNEL_SIZE - HALF_WINDOW) * shape.dilation;
  w += (k % KERNEL_SIZE - HALF_WINDOW) * shape.dilation;
  if (h < 0 || h >= shape.H || w < 0 || w >= shape.W) return 0;
  return widen(maps.at(b, first + WINDOW - 1 - k, t, h, w));
}

// maps(b, k, t) = (1 / divisor) * sum_c query(p, c) * key(p + offset k, c) for the pixels of a run of frame t.
__device__ inline void correlate_run(
    const Element* query, const Element* key, Accumulator divisor, const Shape& shape, const Strides& stride,
    const Run& run, const Maps<Element>& maps) {
  Accumulator sum[PIXELS][WINDOW];
  dot(query, key, shape, stride, run, sum);
  reduce(sum);
  const int p = owned_pixel();
  if (owns() && run.inside(shape, p))
#pragma unroll
    for (int k = 0; k < WINDOW; ++k)
      if (stores(k))
        maps.at(run.b, k, run.t, run.h + p * run.step_h, run.w + p * run.step_w) = narrow(sum[0][k] / divisor);
}
