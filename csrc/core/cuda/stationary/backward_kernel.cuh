// The stationary sweep, backward: the transposed recurrent weights stay in registers and shared memory, and the
// gradients of the gates travel. Products for the weights' and the input's gradients follow the sweep.
#pragma once

#include "../backward.cuh"
#include "engine.cuh"
#include "field.cuh"

namespace rnnkern::stationary {

template <class Cell, Math math, Exchange exchange>
class BackwardSweep {
  using T = storage_t<math>;
  using Args = BackwardArgs<Cell, T>;
  using Columns = stepwise::GateColumns<Cell>;
  using Course = stepwise::Course;

 public:
  RNNKERN_DEVICE BackwardSweep(const Args& args, const Place& place)
      : a_(args), s_(args.sizes), field_(args, place),
        engine_(s_, args.tiling, place, args.exchange, args.flags, args.exact) {}

  RNNKERN_DEVICE void run(const Place& place) {
    engine_.begin(group().weights, place.recurrence % a_.heads, place.rank);
    for (int tile = 0; tile < field_.tiles(); ++tile) {
      for (Item item = field_.first_item(); item.inside(); item.next(s_)) start(tile, item);
    }
    // After the last step there is one more product: the gradient of the initial state, where that is wanted.
    int const steps = static_cast<int>(a_.steps);
    for (int p = 0; p <= steps; ++p) {
      for (int tile = 0; tile < field_.tiles(); ++tile) {
        step(p, tile, p > 0 && (p < steps || initial_wanted()), p + 1 < steps || (p < steps && initial_wanted()));
      }
    }
  }

 private:
  // What an element needs from global memory at a step; loaded before the product is waited for.
  struct Input {
    bool inside, live;
    float saved[Cell::saved], s[Cell::states];
    float d_y, d_cell;
  };

  RNNKERN_DEVICE const BackwardGroup<T>& group() const { return field_.group(); }
  RNNKERN_DEVICE bool initial_wanted() const { return group().d_h_0 != nullptr; }
  // Step p of the sweep; what lies before the first step for p = T.
  RNNKERN_DEVICE Course course(int p) const { return field_.course(a_.steps - 1 - p); }

  RNNKERN_DEVICE void start(int tile, const Item& item) const {
    bool const inside = field_.inside(tile, item);
    int64_t const i = inside ? field_.place(tile, item) : 0;
    engine_.set_state(0, tile, item.index, inside ? stepwise::load_or_zero(group().d_h_n, i) : 0);
    if constexpr (Cell::states == 2) {
      engine_.set_state(1, tile, item.index, inside ? stepwise::load_or_zero(group().d_c_n, i) : 0);
    }
  }

  RNNKERN_DEVICE void step(int p, int tile, bool has_product, bool more) {
    Item item = field_.first_item();
    Input input = load(p, tile, item);
    if (has_product) {
      engine_.wait(p - 1, tile, field_.rows(tile));
      engine_.product(p - 1, field_.rows(tile));
    } else {
      device::sync_threads();  // this tile's operand is put where the one before is sent from
    }
    while (item.inside()) {
      if (input.inside && p < a_.steps) update(p, tile, item, input, has_product);
      if (input.inside && p == a_.steps) finish(p, tile, item, has_product);
      item.next(s_);
      input = load(p, tile, item);
    }
    if (more) {
      engine_.publish(p, tile, field_.rows(tile));
    } else {
      device::sync_threads();  // the next tile's product writes where this one is read
    }
  }

  RNNKERN_DEVICE Input load(int p, int tile, const Item& item) const {
    Input input = {field_.inside(tile, item), false, {}, {}, 0, 0};
    if (!input.inside) return input;
    Course const now = course(p);
    int64_t const b = field_.batch_row(tile, item), unit = field_.unit(item), row = now.now.offset + b;
    input.live = now.live(b);
    if (!input.live) return input;
    RNNKERN_UNROLL for (int k = 0; k < Cell::saved; ++k) {
      input.saved[k] = stepwise::load(group().saved + (row * Cell::saved + k) * a_.hidden + unit);
    }
    input.d_y = stepwise::load_or_zero(group().d_y, row * a_.y_stride + unit);
    if constexpr (Cell::states == 2) {
      input.s[1] = stepwise::Past<T>{group().c_0, group().cells, a_.hidden, a_.hidden}.at(now, b, unit);
      input.d_cell = stepwise::load_or_zero(group().d_cells, row * a_.hidden + unit);
    } else if constexpr (Cell::kind == CellKind::gru) {
      input.s[0] = stepwise::Past<T>{group().h_0, group().y, a_.hidden, a_.y_stride}.at(now, b, unit);
    }
    return input;
  }

