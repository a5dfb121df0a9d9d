#include "timing.h"

#include <algorithm>

namespace rnnkern::stationary {
namespace {

double ceil_div(int64_t a, int64_t b) { return static_cast<double>((a + b - 1) / b); }

}  // namespace

double Timing::tile(const Choice& choice) const {
  const Tiling& t = choice.tiling;
  const StepCosts& cost = t.exchange == Exchange::block     ? c_.block
                          : t.exchange == Exchange::cluster ? c_.cluster
                                                            : c_.grid;
  bool const forward = t.sweep == Sweep::forward, lstm = p_.cell == CellKind::lstm;
  int const warps = t.row_groups * t.depth_splits;
  int64_t const rows = live_rows(t);
  double const rounds = ceil_div(rows * t.units, t.threads());
  double const working = std::min<double>(warps, ceil_div(rows * t.units, 32));
  double cycles = (forward ? cost.forward : cost.backward) + (lstm ? cost.lstm : 0);
  cycles += working * cost.warp + (warps - working) * cost.idle_warp;
  cycles += (rounds - 1) * cost.round + rounds * (t.depth_splits - 1) * cost.split;
  if (!is_plain(p_)) cycles += rounds * c_.schedule;

  // Products: those of the warps that share a scheduler, and the chain of sums of one warp. The model knows the tensor
  // cores of one GPU; slower ones take longer in proportion.
  double const tiles = rows_per_group(t.sweep) / 16, slower = c_.mma_issue / Costs().mma_issue;
  double const slabs = ceil_div(warps, 4) * t.split_slabs() * tiles;
  double const chains = (t.exchange == Exchange::block ? 2 : 4) / tiles;
  double const chain = 2 * t.split_slabs() / chains;
  if (choice.math == Math::fma) {
    cycles += slabs * static_cast<double>(rows) * cost.fma * Costs().fma_lanes / c_.fma_lanes;
  } else if (choice.math != Math::tf32) {
    cycles += slabs * cost.mma_half * slower;
  } else if (choice.exact) {
    cycles += (slabs * cost.mma_exact + 3 * chain * cost.chain_exact) * slower;
  } else {
    cycles += (slabs * cost.mma_tf32 + chain * cost.chain_tf32) * slower;
  }
  cycles += t.shared_slabs() * tiles * cost.shared_slab;

  Sizes const sizes(t, p_.head_size());
  double const pieces = t.block_chunks() * kTileRows, blocks = double(choice.groups_per_launch * p_.heads * t.blocks());
  if (t.exchange == Exchange::cluster) {
    cycles += ceil_div(int64_t(pieces), 32 * sizes.parts) * ceil_div(t.team - 1, sizes.targets) * cost.send;
  } else if (t.exchange == Exchange::grid) {
    cycles +=
        (ceil_div(int64_t(pieces), 32) - 1) * cost.publish + blocks / std::max(device_.multiprocessors, 1) * cost.crowd;
  }
  return cycles;
}

double Timing::memory_us(const Tiling& t) const {
  int64_t const values = t.sweep == Sweep::forward ? p_.gates() + 1 + (p_.save ? facts(p_.cell).saved + 1 : 0)
                                                   : facts(p_.cell).saved + p_.gates() + 3;
  double const bytes = static_cast<double>(p_.batch * p_.hidden_size * p_.groups * values) * size_of(p_.dtype);
  return bytes / c_.memory_bytes;
}

void Timing::predict(Choice& choice) const {
  const Tiling& t = choice.tiling;
  // A block takes its tiles one after the other; each waits for its own operand.
  double const step = t.tiles * tile(choice);

  // Blocks and clusters that find no room wait for the first ones to end; small blocks share a multiprocessor.
  double const recurrences = static_cast<double>(choice.groups_per_launch * p_.heads);
  double waves = 1, crowd = 1;
  if (t.exchange == Exchange::cluster) {
    waves = ceil_div(static_cast<int64_t>(recurrences) * t.teams, std::max(1, resident_clusters(device_, t.team)));
  } else if (t.exchange == Exchange::block) {
    int const multiprocessors = std::max(device_.multiprocessors, 1);
    int const by_registers = device_.registers / (registers_per_thread(t) * t.threads());
    int const fit = std::max(1, std::min(by_registers, device_.shared_bytes / (t.shared_bytes() + 1024)));
    int64_t const blocks = static_cast<int64_t>(recurrences) * t.teams;
    double const on_one = ceil_div(blocks, multiprocessors);
    waves = ceil_div(blocks, int64_t{fit} * multiprocessors);
    crowd = std::min<double>(fit, on_one);
  }
  // Blocks that share a multiprocessor hide each other's waits, but not their work: half of a step, about.
  double const shared_step = crowd > 1 ? std::max(step, step * crowd / 2) : step;
  double const launches = ceil_div(p_.groups, choice.groups_per_launch);
  choice.us_per_step = std::max(launches * waves * shared_step / c_.cycles, memory_us(t));

  // Weights are put into the warps' order by a kernel of each group, and read once by every team.
  double const weights = static_cast<double>(t.packed_quads()) * 16;
  double const packing = static_cast<double>(p_.groups * p_.heads) * 3 * weights / c_.memory_bytes;
  choice.fixed_us = launches * c_.stationary_launch_us + static_cast<double>(p_.groups) * c_.launch_us + packing;
}

}  // namespace rnnkern::stationary
