// Types, memory access and reductions shared by the kernels. Needs no header, so NVRTC compiles it anywhere.
//
// Letters: B clips, C channels, T frames, H x W pixels, K window side.
//
// Defined ahead of this text by dtf/ops/cuda/source.py:
//   DTYPE_FLOAT64 | DTYPE_FLOAT32 | DTYPE_FLOAT16 | DTYPE_BFLOAT16   element type of every tensor
//   KERNEL_SIZE      K, odd
//   CHANNELS_LAST    1: channels are adjacent in memory; 0: any strides, made for adjacent pixels of a row
//   VECTOR           channels that one access moves (channels last: 16 bytes' worth, or 1 where that is unaligned)
//   LANES            threads that share one run of pixels (channels last: along the channels; else 1)
//   SLICES           threads that share the channels of one run of pixels across warps (else 1 for channels last)
//   PIXELS           pixels of a run that one thread computes together, so that their windows share loads
//   PIXELS_BACKWARD  the same in the gradient's gather, which holds three windows of weights
//   THREADS          threads of a block
#pragma once

typedef long long int64;

#define WINDOW (KERNEL_SIZE * KERNEL_SIZE)
#define HALF_WINDOW ((KERNEL_SIZE - 1) / 2)

#if defined(DTYPE_FLOAT64)
typedef double Element;
typedef double Accumulator;
#elif defined(DTYPE_FLOAT32)
typedef float Element;
typedef float Accumulator;
#else
struct Element {
  unsigned short bits;
};
typedef float Accumulator;
#endif

#if defined(__CUDACC_RTC__) || defined(__CUDACC__)
#if defined(DTYPE_FLOAT16)
__device__ inline float widen(Element value) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
}
__device__ inline Element narrow(float value) {
  Element element;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(element.bits) : "f"(value));
  return element;
}
#elif defined(DTYPE_BFLOAT16)
__device__ inline float widen(Element value) { return __uint_as_float((unsigned int)value.bits << 16); }
__device__ inline Element narrow(float value) {
  Element element;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(element.bits) : "f"(value));
  return element;
}
#endif
#endif

#if defined(DTYPE_FLOAT64) || defined(DTYPE_FLOAT32)
__device__ inline Accumulator widen(Element value) { return value; }
__device__ inline Element narrow(Accumulator value) { return value; }
#endif
#if !defined(DTYPE_FLOAT64)
// Maps kept between two kernels are not rounded to the element type.
__device__ inline double widen(double value) { return value; }
#endif
#if !defined(DTYPE_FLOAT32)
__device__ inline float widen(float value) { return value; }
#endif

__device__ inline float exponential(float value) { return expf(value); }
__device__ inline double exponential(double value) { return exp(value); }

__device__ inline int64 ceil_div(int64 a, int64 b) { return (a + b - 1) / b; }

struct alignas(VECTOR * sizeof(Element)) Pack {
  Element element[VECTOR];
};

__device__ inline void load(const Element* from, Accumulator* to) {
  const Pack pack = *reinterpret_cast<const Pack*>(from);
#pragma unroll
  for (int e = 0; e < VECTOR; ++e) to[e] = widen(pack.element[e]);
}

__device__ inline void store(const Accumulator* from, Element* to) {
  Pack pack;
#pragma unroll
  for (int e = 0; e < VECTOR; ++e) pack.element[e] = narrow(from[e]);
  *reinterpret_cast<Pack*>(to) = pack;
}

struct Shape {
  int64 B, C, T, H, W, dilation;
};

struct Strides {
  int64 b, c, t, h, w;
};

// Maps (B, rows, T, H, W) with strides of their own; their second stride steps over window offsets.
template <class Value>
struct Maps {
  Value* data;
  Strides stride;
  __device__ Value& at(int64 b, int64 k, int64 t, int64 h, int64 w) const {
    return data[b * stride.b + k * stride.c + t * stride.t + h * stride.h + w * stride.w];
  }
};

// A run of pixels (h + p * step_h, w + p * step_w), p = 0, 1, ..., in frame t of clip b. Runs step by the dilation, so
// that the windows of neighbours in a run overlap whatever the dilation is. Pixels may lie outside the frame.
struct Run {
  int64 b, t, h, w, step_h, step_w;
  __device__ bool inside(const Shape& shape, int p) const {
    return h + p * step_h < shape.H && w + p * step_w < shape.W;
  }
};

// Softmax of one window in registers.
__device__ inline void softmax(const Accumulator* logits, Accumulator* weights) {
  Accumulator largest = logits[0];
#pragma unroll
  for (int k = 1; k < WINDOW; ++k) largest = logits[k] > largest ? logits[k] : largest;
  Accumulator total = 0;
#pragma unroll
  for (int k = 0; k < WINDOW; ++k) {
    weights[k] = exponential(logits[k] - largest);
    total += weights[k];
  }
#pragma unroll
  for (int k = 0; k < WINDOW; ++k) weights[k] /= total;
}
