// The kernels of stepwise that run over a whole sequence at once, before or after the sweep over its steps.
#pragma once

#include <algorithm>

#include "forward.cuh"

namespace rnnkern::stepwise {

// Sets a matrix to zero, where a product would have nothing to sum.
template <class T>
struct Zero {
  T* matrix;
  int64_t width, stride;

  RNNKERN_HD void operator()(int64_t row, int64_t column) const {
    store(matrix + row * stride + column, compute_t<T>(0));
  }
};

// Brings a packed sequence's offsets to the device inside a kernel's arguments: a copy from host memory would have to
// be waited for, and could not be captured in a graph.
struct UploadOffsets {
  static constexpr int64_t capacity = 256;

  int64_t* offsets;
  int64_t values[capacity];

  RNNKERN_HD void operator()(int64_t, int64_t i) const { offsets[i] = values[i]; }
};

// x with zeros past the lengths: NaN in the padding must not reach d_w_ih, where it would be multiplied by zero. Over
// [T*B, I].
template <class T>
struct MaskedInput {
  int64_t batch;
  const int64_t* lengths;
  const T* x;
  T* masked;
  int64_t width;

  RNNKERN_HD void operator()(int64_t row, int64_t unit) const {
    int64_t const i = row * width + unit;
    masked[i] = row / batch < lengths[row % batch] ? x[i] : from_compute<T>(compute_t<T>(0));
  }
};

// What w_hh multiplied at every step, from y. Over [T*B, R]; a packed sequence lacks some of these rows.
template <class T>
struct GatherOperand {
  Calendar calendar;
  Course course;  // but for the moments
  Past<T> past;
  Operand<T> operand;  // `value` [rows, R]

  RNNKERN_HD void operator()(int64_t step_and_row, int64_t unit) const {
    int64_t const t = step_and_row / calendar.batch, b = step_and_row % calendar.batch;
    Course here = course;
    here.now = calendar.at(t);
    here.before = calendar.at(course.reverse ? t + 1 : t - 1);
    if (b >= here.now.rows) return;
    bool const live = here.live(b);
    Operand<T> row = operand;
    row.value += here.now.offset * operand.width;
    if (live) {
      row.write(b, unit, past.at(here, b, unit), false);
    } else {
      store(row.value + b * operand.width + unit, compute_t<T>(0));
    }
  }
};

// Recomputes what a cell with one stage saves. Over rows of `gates` from its first one on; `gates.product` [chunk,
// G*H].
template <class Cell, class T>
struct RebuildGates {
  using V = compute_t<T>;

  Cell cell;
  Gates<T> gates;

  RNNKERN_HD void operator()(int64_t row, int64_t unit) const {
    V gx[Cell::gates], gh[Cell::gates], s[Cell::states] = {}, saved[Cell::saved], out[Cell::states];
    for (int g = 0; g < Cell::gates; ++g) {
      gx[g] = gates.input(row, unit, g);
      gh[g] = gates.recurrent(row, unit, g, g);
    }
    cell.forward(gx, gh, s, saved, out);
    for (int k = 0; k < Cell::saved; ++k) store(gates.at(row, unit, k), saved[k]);
  }
};

// The second stage of gru_v1, recomputed; GateStep does the first.
template <class T>
struct RebuildCandidate {
  using V = compute_t<T>;

  Gates<T> gates;  // product [chunk, H]

  RNNKERN_HD void operator()(int64_t row, int64_t unit) const {
    V n, unused;
    GruV1Cell::candidate(gates.input(row, unit, 2), gates.recurrent(row, unit, 2, 0), V(0), V(0), n, unused);
    store(gates.at(row, unit, 2), n);
  }
};

// One level of a sum over rows: each result row sums `fan_in` rows, and goes where `sink` puts it. A tree of these is
// the same for every launch, and its rounding grows with the logarithm of the number of rows.
template <class From, class Sink>
struct SumRows {
  static constexpr int64_t fan_in = 128;
  using V = compute_t<From>;

  const From* from;  // [rows, width], rows `stride` apart
  int64_t rows, stride;
  Sink sink;  // of [rows / fan_in, width]

  RNNKERN_HD void operator()(int64_t row, int64_t column) const {
    int64_t const first = row * fan_in, last = first + fan_in < rows ? first + fan_in : rows;
    V sum = 0;
    for (int64_t i = first; i < last; ++i) sum += load(from + i * stride + column);
    sink(row, column, sum);
  }
};

// Sums that are summed again.
template <class V>
struct PartialSums {
  V* to;  // [.., width]
  int64_t width;

  RNNKERN_HD void operator()(int64_t row, int64_t column, V sum) const { to[row * width + column] = sum; }
};

// The sum of a column of d_gates is the gradient of both biases; of a split gate each bias has its own (GateColumns).
template <class Cell, class T>
struct BiasGradients {
  T *d_b_ih, *d_b_hh;  // [G*H], null: not wanted
  int64_t hidden;

  RNNKERN_HD void operator()(int64_t, int64_t column, compute_t<T> sum) const {
    int64_t const last = (Cell::gates - 1) * hidden;
    bool const input = !Cell::split_gate || column < last + hidden, recurrent = !Cell::split_gate || column >= hidden;
    int64_t const shared = Cell::split_gate ? column - hidden : column;  // column of w_hh's gates
    if (input && d_b_ih != nullptr) store(d_b_ih + (shared < 0 ? last + column : shared), sum);
    if (recurrent && d_b_hh != nullptr) store(d_b_hh + shared, sum);
  }
};

}  // namespace rnnkern::stepwise
