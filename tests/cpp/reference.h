// A recurrent layer by definition: loops over steps, rows and units, in whatever scalar type. With numbers that record
// their making in the place of doubles, the same loops give exact derivatives: no backward pass is written here. It
// mirrors rnnkern/reference.py for one direction, and shares nothing with the library's kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "types.h"

namespace reference {

inline double tanh_of(double x) { return std::tanh(x); }
inline double sigmoid_of(double x) { return 1 / (1 + std::exp(-x)); }
// The smallest |x| that relu has seen: how far its inputs stayed from where its derivative jumps.
inline double nearest_kink = std::numeric_limits<double>::infinity();
inline double relu_of(double x) {
  nearest_kink = std::min(nearest_kink, std::abs(x));
  return x > 0 ? x : 0;
}

// A number that remembers what it was made from. The tape holds, for every number made, up to two earlier ones and the
// derivatives in them, or that it is a dot product; read backwards, it gives the derivatives in all numbers at once.
struct Traced {
  struct Node {
    int32_t from[2];  // dot product: kDot, and its index
    double slope[2];
  };
  struct Vector {
    std::vector<double> v;
    std::vector<int32_t> node;
  };
  struct Dot {
    const Traced* weights;
    size_t vector, first, count;
  };
  static constexpr int32_t kDot = -2;
  static inline std::vector<Node> tape;
  static inline std::vector<Vector> vectors;
  static inline std::vector<Dot> dots;

  double v = 0;
  int32_t node = -1;  // a constant
  Traced() = default;
  Traced(double value) : v(value) {}
  Traced(double value, Traced a, double slope_a) : v(value) {
    if (a.node >= 0) record({{a.node, -1}, {slope_a, 0}});
  }
  Traced(double value, Traced a, double slope_a, Traced b, double slope_b) : v(value) {
    if (a.node >= 0 || b.node >= 0) record({{a.node, b.node}, {slope_a, slope_b}});
  }
  static Traced variable(double value) {
    Traced result(value);
    result.record({{-1, -1}, {0, 0}});
    return result;
  }
  static Traced dot(double value, const Dot& product) {
    Traced result(value);
    result.record({{kDot, static_cast<int32_t>(dots.size())}, {0, 0}});
    dots.push_back(product);
    return result;
  }
  // Derivatives of everything, from those of the last numbers that `d` starts with.
  static void pull_back(std::vector<double>& d) {
    for (size_t i = d.size(); i-- > 0;) {
      const Node& node = tape[i];
      if (node.from[0] == kDot) {
        const Dot& dot = dots[node.from[1]];
        const Vector& vector = vectors[dot.vector];
        for (size_t j = 0; j < dot.count && d[i] != 0; ++j) {
          d[dot.weights[j].node] += d[i] * vector.v[dot.first + j];
          if (vector.node[dot.first + j] >= 0) d[vector.node[dot.first + j]] += d[i] * dot.weights[j].v;
        }
        continue;
      }
      for (int side = 0; side < 2; ++side) {
        if (node.from[side] >= 0) d[node.from[side]] += d[i] * node.slope[side];
      }
    }
  }

