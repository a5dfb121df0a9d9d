// The time loop backward: for each step (last first) and panel of units, the product of the gates' gradients with the
// transposed recurrent weight and at once the cell's backward. What the weights' gradients need is written for all
// rows.
#pragma once

#include "../cell/gru.h"
#include "../cell/lstm.h"
#include "../cell/rnn.h"
#include "sweep.h"

namespace rnnkern::RNNKERN_ISA {

template <class T>
struct BackwardBuffers {
  using C = compute_t<T>;
  using Operand = operand_t<T>;
  PanelSet<packed_t<T>> first, second;  // second: through the projection, or gru_v1's candidate
  const T* saved = nullptr;             // [rows][K][H]
  // Of the rows of a turn: gradients of gates_x, [G][H] a row, and of gates_h's last gate, [H], where it differs.
  T *d_gates = nullptr, *d_split = nullptr;
  T* operand = nullptr;        // [R] a row: what w_hh multiplied
  T* reset_operand = nullptr;  // [H] gru_v1: r times it
  T* d_projected = nullptr;    // [R] projection: gradient of its result
  T* unprojected = nullptr;    // [H] projection: what w_hr multiplied
  T* live_x = nullptr;         // [I] x with zeros past the lengths
  C* d_bias = nullptr;         // [samples][G + 1][H] sums of d_gates, and of d_split
  int64_t pitch = 0;           // of the carries
  C* carry[2] = {};            // [h, c][place][pitch] the part that no product brings
  Operand* d_operand[2] = {};  // [parity][place][head][gate][unit] gates' gradients as the next product reads them
  int64_t d_operand_size = 0;
  Operand* inner = nullptr;        // [place][pitch] between two stages
  const Operand* zeros = nullptr;  // [max(pitch, d_operand_size)]
  const T* zero_state = nullptr;   // [max(H, R)]
  int64_t copied = 0;              // elements that each worker needs for copies of operands
  bool shared = false;             // other workers read what a turn's rows hold
};

template <class T>
struct alignas(kLine) BackwardRow {
  using C = compute_t<T>;
  using Operand = operand_t<T>;
  const Operand* operand;  // what the stage's product multiplies
  C* carry[2];
  Operand* d_operand;  // gates' gradients for the step before
  Operand* inner;
  const T* state[2];  // h, c before the step
  const T *d_y, *d_cells, *saved, *mask;
  const bool *zone_h, *zone_c;
  T *d_gates, *d_split, *h_operand, *reset_operand, *d_projected, *unprojected;
  T* d_h_0;  // at the end
  bool cut;
  int64_t ahead;  // rows to the row of the step that comes next
};

template <class Cell, class T>
class alignas(kLine) BackwardSweep {
  using C = compute_t<T>;
  using Operand = operand_t<T>;
  using V = Vec<C>;
  static constexpr bool two_stage_gru = Cell::kind == CellKind::gru_v1;
  static constexpr bool is_lstm = Cell::kind == CellKind::lstm;
  static constexpr int G = Cell::gates, K = Cell::saved;

 public:
  BackwardSweep(const Cell& cell, const Problem& problem, const Group& group, const GroupGradients& gradients,
                const BackwardBuffers<T>& buffers, const Timeline& time, Share const& share, BackwardRow<T>* live,
                packed_t<T>* copies)
      : cell_(cell), hidden_(problem.hidden_size), state_size_(problem.state_size()), head_size_(problem.head_size()),
        projection_(problem.proj_size > 0), group_(group), gradients_(gradients), buffers_(buffers), time_(time),
        rows_{share, &time}, row_(live), copies_(copies) {}

  int panels(int stage) const { return stage == 0 ? buffers_.first.count : buffers_.second.count; }
  const LiveRows& rows() const { return rows_; }
  auto matrix_unit() const { return MatrixUnit<packed_t<T>>(buffers_.first.unit_rows); }  // lives while a product runs

