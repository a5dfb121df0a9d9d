// The pointwise kernels of stepwise, forward. Each is a functor over (b, unit): the CUDA launcher and the tests' loops
// on the host run the same source. V is the compute type of the storage type T.
#pragma once

#include "../cell/gru.h"
#include "../cell/lstm.h"
#include "../cell/rnn.h"
#include "elements.h"

namespace rnnkern::stepwise {

// h or c on its way through the steps.
template <class T>
struct State {
  using V = compute_t<T>;

  V* value = nullptr;  // [B, width] the state as it stands, never rounded to T
  int64_t width = 0;
  Zoneout<T> zoneout = {};
  T* sequence = nullptr;  // [rows, width], rows `stride` apart: y or the cells; null: not wanted
  int64_t stride = 0;

  RNNKERN_HD V old(const Course& course, int64_t b, int64_t unit) const {
    return course.cut(b) ? V(0) : value[b * width + unit];
  }

  RNNKERN_HD V update(const Course& course, int64_t b, int64_t unit, V fresh, V before) const {
    int64_t const row = course.now.offset + b;
    V const blended = zoneout.blend(row, unit, fresh, before);
    value[b * width + unit] = blended;
    if (sequence != nullptr) store(sequence + row * stride + unit, blended);
    return blended;
  }

  // A row that is not live keeps its state, and its output is zero.
  RNNKERN_HD void skip(const Course& course, int64_t b, int64_t unit) const {
    if (sequence != nullptr) store(sequence + (course.now.offset + b) * stride + unit, V(0));
  }
};

// What w_hh multiplies: h, cut and masked.
template <class T>
struct Operand {
  using V = compute_t<T>;

  T* value = nullptr;       // [B, width]
  const T* mask = nullptr;  // [B, width] recurrent dropout
  int64_t width = 0;

  // h is rounded to T first, as it is in y: backward finds the operand there.
  RNNKERN_HD void write(int64_t b, int64_t unit, V h, bool cut) const {
    int64_t const i = b * width + unit;
    T const rounded = from_compute<T>(cut ? V(0) : h);
    if (mask == nullptr) {
      value[i] = rounded;
    } else {
      store(value + i, to_compute(rounded) * load(mask + i));
    }
  }
};

// h and the operand of the next step.
template <class T>
struct Hidden {
  using V = compute_t<T>;

  State<T> state;
  Operand<T> operand;

  RNNKERN_HD void update(const Course& course, int64_t b, int64_t unit, V fresh, V before) const {
    V const h = state.update(course, b, unit, fresh, before);
    if (course.live(course.after, b)) operand.write(b, unit, h, course.cut_after(b));
  }
};

// Before the first step: states and operand from h_0 and c_0. `course.now` is the first step.
template <class T>
struct Begin {
  Course course;
  Hidden<T> h;
  State<T> c;
  const T* h_0;  // [B, R], null: zero
  const T* c_0;  // [B, H]

  RNNKERN_HD void operator()(int64_t b, int64_t unit) const {
    if (unit < h.state.width) {
      auto const value = load_or_zero(h_0, b * h.state.width + unit);
      h.state.value[b * h.state.width + unit] = value;
      h.operand.write(b, unit, value, course.live(b) && course.cut(b));
    }
    if (unit < c.width) c.value[b * c.width + unit] = load_or_zero(c_0, b * c.width + unit);
  }
};

// After the last step: the final states.
template <class T>
struct Finish {
  State<T> h, c;
  T* h_n;  // [B, R]
  T* c_n;  // [B, H]

  RNNKERN_HD void operator()(int64_t b, int64_t unit) const {
    if (h_n != nullptr && unit < h.width) store(h_n + b * h.width + unit, h.value[b * h.width + unit]);
    if (c_n != nullptr && unit < c.width) store(c_n + b * c.width + unit, c.value[b * c.width + unit]);
  }
};

// The sums of a step: the input's product, where the saved values will be, the recurrent product and the biases.
template <class T>
struct Gates {
  using V = compute_t<T>;

  int64_t hidden = 0;          // H
  int64_t width = 0;           // of a row of `value`
  int64_t first_row = 0;       // where `value` begins
  T* value = nullptr;          // [rows, width] x @ w_ih^T, then what the cell saves
  const V* product = nullptr;  // [B, G*H] operand @ w_hh^T
  int64_t product_width = 0;
  const T* b_ih = nullptr;  // [G*H]
  const T* b_hh = nullptr;

