// Cho et al. 2014. Gates r, z, n; h' = (1 - z) n + z h.
//   GruCell    n = tanh(gx_n + r gh_n): the reset gate after the product, as in cuDNN and torch; saves r, z, n, gh_n
//   GruV1Cell  n = tanh(gx_n + W_hn (r h)): the reset gate before it, in two stages; saves r, z, n
#pragma once

#include "cell.h"

namespace rnnkern {

struct GruCell {
  static constexpr CellKind kind = CellKind::gru;
  static constexpr int gates = 3, states = 1, saved = 4;
  static constexpr bool split_gate = true;

  template <class V>
  RNNKERN_HD void forward(const V (&gx)[3], const V (&gh)[3], const V (&s)[1], V (&saved)[4], V (&out)[1]) const {
    V const r = sigmoid_(gx[0] + gh[0]);
    V const z = sigmoid_(gx[1] + gh[1]);
    V const n = tanh_(gx[2] + r * gh[2]);
    saved[0] = r, saved[1] = z, saved[2] = n, saved[3] = gh[2];
    out[0] = (V(1) - z) * n + z * s[0];
  }

  template <class V>
  RNNKERN_HD void backward(const V (&saved)[4], const V (&s)[1], const V (&d_out)[1], V (&dgx)[3], V& d_split,
                           V (&ds)[1]) const {
    V const r = saved[0], z = saved[1], n = saved[2];
    dgx[2] = d_out[0] * (V(1) - z) * (V(1) - n * n);
    dgx[1] = d_out[0] * (s[0] - n) * z * (V(1) - z);
    dgx[0] = dgx[2] * saved[3] * r * (V(1) - r);
    d_split = dgx[2] * r;
    ds[0] = d_out[0] * z;
  }
};

struct GruV1Cell {
  static constexpr CellKind kind = CellKind::gru_v1;
  static constexpr int gates = 3, states = 1, saved = 3;
  static constexpr bool split_gate = false;

  // First stage: r and z; the second product multiplies r * (what the first one multiplied).
  template <class V>
  RNNKERN_HD static void gate(const V (&gx)[2], const V (&gh)[2], V& r, V& z) {
    r = sigmoid_(gx[0] + gh[0]);
    z = sigmoid_(gx[1] + gh[1]);
  }
  template <class V>
  RNNKERN_HD static void candidate(V gx_n, V gh_n, V z, V h, V& n, V& out) {
    n = tanh_(gx_n + gh_n);
    out = (V(1) - z) * n + z * h;
  }
  // Backward, first stage: the gradients of n's and z's sums, and the direct part of h's.
  template <class V>
  RNNKERN_HD static void candidate_backward(V z, V n, V h, V d_out, V& dg_n, V& dg_z, V& dh) {
    dg_n = d_out * (V(1) - z) * (V(1) - n * n);
    dg_z = d_out * (h - n) * z * (V(1) - z);
    dh = d_out * z;
  }
  // Second stage, given d(r * operand): the gradient of r's sum and the operand's.
  template <class V>
  RNNKERN_HD static void gate_backward(V r, V operand, V d_product, V& dg_r, V& d_operand) {
    dg_r = d_product * operand * r * (V(1) - r);
    d_operand = d_product * r;
  }
};

}  // namespace rnnkern