  void begin(int64_t first, int64_t stride) {
    for (int64_t i = first; i < rows_.count; i += stride) {
      start(gradients_.d_h_n, state_size_, i, 0);
      if constexpr (is_lstm) start(gradients_.d_c_n, hidden_, i, 1);
    }
  }

  // Before the steps of a turn: rows past a length are zero in all that is multiplied over time.
  void begin_turn(Turn const& turn, int64_t first, int64_t stride) {
    first_row_ = turn.first;
    if (time_.uniform || time_.offsets) return;
    for (int64_t i = first; i < rows_.count; i += stride)
      for (int64_t t = std::max(turn.first_step, time_.lengths[rows_.rows[i]]); t < turn.last_step; ++t)
        clear_row(time_.row(t, rows_.rows[i]) - first_row_);
  }

  void prepare(int64_t s) {
    int64_t const t = group_.reverse ? s : time_.steps - 1 - s;
    live_ = rows_.at(t);
    backwards_ = s % 2 == 1;
    at_rest_ = true;
    for (int64_t i = 0; i < live_; ++i) {
      int64_t const b = rows_.rows[i], at = time_.row(t, b), in_turn = at - first_row_;
      int64_t const n = time_.own_step(t, b, group_.reverse);
      int64_t const next = group_.reverse ? t - 1 : t + 1;  // the step after it in the recurrence
      BackwardRow<T>& row = row_[i];
      bool const last = n == time_.lengths[b] - 1;
      bool const cut_after = !last && time_.cut(next, b, group_.reverse);
      row.cut = time_.cut(t, b, group_.reverse);
      row.operand = last || cut_after ? buffers_.zeros : d_operand((n + 1) & 1, i);
      at_rest_ &= last || cut_after;
      row.d_operand = d_operand(n & 1, i);
      row.carry[0] = buffers_.carry[0] + place(i);
      row.state[0] = previous(group_.h_0, group_.y, group_.y_stride, state_size_, n, t, b, row.cut);
      if constexpr (is_lstm) {
        row.carry[1] = buffers_.carry[1] + place(i);
        row.state[1] = previous(group_.c_0, group_.cells, hidden_, hidden_, n, t, b, row.cut);
        row.d_cells = gradients_.d_cells ? static_cast<const T*>(gradients_.d_cells) + at * hidden_ : nullptr;
        row.zone_c = group_.zone_c ? group_.zone_c + at * hidden_ : nullptr;
      }
      row.d_y = gradients_.d_y ? static_cast<const T*>(gradients_.d_y) + at * group_.y_stride : nullptr;
      row.saved = buffers_.saved + at * K * hidden_;
      row.mask = mask_of<T>(group_, b, state_size_);
      row.zone_h = group_.zone_h ? group_.zone_h + at * state_size_ : nullptr;
      row.d_gates = buffers_.d_gates + in_turn * G * hidden_;
      if (Cell::split_gate) row.d_split = buffers_.d_split + in_turn * hidden_;
      row.h_operand = buffers_.operand + in_turn * state_size_;
      if (two_stage_gru) row.reset_operand = buffers_.reset_operand + in_turn * hidden_;
      if (projection_) {
        row.d_projected = buffers_.d_projected + in_turn * state_size_;
        row.unprojected = buffers_.unprojected + in_turn * hidden_;
      }
      if (buffers_.inner) row.inner = buffers_.inner + place(i);
      int64_t const ahead = group_.reverse ? t + 1 : t - 1;
      row.ahead = ahead < 0 || ahead >= time_.lengths[b] ? 0 : time_.row(ahead, b) - at;
    }
  }

