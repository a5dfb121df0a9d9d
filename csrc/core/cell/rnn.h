// Elman 1990: h' = act(gx + gh). The activation is chosen at run time.
#pragma once

#include "cell.h"

namespace rnnkern {

struct RnnCell {
  static constexpr CellKind kind = CellKind::rnn;
  static constexpr int gates = 1, states = 1, saved = 1;
  static constexpr bool split_gate = false;

  Activation activation = Activation::tanh;

  template <class V>
  RNNKERN_HD void forward(const V (&gx)[1], const V (&gh)[1], const V (&)[1], V (&saved)[1], V (&out)[1]) const {
    V const v = gx[0] + gh[0];
    if (activation == Activation::tanh) {
      saved[0] = tanh_(v);
    } else if (activation == Activation::relu) {
      saved[0] = positive(V(0) - v, V(0), v);  // NaN passes
    } else {
      saved[0] = sigmoid_(v);
    }
    out[0] = saved[0];
  }

  template <class V>
  RNNKERN_HD void backward(const V (&saved)[1], const V (&)[1], const V (&d_out)[1], V (&dgx)[1], V&,
                           V (&ds)[1]) const {
    V const h = saved[0];
    if (activation == Activation::tanh) {
      dgx[0] = d_out[0] * (V(1) - h * h);
    } else if (activation == Activation::relu) {
      dgx[0] = positive(h, d_out[0], h * V(0));  // NaN stays; torch.nn passes d_out
    } else {
      dgx[0] = d_out[0] * h * (V(1) - h);
    }
    ds[0] = V(0);
  }
};

}  // namespace rnnkern
