// The time loop forward: for each step and panel of units, the recurrent product and at once the cell on its sums.
#pragma once

#include "../cell/gru.h"
#include "../cell/lstm.h"
#include "../cell/rnn.h"
#include "beside.h"
#include "sweep.h"

namespace rnnkern::RNNKERN_ISA {

// Memory of one group, shared by the workers. Rows of state are `pitch` apart.
template <class T, class Panels = PanelSet<packed_t<T>>>
struct ForwardBuffers {
  using C = compute_t<T>;
  using Operand = operand_t<T>;
  const T *w_first = nullptr, *w_second = nullptr;
  Panels first, second;                    // second: the projection, or gru_v1's candidate
  C *bias_x = nullptr, *bias_h = nullptr;  // [G][H], with room for a vector beyond; bias_h only where the cell splits
  T* gates = nullptr;  // [rows][gates_stride]: gates_x, overwritten by what the cell saves; null: nowhere
  int64_t gates_stride = 0;
  int64_t pitch = 0;
  C* state[2][2] = {};       // [h, c][parity of the row's own step count][place][pitch]
  Operand* operand[2] = {};  // h as the product reads it: masked, and of its type; null where that is h
  Operand* inner = nullptr;  // [place][pitch] between two stages
  C* z = nullptr;            // [place][pitch]
  const C* zeros = nullptr;  // [pitch]
  const Operand* zero_operand = nullptr;
  int64_t copied = 0;   // elements that each worker needs for copies of operands: across vectors, or for a matrix unit
  bool shared = false;  // other workers may have the lines of `cells` from before

  // The same memory for this group.
  void set_group(const Problem& problem, const Group& group) {
    w_first = static_cast<const T*>(group.w_hh);
    if (problem.proj_size > 0) w_second = static_cast<const T*>(group.w_hr);
    if (problem.cell == CellKind::gru_v1 && w_first) w_second = w_first + 2 * problem.hidden_size * problem.head_size();
    if (group.gates) gates = static_cast<T*>(group.gates);
  }
};

template <class T>
struct alignas(kLine) ForwardRow {
  using C = compute_t<T>;
  using Operand = operand_t<T>;
  const Operand* operand;  // what the next stage's product multiplies
  const C* state[2];       // h, c before the step
  C* next[2];              // ... and after it
  Operand* next_operand;   // ... and after the step, or null
  const T* mask;
  const T* gates_x;  // what `gates` are made of, in their place or elsewhere
  T *gates, *y, *cells;
  const bool *zone_h, *zone_c;
  Operand* inner;
  C* z;
  uint8_t* bytes;  // of a product in int8: the operand quantised, memory of the row's own, and its scale
  float operand_scale;
};

// `Panels`: the weights as the product takes them (PanelSet, or Int8Panels).
template <class Cell, class T, class Panels = PanelSet<packed_t<T>>>
class alignas(kLine) ForwardSweep {  // a worker's, which it writes in every step
  using C = compute_t<T>;
  using Operand = operand_t<T>;
  using V = Vec<C>;
  static constexpr bool two_stage_gru = Cell::kind == CellKind::gru_v1;
  static constexpr bool is_lstm = Cell::kind == CellKind::lstm;
  static constexpr bool unquantized = std::is_same_v<Panels, PanelSet<packed_t<T>>>;

 public:
  ForwardSweep(const Cell& cell, const Problem& problem, const Group& group, const ForwardBuffers<T, Panels>& buffers,
               const Timeline& time, Share const& share, ForwardRow<T>* live, packed_t<T>* copies = nullptr,
               Beside<T>* beside = nullptr)
      : cell_(cell), hidden_(problem.hidden_size), state_size_(problem.state_size()),
        save_(problem.save && !problem.recompute), projection_(problem.proj_size > 0), group_(group), buffers_(buffers),
        time_(time), rows_{share, &time}, row_(live), copies_(copies), beside_(beside) {}