  void run(int stage, int first, int last) {
    const auto& set = stage == 0 ? buffers_.first : buffers_.second;
    PanelRange const range{first, last, backwards_, at_rest_ && stage == 0};
    if (stage == 1)
      for (int64_t i = 0; i < live_; ++i) row_[i].operand = row_[i].inner;
    if constexpr (two_stage_gru) {
      if (stage == 0)
        return run_panels(set, range, row_, live_, copies_, each_block([&](auto&&... a) { candidate(a...); }));
      run_panels(set, range, row_, live_, copies_, each_block([&](auto&&... a) { gate(a...); }));
    } else {
      if (stage == 1)
        return run_panels(set, range, row_, live_, copies_, each_block([&](auto&&... a) { through_projection(a...); }));
      if (projection_)
        return run_panels(set, range, row_, live_, copies_, each_block([&](auto&&... a) { onto_projection(a...); }));
      run_panels(set, range, row_, live_, copies_, each_block([&](auto&&... a) { step(a...); }));
    }
  }

  // The initial state's gradients: the first step's product, and what was carried.
  void end(int first, int last) {
    if (gradients_.d_h_0) {
      auto const unit = matrix_unit();
      for (int64_t i = 0; i < rows_.count; ++i) {
        int64_t const b = rows_.rows[i], n = time_.lengths[b];
        bool const cut = n == 0 || time_.cut(group_.reverse ? n - 1 : 0, b, group_.reverse);
        row_[i].operand = cut ? buffers_.zeros : d_operand(0, i);
        row_[i].carry[0] = buffers_.carry[0] + place(i);
        row_[i].mask = mask_of<T>(group_, b, state_size_);
        row_[i].d_h_0 = static_cast<T*>(gradients_.d_h_0) + b * state_size_;
      }
      run_panels(buffers_.first, {first, last}, row_, rows_.count, copies_,
                 each_block([&](Row& row, const Panel&, int64_t unit, int n, const C* sums) {
                   store(row.d_h_0 + unit, d_state(row, unit, n, sums), n);
                 }));
    }
    if (is_lstm && gradients_.d_c_0 && first == 0 && last > 0) {
      for (int64_t i = 0; i < rows_.count; ++i) {
        int64_t const b = rows_.rows[i];
        T* const to = static_cast<T*>(gradients_.d_c_0) + b * hidden_;
        const C* const from = buffers_.carry[1] + place(i);
        for (int64_t j = 0; j < hidden_; ++j) to[j] = from_compute<T>(from[j]);
      }
    }
  }

 private:
  using Row = BackwardRow<T>;

  int64_t place(int64_t i) const { return (rows_.place + i) * buffers_.pitch; }  // of the i-th row
  Operand* d_operand(int64_t parity, int64_t i) const {
    return buffers_.d_operand[parity] + (rows_.place + i) * buffers_.d_operand_size;
  }

  void clear_row(int64_t at) const {
    clear(buffers_.d_gates, at, G * hidden_);
    clear(buffers_.d_split, at, hidden_);
    clear(buffers_.operand, at, state_size_);
    clear(buffers_.reset_operand, at, hidden_);
    clear(buffers_.d_projected, at, state_size_);
    clear(buffers_.unprojected, at, hidden_);
  }
  static void clear(T* to, int64_t at, int64_t size) {
    if (to) std::memset(to + at * size, 0, size * sizeof(T));
  }

  void start(const void* from, int64_t size, int64_t i, int which) {
    load_row<T>(buffers_.carry[which] + place(i), from, rows_.rows[i], size);
  }

  const T* previous(const void* initial, const void* sequence, int64_t stride, int64_t size, int64_t n, int64_t t,
                    int64_t b, bool cut) const {
    if (cut || (n == 0 && !initial)) return buffers_.zero_state;
    if (n == 0) return static_cast<const T*>(initial) + b * size;
    return static_cast<const T*>(sequence) + time_.row(group_.reverse ? t + 1 : t - 1, b) * stride;
  }