  RNNKERN_HD T* at(int64_t row, int64_t unit, int gate) const {
    return value + (row - first_row) * width + gate * hidden + unit;
  }
  RNNKERN_HD V input(int64_t row, int64_t unit, int gate) const {
    return load(at(row, unit, gate)) + load_or_zero(b_ih, gate * hidden + unit);
  }
  // `column` is the gate's place in the product, where that holds some gates only.
  RNNKERN_HD V recurrent(int64_t b, int64_t unit, int gate, int column) const {
    return product[b * product_width + column * hidden + unit] + load_or_zero(b_hh, gate * hidden + unit);
  }
};

// One step of a cell with one stage.
template <class Cell, class T>
struct ForwardStep {
  using V = compute_t<T>;

  Cell cell;
  Course course;
  Gates<T> gates;
  bool save;  // keep the gates
  Hidden<T> h;
  State<T> c;
  T* unprojected;  // [B, H] h before its projection, which is ProjectedStep's work; null: no projection

  RNNKERN_HD void operator()(int64_t b, int64_t unit) const {
    if (!course.live(b)) {
      if (unprojected == nullptr) h.state.skip(course, b, unit);
      if constexpr (Cell::states == 2) c.skip(course, b, unit);
      return;
    }
    int64_t const row = course.now.offset + b;
    V gx[Cell::gates], gh[Cell::gates], s[Cell::states], saved[Cell::saved], out[Cell::states];
    for (int g = 0; g < Cell::gates; ++g) {
      gx[g] = gates.input(row, unit, g);
      gh[g] = gates.recurrent(b, unit, g, g);
    }
    s[0] = unprojected == nullptr ? h.state.old(course, b, unit) : V(0);
    if constexpr (Cell::states == 2) s[1] = c.old(course, b, unit);
    cell.forward(gx, gh, s, saved, out);
    if (save) {
      for (int k = 0; k < Cell::saved; ++k) store(gates.at(row, unit, k), saved[k]);
    }
    if constexpr (Cell::states == 2) c.update(course, b, unit, out[1], s[1]);
    if (unprojected == nullptr) {
      h.update(course, b, unit, out[0], s[0]);
    } else {
      store(unprojected + b * gates.hidden + unit, out[0]);
    }
  }
};

// Second stage of a step with a projection: h = unprojected @ w_hr^T.
template <class T>
struct ProjectedStep {
  using V = compute_t<T>;

  Course course;
  const V* product;  // [B, P]
  Hidden<T> h;

  RNNKERN_HD void operator()(int64_t b, int64_t unit) const {
    if (!course.live(b)) {
      h.state.skip(course, b, unit);
      return;
    }
    h.update(course, b, unit, product[b * h.state.width + unit], h.state.old(course, b, unit));
  }
};

// gru_v1, first stage: r and z, and what the second product multiplies.
template <class T>
struct GateStep {
  using V = compute_t<T>;

  Course course;
  Gates<T> gates;    // product [B, 2*H]
  const T* operand;  // [B, H]
  T* reset_operand;  // [B, H] r * operand

  RNNKERN_HD void operator()(int64_t b, int64_t unit) const {
    if (!course.live(b)) return;
    int64_t const row = course.now.offset + b, i = b * gates.hidden + unit;
    V gx[2], gh[2], r, z;
    for (int g = 0; g < 2; ++g) {
      gx[g] = gates.input(row, unit, g);
      gh[g] = gates.recurrent(b, unit, g, g);
    }
    GruV1Cell::gate(gx, gh, r, z);
    store(gates.at(row, unit, 0), r);
    store(gates.at(row, unit, 1), z);
    store(reset_operand + i, r * load(operand + i));
  }
};

// gru_v1, second stage: n and the new h.
template <class T>
struct CandidateStep {
  using V = compute_t<T>;

  Course course;
  Gates<T> gates;  // product [B, H]
  Hidden<T> h;

  RNNKERN_HD void operator()(int64_t b, int64_t unit) const {
    if (!course.live(b)) {
      h.state.skip(course, b, unit);
      return;
    }
    int64_t const row = course.now.offset + b;
    V const old = h.state.old(course, b, unit), z = load(gates.at(row, unit, 1));
    V n, fresh;
    GruV1Cell::candidate(gates.input(row, unit, 2), gates.recurrent(b, unit, 2, 0), z, old, n, fresh);
    store(gates.at(row, unit, 2), n);
    h.update(course, b, unit, fresh, old);
  }
};

}  // namespace rnnkern::stepwise
