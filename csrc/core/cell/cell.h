// The contract of a cell: pure arithmetic on one hidden unit, written once and compiled for double, for SIMD vectors
// and for CUDA. `V` is the value type, always the compute type (float for 16-bit storage). It offers + - * and, found
// by argument-dependent lookup or in this namespace: tanh_(v), sigmoid_(v), select(v > 0, a, b) as `positive(v, a, b)`.
//
// Every cell defines
//   forward(gx[G], gh[G], s[S], saved[K], out[S])        gx, gh: input's and recurrent products, biases included
//   backward(saved[K], s[S], d_out[S], dgx[G], d_split, ds[S])
// where s is the state before the step (h, then c), dgx the gradients of gx, d_split that of gh's last gate where the
// cell says that it differs, and ds the part of the state's gradient that does not pass through the recurrent product.
#pragma once

#include <cmath>

#include "../host_device.h"
#include "../types.h"

namespace rnnkern {

// On a GPU these two are what a step waits for, so they have no branches and no slow paths. tanh is v p(v^2) / q(v^2),
// the least largest relative error on [-9, 9], 2.1e-8 beside that of rounding (Remez), which may not lead beyond 1.
// From 9.4 to the limit the quotient is more than 1, so that tanh is 1 there, and its derivative zero.
RNNKERN_HD float tanh_(float v) {
#if defined(__CUDA_ARCH__)
  float const y = fminf(fabsf(v), 10.0f), square = y * y;
  float p = 1.3354708254e-8f, q = 7.77657711381e-7f;
  p = fmaf(p, square, 2.06091146863e-5f), q = fmaf(q, square, 0.000328563794494f);
  p = fmaf(p, square, 0.00349558998706f), q = fmaf(q, square, 0.0258769891234f);
  p = fmaf(p, square, 0.133810271537f), q = fmaf(q, square, 0.467143427436f);
  p = fmaf(p, square, 0.999999979451f), q = fmaf(q, square, 1.0f);
  float const tanh = copysignf(__saturatef(__fdividef(y * p, q)), v);
  return v == v ? tanh : v;  // the limits lose a NaN
#else
  return tanhf(v);
#endif
}
RNNKERN_HD double tanh_(double v) { return tanh(v); }
RNNKERN_HD float sigmoid_(float v) {
#if defined(__CUDA_ARCH__)
  return __fdividef(1.0f, 1.0f + __expf(-v));
#else
  return 1.0f / (1.0f + expf(-v));
#endif
}
RNNKERN_HD double sigmoid_(double v) { return 1.0 / (1.0 + exp(-v)); }
// a where v > 0; b where not, and for NaN.
RNNKERN_HD float positive(float v, float a, float b) { return v > 0 ? a : b; }
RNNKERN_HD double positive(double v, double a, double b) { return v > 0 ? a : b; }

}  // namespace rnnkern