  // The state's gradient before this step's zoneout: the recurrent product, masked as h was, and what was carried.
  RNNKERN_INLINE V d_state(Row& row, int64_t unit, int n, const C* sums) const {
    V product = load<V>(sums);
    if (row.mask) product = product * load<V>(row.mask + unit, n);
    return product + load<V>(row.carry[0] + unit, n);
  }
  RNNKERN_INLINE V d_h(Row& row, int64_t unit, int n, const C* sums) const {
    V const d = d_state(row, unit, n, sums);
    return row.d_y ? d + load<V>(row.d_y + unit, n) : d;
  }

  // Splits a gradient into the new value's part (in place) and the old value's (returned). A mask leaves none of it,
  // not even of infinity, to the other.
  RNNKERN_INLINE V unzone(V& d, const bool* zone, int64_t unit, int n) const {
    V const none(C(0)), all = d;
    if (zone) {
      V const kept = flags<V>(zone + unit, n);
      d = positive(kept, none, all);
      return positive(kept, all, none);
    }
    if (group_.zoneout == 0) return none;
    V const old = V(C(group_.zoneout)) * all;
    d = all - old;
    return old;
  }

  // The carry is read in the unit's own lanes alone: with heads, those beyond may be another worker's to write.
  RNNKERN_INLINE void carry(Row& row, int which, int64_t unit, int n, V value) const {
    store(row.carry[which] + unit, row.cut ? V(C(0)) : value, n);
  }
  RNNKERN_INLINE V h_before(Row& row, int64_t unit, int n) const { return load<V>(row.state[0] + unit, n); }
  RNNKERN_INLINE V multiplied(Row& row, int64_t unit, int n) const {
    V const h = h_before(row, unit, n);
    return row.mask ? h * load<V>(row.mask + unit, n) : h;
  }
  // Gate g of a unit in the operand of the next product, which has `gates` gates.
  RNNKERN_INLINE Operand* d_operand_at(Row& row, int gates, int g, int head, int64_t unit) const {
    return row.d_operand + (int64_t(head) * gates + g) * head_size_ + (unit - head * head_size_);
  }

  // What was kept, and where results go, lies in cache lines far apart, and backwards: the processor does not guess
  // them.
  RNNKERN_INLINE void fetch_ahead(Row& row, int64_t unit) const {
    for (int k = 0; k < K; ++k) prefetch_lines<kLine, 2>(row.saved + (row.ahead * K + k) * hidden_ + unit);
    if constexpr (is_lstm) prefetch_lines<kLine, 2>(row.state[1] + row.ahead * hidden_ + unit);
    if (row.d_y) prefetch_lines<kLine, 2>(row.d_y + row.ahead * group_.y_stride + unit);
    if (buffers_.shared) return;
    for (int g = 0; g < G; ++g) prefetch_lines<kLine, 2>(row.d_gates + (row.ahead * G + g) * hidden_ + unit);
    prefetch_lines<kLine, 2>(row.h_operand + row.ahead * state_size_ + unit);
  }

  // Of a turn's rows, which the products over all of them read.
  RNNKERN_INLINE void keep(T* to, V value, int n) const { store(to, value, n, buffers_.shared); }