  int panels(int stage) const { return stage == 0 ? buffers_.first.count : buffers_.second.count; }
  const LiveRows& rows() const { return rows_; }
  Beside<T>* beside() const { return beside_; }

  // Lives while a product runs.
  auto matrix_unit() const {
    if constexpr (unquantized)
      return MatrixUnit<packed_t<T>>(buffers_.first.unit_rows);
    else
      return MatrixUnit<float>(1);
  }

  // Where the gates of a turn lie from now on: those of all rows, or of these rows alone.
  void set_gates(T* gates, const Turn& turn, bool own) {
    gates_ = gates;
    turn_ = turn;
    own_gates_ = own;
  }

  // Initial states of every `stride`-th row.
  void begin(int64_t first, int64_t stride) {
    for (int64_t i = first; i < rows_.count; i += stride) {
      start(group_.h_0, state_size_, i, 0);
      if constexpr (is_lstm) start(group_.c_0, hidden_, i, 1);
      if (buffers_.operand[0])
        make_operand(buffers_.operand[0] + place(i), buffers_.state[0][0] + place(i), rows_.rows[i]);
    }
  }

  // Step `s` in the order of processing: points each live row at its memory.
  void prepare(int64_t s) {
    int64_t const t = group_.reverse ? time_.steps - 1 - s : s;
    live_ = rows_.at(t);
    backwards_ = s % 2 == 1;
    at_rest_ = true;
    for (int64_t i = 0; i < live_; ++i) {
      int64_t const b = rows_.rows[i], at = time_.row(t, b), place = this->place(i);
      int64_t const n = time_.own_step(t, b, group_.reverse);
      int const now = int(n & 1);
      bool const cut = time_.cut(t, b, group_.reverse);
      at_rest_ &= cut || (n == 0 && !group_.h_0);
      ForwardRow<T>& row = row_[i];
      row.state[0] = cut ? buffers_.zeros : buffers_.state[0][now] + place;
      row.next[0] = buffers_.state[0][1 - now] + place;
      if constexpr (is_lstm) {
        row.state[1] = cut ? buffers_.zeros : buffers_.state[1][now] + place;
        row.next[1] = buffers_.state[1][1 - now] + place;
        row.cells = group_.cells ? static_cast<T*>(group_.cells) + at * hidden_ : nullptr;
        row.zone_c = group_.zone_c ? group_.zone_c + at * hidden_ : nullptr;
      }
      row.mask = mask_of<T>(group_, b, state_size_);
      row.next_operand = nullptr;
      if constexpr (std::is_same_v<Operand, C>) row.operand = row.state[0];
      if (buffers_.operand[0]) {
        row.operand = cut ? buffers_.zero_operand : buffers_.operand[now] + place;
        row.next_operand = buffers_.operand[1 - now] + place;
      }
      int64_t const in_turn = own_gates_ ? (t - turn_.first_step) * rows_.count + i : at - turn_.first;
      row.gates = gates_ ? gates_ + in_turn * buffers_.gates_stride : nullptr;
      row.gates_x = row.gates;
      if constexpr (can_run_beside<T>)
        if (beside_) row.gates_x = beside_->row(t - turn_.first_step);
      row.y = static_cast<T*>(group_.y) + at * group_.y_stride;
      row.zone_h = group_.zone_h ? group_.zone_h + at * state_size_ : nullptr;
      if (buffers_.inner) row.inner = buffers_.inner + place;
      if (two_stage_gru) row.z = buffers_.z + place;
    }
  }

  void run(int stage, int first, int last) {
    PanelRange const range{first, last, backwards_, at_rest_ && (stage == 0 || two_stage_gru)};
    if (stage == 1)
      for (int64_t i = 0; i < live_; ++i) row_[i].operand = row_[i].inner;
    if constexpr (two_stage_gru) {
      if (stage == 0)
        return run_stage(buffers_.first, buffers_.w_first, range, each_block([&](auto&&... a) { gate(a...); }));
      run_stage(buffers_.second, buffers_.w_second, range, each_block([&](auto&&... a) { candidate(a...); }));
    } else {
      if (stage == 0)
        return run_stage(buffers_.first, buffers_.w_first, range,
                         [&](auto&&... a) __attribute__((flatten)) { steps(a...); });  // as in each_block()
      run_stage(buffers_.second, buffers_.w_second, range, each_block([&](auto&&... a) { project(a...); }));
    }
  }

