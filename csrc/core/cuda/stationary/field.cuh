// The elements of a sweep that a thread owns: which unit of which batch row, where they lie, and which of them live.
#pragma once

#include "args.h"
#include "exchange.cuh"

namespace rnnkern::stationary {

// A (unit, batch row) of a block's tile. A thread owns every threads-th of them, units first.
struct Item {
  int index, unit, n;

  RNNKERN_DEVICE bool inside() const { return n < kTileRows; }
  RNNKERN_DEVICE void next(const Sizes& s) {
    index += s.threads;
    unit += s.unit_stride, n += s.row_stride;
    if (unit >= s.units) unit -= s.units, ++n;
  }
};

// Which elements a block owns, where they lie, and which of them live. Nothing here is kept in a register from step to
// step that can be read from the arguments again.
template <class Args, Exchange exchange>
class Field {
  // Of the grid every tile has kTileRows: its kernels have no register left for more than that.
  RNNKERN_DEVICE static int team_rows(const Args& args) {
    return args.tiling.tiles * (exchange == Exchange::grid ? kTileRows : args.tiling.tile_rows);
  }

 public:
  RNNKERN_DEVICE Field(const Args& args, const Place& place)
      : a_(args), group_(device::uniform(place.recurrence / args.heads)), first_row_(place.team * team_rows(args)),
        first_unit_(device::uniform(place.recurrence % args.heads) * args.sizes.head_size +
                    place.rank * args.sizes.units),
        units_(min(args.sizes.units, args.sizes.head_size - place.rank * args.sizes.units)),
        all_rows_(device::uniform(static_cast<int>(min<int64_t>(team_rows(args), a_.batch - first_row_)))),
        tiles_(static_cast<int>((static_cast<unsigned>(all_rows_) + kTileRows - 1) / kTileRows)),
        first_item_(device::thread_index() / args.sizes.units << 16 | device::thread_index() % args.sizes.units) {}

  RNNKERN_DEVICE const auto& group() const { return a_.group[group_]; }
  RNNKERN_DEVICE int tiles() const { return tiles_; }
  RNNKERN_DEVICE Item first_item() const { return {device::thread_index(), first_item_ & 0xffff, first_item_ >> 16}; }

  // Batch rows of a tile.
  RNNKERN_DEVICE int rows(int tile) const { return min(kTileRows, all_rows_ - tile * kTileRows); }
  RNNKERN_DEVICE int64_t batch_row(int tile, const Item& item) const { return first_row_ + tile * kTileRows + item.n; }
  RNNKERN_DEVICE int64_t first_unit() const { return first_unit_; }
  RNNKERN_DEVICE bool owns(int unit) const { return unit < units_; }
  // Unit within the layer.
  RNNKERN_DEVICE int64_t unit(const Item& item) const { return first_unit_ + item.unit; }
  RNNKERN_DEVICE bool inside(int tile, const Item& item) const { return item.n < rows(tile) && owns(item.unit); }
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
  template <class Int>
  RNNKERN_DEVICE static Int min(Int a, Int b) {
    return a < b ? a : b;
  }

  const Args& a_;
  int group_, first_row_, first_unit_, units_, all_rows_, tiles_;
  int first_item_;  // row, then unit in the lower half
};

}  // namespace rnnkern::stationary
