// Deformable aggregation and its gradients; the formulas are those of __init__.py beside this file.
// Source: Long et al., "Stand-Alone Inter-Frame Attention in Video Models", CVPR 2022 (arXiv 2206.06931).

#include "sampling.cuh"

// attention (pixels, G, K*K), out (pixels, G, C).
KERNEL aggregate(
    const Element* x, const Accumulator* offset, const Accumulator* attention, Element* out, FRAME_PARAMETERS) {
  FOR_EACH_PIXEL {
    for (int64 g = 0; g < G; ++g)
      for (int64 c = LANE_CHANNEL; live && c < C; c += WARP_CHANNELS) {
        Accumulator sum[VECTOR];
#pragma unroll
        for (int e = 0; e < VECTOR; ++e) sum[e] = 0;
        for (int k = 0; k < WINDOW; ++k) {
          Accumulator v[VECTOR];
          value_of(f, x, sample_at(f, p, offset, k), c, v);
          const Accumulator by = attention[(p.row * G + g) * WINDOW + k];
#pragma unroll
          for (int e = 0; e < VECTOR; ++e) sum[e] += by * v[e];
        }
        store(sum, out + (p.row * G + g) * C + c);
      }
  }
}

// Gradients for the attention, (pixels, G, K*K), and the offsets, (pixels, K*K, 2).
KERNEL map_gradients(
    const Element* x, const Accumulator* offset, const Accumulator* attention, const Element* gradient,
    Accumulator* out_attention, Accumulator* out_offset, FRAME_PARAMETERS) {
  FOR_EACH_PIXEL {
    for (int k = 0; k < WINDOW; ++k) {
      const Sample s = sample_at(f, p, offset, k);
      Accumulator dy = 0, dx = 0;
      for (int64 g = 0; g < G; ++g) {
        const int64 map = (p.row * G + g) * WINDOW + k;
        Accumulator dots[4];
        const auto passed = [&](int64 c, Accumulator(&v)[VECTOR]) { load(gradient + (p.row * G + g) * C + c, v); };
        corner_dots(f, x, s, 0, C, passed, dots);
        dy += attention[map] * along_y(s, dots);
        dx += attention[map] * along_x(s, dots);
        if (live && threadIdx.x % 32 == 0) out_attention[map] = sample_dot(s, dots);
      }
      if (live && threadIdx.x % 32 == 0) {
        out_offset[(p.row * WINDOW + k) * 2] = dy;
        out_offset[(p.row * WINDOW + k) * 2 + 1] = dx;
      }
    }
  }
}

// Adds the gradient for the features to `out` (pixels, C).
KERNEL key_gradient(
    const Accumulator* offset, const Accumulator* attention, const Element* gradient, Accumulator* out, int64 band,
    FRAME_PARAMETERS) {
  const Frames f = FRAMES;
  const auto passed = [&](const Pixel& p, int k, int64 c, Accumulator(&v)[VECTOR]) {
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) v[e] = 0;
    for (int64 g = 0; g < G; ++g) {
      Accumulator part[VECTOR];
      load(gradient + (p.row * G + g) * C + c, part);
#pragma unroll
      for (int e = 0; e < VECTOR; ++e) v[e] += attention[(p.row * G + g) * WINDOW + k] * part[e];
    }
  };
  spread(f, offset, band, passed, out);
}
