// The stationary sweep, forward: one kernel for all steps, with the recurrent weights in registers and shared memory.
//
// What a step waits for is a chain: the operand comes, its product, the cell, the operand goes. So everything else is
// done before or after it: what an element needs from global memory is fetched a step ahead, what it leaves there is
// stored once the next operand is on its way, and biases are part of the product. Rows of a `plain` sweep lie at a
// fixed distance from step to step and all of them live; the others, whose schedule is looked up at every step, take
// the same steps with less haste.
#pragma once

#include "../forward.cuh"
#include "engine.cuh"
#include "field.cuh"

namespace rnnkern::stationary {

template <class Cell, Math math, Exchange exchange>
class ForwardSweep {
  using T = storage_t<math>;
  using Args = ForwardArgs<Cell, T>;
  using Course = stepwise::Course;
  static constexpr int G = Cell::gates;

 public:
  RNNKERN_DEVICE ForwardSweep(const Args& args, const Place& place)
      : a_(args), s_(args.sizes), field_(args, place),
        engine_(s_, args.tiling, place, args.exchange, args.flags, args.exact) {}

  RNNKERN_DEVICE void run(const Place& place) {
    engine_.begin(group().weights, place.recurrence % a_.heads, place.rank);
    engine_.set_bias(a_.tiling, [&](int row) { return bias(row / s_.units, row % s_.units); });
    for (int tile = 0; tile < field_.tiles(); ++tile) {
      for (Item item = field_.first_item(); item.inside(); item.next(s_)) start(tile, item);
      engine_.publish(0, tile, field_.rows(tile));
      device::sync_threads();  // the next tile's operand is put where this one is sent from
    }
    int const steps = static_cast<int>(a_.end - a_.begin);
    Input input = {};
    if (a_.plain) {
      begin_rows();
      input = load(0, field_.first_item());
    }
    for (int p = 0; p < steps; ++p) {
      for (int tile = 0; tile < field_.tiles(); ++tile) step(p, tile, p + 1 < steps, input);
    }
    for (int tile = 0; tile < field_.tiles(); ++tile) {
      for (Item item = field_.first_item(); item.inside(); item.next(s_)) finish(tile, item);
    }
  }

 private:
  // What an element needs from global memory at a step, as it lies there: whoever converts it waits for it.
  struct Input {
    bool live;
    T gx[G], bias;  // the bias of the input that r does not scale, where there is such a one
  };
  // What it leaves there.
  struct Output {
    T saved[Cell::saved], state[Cell::states];
  };
  struct Results {
    float saved[Cell::saved], state[Cell::states];
  };

  RNNKERN_DEVICE const ForwardGroup<T>& group() const { return field_.group(); }
  RNNKERN_DEVICE Course course(int p) const { return field_.course(a_.begin + p); }

  // Of a unit of this block: all of them where the cell adds both products up, else that of the recurrent one.
  RNNKERN_DEVICE float bias(int gate, int unit) const {
    if (!field_.owns(unit)) return 0;
    int64_t const row = gate * a_.hidden + field_.first_unit() + unit;
    float const recurrent = stepwise::load_or_zero(group().b_hh, row);
    return Cell::split_gate && gate == G - 1 ? recurrent : recurrent + stepwise::load_or_zero(group().b_ih, row);
  }
  RNNKERN_DEVICE T split_bias(const Item& item) const {
    if (!Cell::split_gate || group().b_ih == nullptr) return from_compute<T>(0.0f);
    return group().b_ih[(G - 1) * a_.hidden + field_.unit(item)];
  }

  // --- Where a plain sweep finds an element: pointers to this thread's first one, at the step at hand ---

  RNNKERN_DEVICE void begin_rows() {
    Item const item = field_.first_item();
    int64_t const row = course(0).now.offset + field_.batch_row(0, item), unit = field_.unit(item);
    row_step_ = static_cast<int>(group().reverse ? -a_.batch : a_.batch);
    gates_ = group().gates + (row - group().first_row) * a_.gate_width + unit;
    y_ = group().y + row * a_.y_stride + unit;
    if (a_.keep_cells) cells_ = group().cells + row * a_.hidden + unit;
  }
  RNNKERN_DEVICE void next_rows() {
    gates_ += row_step_ * static_cast<int>(a_.gate_width);
    y_ += row_step_ * static_cast<int>(a_.y_stride);
    if (a_.keep_cells) cells_ += row_step_ * static_cast<int>(a_.hidden);
  }
  // From the first element to another of the same step: 32 bits suffice, which is_plain() saw to.
  RNNKERN_DEVICE int distance(int tile, const Item& item, int64_t stride) const {
    Item const first = field_.first_item();
    return (tile * kTileRows + item.n - first.n) * static_cast<int>(stride) + (item.unit - first.unit);
  }
  RNNKERN_DEVICE int hidden() const { return static_cast<int>(a_.hidden); }