 private:
  void record(Node entry) {
    node = static_cast<int32_t>(tape.size());
    tape.push_back(entry);
  }
};

inline Traced operator+(Traced a, Traced b) { return {a.v + b.v, a, 1, b, 1}; }
inline Traced operator-(Traced a, Traced b) { return {a.v - b.v, a, 1, b, -1}; }
inline Traced operator*(Traced a, Traced b) { return {a.v * b.v, a, b.v, b, a.v}; }
inline Traced tanh_of(Traced x) {
  double const y = std::tanh(x.v);
  return {y, x, 1 - y * y};
}
inline Traced sigmoid_of(Traced x) {
  double const y = sigmoid_of(x.v);
  return {y, x, y * (1 - y)};
}
inline Traced relu_of(Traced x) { return x.v > 0 ? x : Traced(0); }

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
inline double tolerance(rnnkern::Dtype dtype, bool tf32 = false) {
  if (tf32) return 1e-3;
  switch (dtype) {
    case rnnkern::Dtype::float64: return 1e-12;
    case rnnkern::Dtype::float32: return 5e-6;
    case rnnkern::Dtype::bfloat16: return 8e-3;
    case rnnkern::Dtype::float16: break;
  }
  return 1e-3;
}

namespace detail {

// A vector that many dot products share.
template <class S>
struct Operand;
template <>
struct Operand<double> {
  explicit Operand(const std::vector<double>& of) : values(of) {}
  double dot(const double* weights, size_t first, size_t count) const {
    double sum = 0;
    for (size_t j = 0; j < count; ++j) sum += weights[j] * values[first + j];
    return sum;
  }
  const std::vector<double>& values;
};
template <>
struct Operand<Traced> {  // the weights are variables
  explicit Operand(const std::vector<Traced>& of) : index(Traced::vectors.size()) {
    Traced::Vector& vector = Traced::vectors.emplace_back();
    for (Traced value : of) vector.v.push_back(value.v), vector.node.push_back(value.node);
  }
  Traced dot(const Traced* weights, size_t first, size_t count) const {
    double sum = 0;
    const Traced::Vector& vector = Traced::vectors[index];
    for (size_t j = 0; j < count; ++j) sum += weights[j].v * vector.v[first + j];
    return Traced::dot(sum, {weights, index, first, count});
  }
  size_t index;
};

// (w_hh of one gate) times `operand`, one unit's sum.
template <class S>
S recurrent(const Setting& s, const std::vector<S>& w, int64_t gate, int64_t unit, const Operand<S>& operand) {
  int64_t const width = s.R() / s.heads, head = s.heads == 1 ? 0 : unit / (s.H / s.heads);
  return operand.dot(&w[(gate * s.H + unit) * width], head * width, width);
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
      detail::Operand<S> const multiplied(operand);

      // The sums of all gates, the input's and the recurrent ones apart.
      std::vector<S> gx(G * s.H), gh(G * s.H);
      for (int64_t i = 0; i < G * s.H; ++i) {
        gx[i] = in.of[b_ih][i];
        for (int64_t j = 0; j < s.I; ++j) gx[i] = gx[i] + in.of[w_ih][i * s.I + j] * in.of[x][row * s.I + j];
        gh[i] = in.of[b_hh][i] + detail::recurrent(s, in.of[w_hh], i / s.H, i % s.H, multiplied);
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
        detail::Operand<S> const reset_multiplied(reset_operand);
        for (int64_t u = 0; u < s.H; ++u) {
          int64_t const i = 2 * s.H + u;
          S const z = sigmoid_of(gx[s.H + u] + gh[s.H + u]);
          S const sum = s.cell == CellKind::gru
                            ? gx[i] + r[u] * gh[i]
                            : gx[i] + in.of[b_hh][i] + detail::recurrent(s, in.of[w_hh], 2, u, reset_multiplied);
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

// The gradients of sum(d_out * out) in all inputs.
inline Inputs<double> gradients(const Setting& s, const Inputs<double>& in, const Outputs<double>& d_out) {
  Traced::tape.clear(), Traced::vectors.clear(), Traced::dots.clear();
  Inputs<Traced> at;
  for (int i = 0; i < kInputs; ++i) {
    for (double value : in.of[i]) at.of[i].push_back(Traced::variable(value));
  }
  Outputs<Traced> const out = layer(s, at);
  std::vector<double> d(Traced::tape.size());
  for (int o = 0; o < kOutputs; ++o) {
    for (size_t k = 0; k < d_out.of[o].size(); ++k) {
      if (out.of[o][k].node >= 0) d[out.of[o][k].node] += d_out.of[o][k];
    }
  }
  Traced::pull_back(d);
  Inputs<double> result;
  for (int i = 0; i < kInputs; ++i) {
    for (Traced value : at.of[i]) result.of[i].push_back(d[value.node]);
  }
  return result;
}

}  // namespace reference
