#include "stationary_plan.h"

#include <algorithm>
#include <limits>

#include "timing.h"

namespace rnnkern::stationary {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
std::string text(int64_t number) { return std::to_string(number); }

// Why no stationary kernel runs this, whatever the layout; empty: one may.
std::string unsupported(const Problem& p, Exchange exchange, const DeviceFacts& device) {
  if (device.capability < 80) {
    return "needs compute capability 8.0, this is " + text(device.capability / 10) + "." + text(device.capability % 10);
  }
  if (p.dtype == Dtype::float64) return "has no float64 kernels";
  if (p.cell == CellKind::gru_v1) return "gru_v1 has two products a step";
  if (p.proj_size > 0) return "a projection is a second product a step";
  if (p.steps == 0 || p.batch == 0 || p.hidden_size == 0 || p.groups == 0) return "nothing to do";
  if (p.steps > std::numeric_limits<int>::max()) return "counts steps in 32 bits";
  if (exchange == Exchange::cluster && device.max_cluster < 2) return "no clusters on this GPU";
  return "";
}

std::vector<Arithmetic> arithmetic(const Problem& p) {
  switch (p.dtype) {
    case Dtype::bfloat16: return {{Math::bfloat16, false}};
    case Dtype::float16: return {{Math::float16, false}};
    default: break;
  }
  if (p.tf32) return {{Math::tf32, false}};
  return {{Math::fma, false}, {Math::tf32, true}};
}

// Tries layouts and keeps the fastest. `shortage` is what the layout that came closest lacks.
class Search {
 public:
  Search(const Problem& p, Sweep sweep, Exchange exchange, const DeviceFacts& device)
      : p_(p), exchange_(exchange), device_(device), timing_(p, device), size_(p.head_size()), sweep_(sweep) {}

  Choice run() {
    for (const Arithmetic& arithmetic : arithmetic(p_)) {
      Tiling tiling;
      tiling.exchange = exchange_, tiling.sweep = sweep_;
      tiling.element_bytes = static_cast<int>(size_of(p_.dtype));
      int const gates = static_cast<int>(p_.gates());
      tiling.row_gates = sweep_ == Sweep::forward ? gates : 1;
      tiling.depth_gates = sweep_ == Sweep::forward ? 1 : gates;
      try_teams(tiling, arithmetic);
    }
    if (!best_.fits) best_.why_not = shortage_;
    return best_;
  }

 private:
  // Shares of the hidden units.
  void try_teams(Tiling tiling, const Arithmetic& arithmetic) {
    if (exchange_ == Exchange::block) {
      try_units(tiling, round_up(size_, 8), 1, arithmetic);
    } else if (exchange_ == Exchange::cluster) {
      for (int team = 2; team <= std::min(16, device_.max_cluster); team *= 2) {
        try_units(tiling, round_up(ceil_div(size_, team), 8), team, arithmetic);
      }
    } else {
      int const warps = max_threads(exchange_) / 32;
      int64_t const most = warps * rows_per_group(sweep_) / tiling.row_gates;
      bool tried = false;
      for (int64_t units = 8; units <= most; units += 8) {
        int64_t const team = ceil_div(size_, units);
        if (team > std::min(kMaxTeam, device_.multiprocessors)) continue;
        try_units(tiling, units, team, arithmetic), tried = true;
        if (team == 1) break;
      }
      if (!tried)
        lacks(text(ceil_div(size_, most)) + " blocks, " + text(device_.multiprocessors) + " can run together");
    }
  }

  // Shares of the depth.
  void try_units(Tiling tiling, int64_t units, int64_t team, const Arithmetic& arithmetic) {
    int const warps = max_threads(exchange_) / 32;
    int64_t const row_groups = ceil_div(units * tiling.row_gates, rows_per_group(sweep_));
    if (row_groups > warps) {
      return lacks(text(units * tiling.row_gates) + " weight rows in a block, " + text(warps * rows_per_group(sweep_)) +
                   " have a warp");
    }
    tiling.units = static_cast<int>(units), tiling.team = static_cast<int>(team);
    for (int groups = static_cast<int>(row_groups); groups <= warps; ++groups) {
      tiling.row_groups = groups;
      for (int splits = 1; splits * groups <= warps && splits <= tiling.slabs(); ++splits) {
        tiling.depth_splits = splits;
        if ((splits - 1) * tiling.split_slabs() >= tiling.slabs()) continue;  // a warp without work
        try_batch(tiling, arithmetic);
      }
      // Warps beyond those that the rows need only multiply zeros; they help with what comes after the product.
      if (units * std::min<int64_t>(p_.batch, kTileRows) <= 32 * groups * tiling.slabs()) break;
    }
  }