  // --- One step ---

  // `input`: of this thread's first element; afterwards of the one that comes next.
  RNNKERN_DEVICE void step(int p, int tile, bool more, Input& input) {
    Item const item = field_.first_item();
    if (!a_.plain) input = scheduled_load(p, tile, item);
    int const rows = field_.rows(tile);
    engine_.wait(p, tile, rows);
    engine_.product(p, rows);
    Output output;
    if (a_.plain) {
      if (field_.inside(tile, item)) output = compute(p, tile, item, input);
      Item other = item;
      for (other.next(s_); other.n < rows; other.next(s_)) {
        if (field_.inside(tile, other)) keep(tile, other, compute(p, tile, other, load(tile, other)));
      }
    } else {
      for (Item other = item; other.n < rows; input = scheduled_load(p, tile, other)) {
        if (field_.inside(tile, other)) update(p, tile, other, input);
        other.next(s_);
      }
    }
    if (more) {
      engine_.publish(p + 1, tile, rows);
    } else {
      device::sync_threads();  // the next tile's product writes where this one is read
    }
    if (!a_.plain) return;
    if (field_.inside(tile, item)) keep(tile, item, output);
    if (tile + 1 < field_.tiles()) {
      input = load(tile + 1, item);
    } else if (more) {
      next_rows();
      input = load(0, item);
    }
  }

  RNNKERN_DEVICE Input load(int tile, const Item& item) const {
    Input input = {};
    if (!field_.inside(tile, item)) return input;
    const T* const gates = gates_ + distance(tile, item, a_.gate_width);
    RNNKERN_UNROLL for (int g = 0; g < G; ++g) input.gx[g] = gates[g * hidden()];
    input.bias = split_bias(item);
    return input;
  }

  // The cell of an element, and its operand for the next step.
  RNNKERN_DEVICE Output compute(int p, int tile, const Item& item, const Input& input) const {
    float s[Cell::states];
    s[0] = engine_.state(0, tile, item.index);
    if constexpr (Cell::states == 2) s[1] = engine_.state(1, tile, item.index);
    Results const results = run_cell(item, input, s);
    Output output;
    RNNKERN_UNROLL for (int k = 0; k < Cell::states; ++k) output.state[k] = from_compute<T>(results.state[k]);
    engine_.put(p + 1, 0, item.unit, item.n, output.state[0]);
    RNNKERN_UNROLL for (int k = 0; k < Cell::states; ++k) engine_.set_state(k, tile, item.index, results.state[k]);
    RNNKERN_UNROLL for (int k = 0; k < Cell::saved; ++k) output.saved[k] = from_compute<T>(results.saved[k]);
    return output;
  }

  RNNKERN_DEVICE Results run_cell(const Item& item, const Input& input, const float (&s)[Cell::states]) const {
    float gx[G], gh[G];
    engine_.totals(item.n, item.unit, gh);
    RNNKERN_UNROLL for (int g = 0; g < G; ++g) gx[g] = to_compute(input.gx[g]);
    if constexpr (Cell::split_gate) gx[G - 1] += to_compute(input.bias);
    Results results;
    a_.cell.forward(gx, gh, s, results.saved, results.state);
    return results;
  }

  RNNKERN_DEVICE void keep(int tile, const Item& item, const Output& output) const {
    if (a_.save) {
      T* const gates = gates_ + distance(tile, item, a_.gate_width);
      RNNKERN_UNROLL for (int k = 0; k < Cell::saved; ++k) gates[k * hidden()] = output.saved[k];
    }
    y_[distance(tile, item, a_.y_stride)] = output.state[0];
    if constexpr (Cell::states == 2) {
      if (a_.keep_cells) cells_[distance(tile, item, a_.hidden)] = output.state[1];
    }
  }

  // --- The same where the schedule says which rows live and where they lie, or states are masked or blended ---

  RNNKERN_DEVICE stepwise::Gates<T> gates() const {
    return {a_.hidden, a_.gate_width, group().first_row, group().gates};
  }

  // h as w_hh multiplies it: rounded as in y, cut and masked.
  RNNKERN_DEVICE void put(int p, int tile, const Item& item, float h, bool cut) const {
    T operand = from_compute<T>(cut ? 0.0f : h);
    if (group().mask != nullptr) {
      operand = from_compute<T>(to_compute(operand) * stepwise::load(group().mask + field_.place(tile, item)));
    }
    engine_.put(p, 0, item.unit, item.n, operand);
  }

