// Types, memory access and reductions shared by the kernels. Needs no header, so NVRTC compiles it anywhere.
//
// Letters: B clips, C channels, T frames, H x W pixels, K window side.
//
// Defined ahead of this text by `Variant.defines` in source.py:
//   DTYPE_FLOAT64 | DTYPE_FLOAT32 | DTYPE_FLOAT16 | DTYPE_BFLOAT16   element type of every tensor
//   KERNEL_SIZE      K, odd
//   CHANNELS_LAST    1: channels are adjacent in memory; 0: any strides, made for adjacent pixels of a row
//   VECTOR           channels that one access moves (channels last: 16 bytes' worth, or 1 where that is unaligned)
//   LANES            threads that share one run of pixels (channels last: along the channels; else 1)
//   SLICES           threads that share the channels of one run of pixels across warps (else 1 for channels last)
//   PIXELS           pixels of a run that one thread computes together, so that their windows share loads
//   PIXELS_BACKWARD  the same in the gradient's gather, which holds three windows of weights
//   THREADS          threads of a block
//   BLOCKS           blocks that should fit on a multiprocessor at once
//   WIDE_OFFSETS     1: offsets within a frame take 64 bits; 0: they fit in 32 (offsets of frames, clips and, where they
//                    are not adjacent, channels always take 64)

typedef long long int64;
#if WIDE_OFFSETS
typedef int64 Offset;
#else
typedef int Offset;
#endif

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

// float16 and bfloat16 travel as their bits, so neither needs a header; a host compiler brings its own conversions.
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#if defined(DTYPE_FLOAT16)
__device__ inline float widen_bits(unsigned short bits) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(bits));
  return wide;
}
__device__ inline unsigned short narrow_bits(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
#elif defined(DTYPE_BFLOAT16)
__device__ inline float widen_bits(unsigned short bits) { return __uint_as_float((unsigned int)bits << 16); }
__device__ inline unsigned short narrow_bits(float value) {
  unsigned short bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
#endif
#endif

#if defined(DTYPE_FLOAT64) || defined(DTYPE_FLOAT32)
__device__ inline Accumulator widen(Element value) { return value; }
__device__ inline Element narrow(Accumulator value) { return value; }
#else
__device__ inline float widen(Element value) { return widen_bits(value.bits); }
__device__ inline Element narrow(float value) { return Element{narrow_bits(value)}; }
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

__device__ inline Offset ceil_div(Offset a, Offset b) { return (a + b - 1) / b; }

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
  int64 B, T;
  Offset C, H, W, dilation;
};

// Strides of a tensor, in elements. b, c, t step between frames or planes; h, w within one.
struct Strides {
  int64 b, c, t;
  Offset h, w;
};

// Maps (B, rows, T, H, W) with strides of their own; their second stride steps over window offsets.
template <class Value>
struct Maps {
  Value* data;
  Strides stride;
  __device__ Value& at(int64 b, int k, int64 t, Offset h, Offset w) const {
    return data[b * stride.b + k * stride.c + t * stride.t + (h * stride.h + w * stride.w)];
  }
};

// A run of pixels (h + p * step_h, w + p * step_w), p = 0, 1, ..., in frame t of clip b. Runs step by the dilation, so
// that the windows of neighbours in a run overlap whatever the dilation is. Pixels may lie outside the frame.
struct Run {
  int64 b, t;
  Offset h, w, step_h, step_w;
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
