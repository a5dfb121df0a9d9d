// Recurrent weights in the order in which the warps of a stationary sweep hold them, padded with zeros: one Quad after
// the other for each lane, so that a kernel loads them with full width and no arithmetic.
#pragma once

#include "../../dtype.h"
#include "math.cuh"

namespace rnnkern::stationary {

// Of one recurrence: [rank][warp][slab of the warp][tile of 16 rows][rows g or g + 8][lane]. Over
// [heads * packed_quads / 32, 32].
template <class T>
struct PackWeights {
  Tiling tiling;
  bool round;  // to TF32
  int64_t hidden, heads;
  const T* w_hh;  // [G*H, H / heads]
  Quad* packed;

  RNNKERN_HD void operator()(int64_t line, int64_t lane) const {
    constexpr int per_quad = 16 / sizeof(T);
    int64_t const out = line * 32 + lane;
    int64_t rest = line;
    auto const take = [&](int64_t count) {
      int64_t const index = rest % count;
      rest /= count;
      return static_cast<int>(index);
    };
    int const tile_row = take(tiling.slab_quads() / 32), slab = take(tiling.split_slabs());
    int const warp = take(tiling.row_groups * tiling.depth_splits), rank = take(tiling.team);
    int64_t const head = rest;
    int const row_group = warp % tiling.row_groups, split = warp / tiling.row_groups;
    int const row = row_group * rows_per_group(tiling.sweep) + tile_row * 8 + static_cast<int>(lane) / kChunks;
    int const whole_slab = split * tiling.split_slabs() + slab;
    int const chunk = whole_slab * kChunks + static_cast<int>(lane) % kChunks;

    T values[per_quad];
    for (int i = 0; i < per_quad; ++i) values[i] = from_compute<T>(0);
    bool const inside =
        row < tiling.rows() && slab < tiling.split_slabs() && chunk < tiling.team * tiling.block_chunks();
    if (inside && whole_slab < tiling.slabs()) {
      int64_t const size = hidden / heads;
      int const depth = chunk % tiling.block_chunks() * per_quad;
      int const row_gate = row / tiling.units, depth_gate = depth / tiling.units;
      int64_t const own = int64_t{rank} * tiling.units + row % tiling.units;
      int64_t const other = int64_t{chunk / tiling.block_chunks()} * tiling.units + depth % tiling.units;
      for (int i = 0; i < per_quad; ++i) {
        // Forward a row of the block is a row of w_hh, backward it is a column.
        int64_t const gate = row_gate + depth_gate;
        int64_t const to = tiling.sweep == Sweep::forward ? own : other + i;
        int64_t const from = tiling.sweep == Sweep::forward ? other + i : own;
        if (to < size && from < size) values[i] = rounded(w_hh[(gate * hidden + head * size + to) * size + from]);
      }
    }
    memcpy(packed + out, values, sizeof values);
  }

 private:
  RNNKERN_HD T rounded(T value) const {
    if constexpr (sizeof(T) == 4) {
      return round ? round_to_tf32(value) : value;
    } else {
      return value;
    }
  }
};

}  // namespace rnnkern::stationary
