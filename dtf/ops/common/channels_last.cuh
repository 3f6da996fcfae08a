// The two primitives where channels are adjacent in memory: LANES threads share a run of PIXELS pixels of a row and
// walk the channels together, VECTOR at a time; window sums meet by shuffles.

#define GROUPS (THREADS / LANES)  // runs that a block computes side by side

__device__ inline Offset runs_along(const Shape& shape) {
  return shape.dilation * ceil_div(ceil_div(shape.W, shape.dilation), PIXELS);
}

// Tiles of (GROUPS / wide) rows x wide runs cover a frame. COUNT, the pixels of a run, is PIXELS in this layout.
template <int COUNT>
__device__ inline Offset count_tiles(const Shape& shape, Offset wide) {
  return ceil_div(runs_along(shape), wide) * ceil_div(shape.H, GROUPS / wide);
}

template <int COUNT>
__device__ inline Run locate(const Shape& shape, Offset wide, int64 work) {
  const Offset tiles = count_tiles<COUNT>(shape, wide), tiles_wide = ceil_div(runs_along(shape), wide);
  const int64 frame = work / tiles;
  const Offset tile = work % tiles;
  const int group = threadIdx.x / LANES;
  const Offset column = tile % tiles_wide * wide + group % wide;
  Run run;
  run.b = frame / shape.T;
  run.t = frame % shape.T;
  run.h = tile / tiles_wide * (GROUPS / wide) + group / wide;
  run.w = column % shape.dilation + column / shape.dilation * PIXELS * shape.dilation;
  run.step_h = 0;
  run.step_w = shape.dilation;
  return run;
}

__device__ inline Offset first_channel() { return (Offset)(threadIdx.x % LANES) * VECTOR; }

// sum[p][k] = this thread's channels of query(pixel p) * key(pixel p + offset k); zero where either is outside.
__device__ inline void dot(
    const Element* query, const Element* key, const Shape& shape, const Strides& stride, const Run& run,
    Accumulator (&sum)[PIXELS][WINDOW]) {
#pragma unroll
  for (int p = 0; p < PIXELS; ++p)
#pragma unroll
    for (int k = 0; k < WINDOW; ++k) sum[p][k] = 0;
  for (Offset c = first_channel(); c < shape.C; c += LANES * VECTOR) {
    Accumulator q[PIXELS][VECTOR];
#pragma unroll
    for (int p = 0; p < PIXELS; ++p) {
#pragma unroll
      for (int e = 0; e < VECTOR; ++e) q[p][e] = 0;
      if (run.inside(shape, p)) load(query + run.h * stride.h + (run.w + p * run.step_w) * stride.w + c, q[p]);
    }
#pragma unroll
    for (int i = 0; i < KERNEL_SIZE; ++i) {
      const Offset h = run.h + (i - HALF_WINDOW) * shape.dilation;
#pragma unroll
      for (int j = 0; j < PIXELS + KERNEL_SIZE - 1; ++j) {
        const Offset w = run.w + (j - HALF_WINDOW) * shape.dilation;
        Accumulator v[VECTOR];
#pragma unroll
        for (int e = 0; e < VECTOR; ++e) v[e] = 0;
        if (h >= 0 && h < shape.H && w >= 0 && w < shape.W) load(key + h * stride.h + w * stride.w + c, v);
#pragma unroll
        for (int p = 0; p < PIXELS; ++p)
          if (j - p >= 0 && j - p < KERNEL_SIZE)
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) sum[p][i * KERNEL_SIZE + j - p] += q[p][e] * v[e];
      }
    }
  }
}

// Adds the threads of a run up. Lanes halve the pixels between them while more than one is left, so each exchange
// carries only what its receiver keeps; afterwards sum[0] is complete for pixel `owned_pixel()`.
__device__ inline void reduce(Accumulator (&sum)[PIXELS][WINDOW]) {
#pragma unroll
  for (int distance = LANES / 2, live = PIXELS; distance > 0; distance /= 2) {
    if (live > 1) {
      live /= 2;
      const bool upper = threadIdx.x & distance;
#pragma unroll
      for (int p = 0; p < PIXELS / 2; ++p)
        if (p < live)
#pragma unroll
          for (int k = 0; k < WINDOW; ++k) {
            const Accumulator give = upper ? sum[p][k] : sum[p + live][k];
            const Accumulator keep = upper ? sum[p + live][k] : sum[p][k];
            sum[p][k] = keep + __shfl_xor_sync(0xffffffffu, give, distance);
          }
    } else {
#pragma unroll
      for (int k = 0; k < WINDOW; ++k) sum[0][k] += __shfl_xor_sync(0xffffffffu, sum[0][k], distance);
    }
  }
}

