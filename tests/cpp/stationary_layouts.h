// All layouts by which a stationary kernel may run a problem, whether or not a plan would choose them.
#pragma once

#include <algorithm>
#include <vector>

#include "cuda/stationary/stationary_plan.h"

namespace check {

using namespace rnnkern;
using stationary::Choice;
using stationary::Exchange;
using stationary::Math;
using stationary::Sweep;
using stationary::Tiling;

// The GPU that the layouts are for: made up, with the limits of an H100.
inline constexpr int kMultiprocessors = 132, kSharedBytes = 232448, kMaxCluster = 16;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Layouts that need all of a warp's registers and shared memory are among them, and those that leave blocks without
// units or warps without weight rows.
inline std::vector<Tiling> layouts(const Problem& p, Sweep sweep, Exchange exchange) {
  std::vector<Tiling> found;
  int64_t const size = p.head_size();
  Tiling t;
  t.exchange = exchange, t.sweep = sweep, t.element_bytes = static_cast<int>(size_of(p.dtype));
  t.row_gates = sweep == Sweep::forward ? static_cast<int>(p.gates()) : 1;
  t.depth_gates = sweep == Sweep::forward ? 1 : static_cast<int>(p.gates());
  auto const add = [&](int64_t teams, int64_t tiles, int rows) {
    t.teams = static_cast<int>(teams), t.tiles = static_cast<int>(tiles), t.tile_rows = rows;
    bool const resident = exchange != Exchange::grid || p.heads * t.blocks() <= kMultiprocessors;
    if (resident && t.shared_bytes() <= kSharedBytes) found.push_back(t);
  };
  auto const try_batch = [&] {
    for (int rows : {1, 3, 4}) {
      if (rows < p.batch && exchange != Exchange::grid) add(ceil_div(p.batch, rows), 1, rows);
    }
    int64_t const all = ceil_div(p.batch, stationary::kTileRows);
    for (int64_t teams = 1; teams <= all; ++teams) {
      int64_t const tiles = ceil_div(all, teams);
      if ((teams - 1) * tiles >= all || (exchange != Exchange::grid && tiles > 1)) continue;
      add(teams, tiles, stationary::kTileRows);
    }
  };
  auto const try_depth = [&](int64_t team, int64_t units) {
    int const warps = stationary::max_threads(exchange) / 32;
    t.team = static_cast<int>(team), t.units = static_cast<int>(units);
    int const least = static_cast<int>(ceil_div(t.rows(), stationary::rows_per_group(sweep)));
    for (t.row_groups = least; t.row_groups <= std::min(warps, 2 * least); ++t.row_groups) {
      int const most = std::min(warps / t.row_groups, t.slabs());
      for (t.depth_splits = 1; t.depth_splits <= most; ++t.depth_splits) {
        if ((t.depth_splits - 1) * t.split_slabs() < t.slabs()) try_batch();  // each split has some depth
      }
    }
  };
  if (exchange == Exchange::block) {
    try_depth(1, ceil_div(size, 8) * 8);
  } else if (exchange == Exchange::cluster) {
    for (int team = 2; team <= kMaxCluster; team *= 2) try_depth(team, ceil_div(ceil_div(size, team), 8) * 8);
  } else {
    for (int64_t units = 8; units < size + 8; units += 8) try_depth(ceil_div(size, units), units);
  }
  return found;
}

// How many layouts had what a kernel must be seen to handle.
struct Occurrences {
  int several_blocks = 0, several_teams = 0, several_tiles = 0, several_splits = 0;
  bool shared_memory_could = false;  // hold weights, in some layout
  int few_rows = 0, weights_in_shared_memory = 0, idle_blocks = 0, idle_warps = 0, planned = 0,
      single_group_launches = 0;

  void count(const Tiling& t, int64_t size) {
    several_blocks += t.team > 1, several_teams += t.teams > 1, several_tiles += t.tiles > 1;
    several_splits += t.depth_splits > 1;
    few_rows += t.tile_rows < stationary::kTileRows;
    weights_in_shared_memory += t.shared_slabs() > 0;
    idle_warps += (t.row_groups - 1) * stationary::rows_per_group(t.sweep) >= t.rows();
    idle_blocks += int64_t{t.team - 1} * t.units >= size;
  }
};

}  // namespace check
