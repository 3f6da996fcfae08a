// The two primitives where neighbouring pixels are adjacent in memory (right for any strides): 32 threads of a warp
// take 32 neighbouring columns, each a run of pixels down its column; SLICES warps share the channels of those runs and
// meet in shared memory.

#define COLUMNS 32
#define SLICE (threadIdx.x / COLUMNS)
#define COLUMN (threadIdx.x % COLUMNS)

template <int COUNT>
__device__ inline Offset runs_of(const Shape& shape) {
  return shape.dilation * ceil_div(ceil_div(shape.H, shape.dilation), COUNT) * shape.W;
}

template <int COUNT>
__device__ inline Offset count_tiles(const Shape& shape, Offset) {
  return ceil_div(runs_of<COUNT>(shape), COLUMNS);
}

// Runs are numbered along the rows, so that a narrow frame fills a warp too. COUNT is the number of pixels of a run.
template <int COUNT>
__device__ inline Run locate(const Shape& shape, Offset wide, int64 work) {
  const Offset tiles = count_tiles<COUNT>(shape, wide);
  const int64 frame = work / tiles;
  const Offset index = work % tiles * COLUMNS + COLUMN;
  const Offset row = index / shape.W;
  Run run;
  run.b = frame / shape.T;
  run.t = frame % shape.T;
  run.h = row % shape.dilation + row / shape.dilation * COUNT * shape.dilation;
  run.w = index % shape.W;
  run.step_h = shape.dilation;
  run.step_w = 0;
  return run;
}

__device__ inline Accumulator value_at(
    const Element* from, const Shape& shape, const Strides& stride, Offset h, Offset w) {
  if (h < 0 || h >= shape.H || w < 0 || w >= shape.W) return 0;
  return widen(from[h * stride.h + w * stride.w]);
}

// sum[p][k] = this thread's channels of query(pixel p) * key(pixel p + offset k); zero where either is outside.
__device__ inline void dot(
    const Element* query, const Element* key, const Shape& shape, const Strides& stride, const Run& run,
    Accumulator (&sum)[PIXELS][WINDOW]) {
#pragma unroll
  for (int p = 0; p < PIXELS; ++p)
#pragma unroll
    for (int k = 0; k < WINDOW; ++k) sum[p][k] = 0;
  for (Offset c = SLICE; c < shape.C; c += SLICES) {
    Accumulator q[PIXELS];
#pragma unroll
    for (int p = 0; p < PIXELS; ++p)
      q[p] = value_at(query + c * stride.c, shape, stride, run.h + p * run.step_h, run.w);
#pragma unroll
    for (int i = 0; i < PIXELS + KERNEL_SIZE - 1; ++i)
#pragma unroll
      for (int j = 0; j < KERNEL_SIZE; ++j) {
        const Accumulator v = value_at(
            key + c * stride.c, shape, stride, run.h + (i - HALF_WINDOW) * shape.dilation,
            run.w + (j - HALF_WINDOW) * shape.dilation);
#pragma unroll
        for (int p = 0; p < PIXELS; ++p)
          if (i - p >= 0 && i - p < KERNEL_SIZE) sum[p][(i - p) * KERNEL_SIZE + j] += q[p] * v;
      }
  }
}

// The slice of number p owns pixel p of its column's run.
__device__ inline int owned_pixel() { return SLICE; }
__device__ inline bool owns() { return SLICE < PIXELS; }
__device__ inline bool stores(int) { return true; }

// Adds the slices up, in a fixed order; afterwards sum[0] is complete for pixel `owned_pixel()` where `owns()`.
__device__ inline void reduce(Accumulator (&sum)[PIXELS][WINDOW]) {
#if SLICES > 1
  __shared__ Accumulator partial[SLICES][PIXELS * WINDOW][COLUMNS];
  __syncthreads();  // the previous run's readers are done
#pragma unroll
  for (int p = 0; p < PIXELS; ++p)
#pragma unroll
    for (int k = 0; k < WINDOW; ++k) partial[SLICE][p * WINDOW + k][COLUMN] = sum[p][k];
  __syncthreads();
  if (owns())
#pragma unroll
    for (int k = 0; k < WINDOW; ++k) {
      sum[0][k] = 0;
#pragma unroll
      for (int s = 0; s < SLICES; ++s) sum[0][k] += partial[s][owned_pixel() * WINDOW + k][COLUMN];
    }
#endif
}

