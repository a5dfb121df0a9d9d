// The pointwise kernels of stepwise, backward: functors over (b, unit), as in forward.cuh.
//
// A step's d_h is whole only once the recurrent product of the step after it is added. That product is left to the next
// kernel, which has the same b and unit at hand: a step is then one kernel and one product.
#pragma once

#include "../cell/gru.h"
#include "../cell/lstm.h"
#include "../cell/rnn.h"
#include "elements.h"

namespace rnnkern::stepwise {

// Where the gradients of a cell's sums lie in a row of d_gates. `gru` has four: n's sums of the input and of the
// recurrent product differ. [n of the input, r, z, n of the recurrent product] leaves w_hh's three side by side, in its
// order.
template <class Cell>
struct GateColumns {
  static constexpr int count = Cell::gates + (Cell::split_gate ? 1 : 0);
  static constexpr int recurrent = Cell::split_gate ? 1 : 0;                       // first of w_hh's
  static constexpr int shared = Cell::split_gate ? Cell::gates - 1 : Cell::gates;  // gates of w_ih that w_hh shares
};

// The gradient of h on its way back.
template <class T>
struct HiddenGradient {
  using V = compute_t<T>;

  V* value = nullptr;          // [B, width] all but the recurrent product of the step after
  const V* product = nullptr;  // [B, width] d_gates @ w_hh of the step after; null: there was none
  const T* mask = nullptr;     // [B, width] recurrent dropout
  int64_t width = 0;
  Zoneout<T> zoneout = {};
  const T* d_y = nullptr;  // [rows, width], rows `stride` apart; null: zero
  int64_t stride = 0;

  // What the step after passes back to the state before it.
  RNNKERN_HD V passed(const Course& course, int64_t b, int64_t unit) const {
    int64_t const i = b * width + unit;
    V const rest = value[i];
    if (product == nullptr || !course.live(course.after, b) || course.cut_after(b)) return rest;
    return rest + (mask == nullptr ? product[i] : product[i] * load(mask + i));
  }

  // For a live row: the gradient of this step's new h, and what zoneout passes straight to the old one.
  RNNKERN_HD void split(const Course& course, int64_t b, int64_t unit, V& d_fresh, V& d_old) const {
    int64_t const row = course.now.offset + b;
    zoneout.split(row, unit, passed(course, b, unit) + load_or_zero(d_y, row * stride + unit), d_fresh, d_old);
  }

  // For a row that is not live: the gradient waits for the row's last step.
  RNNKERN_HD void hold(const Course& course, int64_t b, int64_t unit) const {
    value[b * width + unit] = passed(course, b, unit);
  }

  RNNKERN_HD void pass(const Course& course, int64_t b, int64_t unit, V d_old) const {
    value[b * width + unit] = course.cut(b) ? V(0) : d_old;
  }
};

// The gradient of c on its way back.
template <class T>
struct CellGradient {
  using V = compute_t<T>;

  V* value = nullptr;  // [B, H]
  int64_t width = 0;
  Zoneout<T> zoneout = {};
  const T* d_cells = nullptr;  // [rows, H]; null: zero
};

// Before the sweep: gradients of the final states.
template <class T>
struct BeginBackward {
  HiddenGradient<T> h;
  CellGradient<T> c;
  const T* d_h_n;  // [B, R], null: zero
  const T* d_c_n;  // [B, H]

  RNNKERN_HD void operator()(int64_t b, int64_t unit) const {
    if (unit < h.width) h.value[b * h.width + unit] = load_or_zero(d_h_n, b * h.width + unit);
    if (unit < c.width) c.value[b * c.width + unit] = load_or_zero(d_c_n, b * c.width + unit);
  }
};

// After the sweep: gradients of the initial states. `course.after` is the first step, `course.now` lies before it.
template <class T>
struct FinishBackward {
  Course course;
  HiddenGradient<T> h;
  CellGradient<T> c;
  T* d_h_0;  // [B, R], null: not wanted
  T* d_c_0;  // [B, H]

  RNNKERN_HD void operator()(int64_t b, int64_t unit) const {
    if (d_h_0 != nullptr && unit < h.width) store(d_h_0 + b * h.width + unit, h.passed(course, b, unit));
    if (d_c_0 != nullptr && unit < c.width) store(d_c_0 + b * c.width + unit, c.value[b * c.width + unit]);
  }
};

// With a projection, before BackwardStep: the gradient of the projected h.
template <class T>
struct ProjectedBackward {
  using V = compute_t<T>;

  Course course;
  HiddenGradient<T> h;
  T* d_projected;  // [rows, P]

  RNNKERN_HD void operator()(int64_t b, int64_t unit) const {
    int64_t const i = (course.now.offset + b) * h.width + unit;
    if (!course.live(b)) {
      h.hold(course, b, unit);
      if (b < course.now.rows) store(d_projected + i, V(0));
      return;
    }
    V d_fresh, d_old;
    h.split(course, b, unit, d_fresh, d_old);
    store(d_projected + i, d_fresh);
    h.pass(course, b, unit, d_old);
  }
};

// One step of a cell with one stage. May write d_gates over what the cell saved: every element is read first.
template <class Cell, class T>
struct BackwardStep {
  using V = compute_t<T>;
  using Columns = GateColumns<Cell>;