  RNNKERN_DEVICE Input scheduled_load(int p, int tile, const Item& item) const {
    Input input = {};
    if (!field_.inside(tile, item)) return input;
    Course const now = course(p);
    int64_t const b = field_.batch_row(tile, item);
    input.live = now.live(b);
    if (!input.live) return input;
    RNNKERN_UNROLL for (int g = 0; g < G; ++g) { input.gx[g] = *gates().at(now.now.offset + b, field_.unit(item), g); }
    input.bias = split_bias(item);
    return input;
  }

  RNNKERN_DEVICE void update(int p, int tile, const Item& item, const Input& input) {
    Course const now = course(p);
    int64_t const b = field_.batch_row(tile, item), unit = field_.unit(item), row = now.now.offset + b;
    bool const exists = b < now.now.rows, cut = input.live && now.cut(b);
    bool const cut_after = now.live(now.after, b) && now.cut_after(b);
    float h = engine_.state(0, tile, item.index);
    if (input.live) {
      float s[Cell::states];
      s[0] = cut ? 0 : h;
      if constexpr (Cell::states == 2) s[1] = cut ? 0 : engine_.state(1, tile, item.index);
      Results const output = run_cell(item, input, s);
      if (a_.save) {
        RNNKERN_UNROLL for (int k = 0; k < Cell::saved; ++k) stepwise::store(gates().at(row, unit, k), output.saved[k]);
      }
      h = stepwise::Zoneout<T>{group().zone_h, a_.hidden, a_.zoneout}.blend(row, unit, output.state[0], s[0]);
      engine_.set_state(0, tile, item.index, h);
      if constexpr (Cell::states == 2) {
        float const c =
            stepwise::Zoneout<T>{group().zone_c, a_.hidden, a_.zoneout}.blend(row, unit, output.state[1], s[1]);
        engine_.set_state(1, tile, item.index, c);
        keep(row, unit, h, c);
      } else {
        keep(row, unit, h, 0);
      }
    } else if (exists) {  // a row that is not live keeps its state, and its output is zero
      keep(row, unit, 0, 0);
    }
    put(p + 1, tile, item, h, cut_after);
  }

  RNNKERN_DEVICE void keep(int64_t row, int64_t unit, float h, float c) const {
    stepwise::store(group().y + row * a_.y_stride + unit, h);
    if (Cell::states == 2 && a_.keep_cells) stepwise::store(group().cells + row * a_.hidden + unit, c);
  }

  // --- Before the first step and after the last ---

  // States and the first operand.
  RNNKERN_DEVICE void start(int tile, const Item& item) {
    float h = 0, c = 0;
    if (field_.inside(tile, item)) {
      int64_t const i = field_.place(tile, item), b = field_.batch_row(tile, item);
      bool const begins = a_.begin == 0;
      h = begins ? stepwise::load_or_zero(group().h_0, i) : a_.carry_h[field_.place_in_all(tile, item)];
      if constexpr (Cell::states == 2) {
        c = begins ? stepwise::load_or_zero(group().c_0, i) : a_.carry_c[field_.place_in_all(tile, item)];
      }
      Course const first = course(0);
      put(0, tile, item, h, first.live(b) && first.cut(b));
    }
    engine_.set_state(0, tile, item.index, h);
    if constexpr (Cell::states == 2) engine_.set_state(1, tile, item.index, c);
  }

  RNNKERN_DEVICE void finish(int tile, const Item& item) const {
    if (!field_.inside(tile, item)) return;
    float const h = engine_.state(0, tile, item.index);
    float const c = Cell::states == 2 ? engine_.state(1, tile, item.index) : 0;
    if (a_.end == a_.steps) {
      int64_t const i = field_.place(tile, item);
      if (group().h_n != nullptr) stepwise::store(group().h_n + i, h);
      if (Cell::states == 2 && group().c_n != nullptr) stepwise::store(group().c_n + i, c);
    } else {
      int64_t const i = field_.place_in_all(tile, item);
      a_.carry_h[i] = h;
      if (Cell::states == 2) a_.carry_c[i] = c;
    }
  }

  const Args& a_;
  const Sizes& s_;
  Field<Args, exchange> field_;
  Engine<Sweep::forward, math, exchange> engine_;
  T *gates_ = nullptr, *y_ = nullptr, *cells_ = nullptr;
  int row_step_ = 0;  // rows from a step to the next
};

template <class Cell, Math math, Exchange exchange>
RNNKERN_KERNEL(max_threads(exchange))
void forward_kernel(const RNNKERN_PARAMETER ForwardArgs<Cell, storage_t<math>> args) {
  if constexpr (exchange != Exchange::cluster || device::kHasClusters) {
    Place const place = Place::of(args.tiling);
    ForwardSweep<Cell, math, exchange>(args, place).run(place);
  }
}

}  // namespace rnnkern::stationary