  // The gradient of h that has come from the step after.
  RNNKERN_DEVICE float passed(const Course& now, int tile, const Item& item, bool has_product) const {
    int64_t const b = field_.batch_row(tile, item);
    float const rest = engine_.state(0, tile, item.index);
    if (!has_product || !now.live(now.after, b) || now.cut_after(b)) return rest;
    float product[1];
    engine_.totals(item.n, item.unit, product);
    if (group().mask == nullptr) return rest + product[0];
    return rest + product[0] * stepwise::load(group().mask + field_.place(tile, item));
  }

  RNNKERN_DEVICE void update(int p, int tile, const Item& item, const Input& input, bool has_product) {
    Course const now = course(p);
    int64_t const b = field_.batch_row(tile, item), unit = field_.unit(item), row = now.now.offset + b;
    float const d_h = passed(now, tile, item, has_product);
    float d_gates[Columns::count] = {};
    if (input.live) {
      float d_out[Cell::states], dgx[Cell::gates], ds[Cell::states], d_split = 0, d_old_h;
      bool const cut = now.cut(b);
      stepwise::Zoneout<T>{group().zone_h, a_.hidden, a_.zoneout}.split(row, unit, d_h + input.d_y, d_out[0], d_old_h);
      if constexpr (Cell::states == 2) {
        float const d_c = engine_.state(1, tile, item.index) + input.d_cell;
        float d_old_c;
        stepwise::Zoneout<T>{group().zone_c, a_.hidden, a_.zoneout}.split(row, unit, d_c, d_out[1], d_old_c);
        a_.cell.backward(input.saved, input.s, d_out, dgx, d_split, ds);
        engine_.set_state(1, tile, item.index, cut ? 0 : ds[1] + d_old_c);
      } else {
        a_.cell.backward(input.saved, input.s, d_out, dgx, d_split, ds);
      }
      engine_.set_state(0, tile, item.index, cut ? 0 : ds[0] + d_old_h);
      RNNKERN_UNROLL for (int g = 0; g < Columns::shared; ++g) d_gates[Columns::recurrent + g] = dgx[g];
      if constexpr (Cell::split_gate) {
        d_gates[0] = dgx[Cell::gates - 1];
        d_gates[Columns::count - 1] = d_split;
      }
    } else {  // the gradient waits for the row's last step
      engine_.set_state(0, tile, item.index, d_h);
    }
    bool const exists = b < now.now.rows;
    RNNKERN_UNROLL for (int column = 0; column < Columns::count; ++column) {
      T const value = from_compute<T>(d_gates[column]);
      if (exists) group().d_gates[(row * Columns::count + column) * a_.hidden + unit] = value;
      if (column >= Columns::recurrent) engine_.put(p, column - Columns::recurrent, item.unit, item.n, value);
    }
  }

  RNNKERN_DEVICE void finish(int p, int tile, const Item& item, bool has_product) const {
    int64_t const i = field_.place(tile, item);
    if (initial_wanted()) stepwise::store(group().d_h_0 + i, passed(course(p), tile, item, has_product));
    if constexpr (Cell::states == 2) {
      if (group().d_c_0 != nullptr) stepwise::store(group().d_c_0 + i, engine_.state(1, tile, item.index));
    }
  }

  const Args& a_;
  const Sizes& s_;
  Field<Args> field_;
  Engine<Sweep::backward, math, exchange> engine_;
};

template <class Cell, Math math, Exchange exchange>
RNNKERN_KERNEL(max_threads(exchange))
void backward_kernel(const RNNKERN_PARAMETER BackwardArgs<Cell, storage_t<math>> args) {
  if constexpr (exchange != Exchange::cluster || device::kHasClusters) {
    Place const place = Place::of(args.tiling);
    BackwardSweep<Cell, math, exchange>(args, place).run(place);
  }
}

}  // namespace rnnkern::stationary