#define OWNERS (LANES / PIXELS)  // lanes that hold the same complete window
__device__ inline int owned_pixel() { return threadIdx.x % LANES / OWNERS; }
__device__ inline bool owns() { return true; }
// The owners of a window share its K*K stores.
__device__ inline bool stores(int k) { return k % OWNERS == threadIdx.x % OWNERS; }

// Weights of a gather live in shared memory, one set per run.
template <int SOURCES>
struct Weights {
  Accumulator value[GROUPS][SOURCES][PIXELS][WINDOW];
};
#define WEIGHTS_STORAGE __shared__

// Hands the windows that their owners hold to every thread of the run.
__device__ inline void exchange(const Accumulator* owned, Weights<1>& weights) {
  __syncwarp();  // the previous run's readers are done
#pragma unroll
  for (int k = 0; k < WINDOW; ++k)
    if (stores(k)) weights.value[threadIdx.x / LANES][0][owned_pixel()][k] = owned[k];
  __syncwarp();
}

// Fills the weights of a run from weight_of(source, offset, h, w); the threads of the run share the work.
template <int SOURCES, class WeightOf>
__device__ inline void fill(
    const WeightOf& weight_of, const Shape& shape, const Run& run, Weights<SOURCES>& weights) {
  __syncwarp();
  for (int i = threadIdx.x % LANES; i < SOURCES * PIXELS * WINDOW; i += LANES) {
    const int k = i % WINDOW, p = i / WINDOW % PIXELS, s = i / (WINDOW * PIXELS);
    weights.value[threadIdx.x / LANES][s][p][k] =
        run.inside(shape, p) ? weight_of(s, k, run.h, run.w + p * run.step_w) : 0;
  }
  __syncwarp();
}

// out(p) = base(p) + sum over sources s and offsets k of weight[s][p][k] * source_s(p + offset k), all channels.
// A null base or source counts as zero.
template <int SOURCES>
__device__ inline void gather(
    const Element* base, const Element* const (&source)[SOURCES], const Weights<SOURCES>& weights, const Shape& shape,
    const Strides& stride, const Run& run, Element* out) {
  const int group = threadIdx.x / LANES;
  for (Offset c = first_channel(); c < shape.C; c += LANES * VECTOR) {
    Accumulator sum[PIXELS][VECTOR];
#pragma unroll
    for (int p = 0; p < PIXELS; ++p) {
#pragma unroll
      for (int e = 0; e < VECTOR; ++e) sum[p][e] = 0;
      if (base && run.inside(shape, p))
        load(base + run.h * stride.h + (run.w + p * run.step_w) * stride.w + c, sum[p]);
    }
#pragma unroll
    for (int s = 0; s < SOURCES; ++s) {
      if (!source[s]) continue;
#pragma unroll
      for (int i = 0; i < KERNEL_SIZE; ++i) {
        const Offset h = run.h + (i - HALF_WINDOW) * shape.dilation;
        if (h < 0 || h >= shape.H) continue;
#pragma unroll
        for (int j = 0; j < PIXELS + KERNEL_SIZE - 1; ++j) {
          const Offset w = run.w + (j - HALF_WINDOW) * shape.dilation;
          if (w < 0 || w >= shape.W) continue;
          Accumulator v[VECTOR];
          load(source[s] + h * stride.h + w * stride.w + c, v);
#pragma unroll
          for (int p = 0; p < PIXELS; ++p)
            if (j - p >= 0 && j - p < KERNEL_SIZE) {
              const Accumulator weight = weights.value[group][s][p][i * KERNEL_SIZE + j - p];
#pragma unroll
              for (int e = 0; e < VECTOR; ++e) sum[p][e] += weight * v[e];
            }
        }
      }
    }
#pragma unroll
    for (int p = 0; p < PIXELS; ++p)
      if (run.inside(shape, p)) store(sum[p], out + run.h * stride.h + (run.w + p * run.step_w) * stride.w + c);
  }
}

// Copies the run's pixels, all channels.
__device__ inline void copy(
    const Element* from, const Shape& shape, const Strides& stride, const Run& run, Element* to) {
  for (Offset c = first_channel(); c < shape.C; c += LANES * VECTOR)
#pragma unroll
    for (int p = 0; p < PIXELS; ++p)
      if (run.inside(shape, p)) {
        const Offset at = run.h * stride.h + (run.w + p * run.step_w) * stride.w + c;
        *reinterpret_cast<Pack*>(to + at) = *reinterpret_cast<const Pack*>(from + at);
      }
}
