// Runs CUDA kernels on the CPU, for tests: one block at a time, its threads as fibers of one operating-system thread.
//
// Defines the built-ins that the kernels of dtf/ops/cuda use. Fibers run from one meeting point (barrier or shuffle) to
// the next in turn; a block whose threads meet at different points is reported, where a GPU would hang or misread.
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <utility>

#define __device__
#define __global__
#define __shared__ static
#define __launch_bounds__(...)

struct Index {
  unsigned int x;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

constexpr int kMaxThreads = 1024, kStackBytes = 64 * 1024;
enum Place { kStart, kBlockBarrier, kWarpBarrier, kShuffle, kDone };

struct Fiber {
  jmp_buf resume;
  ucontext_t first;
  Place place;
  long meetings;
  double slot[2];  // a value offered to the warp; two, so that a fast lane does not overwrite what a slow one reads
};

static Fiber fibers[kMaxThreads];
static char* stacks;
static jmp_buf scheduler;
static void (*body)();

inline void meet(Place place) {
  Fiber& fiber = fibers[threadIdx.x];
  fiber.place = place;
  ++fiber.meetings;
  if (!_setjmp(fiber.resume)) _longjmp(scheduler, 1);
}

inline void entry() {
  body();
  fibers[threadIdx.x].place = kDone;
  _longjmp(scheduler, 1);
}

inline void run_block() {
  const unsigned int threads = blockDim.x;
  volatile unsigned int index;
  for (index = 0; index < threads; ++index) {
    Fiber& fiber = fibers[index];
    fiber.place = kStart;
    fiber.meetings = 0;
    getcontext(&fiber.first);
    fiber.first.uc_stack.ss_sp = stacks + size_t(index) * kStackBytes;
    fiber.first.uc_stack.ss_size = kStackBytes;
    fiber.first.uc_link = nullptr;
    makecontext(&fiber.first, entry, 0);
  }
  volatile bool running = true;
  while (running) {
    for (index = 0; index < threads; ++index) {
      if (_setjmp(scheduler)) continue;  // back from this fiber
      threadIdx.x = index;
      if (fibers[index].place == kStart) setcontext(&fibers[index].first);
      _longjmp(fibers[index].resume, 1);
    }
    for (unsigned int i = 1; i < threads; ++i)
      if (fibers[i].place != fibers[0].place || fibers[i].meetings != fibers[0].meetings) {
        fprintf(stderr, "cuda_shim: threads 0 and %u of block %u meet at different points\n", i, blockIdx.x);
        abort();
      }
    running = fibers[0].place != kDone;
  }
}

template <class... Arguments, size_t... I>
void call(void (*kernel)(Arguments...), const int64_t* values, std::index_sequence<I...>) {
  static_assert(((sizeof(Arguments) == 8) && ...), "arguments are 8 bytes each");
  static void (*current)(Arguments...);
  static const int64_t* arguments;
  current = kernel;
  arguments = values;
  // (Argument)value reinterprets pointers and keeps integers.
  body = [] { current((Arguments)(arguments[I])...); };
}

template <class... Arguments>
int launch(void (*kernel)(Arguments...), int64_t grid, int64_t block, const int64_t* values, int64_t count) {
  if (count != sizeof...(Arguments) || block > kMaxThreads) return 1;
  if (!stacks) stacks = (char*)malloc(size_t(kMaxThreads) * kStackBytes);
  call(kernel, values, std::index_sequence_for<Arguments...>{});
  blockDim.x = (unsigned int)block;
  gridDim.x = (unsigned int)grid;
  for (int64_t b = 0; b < grid; ++b) {
    blockIdx.x = (unsigned int)b;
    run_block();
  }
  return 0;
}

}  // namespace shim

inline void __syncthreads() { shim::meet(shim::kBlockBarrier); }
inline void __syncwarp() { shim::meet(shim::kWarpBarrier); }

template <class Value>
Value __shfl_xor_sync(unsigned int, Value value, int distance) {
  shim::Fiber& self = shim::fibers[threadIdx.x];
  const int turn = self.meetings & 1;
  memcpy(&self.slot[turn], &value, sizeof(Value));
  shim::meet(shim::kShuffle);
  Value other;
  memcpy(&other, &shim::fibers[threadIdx.x ^ distance].slot[turn], sizeof(Value));
  return other;
}

// Conversions of the 16-bit types: to nearest, ties to even.
#if defined(DTYPE_FLOAT16)
inline float widen_bits(unsigned short bits) {
  _Float16 half;
  memcpy(&half, &bits, 2);
  return (float)half;
}
inline unsigned short narrow_bits(float value) {
  const _Float16 half = (_Float16)value;
  unsigned short bits;
  memcpy(&bits, &half, 2);
  return bits;
}
#elif defined(DTYPE_BFLOAT16)
inline float widen_bits(unsigned short bits) {
  const uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}
inline unsigned short narrow_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if (value != value) return 0x7fff;
  return (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
#endif

#define CUDA_SHIM_EXPORT(kernel)                                                                          \
  extern "C" int run_##kernel(int64_t grid, int64_t block, const int64_t* values, int64_t count) {        \
    return shim::launch(kernel, grid, block, values, count);                                              \
  }