  // Shares of the batch.
  void try_batch(Tiling tiling, const Arithmetic& arithmetic) {
    int64_t const tiles = ceil_div(p_.batch, kTileRows);
    if (exchange_ != Exchange::grid) {
      int64_t const groups = std::min<int64_t>(p_.groups, kMaxGroups), recurrences = groups * p_.heads;
      if (tiles * tiling.team * p_.heads * kMaxGroups > std::numeric_limits<int>::max()) return lacks("blocks");
      tiling.teams = static_cast<int>(tiles);
      consider(tiling, groups, arithmetic);
      // Blocks that would have nothing to do take some of the rows.
      for (int rows = kTileRows / 2; rows > 0; rows /= 2) {
        int64_t const teams = ceil_div(p_.batch, rows);
        if (teams * tiling.team * recurrences > device_.multiprocessors) return;
        if (teams == 1) continue;
        tiling.tile_rows = rows, tiling.teams = static_cast<int>(teams);
        consider(tiling, groups, arithmetic);
      }
      return;
    }
    int64_t const room = device_.multiprocessors / (p_.heads * tiling.team);  // teams of a head
    if (room == 0) {
      return lacks(text(p_.heads * tiling.team) + " blocks, " + text(device_.multiprocessors) + " can run together");
    }
    int64_t last = 0;
    for (int64_t teams = 1; teams <= std::min(room, tiles); ++teams) {
      int64_t const each = ceil_div(tiles, teams);
      if (each == last) continue;
      last = each;
      if (each * kTileRows * tiling.units * 8 > device_.shared_bytes) {  // also keeps the sums below in range
        lacks("more than " + text(device_.shared_bytes) + " bytes of shared memory for the states of " +
              text(p_.batch) + " rows");
        continue;
      }
      tiling.tiles = static_cast<int>(each), tiling.teams = static_cast<int>(ceil_div(tiles, each));
      int64_t const groups = device_.multiprocessors / (p_.heads * tiling.blocks());
      consider(tiling, std::min<int64_t>({groups, p_.groups, kMaxGroups}), arithmetic);
    }
  }

  void consider(const Tiling& tiling, int64_t groups, const Arithmetic& arithmetic) {
    if (tiling.shared_bytes() > device_.shared_bytes) {
      if (least_shared_ == 0 || tiling.shared_bytes() < least_shared_) {
        least_shared_ = tiling.shared_bytes();
        lacks(text(least_shared_) + " bytes of shared memory, a block has " + text(device_.shared_bytes));
      }
      return;
    }
    if (tiling.threads() * registers_per_thread(tiling) > device_.registers) {
      return lacks(text(tiling.threads() * registers_per_thread(tiling)) + " registers, a multiprocessor has " +
                   text(device_.registers));
    }
    if (exchange_ == Exchange::cluster && resident_clusters(device_, tiling.team) == 0) {
      return lacks("a cluster of " + text(tiling.team) + " blocks");
    }
    Choice choice;
    choice.fits = true;
    choice.math = arithmetic.math, choice.exact = arithmetic.exact;
    choice.tiling = tiling;
    choice.groups_per_launch = static_cast<int>(groups);
    if (exchange_ == Exchange::grid) {
      int64_t const flag_quads = ceil_div(tiling.flags(), 4), recurrences = groups * p_.heads;
      choice.exchange_bytes = static_cast<size_t>(recurrences * (tiling.exchange_quads() + flag_quads) * 16);
    }
    timing_.predict(choice);
    if (!best_.fits || choice.us(p_.steps) < best_.us(p_.steps)) best_ = choice;
  }

  // Shared memory comes last: a layout that lacks only that came closest.
  void lacks(const std::string& what) {
    if (least_shared_ == 0 || what.find("shared memory, a block") != std::string::npos) shortage_ = "needs " + what;
  }

  const Problem& p_;
  Exchange exchange_;
  const DeviceFacts& device_;
  Timing timing_;
  int64_t size_;
  Sweep sweep_;
  Choice best_;
  std::string shortage_;
  int64_t least_shared_ = 0;
};

}  // namespace

int resident_clusters(const DeviceFacts& device, int size) {
  if (size > device.max_cluster) return 0;
  for (int i = 0; i < 4; ++i) {
    if (size == 2 << i && device.clusters[i] > 0) return device.clusters[i];
  }
  int const groups = static_cast<int>(ceil_div(device.multiprocessors, 18));
  return groups * (device.multiprocessors / std::max(groups, 1) / size);
}

Choice choose(const Problem& problem, Sweep sweep, Exchange exchange, const DeviceFacts& device) {
  std::string const reason = unsupported(problem, exchange, device);
  if (reason.empty()) return Search(problem, sweep, exchange, device).run();
  Choice none;
  none.why_not = reason;
  return none;
}

}  // namespace rnnkern::stationary