  // Final states, and zeros past the lengths.
  void end(int64_t first, int64_t stride) const {
    for (int64_t i = first; i < rows_.count; i += stride) {
      int64_t const b = rows_.rows[i];
      finish(group_.h_n, state_size_, i, 0);
      if constexpr (is_lstm) finish(group_.c_n, hidden_, i, 1);
      if (time_.offsets) continue;
      for (int64_t t = time_.lengths[b]; t < time_.steps; ++t) {
        clear(group_.y, time_.row(t, b) * group_.y_stride, state_size_);
        if (is_lstm && group_.cells) clear(group_.cells, time_.row(t, b) * hidden_, hidden_);
      }
    }
  }

  // `recompute`: the gates of rows that were run before depend on no other rows any more; many of them, whatever their
  // step, are run as one. Results other than the gates go to scratch rows.
  struct Rebuild {
    Operand *operand, *inner;  // [kTogether][pitch]
    C *state[2], *unused;      // [kTogether][pitch]
    T* unused_y;
  };
  static constexpr int64_t kTogether = 64;

  void rebuild(const Rebuild& scratch, int64_t worker, int64_t workers) {
    auto const unit = matrix_unit();
    int64_t turn = 0;
    live_ = 0;
    for (int64_t t = 0; t < time_.steps; ++t) {
      int64_t const live = rows_.at(t);
      for (int64_t i = 0; i < live; ++i) {
        prepare_rebuild(scratch, t, rows_.rows[i]);
        if (++live_ == kTogether) run_rebuild(turn++ % workers == worker);
      }
    }
    run_rebuild(turn % workers == worker);
  }

 private:
  using Row = ForwardRow<T>;

  template <class Finish>
  RNNKERN_INLINE void run_stage(const Panels& set, const T* weight, PanelRange range, Finish finish) {
    if constexpr (unquantized) {
      // The gates of x come from beyond the second cache, if they are not made beside, and results go there. GCC drops
      // calls of what only prefetches if it need not inline.
      bool const first = &set == &buffers_.first, last = !first || !(projection_ || two_stage_gru);
      int const gates = first ? set.gates : 0;
      auto const ahead = [&](Row& row, int64_t unit) __attribute__((always_inline)) {
        for (int g = 0; g < gates && row.gates; ++g) prefetch_lines<kLine>(row.gates + g * hidden_ + unit);
        if (last) prefetch_lines<kLine, 2>(row.y + unit);
        if (is_lstm && first && row.cells && !buffers_.shared) prefetch_lines<kLine, 2>(row.cells + unit);
      };
      if constexpr (can_run_beside<T>)
        if (beside_ && live_ == 1 && !range.at_rest && beside_->unfinished())
          return run_beside(set, range, row_, *beside_, finish, ahead);
      if (set.data) return run_panels(set, range, row_, live_, copies_, finish, ahead);
      if (live_ > 0) run_unpacked(set, range, weight, row_, int(live_), copies_, finish);
    } else {
      if (range.count() > 0) run_quantized(set, range, row_, live_, finish);
    }
  }

