// A recurrent layer by definition: loops over steps, rows and units, in whatever scalar type. With Dual numbers in the
// place of doubles the same loops give exact derivatives, so that no backward pass is written here. It mirrors
// rnnkern/reference.py for one direction, and shares nothing with the library's kernels.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "types.h"

namespace reference {

// A value and its derivative along one direction.
struct Dual {
  double v = 0, d = 0;
  Dual() = default;
  Dual(double value, double derivative = 0) : v(value), d(derivative) {}
};

inline Dual operator+(Dual a, Dual b) { return {a.v + b.v, a.d + b.d}; }
inline Dual operator-(Dual a, Dual b) { return {a.v - b.v, a.d - b.d}; }
inline Dual operator*(Dual a, Dual b) { return {a.v * b.v, a.v * b.d + a.d * b.v}; }

inline double tanh_of(double x) { return std::tanh(x); }
inline double sigmoid_of(double x) { return 1 / (1 + std::exp(-x)); }
inline double relu_of(double x) { return x > 0 ? x : 0; }
inline Dual tanh_of(Dual x) {
  double const y = std::tanh(x.v);
  return {y, x.d * (1 - y * y)};
}
inline Dual sigmoid_of(Dual x) {
  double const y = sigmoid_of(x.v);
  return {y, x.d * y * (1 - y)};
}
inline Dual relu_of(Dual x) { return x.v > 0 ? x : Dual(0); }

// Everything of one direction but the numbers that have gradients. Row (t, b) lies at offsets[t] + b.
struct Setting {
  rnnkern::CellKind cell = rnnkern::CellKind::lstm;
  rnnkern::Activation activation = rnnkern::Activation::tanh;
  int64_t T = 0, B = 0, I = 0, H = 0, P = 0, heads = 1;
  bool reverse = false;
  std::vector<int64_t> lengths;  // [B]
  std::vector<int64_t> offsets;  // [T + 1]
  std::vector<char> reset;       // [rows], may be empty, as the masks may
  std::vector<char> zone_h, zone_c;
  std::vector<double> mask;  // [B, R]
  double zoneout = 0;