  // The cell's backward of one block; d_out[0] is the gradient of h before any projection.
  RNNKERN_INLINE V differentiate(Row& row, const Panel& panel, int64_t unit, int n, V d_h_new) const {
    V saved[K], state[Cell::states], d_out[Cell::states], d_gates[G], d_split, d_before[Cell::states];
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) saved[k] = load<V>(row.saved + k * hidden_ + unit, n);
    if (!is_lstm) state[0] = h_before(row, unit, n);
    d_out[0] = d_h_new;
    V old_c(C(0));
    if constexpr (is_lstm) {
      state[1] = load<V>(row.state[1] + unit, n);
      d_out[1] = load<V>(row.carry[1] + unit, n);
      if (row.d_cells) d_out[1] = d_out[1] + load<V>(row.d_cells + unit, n);
      old_c = unzone(d_out[1], row.zone_c, unit, n);
    }
    fetch_ahead(row, unit);
    cell_.backward(saved, state, d_out, d_gates, d_split, d_before);
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      keep(row.d_gates + g * hidden_ + unit, d_gates[g], n);
      bool const split = Cell::split_gate && g == G - 1;
      store(d_operand_at(row, G, g, panel.head, unit), split ? d_split : d_gates[g], n);
    }
    if (Cell::split_gate) keep(row.d_split + unit, d_split, n);
    if constexpr (is_lstm) {
      carry(row, 1, unit, n, d_before[1] + old_c);
      if (projection_) keep(row.unprojected + unit, LstmCell::output(saved, state[1]), n);
    }
    return d_before[0];
  }

  RNNKERN_INLINE void step(Row& row, const Panel& panel, int64_t unit, int n, const C* sums) const {
    V d = d_h(row, unit, n, sums);
    V const old = unzone(d, row.zone_h, unit, n);
    V const before = differentiate(row, panel, unit, n, d);
    carry(row, 0, unit, n, old + before);
    keep(row.h_operand + unit, multiplied(row, unit, n), n);
  }

  RNNKERN_INLINE void onto_projection(Row& row, const Panel&, int64_t unit, int n, const C* sums) const {
    V d = d_h(row, unit, n, sums);
    carry(row, 0, unit, n, unzone(d, row.zone_h, unit, n));
    store(row.inner + unit, d, n);
    keep(row.d_projected + unit, d, n);
    keep(row.h_operand + unit, multiplied(row, unit, n), n);
  }
  RNNKERN_INLINE void through_projection(Row& row, const Panel& panel, int64_t unit, int n, const C* sums) const {
    differentiate(row, panel, unit, n, load<V>(sums));
  }

  RNNKERN_INLINE void candidate(Row& row, const Panel& panel, int64_t unit, int n, const C* sums) const {
    V d = d_h(row, unit, n, sums);
    V const old = unzone(d, row.zone_h, unit, n);
    V const z = load<V>(row.saved + hidden_ + unit, n), value = load<V>(row.saved + 2 * hidden_ + unit, n);
    V d_n, d_z, d_before;
    GruV1Cell::candidate_backward(z, value, h_before(row, unit, n), d, d_n, d_z, d_before);
    keep(row.d_gates + hidden_ + unit, d_z, n);
    keep(row.d_gates + 2 * hidden_ + unit, d_n, n);
    store(d_operand_at(row, 2, 1, panel.head, unit), d_z, n);
    store(row.inner + unit, d_n, n);
    carry(row, 0, unit, n, old + d_before);
  }
  RNNKERN_INLINE void gate(Row& row, const Panel& panel, int64_t unit, int n, const C* sums) const {
    V const r = load<V>(row.saved + unit, n), operand = multiplied(row, unit, n);
    V d_r, d_operand;
    GruV1Cell::gate_backward(r, operand, load<V>(sums), d_r, d_operand);
    if (row.mask) d_operand = d_operand * load<V>(row.mask + unit, n);
    keep(row.d_gates + unit, d_r, n);
    store(d_operand_at(row, 2, 0, panel.head, unit), d_r, n);
    keep(row.h_operand + unit, operand, n);
    keep(row.reset_operand + unit, r * operand, n);
    carry(row, 0, unit, n, load<V>(row.carry[0] + unit, n) + d_operand);
  }

  const Cell cell_;
  const int64_t hidden_, state_size_, head_size_;
  const bool projection_;
  const Group& group_;
  const GroupGradients& gradients_;
  const BackwardBuffers<T>& buffers_;
  const Timeline& time_;
  LiveRows rows_;
  BackwardRow<T>* row_;
  packed_t<T>* copies_;    // see BackwardBuffers
  int64_t first_row_ = 0;  // of the turn
  int64_t live_ = 0;
  bool backwards_ = false, at_rest_ = false;  // see PanelRange
};

}  // namespace rnnkern::RNNKERN_ISA