  void prepare_rebuild(const Rebuild& scratch, int64_t t, int64_t b) {
    int64_t const at = time_.row(t, b), place = live_ * buffers_.pitch;
    int64_t const n = time_.own_step(t, b, group_.reverse);
    bool const cut = time_.cut(t, b, group_.reverse);
    ForwardRow<T>& row = row_[live_];
    before(scratch.state[0] + place, group_.h_0, group_.y, group_.y_stride, state_size_, n, t, b, cut);
    make_operand(scratch.operand + place, scratch.state[0] + place, b);
    row = {};
    row.state[0] = scratch.state[0] + place;
    row.operand = scratch.operand + place;
    row.next[0] = scratch.unused + place;
    if constexpr (is_lstm) {
      before(scratch.state[1] + place, group_.c_0, group_.cells, hidden_, hidden_, n, t, b, cut);
      row.state[1] = scratch.state[1] + place;
      row.next[1] = scratch.unused + place;
    }
    row.gates = gates_ + (at - turn_.first) * buffers_.gates_stride;
    row.gates_x = row.gates;
    row.y = scratch.unused_y;
    row.inner = scratch.inner + place;
    if (two_stage_gru) row.z = scratch.state[1] + place;
  }

  void run_rebuild(bool mine) {
    if (mine) {
      run(0, 0, buffers_.first.count);
      if (two_stage_gru) run(1, 0, buffers_.second.count);
    }
    live_ = 0;
  }

  void make_operand(Operand* to, const C* h, int64_t b) const {
    const T* const mask = mask_of<T>(group_, b, state_size_);
    for (int64_t j = 0; j < state_size_; ++j) to[j] = from_compute<Operand>(mask ? h[j] * to_compute(mask[j]) : h[j]);
  }

  void before(C* to, const void* initial, const void* sequence, int64_t stride, int64_t size, int64_t n, int64_t t,
              int64_t b, bool cut) const {
    const T* from = nullptr;
    if (n > 0) {
      from = static_cast<const T*>(sequence) + time_.row(group_.reverse ? t + 1 : t - 1, b) * stride;
    } else if (initial) {
      from = static_cast<const T*>(initial) + b * size;
    }
    for (int64_t j = 0; j < size; ++j) to[j] = from && !cut ? to_compute(from[j]) : C(0);
  }

  static void clear(void* to, int64_t at, int64_t size) { std::memset(static_cast<T*>(to) + at, 0, size * sizeof(T)); }

  int64_t place(int64_t i) const { return (rows_.place + i) * buffers_.pitch; }  // of the i-th row

  void start(const void* from, int64_t size, int64_t i, int which) {
    load_row<T>(buffers_.state[which][0] + place(i), from, rows_.rows[i], size);
  }
  void finish(void* to, int64_t size, int64_t i, int which) const {
    int64_t const b = rows_.rows[i];
    const C* const from = buffers_.state[which][time_.lengths[b] & 1] + place(i);
    for (int64_t j = 0; j < size; ++j) static_cast<T*>(to)[b * size + j] = from_compute<T>(from[j]);
  }

  RNNKERN_INLINE V gates_x(Row& row, int g, int64_t unit, int n) const {
    return load<V>(row.gates_x + g * hidden_ + unit, n) + load<V>(buffers_.bias_x + g * hidden_ + unit);
  }
  RNNKERN_INLINE void keep(Row& row, int k, int64_t unit, int n, V value) const {
    if (save_) store(row.gates + k * hidden_ + unit, value, n);
  }

  // Krueger et al. 2016: units keep their old value where the mask says so; without masks the two are blended.
  RNNKERN_INLINE V zoned(V next, V old, const bool* zone, int64_t unit, int n) const {
    if (zone) return positive(flags<V>(zone + unit, n), old, next);
    if (group_.zoneout == 0) return next;
    return V(C(group_.zoneout)) * old + V(C(1 - group_.zoneout)) * next;
  }

  RNNKERN_INLINE void emit_h(Row& row, int64_t unit, int n, V h) const {
    h = zoned(h, load<V>(row.state[0] + unit), row.zone_h, unit, n);
    store(row.next[0] + unit, h, n);
    store(row.y + unit, h, n);
    if (!row.next_operand) return;
    store(row.next_operand + unit, row.mask ? h * load<V>(row.mask + unit, n) : h, n);
  }

