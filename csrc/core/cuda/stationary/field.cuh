// The elements of a sweep that a thread owns: which unit of which batch row, where they lie, and which of them live.
#pragma once

#include "args.h"
#include "exchange.cuh"

namespace rnnkern::stationary {

// Walks over the (unit, batch row) pairs of a block's tile that a thread owns.
struct Item {
  int index, unit, n;

  RNNKERN_DEVICE explicit Item(const Tiling& t)
      : index(device::thread_index()), unit(index % t.units), n(index / t.units) {}

  RNNKERN_DEVICE bool inside(const Tiling& t) const { return n < t.tile_rows(); }
  RNNKERN_DEVICE void next(const Tiling& t) {
    index += t.threads();
    unit = index % t.units, n = index / t.units;
  }
};

// Nothing here is kept in a register from step to step that can be read from the arguments again.
template <class Args>
class Field {
 public:
  RNNKERN_DEVICE Field(const Args& args, const Place& place)
      : a_(args), group_(place.recurrence / args.heads), head_(place.recurrence % args.heads),
        first_row_(place.team * args.tiling.tiles * args.tiling.tile_rows()),
        first_unit_(place.rank * args.tiling.units) {}

  RNNKERN_DEVICE const auto& group() const { return a_.group[group_]; }
  RNNKERN_DEVICE int head() const { return head_; }

  RNNKERN_DEVICE int64_t batch_row(int tile, const Item& item) const {
    return first_row_ + tile * a_.tiling.tile_rows() + item.n;
  }
  // Unit within the layer.
  RNNKERN_DEVICE int64_t unit(const Item& item) const { return head_ * size() + first_unit_ + item.unit; }
  RNNKERN_DEVICE bool inside(int tile, const Item& item) const {
    return item.inside(a_.tiling) && batch_row(tile, item) < a_.batch && first_unit_ + item.unit < size();
  }
  // Of an element in a [B, H] tensor, and in [groups, B, H].
  RNNKERN_DEVICE int64_t place(int tile, const Item& item) const {
    return batch_row(tile, item) * a_.hidden + unit(item);
  }
  RNNKERN_DEVICE int64_t place_in_all(int tile, const Item& item) const {
    return group_ * a_.batch * a_.hidden + place(tile, item);
  }

  // The step `index` in the order of the recurrence, with its neighbours.
  RNNKERN_DEVICE stepwise::Course course(int64_t index) const {
    stepwise::Calendar const calendar{a_.steps, a_.batch, group().offsets};
    bool const reverse = group().reverse;
    int64_t const t = reverse ? a_.steps - 1 - index : index, stride = reverse ? -1 : 1;
    return {reverse, group().lengths, group().reset, calendar.at(t - stride), calendar.at(t), calendar.at(t + stride)};
  }

 private:
  RNNKERN_DEVICE int size() const { return static_cast<int>(a_.hidden / a_.heads); }  // of a head

  const Args& a_;
  int group_, head_, first_row_, first_unit_;
};

}  // namespace rnnkern::stationary