  Cell cell;
  Course course;
  int64_t hidden;       // H
  const T* saved;       // [rows, K*H]
  T* d_gates;           // [rows, columns * H]
  HiddenGradient<T> h;  // without a projection
  CellGradient<T> c;
  Past<T> past_h, past_c = {};
  const V* d_unprojected = nullptr;  // [B, H] gradient of h before its projection; null: no projection
  T* unprojected = nullptr;          // [rows, H] h before its projection; null: not wanted

  RNNKERN_HD void operator()(int64_t b, int64_t unit) const {
    int64_t const row = course.now.offset + b;
    bool const projected = d_unprojected != nullptr;
    if (!course.live(b)) {
      if (!projected) h.hold(course, b, unit);
      if (b < course.now.rows) {
        for (int column = 0; column < Columns::count; ++column) store(gradient(row, unit, column), V(0));
        if (unprojected != nullptr) store(unprojected + row * hidden + unit, V(0));
      }
      return;
    }
    V values[Cell::saved], s[Cell::states], d_out[Cell::states], dgx[Cell::gates], ds[Cell::states];
    V d_split = 0, d_old_h = 0;
    for (int k = 0; k < Cell::saved; ++k) values[k] = load(saved + (row * Cell::saved + k) * hidden + unit);
    if (projected) {
      d_out[0] = d_unprojected[b * hidden + unit];
    } else {
      h.split(course, b, unit, d_out[0], d_old_h);
    }
    if constexpr (Cell::states == 2) {
      V const d_c = c.value[b * hidden + unit] + load_or_zero(c.d_cells, row * hidden + unit);
      V d_old_c;
      c.zoneout.split(row, unit, d_c, d_out[1], d_old_c);
      s[0] = V(0);
      s[1] = past_c.at(course, b, unit);
      cell.backward(values, s, d_out, dgx, d_split, ds);
      c.value[b * hidden + unit] = course.cut(b) ? V(0) : ds[1] + d_old_c;
      if (unprojected != nullptr) store(unprojected + row * hidden + unit, Cell::output(values, s[1]));
    } else {
      s[0] = Cell::kind == CellKind::gru ? past_h.at(course, b, unit) : V(0);
      cell.backward(values, s, d_out, dgx, d_split, ds);
    }
    if (!projected) h.pass(course, b, unit, ds[0] + d_old_h);
    for (int g = 0; g < Columns::shared; ++g) store(gradient(row, unit, Columns::recurrent + g), dgx[g]);
    if constexpr (Cell::split_gate) {
      store(gradient(row, unit, 0), dgx[Cell::gates - 1]);
      store(gradient(row, unit, Columns::count - 1), d_split);
    }
  }

 private:
  RNNKERN_HD T* gradient(int64_t row, int64_t unit, int column) const {
    return d_gates + (row * Columns::count + column) * hidden + unit;
  }
};

// gru_v1, first stage: the gradients of n's and z's sums. May write over what the cell saved, r is left for the second.
template <class T>
struct CandidateBackward {
  using V = compute_t<T>;

  Course course;
  int64_t hidden;
  const T* saved;  // [rows, 3*H]
  T* d_gates;      // [rows, 3*H]
  HiddenGradient<T> h;
  Past<T> past_h;

  RNNKERN_HD void operator()(int64_t b, int64_t unit) const {
    int64_t const row = course.now.offset + b, r = row * 3 * hidden + unit, z = r + hidden, n = z + hidden;
    if (!course.live(b)) {
      h.hold(course, b, unit);
      if (b < course.now.rows) {
        store(d_gates + r, V(0));
        store(d_gates + z, V(0));
        store(d_gates + n, V(0));
      }
      return;
    }
    V d_fresh, d_old, d_n, d_z, d_direct;
    h.split(course, b, unit, d_fresh, d_old);
    GruV1Cell::candidate_backward(load(saved + z), load(saved + n), past_h.at(course, b, unit), d_fresh, d_n, d_z,
                                  d_direct);
    store(d_gates + z, d_z);
    store(d_gates + n, d_n);
    h.pass(course, b, unit, d_direct + d_old);
  }
};

// gru_v1, second stage: the gradient of r's sum, and the operand's part through r * operand.
template <class T>
struct GateBackward {
  using V = compute_t<T>;

  Course course;
  int64_t hidden;
  const T* saved;                      // [rows, 3*H]
  T* d_gates;                          // [rows, 3*H]
  const T* operand;                    // [rows, H]
  const V* d_reset_operand = nullptr;  // [B, H] gradient of r * operand
  V* d_operand = nullptr;              // [B, H]
  T* reset_operand = nullptr;          // [rows, H] r * operand; null: not wanted

  RNNKERN_HD void operator()(int64_t b, int64_t unit) const {
    int64_t const row = course.now.offset + b, i = b * hidden + unit;
    if (!course.live(b)) {
      d_operand[i] = V(0);
      if (reset_operand != nullptr) store(reset_operand + row * hidden + unit, V(0));
      return;
    }
    V const r = load(saved + row * 3 * hidden + unit), factor = load(operand + row * hidden + unit);
    V d_r, d_factor;
    GruV1Cell::gate_backward(r, factor, d_reset_operand[i], d_r, d_factor);
    store(d_gates + row * 3 * hidden + unit, d_r);
    d_operand[i] = d_factor;
    if (reset_operand != nullptr) store(reset_operand + row * hidden + unit, r * factor);
  }
};

}  // namespace rnnkern::stepwise