  // In two passes: what h waits for is long, and so more of it runs at a time.
  RNNKERN_INLINE void steps(Block<Row, C>* blocks, int count) const {
    for_blocks(blocks, count, [&](auto&&... a) { step(a...); });
    if constexpr (is_lstm) for_blocks(blocks, count, [&](auto&&... a) { hidden(a...); });
  }

  RNNKERN_INLINE void step(Row& row, const Panel&, int64_t unit, int n, C* sums) const {
    V gx[Cell::gates], gh[Cell::gates], state[Cell::states], saved[Cell::saved];
#pragma GCC unroll 4
    for (int g = 0; g < Cell::gates; ++g) {
      gx[g] = gates_x(row, g, unit, n);
      gh[g] = load<V>(sums + g * V::lanes);
      if (Cell::split_gate) gh[g] = gh[g] + load<V>(buffers_.bias_h + g * hidden_ + unit);
    }
#pragma GCC unroll 4
    for (int k = 0; k < Cell::states; ++k) state[k] = load<V>(row.state[k] + unit);
    if constexpr (is_lstm) {
      V const c = LstmCell::next_cell(gx, gh, state[1], saved);
      V const kept = zoned(c, state[1], row.zone_c, unit, n);
      store(row.next[1] + unit, kept, n);
      if (row.cells) store(row.cells + unit, kept, n, buffers_.shared);  // read much later, backward
      store(sums, saved[3]);
      store(sums + V::lanes, c);
    } else {
      V out[1];
      cell_.forward(gx, gh, state, saved, out);
      emit_h(row, unit, n, out[0]);
    }
    if (!save_) return;
#pragma GCC unroll 4
    for (int k = 0; k < Cell::saved; ++k) store(row.gates + k * hidden_ + unit, saved[k], n);
  }
  RNNKERN_INLINE void hidden(Row& row, const Panel&, int64_t unit, int n, const C* sums) const {
    V const h = LstmCell::hidden(load<V>(sums), load<V>(sums + V::lanes));
    if (projection_) return store(row.inner + unit, h, n);
    emit_h(row, unit, n, h);
  }

  RNNKERN_INLINE void project(Row& row, const Panel&, int64_t unit, int n, const C* sums) const {
    emit_h(row, unit, n, load<V>(sums));
  }

  RNNKERN_INLINE void gate(Row& row, const Panel&, int64_t unit, int n, const C* sums) const {
    V const gx[2] = {gates_x(row, 0, unit, n), gates_x(row, 1, unit, n)};
    V const gh[2] = {load<V>(sums), load<V>(sums + V::lanes)};
    V r, z;
    GruV1Cell::gate(gx, gh, r, z);
    keep(row, 0, unit, n, r);
    keep(row, 1, unit, n, z);
    store(row.z + unit, z, n);
    store(row.inner + unit, r * load<V>(row.operand + unit), n);
  }

  RNNKERN_INLINE void candidate(Row& row, const Panel&, int64_t unit, int n, const C* sums) const {
    V value, out;
    GruV1Cell::candidate(gates_x(row, 2, unit, n), load<V>(sums), load<V>(row.z + unit), load<V>(row.state[0] + unit),
                         value, out);
    keep(row, 2, unit, n, value);
    emit_h(row, unit, n, out);
  }

  const Cell cell_;
  const int64_t hidden_, state_size_;
  const bool save_, projection_;
  const Group& group_;
  const ForwardBuffers<T, Panels>& buffers_;
  const Timeline& time_;
  LiveRows rows_;
  ForwardRow<T>* row_;
  packed_t<T>* copies_;  // see ForwardBuffers
  Beside<T>* beside_;    // what is made beside the steps, or null
  T* gates_ = nullptr;
  Turn turn_{};
  bool own_gates_ = false;
  int64_t live_ = 0;
  bool backwards_ = false, at_rest_ = false;  // see PanelRange
};

}  // namespace rnnkern::RNNKERN_ISA
