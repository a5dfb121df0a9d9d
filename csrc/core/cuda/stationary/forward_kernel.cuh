// The stationary sweep, forward: one kernel for all steps, with the recurrent weights in registers and shared memory.
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

 public:
  RNNKERN_DEVICE ForwardSweep(const Args& args, const Place& place)
      : a_(args), s_(args.sizes), field_(args, place),
        engine_(s_, args.tiling, place, args.exchange, args.flags, args.exact) {}

  RNNKERN_DEVICE void run(const Place& place) {
    engine_.begin(group().weights, place.recurrence % a_.heads, place.rank);
    for (int tile = 0; tile < field_.tiles(); ++tile) {
      for (Item item = field_.first_item(); item.inside(); item.next(s_)) start(tile, item);
      engine_.publish(0, tile, field_.rows(tile));
      device::sync_threads();  // the next tile's operand is put where this one is sent from
    }
    int const steps = static_cast<int>(a_.end - a_.begin);
    for (int p = 0; p < steps; ++p) {
      for (int tile = 0; tile < field_.tiles(); ++tile) step(p, tile, p + 1 < steps);
    }
    for (int tile = 0; tile < field_.tiles(); ++tile) {
      for (Item item = field_.first_item(); item.inside(); item.next(s_)) finish(tile, item);
    }
  }

 private:
  // What an element needs from global memory at a step; loaded before the product is waited for.
  struct Input {
    bool inside, live;
    float gx[Cell::gates];
  };

  RNNKERN_DEVICE const ForwardGroup<T>& group() const { return field_.group(); }
  RNNKERN_DEVICE Course course(int p) const { return field_.course(a_.begin + p); }
  RNNKERN_DEVICE stepwise::Gates<T> gates() const {
    return {a_.hidden, a_.gate_width, group().first_row, group().gates, nullptr, 0, group().b_ih, group().b_hh};
  }

  // h as w_hh multiplies it: rounded as in y, cut and masked.
  RNNKERN_DEVICE void put(int p, int tile, const Item& item, float h, bool cut) const {
    T operand = from_compute<T>(cut ? 0.0f : h);
    if (group().mask != nullptr) {
      operand = from_compute<T>(to_compute(operand) * stepwise::load(group().mask + field_.place(tile, item)));
    }
    engine_.put(p, 0, item.unit, item.n, operand);
  }

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

  RNNKERN_DEVICE void step(int p, int tile, bool more) {
    Item item = field_.first_item();
    Input input = load(p, tile, item);
    engine_.wait(p, tile, field_.rows(tile));
    engine_.product(p, field_.rows(tile));
    while (item.inside()) {
      if (input.inside) update(p, tile, item, input);
      item.next(s_);
      input = load(p, tile, item);
    }
    if (more) {
      engine_.publish(p + 1, tile, field_.rows(tile));
    } else {
      device::sync_threads();  // the next tile's product writes where this one is read
    }
  }

  RNNKERN_DEVICE Input load(int p, int tile, const Item& item) const {
    Input input = {field_.inside(tile, item), false, {}};
    if (!input.inside) return input;
    Course const now = course(p);
    int64_t const b = field_.batch_row(tile, item);
    input.live = now.live(b);
    if (!input.live) return input;
    RNNKERN_UNROLL for (int g = 0; g < Cell::gates; ++g) {
      input.gx[g] = gates().input(now.now.offset + b, field_.unit(item), g);
    }
    return input;
  }

  RNNKERN_DEVICE void update(int p, int tile, const Item& item, const Input& input) {
    Course const now = course(p);
    int64_t const b = field_.batch_row(tile, item), unit = field_.unit(item), row = now.now.offset + b;
    bool const exists = b < now.now.rows, cut = input.live && now.cut(b);
    bool const cut_after = now.live(now.after, b) && now.cut_after(b);
    float h = engine_.state(0, tile, item.index);
    if (input.live) {
      float gh[Cell::gates], s[Cell::states], saved[Cell::saved], out[Cell::states];
      engine_.totals(item.n, item.unit, gh);
      RNNKERN_UNROLL for (int g = 0; g < Cell::gates; ++g) {
        gh[g] += stepwise::load_or_zero(group().b_hh, g * a_.hidden + unit);
      }
      s[0] = cut ? 0 : h;
      if constexpr (Cell::states == 2) s[1] = cut ? 0 : engine_.state(1, tile, item.index);
      a_.cell.forward(input.gx, gh, s, saved, out);
      if (a_.save) {
        RNNKERN_UNROLL for (int k = 0; k < Cell::saved; ++k) stepwise::store(gates().at(row, unit, k), saved[k]);
      }
      h = stepwise::Zoneout<T>{group().zone_h, a_.hidden, a_.zoneout}.blend(row, unit, out[0], s[0]);
      engine_.set_state(0, tile, item.index, h);
      if constexpr (Cell::states == 2) {
        float const c = stepwise::Zoneout<T>{group().zone_c, a_.hidden, a_.zoneout}.blend(row, unit, out[1], s[1]);
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
    if (Cell::states == 2 && group().cells != nullptr) stepwise::store(group().cells + row * a_.hidden + unit, c);
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
  Field<Args> field_;
  Engine<Sweep::forward, math, exchange> engine_;
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
