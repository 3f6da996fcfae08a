// Deformable correlation and its gradients; the formulas are those of __init__.py beside this file.
// Source: Long et al., "Stand-Alone Inter-Frame Attention in Video Models", CVPR 2022 (arXiv 2206.06931).
//
// The weight comes as (T, K*K, C), or null for 1 / C.

#include "sampling.cuh"

// The query of a pixel times the weight of tap k.
struct Query {
  Frames f;
  const Element *x, *weight;
  __device__ void scale(int64 t, int k, int64 c, Accumulator (&v)[VECTOR]) const {
    Accumulator by[VECTOR];
    if (weight) load(weight + (t * WINDOW + k) * f.C + c, by);
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) v[e] *= weight ? by[e] : 1 / (Accumulator)f.C;
  }
  __device__ void operator()(const Pixel& p, int k, int64 c, Accumulator (&v)[VECTOR]) const {
    load(x + former_row(f, p) * f.C + c, v);
    scale(p.t, k, c, v);
  }
};

// maps (pixels, G, K*K).
KERNEL correlate(
    const Element* x, const Accumulator* offset, const Element* weight, Accumulator* maps, FRAME_PARAMETERS) {
  FOR_EACH_PIXEL {
    const Query query{f, x, weight};
    for (int64 g = 0; g < G; ++g)
      for (int k = 0; k < WINDOW; ++k) {
        const Sample s = sample_at(f, p, offset, k);
        Accumulator dots[4];
        const auto asked = [&](int64 c, Accumulator(&v)[VECTOR]) { query(p, k, c, v); };
        corner_dots(f, x, s, g * (C / G), (g + 1) * (C / G), asked, dots);
        if (live && threadIdx.x % 32 == 0) maps[(p.row * G + g) * WINDOW + k] = sample_dot(s, dots);
      }
  }
}

// Gradient for the offsets, (pixels, K*K, 2).
KERNEL offset_gradient(
    const Element* x, const Accumulator* offset, const Element* weight, const Accumulator* gradient, Accumulator* out,
    FRAME_PARAMETERS) {
  FOR_EACH_PIXEL {
    const Query query{f, x, weight};
    for (int k = 0; k < WINDOW; ++k) {
      const Sample s = sample_at(f, p, offset, k);
      Accumulator dy = 0, dx = 0;
      for (int64 g = 0; g < G; ++g) {
        Accumulator dots[4];
        const auto asked = [&](int64 c, Accumulator(&v)[VECTOR]) { query(p, k, c, v); };
        corner_dots(f, x, s, g * (C / G), (g + 1) * (C / G), asked, dots);
        const Accumulator by = gradient[(p.row * G + g) * WINDOW + k];
        dy += by * along_y(s, dots);
        dx += by * along_x(s, dots);
      }
      if (live && threadIdx.x % 32 == 0) {
        out[(p.row * WINDOW + k) * 2] = dy;
        out[(p.row * WINDOW + k) * 2 + 1] = dx;
      }
    }
  }
}

// Gradient for the features as queries, (pixels, C): of the next frame's keys, and at t = 0 of its own.
KERNEL query_gradient(
    const Element* x, const Accumulator* offset, const Element* weight, const Accumulator* gradient, Accumulator* out,
    FRAME_PARAMETERS) {
  FOR_EACH_PIXEL {
    const Query query{f, x, weight};
    for (int64 c = LANE_CHANNEL; live && c < C; c += WARP_CHANNELS) {
      Accumulator sum[VECTOR];
#pragma unroll
      for (int e = 0; e < VECTOR; ++e) sum[e] = 0;
      for (int which = 0; which < 2; ++which) {
        if (which == 0 ? p.t > 0 : p.t + 1 >= T) continue;
        const Pixel at = which == 0 ? p : pixel_at(f, p.row + H * W);
        for (int k = 0; k < WINDOW; ++k) {
          Accumulator v[VECTOR];
          value_of(f, x, sample_at(f, at, offset, k), c, v);
          query.scale(at.t, k, c, v);
          const Accumulator by = gradient[(at.row * G + c / (C / G)) * WINDOW + k];
#pragma unroll
          for (int e = 0; e < VECTOR; ++e) sum[e] += by * v[e];
        }
      }
#pragma unroll
      for (int e = 0; e < VECTOR; ++e) out[p.row * C + c + e] = sum[e];
    }
  }
}

// Adds the gradient for the features as keys to `out` (pixels, C).
KERNEL key_gradient(
    const Element* x, const Accumulator* offset, const Element* weight, const Accumulator* gradient, Accumulator* out,
    int64 band, FRAME_PARAMETERS) {
  const Frames f = FRAMES;
  const Query query{f, x, weight};
  const auto passed = [&](const Pixel& p, int k, int64 c, Accumulator(&v)[VECTOR]) {
    query(p, k, c, v);
    const Accumulator by = gradient[(p.row * G + c / (C / G)) * WINDOW + k];
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) v[e] *= by;
  };
  spread(f, offset, band, passed, out);
}

// Gradient for the weight, (T, K*K, C): a thread walks over the pixels of its step in all clips.
KERNEL weight_gradient(
    const Element* x, const Accumulator* offset, const Accumulator* gradient, Accumulator* out, FRAME_PARAMETERS) {
  const Frames f = FRAMES;
  const int64 vectors = C / VECTOR, works = T * WINDOW * vectors;
  for (int64 work = (int64)blockIdx.x * THREADS + threadIdx.x; work < works; work += (int64)gridDim.x * THREADS) {
    const int64 c = work % vectors * VECTOR, t = work / vectors / WINDOW;
    const int k = work / vectors % WINDOW;
    Accumulator sum[VECTOR];
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) sum[e] = 0;
    for (int64 b = 0; b < B; ++b)
      for (int64 place = 0; place < H * W; ++place) {
        const Pixel p = pixel_at(f, (b * T + t) * H * W + place);
        Accumulator q[VECTOR], v[VECTOR];
        load(x + former_row(f, p) * C + c, q);
        value_of(f, x, sample_at(f, p, offset, k), c, v);
        const Accumulator by = gradient[(p.row * G + c / (C / G)) * WINDOW + k];
#pragma unroll
        for (int e = 0; e < VECTOR; ++e) sum[e] += by * q[e] * v[e];
      }
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) out[(t * WINDOW + k) * C + c + e] = sum[e];
  }
}
