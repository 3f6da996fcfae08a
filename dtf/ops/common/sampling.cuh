// What kernels over bilinear samples share: places and corners of a sample, and the walk over pixels.
//
// Frames come channels last, (B, T, H, W, C) without gaps, and maps as (B, T, H, W, rows) in the accumulator type. A
// warp takes a pixel, its threads the channels, VECTOR at a time. No two threads add to one number: what is spread over
// a frame is collected by the one warp that owns its rows and channels, so results do not depend on the order of
// threads.
//
// Arguments are 8 bytes each: pointers and 64-bit integers. A grid of any size covers the work.

#include "window.cuh"

#define LANE_CHANNEL ((Offset)(threadIdx.x % 32) * VECTOR)
#define WARP_CHANNELS (32 * VECTOR)
#define WARPS (THREADS / 32)
#define FRAME_PARAMETERS int64 G, int64 B, int64 C, int64 T, int64 H, int64 W, int64 dilation
#define FRAMES \
  Frames { B, C, T, H, W, G, dilation }

struct Frames {
  int64 B, C, T, H, W, G, dilation;
  __device__ int64 pixels() const { return B * T * H * W; }
};

// A pixel of a frame; `row` counts all of them.
struct Pixel {
  int64 row, frame;  // frame = b * T + t
  int64 t, h, w;
};

__device__ inline Pixel pixel_at(const Frames& f, int64 row) {
  const int64 frame = row / (f.H * f.W), place = row % (f.H * f.W);
  return Pixel{row, frame, frame % f.T, place / f.W, place % f.W};
}

// The row of the same pixel of the former frame.
__device__ inline int64 former_row(const Frames& f, const Pixel& p) { return p.t > 0 ? p.row - f.H * f.W : p.row; }

// Loops over pixels, a warp each. The threads of a block come here together: beyond the last pixel they repeat it, and
// `live` is false.
#define FOR_EACH_PIXEL                                                                                       \
  const Frames f = FRAMES;                                                                                   \
  for (int64 work = (int64)blockIdx.x * WARPS; work < f.pixels(); work += (int64)gridDim.x * WARPS)          \
    for (bool live = work + threadIdx.x / 32 < f.pixels(), once = true; once; once = false)                  \
      for (Pixel p = pixel_at(f, live ? work + threadIdx.x / 32 : f.pixels() - 1); once; once = false)

// One coordinate of a sample: the first of its two neighbours, the share of the second, whether it is near the frame.
struct Coordinate {
  int64 first;
  Accumulator share;
  bool near;
};

__device__ inline Accumulator floor_of(Accumulator v) {
#if defined(DTYPE_FLOAT64)
  return floor(v);
#else
  return floorf(v);
#endif
}

// The offset is split before the coordinate is added, so nothing is lost of it. Farther than `far` all is outside.
__device__ inline Coordinate coordinate(int64 start, Accumulator offset, int64 size) {
  const Accumulator far = 1073741824;
  const Accumulator bounded = offset > far ? far : offset > -far ? offset : -far;
  const Accumulator whole = floor_of(bounded);
  const int64 first = start + (int64)whole;
  const Accumulator share = offset - whole;
  return Coordinate{first, share, (first >= 0 || (first == -1 && share > 0)) && first < size};
}

struct Sample {
  int64 row[4];  // of the corners, -1 outside the frame
  Accumulator share_y, share_x;
  __device__ Accumulator weight(int j) const {
    return (j & 2 ? share_y : 1 - share_y) * (j & 1 ? share_x : 1 - share_x);
  }
};

// The sample of tap k at a pixel; `offset` is (pixels, K*K, 2).
__device__ inline Sample sample_at(const Frames& f, const Pixel& p, const Accumulator* offset, int k) {
  const Accumulator* own = offset + (p.row * WINDOW + k) * 2;
  const Coordinate y = coordinate(p.h + (k / KERNEL_SIZE - HALF_WINDOW) * f.dilation, own[0], f.H);
  const Coordinate x = coordinate(p.w + (k % KERNEL_SIZE - HALF_WINDOW) * f.dilation, own[1], f.W);
  Sample sample;
  sample.share_y = y.share;
  sample.share_x = x.share;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int64 h = y.first + (j >> 1), w = x.first + (j & 1);
    const bool inside = y.near && x.near && h >= 0 && h < f.H && w >= 0 && w < f.W;
    sample.row[j] = inside ? (p.frame * f.H + h) * f.W + w : -1;
  }
  return sample;
}

