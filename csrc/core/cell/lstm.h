// Hochreiter & Schmidhuber 1997 with forget gates: c' = f c + i g, h' = o tanh(c'). Gates i, f, g, o.
#pragma once

#include "cell.h"

namespace rnnkern {

struct LstmCell {
  static constexpr CellKind kind = CellKind::lstm;
  static constexpr int gates = 4, states = 2, saved = 4;
  static constexpr bool split_gate = false;

  template <class V>
  RNNKERN_HD void forward(const V (&gx)[4], const V (&gh)[4], const V (&s)[2], V (&saved)[4], V (&out)[2]) const {
    out[1] = next_cell(gx, gh, s[1], saved);
    out[0] = hidden(saved[3], out[1]);
  }

  // The same in two steps: c', then h'.
  template <class V>
  RNNKERN_HD static V next_cell(const V (&gx)[4], const V (&gh)[4], V c, V (&saved)[4]) {
    saved[0] = sigmoid_(gx[0] + gh[0]);
    saved[1] = sigmoid_(gx[1] + gh[1]);
    saved[2] = tanh_(gx[2] + gh[2]);
    saved[3] = sigmoid_(gx[3] + gh[3]);
    return saved[1] * c + saved[0] * saved[2];
  }
  template <class V>
  RNNKERN_HD static V hidden(V o, V c) {
    return o * tanh_(c);
  }

  // c' is computed again from the saved gates: nothing else of this step is needed.
  template <class V>
  RNNKERN_HD void backward(const V (&saved)[4], const V (&s)[2], const V (&d_out)[2], V (&dgx)[4], V&,
                           V (&ds)[2]) const {
    V const i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    V const tanh_c = tanh_(f * s[1] + i * g);
    V const d_c = d_out[1] + d_out[0] * o * (V(1) - tanh_c * tanh_c);
    dgx[0] = d_c * g * i * (V(1) - i);
    dgx[1] = d_c * s[1] * f * (V(1) - f);
    dgx[2] = d_c * i * (V(1) - g * g);
    dgx[3] = d_out[0] * tanh_c * o * (V(1) - o);
    ds[0] = V(0);
    ds[1] = d_c * f;
  }

  // h' before a projection, from what forward saved.
  template <class V>
  RNNKERN_HD static V output(const V (&saved)[4], V c) {
    return hidden(saved[3], saved[1] * c + saved[0] * saved[2]);
  }
};

}  // namespace rnnkern
