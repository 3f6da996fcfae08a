// The gradient of temporal correlation as the weights of a gather.

#include "window.cuh"

// How frame t of x enters the correlation: as keys of frame t (with the former frame as query), as query of frame
// t + 1, and at t = 0 as its own query.
template <class Value>
struct CorrelationWeights {
  Maps<Value> gradient;
  int first;
  Shape shape;
  int64 b, t;
  __device__ Accumulator as_key(int k, Offset h, Offset w) const {
    Accumulator weight = mirrored(gradient, shape, b, first, k, t, h, w);
    if (t == 0) weight += widen(gradient.at(b, first + k, 0, h, w));
    return weight / shape.C;
  }
  __device__ Accumulator as_query(int k, Offset h, Offset w) const {
    return t + 1 < shape.T ? widen(gradient.at(b, first + k, t + 1, h, w)) / shape.C : Accumulator(0);
  }
  __device__ Accumulator operator()(int source, int k, Offset h, Offset w) const {
    return source == 0 ? as_key(k, h, w) : as_query(k, h, w);
  }
};