// Weights of a gather live in registers: each is used once per channel.
template <int SOURCES, int COUNT = (SOURCES > 1 ? PIXELS_BACKWARD : PIXELS)>
struct Weights {
  Accumulator value[SOURCES][COUNT][WINDOW];
};
#define WEIGHTS_STORAGE

// Hands the windows that their owners hold to every slice of the column.
__device__ inline void exchange(const Accumulator* owned, Weights<1>& weights) {
#if SLICES > 1
  __shared__ Accumulator shared[PIXELS * WINDOW][COLUMNS];
  __syncthreads();
  if (owns())
#pragma unroll
    for (int k = 0; k < WINDOW; ++k) shared[owned_pixel() * WINDOW + k][COLUMN] = owned[k];
  __syncthreads();
#pragma unroll
  for (int p = 0; p < PIXELS; ++p)
#pragma unroll
    for (int k = 0; k < WINDOW; ++k) weights.value[0][p][k] = shared[p * WINDOW + k][COLUMN];
#else
#pragma unroll
  for (int k = 0; k < WINDOW; ++k) weights.value[0][0][k] = owned[k];
#endif
}

// Fills the weights of a run from weight_of(source, offset, h, w).
template <int SOURCES, class WeightOf, int COUNT>
__device__ inline void fill(
    const WeightOf& weight_of, const Shape& shape, const Run& run, Weights<SOURCES, COUNT>& weights) {
#pragma unroll
  for (int s = 0; s < SOURCES; ++s)
#pragma unroll
    for (int p = 0; p < COUNT; ++p)
#pragma unroll
      for (int k = 0; k < WINDOW; ++k)
        weights.value[s][p][k] =
            run.inside(shape, p) ? weight_of(s, k, run.h + p * run.step_h, run.w) : Accumulator(0);
}

// out(p) = base(p) + sum over sources s and offsets k of weight[s][p][k] * source_s(p + offset k), all channels.
// A null base or source counts as zero.
template <int SOURCES, int COUNT>
__device__ inline void gather(
    const Element* base, const Element* const (&source)[SOURCES], const Weights<SOURCES, COUNT>& weights,
    const Shape& shape, const Strides& stride, const Run& run, Element* out) {
  for (Offset c = SLICE; c < shape.C; c += SLICES) {
    Accumulator sum[COUNT];
#pragma unroll
    for (int p = 0; p < COUNT; ++p)
      sum[p] = base ? value_at(base + c * stride.c, shape, stride, run.h + p * run.step_h, run.w) : Accumulator(0);
#pragma unroll
    for (int s = 0; s < SOURCES; ++s) {
      if (!source[s]) continue;
#pragma unroll
      for (int i = 0; i < COUNT + KERNEL_SIZE - 1; ++i)
#pragma unroll
        for (int j = 0; j < KERNEL_SIZE; ++j) {
          const Accumulator v = value_at(
              source[s] + c * stride.c, shape, stride, run.h + (i - HALF_WINDOW) * shape.dilation,
              run.w + (j - HALF_WINDOW) * shape.dilation);
#pragma unroll
          for (int p = 0; p < COUNT; ++p)
            if (i - p >= 0 && i - p < KERNEL_SIZE) sum[p] += weights.value[s][p][(i - p) * KERNEL_SIZE + j] * v;
        }
    }
#pragma unroll
    for (int p = 0; p < COUNT; ++p)
      if (run.inside(shape, p))
        (out + c * stride.c)[(run.h + p * run.step_h) * stride.h + run.w * stride.w] = narrow(sum[p]);
  }
}

// Copies the run's pixels, all channels.
__device__ inline void copy(
    const Element* from, const Shape& shape, const Strides& stride, const Run& run, Element* to) {
  for (Offset c = SLICE; c < shape.C; c += SLICES)
#pragma unroll
    for (int p = 0; p < PIXELS; ++p)
      if (run.inside(shape, p)) {
        const int64 at = c * stride.c + ((run.h + p * run.step_h) * stride.h + run.w * stride.w);
        to[at] = from[at];
      }
}
