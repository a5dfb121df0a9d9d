// The stationary sweep, backward: the transposed recurrent weights stay in registers and shared memory, and the
// gradients of the gates travel. Products for the weights' and the input's gradients follow the sweep. As forward, what
// a step needs from global memory is fetched before, and what it leaves there stored when the operand is on its way.
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
  static constexpr int kPast = Cell::states - 1;  // the state whose value before the step the cell needs: c, or h
  static constexpr bool kNeedsPast = Cell::states == 2 || Cell::kind == CellKind::gru;

 public:
  RNNKERN_DEVICE BackwardSweep(const Args& args, const Place& place)
      : a_(args), s_(args.sizes), field_(args, place),
        engine_(s_, args.tiling, place, args.exchange, args.flags, args.exact) {}

  RNNKERN_DEVICE void run(const Place& place) {
    engine_.begin(group().weights, place.recurrence % a_.heads, place.rank);
    for (int tile = 0; tile < field_.tiles(); ++tile) {
      for (Item item = field_.first_item(); item.inside(); item.next(s_)) start(tile, item);
    }
    int const steps = static_cast<int>(a_.steps);
    Input input = {};
    if (a_.plain) input = load(0, 0, field_.first_item());
    // After the last step there is one more product: the gradient of the initial state, where that is wanted.
    for (int p = 0; p <= steps; ++p) {
      for (int tile = 0; tile < field_.tiles(); ++tile) {
        bool const has_product = p > 0 && (p < steps || initial_wanted());
        step(p, tile, has_product, p + 1 < steps || (p < steps && initial_wanted()), input);
      }
    }
  }

 private:
  // What an element needs from global memory at a step, as it lies there: whoever converts it waits for it.
  struct Input {
    bool live;
    T saved[Cell::saved], past, d_y, d_cell;
  };
  struct Output {
    T d_gates[Columns::count];
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

  // --- One step ---

  // `input`: of this thread's first element; afterwards of the one that comes next.
  RNNKERN_DEVICE void step(int p, int tile, bool has_product, bool more, Input& input) {
    Item const item = field_.first_item();
    bool const ended = p == a_.steps;
    if (!a_.plain && !ended) input = scheduled_load(p, tile, item);
    int const rows = field_.rows(tile);
    if (has_product) {
      engine_.wait(p - 1, tile, rows);
      engine_.product(p - 1, rows);
    } else {
      device::sync_threads();  // this tile's operand is put where the one before is sent from
    }
    Output output;
    if (ended) {
      finish(p, tile, has_product);
    } else if (a_.plain) {
      if (field_.inside(tile, item)) output = compute(p, tile, item, has_product, input);
      Item other = item;
      for (other.next(s_); other.n < rows; other.next(s_)) {
        if (!field_.inside(tile, other)) continue;
        keep(p, tile, other, compute(p, tile, other, has_product, load(p, tile, other)));
      }
    } else {
      for (Item other = item; other.n < rows; input = scheduled_load(p, tile, other)) {
        if (field_.inside(tile, other)) update(p, tile, other, input, has_product);
        other.next(s_);
      }
    }
    if (more) {
      engine_.publish(p, tile, rows);
    } else {
      device::sync_threads();  // the next tile's product writes where this one is read
    }
    if (!a_.plain || ended) return;
    if (field_.inside(tile, item)) keep(p, tile, item, output);
    if (tile + 1 < field_.tiles()) {
      input = load(p, tile + 1, item);
    } else if (p + 1 < a_.steps) {
      input = load(p + 1, 0, item);
    }
  }

  // Where an element of a plain sweep lies in tensors [rows, ...]: 32 bits suffice for each factor, which is_plain()
  // saw to.
  RNNKERN_DEVICE int row(int p, int tile, const Item& item) const {
    int const steps = static_cast<int>(a_.steps), t = group().reverse ? p : steps - 1 - p;
    return t * static_cast<int>(a_.batch) + static_cast<int>(field_.batch_row(tile, item));
  }
  RNNKERN_DEVICE static int64_t place(int row, int stride, int unit) { return int64_t{row} * stride + unit; }
  RNNKERN_DEVICE int hidden() const { return static_cast<int>(a_.hidden); }

  RNNKERN_DEVICE Input load(int p, int tile, const Item& item) const {
    Input input = {};
    if (!field_.inside(tile, item)) return input;
    int const row = this->row(p, tile, item), unit = static_cast<int>(field_.unit(item));
    const T* const saved = group().saved + place(row, Cell::saved * hidden(), unit);
    RNNKERN_UNROLL for (int k = 0; k < Cell::saved; ++k) input.saved[k] = saved[k * hidden()];
    input.d_y = group().d_y[place(row, static_cast<int>(a_.d_y_stride), unit)];
    if constexpr (kNeedsPast) {
      if (p + 1 < a_.steps) {
        int const batch = static_cast<int>(a_.batch), before = group().reverse ? row + batch : row - batch;
        const T* const sequence = Cell::states == 2 ? group().cells : group().y;
        input.past = sequence[place(before, static_cast<int>(past_stride()), unit)];
      } else {
        const T* const initial = Cell::states == 2 ? group().c_0 : group().h_0;
        if (initial != nullptr) input.past = initial[field_.place(tile, item)];
      }
    }
    return input;
  }
  RNNKERN_DEVICE int64_t past_stride() const { return Cell::states == 2 ? a_.hidden : a_.y_stride; }

  RNNKERN_DEVICE Output compute(int p, int tile, const Item& item, bool has_product, const Input& input) const {
    float saved[Cell::saved], s[Cell::states] = {}, d_out[Cell::states], dgx[Cell::gates], ds[Cell::states],
                              d_split = 0;
    d_out[0] = engine_.state(0, tile, item.index);
    if constexpr (Cell::states == 2) d_out[1] = engine_.state(1, tile, item.index);
    if (has_product) d_out[0] += product_of(item);
    d_out[0] += to_compute(input.d_y);
    RNNKERN_UNROLL for (int k = 0; k < Cell::saved; ++k) saved[k] = to_compute(input.saved[k]);
    s[kPast] = to_compute(input.past);
    a_.cell.backward(saved, s, d_out, dgx, d_split, ds);
    Output const output = columns(dgx, d_split);
    put(p, item, output);
    RNNKERN_UNROLL for (int k = 0; k < Cell::states; ++k) engine_.set_state(k, tile, item.index, ds[k]);
    return output;
  }

  RNNKERN_DEVICE static Output columns(const float (&dgx)[Cell::gates], float d_split) {
    Output output;
    RNNKERN_UNROLL for (int g = 0; g < Columns::shared; ++g) {
      output.d_gates[Columns::recurrent + g] = from_compute<T>(dgx[g]);
    }
    if constexpr (Cell::split_gate) {
      output.d_gates[0] = from_compute<T>(dgx[Cell::gates - 1]);
      output.d_gates[Columns::count - 1] = from_compute<T>(d_split);
    }
    return output;
  }
  RNNKERN_DEVICE void put(int p, const Item& item, const Output& output) const {
    RNNKERN_UNROLL for (int column = Columns::recurrent; column < Columns::count; ++column) {
      engine_.put(p, column - Columns::recurrent, item.unit, item.n, output.d_gates[column]);
    }
  }
  RNNKERN_DEVICE void keep(int p, int tile, const Item& item, const Output& output) const {
    T* const d_gates =
        group().d_gates + place(row(p, tile, item), Columns::count * hidden(), static_cast<int>(field_.unit(item)));
    RNNKERN_UNROLL for (int column = 0; column < Columns::count; ++column) {
      d_gates[column * hidden()] = output.d_gates[column];
    }
  }

  RNNKERN_DEVICE float product_of(const Item& item) const {
    float product[1];
    engine_.totals(item.n, item.unit, product);
    return product[0];
  }

  // --- The same where the schedule says which rows live and where they lie, or states are masked or blended ---

  RNNKERN_DEVICE Input scheduled_load(int p, int tile, const Item& item) const {
    Input input = {};
    if (!field_.inside(tile, item)) return input;
    Course const now = course(p);
    int64_t const b = field_.batch_row(tile, item), unit = field_.unit(item), row = now.now.offset + b;
    input.live = now.live(b);
    if (!input.live) return input;
    RNNKERN_UNROLL for (int k = 0; k < Cell::saved; ++k) {
      input.saved[k] = group().saved[(row * Cell::saved + k) * a_.hidden + unit];
    }
    if (group().d_y != nullptr) input.d_y = group().d_y[row * a_.y_stride + unit];
    if constexpr (Cell::states == 2) {
      if (group().d_cells != nullptr) input.d_cell = group().d_cells[row * a_.hidden + unit];
    }
    if constexpr (kNeedsPast) {
      const T* const initial = Cell::states == 2 ? group().c_0 : group().h_0;
      const T* const sequence = Cell::states == 2 ? group().cells : group().y;
      input.past = from_compute<T>(stepwise::Past<T>{initial, sequence, a_.hidden, past_stride()}.at(now, b, unit));
    }
    return input;
  }

  // The gradient of h that has come from the step after.
  RNNKERN_DEVICE float passed(const Course& now, int tile, const Item& item, bool has_product) const {
    int64_t const b = field_.batch_row(tile, item);
    float const rest = engine_.state(0, tile, item.index);
    if (!has_product || !now.live(now.after, b) || now.cut_after(b)) return rest;
    float const product = product_of(item);
    return rest +
           (group().mask == nullptr ? product : product * stepwise::load(group().mask + field_.place(tile, item)));
  }

  RNNKERN_DEVICE void update(int p, int tile, const Item& item, const Input& input, bool has_product) {
    Course const now = course(p);
    int64_t const b = field_.batch_row(tile, item), unit = field_.unit(item), row = now.now.offset + b;
    float const d_h = passed(now, tile, item, has_product);
    float dgx[Cell::gates] = {}, d_split = 0;
    if (input.live) {
      float saved[Cell::saved], s[Cell::states] = {}, d_out[Cell::states], ds[Cell::states], d_old_h;
      bool const cut = now.cut(b);
      RNNKERN_UNROLL for (int k = 0; k < Cell::saved; ++k) saved[k] = to_compute(input.saved[k]);
      s[kPast] = to_compute(input.past);
      stepwise::Zoneout<T>{group().zone_h, a_.hidden, a_.zoneout}.split(row, unit, d_h + to_compute(input.d_y),
                                                                        d_out[0], d_old_h);
      if constexpr (Cell::states == 2) {
        float const d_c = engine_.state(1, tile, item.index) + to_compute(input.d_cell);
        float d_old_c;
        stepwise::Zoneout<T>{group().zone_c, a_.hidden, a_.zoneout}.split(row, unit, d_c, d_out[1], d_old_c);
        a_.cell.backward(saved, s, d_out, dgx, d_split, ds);
        engine_.set_state(1, tile, item.index, cut ? 0 : ds[1] + d_old_c);
      } else {
        a_.cell.backward(saved, s, d_out, dgx, d_split, ds);
      }
      engine_.set_state(0, tile, item.index, cut ? 0 : ds[0] + d_old_h);
    } else {  // the gradient waits for the row's last step
      engine_.set_state(0, tile, item.index, d_h);
    }
    Output const output = columns(dgx, d_split);
    put(p, item, output);
    if (b >= now.now.rows) return;
    RNNKERN_UNROLL for (int column = 0; column < Columns::count; ++column) {
      group().d_gates[(row * Columns::count + column) * a_.hidden + unit] = output.d_gates[column];
    }
  }

  // --- After the last step ---

  RNNKERN_DEVICE void finish(int p, int tile, bool has_product) const {
    for (Item item = field_.first_item(); item.n < field_.rows(tile); item.next(s_)) {
      if (!field_.inside(tile, item)) continue;
      int64_t const i = field_.place(tile, item);
      if (initial_wanted()) stepwise::store(group().d_h_0 + i, passed(course(p), tile, item, has_product));
      if constexpr (Cell::states == 2) {
        if (group().d_c_0 != nullptr) stepwise::store(group().d_c_0 + i, engine_.state(1, tile, item.index));
      }
    }
  }

  const Args& a_;
  const Sizes& s_;
  Field<Args, exchange> field_;
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