// The sample's value of VECTOR channels from c on.
__device__ inline void value_of(const Frames& f, const Element* x, const Sample& s, int64 c, Accumulator (&v)[VECTOR]) {
#pragma unroll
  for (int e = 0; e < VECTOR; ++e) v[e] = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j)
    if (s.row[j] >= 0) {
      Accumulator corner[VECTOR];
      load(x + s.row[j] * f.C + c, corner);
#pragma unroll
      for (int e = 0; e < VECTOR; ++e) v[e] += s.weight(j) * corner[e];
    }
}

// dots[j] = sum over the channels of [first, last) of u(c) * corner j, in every thread of the warp; u fills VECTOR
// values.
template <class U>
__device__ inline void corner_dots(
    const Frames& f, const Element* x, const Sample& s, int64 first, int64 last, const U& u, Accumulator (&dots)[4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) dots[j] = 0;
  for (int64 c = first + LANE_CHANNEL; c < last; c += WARP_CHANNELS) {
    Accumulator with[VECTOR];
    u(c, with);
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (s.row[j] >= 0) {
        Accumulator corner[VECTOR];
        load(x + s.row[j] * f.C + c, corner);
#pragma unroll
        for (int e = 0; e < VECTOR; ++e) dots[j] += with[e] * corner[e];
      }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j)
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) dots[j] += __shfl_xor_sync(0xffffffffu, dots[j], distance);
}

__device__ inline Accumulator sample_dot(const Sample& s, const Accumulator (&dots)[4]) {
  return s.weight(0) * dots[0] + s.weight(1) * dots[1] + s.weight(2) * dots[2] + s.weight(3) * dots[3];
}

// Derivatives of `sample_dot` by the two coordinates; corners outside have dots of zero.
__device__ inline Accumulator along_y(const Sample& s, const Accumulator (&dots)[4]) {
  return (1 - s.share_x) * (dots[2] - dots[0]) + s.share_x * (dots[3] - dots[1]);
}
__device__ inline Accumulator along_x(const Sample& s, const Accumulator (&dots)[4]) {
  return (1 - s.share_y) * (dots[1] - dots[0]) + s.share_y * (dots[3] - dots[2]);
}

// Adds u(p, k, c) to the four corners of every sample, in `out` (pixels, C). A warp owns `band` rows of a frame and
// WARP_CHANNELS channels of them; it walks over all samples of the frame, in order.
template <class U>
__device__ inline void spread(const Frames& f, const Accumulator* offset, int64 band, const U& u, Accumulator* out) {
  const int64 bands = (f.H + band - 1) / band, chunks = (f.C + WARP_CHANNELS - 1) / WARP_CHANNELS;
  const int64 works = f.B * f.T * bands * chunks;
  for (int64 work = (int64)blockIdx.x * WARPS + threadIdx.x / 32; work < works; work += (int64)gridDim.x * WARPS) {
    const int64 c = work % chunks * WARP_CHANNELS + LANE_CHANNEL, frame = work / chunks / bands;
    const int64 top = frame * f.H + work / chunks % bands * band;
    const int64 bottom = top + band < (frame + 1) * f.H ? top + band : (frame + 1) * f.H;
    if (c >= f.C) continue;
    for (int64 place = 0; place < f.H * f.W; ++place) {
      const Pixel p = pixel_at(f, frame * f.H * f.W + place);
      for (int k = 0; k < WINDOW; ++k) {
        const Sample s = sample_at(f, p, offset, k);
        bool mine[4], any = false;
#pragma unroll
        for (int j = 0; j < 4; ++j) any |= mine[j] = s.row[j] >= top * f.W && s.row[j] < bottom * f.W;
        if (!any) continue;
        Accumulator with[VECTOR];
        u(p, k, c, with);
#pragma unroll
        for (int j = 0; j < 4; ++j)
          if (mine[j])
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) out[s.row[j] * f.C + c + e] += s.weight(j) * with[e];
      }
    }
  }
}