  int64_t R() const { return P > 0 ? P : H; }
  int64_t G() const { return rnnkern::facts(cell).gates; }
  int64_t rows() const { return offsets.back(); }
  bool live(int64_t t, int64_t b) const { return t >= 0 && t < T && t < lengths[b]; }
};

enum Input { x, w_ih, w_hh, b_ih, b_hh, w_hr, h_0, c_0, kInputs };
enum Output { y, h_n, c_n, cells, kOutputs };
inline const char* const kInputNames[] = {"x", "w_ih", "w_hh", "b_ih", "b_hh", "w_hr", "h_0", "c_0"};
inline const char* const kOutputNames[] = {"y", "h_n", "c_n", "cells"};

template <class S>
struct Inputs {
  std::vector<S> of[kInputs];  // absent biases are zeros, an absent w_hr is empty
};
template <class S>
struct Outputs {
  std::vector<S> of[kOutputs];
};

// The table of rnnkern/reference.py: the error, norm over norm, that a forward result may have; gradients four times
// that.
inline double tolerance(rnnkern::Dtype dtype) {
  switch (dtype) {
    case rnnkern::Dtype::float64: return 1e-12;
    case rnnkern::Dtype::float32: return 5e-6;
    case rnnkern::Dtype::bfloat16: return 8e-3;
    case rnnkern::Dtype::float16: break;
  }
  return 1e-3;
}

namespace detail {

// (w_hh of one gate) times `operand`, one unit's sum.
template <class S>
S recurrent(const Setting& s, const std::vector<S>& w, int64_t gate, int64_t unit, const std::vector<S>& operand) {
  int64_t const width = s.R() / s.heads, head = s.heads == 1 ? 0 : unit / (s.H / s.heads);
  S sum = 0;
  for (int64_t j = 0; j < width; ++j) sum = sum + w[(gate * s.H + unit) * width + j] * operand[head * width + j];
  return sum;
}

template <class S>
S zoned(const std::vector<char>& mask, int64_t index, double share, S fresh, S old) {
  if (!mask.empty()) return mask[index] ? old : fresh;
  return S(share) * old + S(1 - share) * fresh;
}

}  // namespace detail

template <class S>
Outputs<S> layer(const Setting& s, const Inputs<S>& in) {
  using rnnkern::CellKind;
  int64_t const R = s.R(), G = s.G(), rows = s.rows();
  bool const lstm = s.cell == CellKind::lstm;
  Outputs<S> out;
  out.of[y].assign(rows * R, S(0));
  out.of[h_n] = in.of[h_0];
  out.of[c_n] = in.of[c_0];
  out.of[cells].assign(lstm ? rows * s.H : 0, S(0));
  for (int64_t b = 0; b < s.B; ++b) {
    std::vector<S> h(in.of[h_0].begin() + b * R, in.of[h_0].begin() + (b + 1) * R), c(s.H);
    if (lstm) c.assign(in.of[c_0].begin() + b * s.H, in.of[c_0].begin() + (b + 1) * s.H);
    for (int64_t step = 0; step < s.T; ++step) {
      int64_t const t = s.reverse ? s.T - 1 - step : step;
      if (!s.live(t, b)) continue;
      int64_t const row = s.offsets[t] + b;
      bool cut = false;
      if (!s.reset.empty()) cut = s.reverse ? s.live(t + 1, b) && s.reset[s.offsets[t + 1] + b] : s.reset[row];
      if (cut) h.assign(R, S(0)), c.assign(s.H, S(0));
      std::vector<S> operand = h;
      for (int64_t j = 0; j < R && !s.mask.empty(); ++j) operand[j] = h[j] * S(s.mask[b * R + j]);

      // The sums of all gates, the input's and the recurrent ones apart.
      std::vector<S> gx(G * s.H), gh(G * s.H);
      for (int64_t i = 0; i < G * s.H; ++i) {
        gx[i] = in.of[b_ih][i];
        for (int64_t j = 0; j < s.I; ++j) gx[i] = gx[i] + in.of[w_ih][i * s.I + j] * in.of[x][row * s.I + j];
        gh[i] = in.of[b_hh][i] + detail::recurrent(s, in.of[w_hh], i / s.H, i % s.H, operand);
      }
      std::vector<S> fresh(s.H);
      if (s.cell == CellKind::rnn) {
        for (int64_t u = 0; u < s.H; ++u) {
          S const sum = gx[u] + gh[u];
          fresh[u] = s.activation == rnnkern::Activation::tanh   ? tanh_of(sum)
                     : s.activation == rnnkern::Activation::relu ? relu_of(sum)
                                                                 : sigmoid_of(sum);
        }
      } else if (lstm) {
        for (int64_t u = 0; u < s.H; ++u) {
          S sum[4];
          for (int64_t g = 0; g < 4; ++g) sum[g] = gx[g * s.H + u] + gh[g * s.H + u];
          S const c_new = sigmoid_of(sum[1]) * c[u] + sigmoid_of(sum[0]) * tanh_of(sum[2]);
          fresh[u] = sigmoid_of(sum[3]) * tanh_of(c_new);
          c[u] = detail::zoned(s.zone_c, row * s.H + u, s.zoneout, c_new, c[u]);
          out.of[cells][row * s.H + u] = c[u];
        }
      } else {
        std::vector<S> r(s.H), reset_operand(s.H);
        for (int64_t u = 0; u < s.H; ++u) {
          r[u] = sigmoid_of(gx[u] + gh[u]);
          reset_operand[u] = r[u] * operand[u];
        }
        for (int64_t u = 0; u < s.H; ++u) {
          int64_t const i = 2 * s.H + u;
          S const z = sigmoid_of(gx[s.H + u] + gh[s.H + u]);
          S const sum = s.cell == CellKind::gru
                            ? gx[i] + r[u] * gh[i]
                            : gx[i] + in.of[b_hh][i] + detail::recurrent(s, in.of[w_hh], 2, u, reset_operand);
          fresh[u] = (S(1) - z) * tanh_of(sum) + z * h[u];
        }
      }
      if (s.P > 0) {
        std::vector<S> projected(R, S(0));
        for (int64_t p = 0; p < R; ++p) {
          for (int64_t u = 0; u < s.H; ++u) projected[p] = projected[p] + in.of[w_hr][p * s.H + u] * fresh[u];
        }
        fresh = projected;
      }
      for (int64_t j = 0; j < R; ++j) {
        h[j] = detail::zoned(s.zone_h, row * R + j, s.zoneout, fresh[j], h[j]);
        out.of[y][row * R + j] = h[j];
      }
    }
    for (int64_t j = 0; j < R; ++j) out.of[h_n][b * R + j] = h[j];
    for (int64_t u = 0; u < s.H && lstm; ++u) out.of[c_n][b * s.H + u] = c[u];
  }
  return out;
}

// The gradients of sum(d_out * out) in the inputs that are `wanted`, one derivative after the other.
inline Inputs<double> gradients(const Setting& s, const Inputs<double>& in, const Outputs<double>& d_out,
                                const bool (&wanted)[kInputs]) {
  Inputs<Dual> at;
  for (int i = 0; i < kInputs; ++i) at.of[i].assign(in.of[i].begin(), in.of[i].end());
  Inputs<double> result;
  for (int i = 0; i < kInputs; ++i) {
    if (!wanted[i]) continue;
    for (Dual& element : at.of[i]) {
      element.d = 1;
      Outputs<Dual> const out = layer(s, at);
      element.d = 0;
      double sum = 0;
      for (int o = 0; o < kOutputs; ++o) {
        for (size_t k = 0; k < d_out.of[o].size(); ++k) sum += d_out.of[o][k] * out.of[o][k].d;
      }
      result.of[i].push_back(sum);
    }
  }
  return result;
}

}  // namespace reference
