#include "timing.h"

#include <algorithm>

namespace rnnkern::stationary {
namespace {

double ceil_div(int64_t a, int64_t b) { return static_cast<double>((a + b - 1) / b); }

// Exponentials and reciprocals of one unit.
double special_operations(CellKind cell, Sweep sweep) {
  int const activations = cell == CellKind::lstm ? 5 : cell == CellKind::gru ? 3 : 1;
  if (sweep == Sweep::forward) return 2 * activations;
  return cell == CellKind::lstm ? 2 : 0;  // backward, only tanh of the new cell state is made again
}

}  // namespace

// The slowest of: the arithmetic of the warps that share a scheduler, the chain of sums of one warp, shared memory.
double Timing::product(const Choice& choice) const {
  const Tiling& t = choice.tiling;
  double const tiles = rows_per_group(t.sweep) / 16;                // of 16 weight rows, of a warp
  double const warps = ceil_div(t.row_groups * t.depth_splits, 4);  // of one scheduler
  double operand_reads = 1, issue = 0, chain = 0;
  if (choice.math == Math::fma) {
    issue = tiles * live_rows() * 8 * 128 / c_.fma_lanes;  // a lane has 16 bytes of two weight rows
    chain = 4 * c_.fma_latency * t.split_slabs();
    operand_reads = live_rows() / kTileRows * 2;  // loads of 64 bytes, each for eight lanes
  } else {
    int const products = choice.exact ? 3 : 1;
    double const instructions = tiles * 2 * products;
    double const rests = choice.exact ? tiles * 2 * 6 * 2 : 0;  // a mask and a difference of each register
    issue = std::max(instructions * c_.mma_issue, instructions + rests);
    // Four sums of a warp are under way, two with weights from shared memory.
    double const turns = 2 * products * (t.register_slabs() * tiles / 4 + t.shared_slabs() * tiles / 4);
    chain = turns * c_.mma_latency;
  }
  double const operand = t.row_groups * t.slabs() * 512.0 * operand_reads;
  double const partial = 2.0 * t.depth_splits * kTileRows * t.rows() * 4;
  double const bytes = operand + t.weight_bytes() + partial;
  return std::max({warps * t.split_slabs() * issue, chain, bytes / c_.shared_bytes}) + c_.shared_latency +
         c_.mma_latency + c_.barrier;
}

double Timing::pointwise(const Tiling& t) const {
  double const items = live_rows() * t.units;
  double const rounds = ceil_div(static_cast<int64_t>(items), t.threads());
  double const special = items * special_operations(p_.cell, t.sweep) / c_.special_lanes;
  double const sums = rounds * t.row_gates * t.depth_splits * 4;
  // A thread's first unit is loaded while the operand travels; those after it are waited for.
  return c_.pointwise_latency + special + sums + (rounds - 1) * c_.memory_latency + 2 * c_.barrier;
}

double Timing::fetch(const Choice& choice) const {
  const Tiling& t = choice.tiling;
  if (t.exchange != Exchange::grid) return 0;
  double const blocks = static_cast<double>(choice.groups_per_launch * p_.heads * t.blocks());
  double const rate = std::min(c_.l2_bytes_alone, c_.l2_bytes * device_.multiprocessors / blocks);
  return t.slabs() * 64 * live_rows() / rate + c_.barrier;
}

double Timing::hop(const Tiling& t) const {
  double const sent = t.block_chunks() * live_rows() * 16;
  switch (t.exchange) {
    case Exchange::block: return 0;
    case Exchange::cluster: return c_.cluster_latency + c_.cluster_wait + sent * (t.team - 1) / c_.cluster_bytes;
    case Exchange::grid: break;
  }
  double const stores = t.outbox_quads() / 32.0 * 10;  // by one warp
  return c_.flag_hop_us * c_.cycles + stores + c_.l2_latency;
}

double Timing::memory_us(const Tiling& t) const {
  int64_t const values = t.sweep == Sweep::forward ? p_.gates() + 1 + (p_.save ? facts(p_.cell).saved + 1 : 0)
                                                   : facts(p_.cell).saved + p_.gates() + 3;
  double const bytes = static_cast<double>(p_.batch * p_.hidden_size * p_.groups * values) * size_of(p_.dtype);
  return bytes / c_.memory_bytes;
}

void Timing::predict(Choice& choice) const {
  const Tiling& t = choice.tiling;
  double const busy = product(choice) + pointwise(t) + fetch(choice);
  // While one tile's operand travels, the block works on its other tiles.
  double const step = std::max(t.tiles * busy, busy + hop(t));

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
  double const weights =
      static_cast<double>(t.team) * t.row_groups * t.depth_splits * t.split_slabs() * t.slab_quads() * 16;
  double const packing = static_cast<double>(p_.groups * p_.heads) * 3 * weights / c_.memory_bytes;
  choice.fixed_us = launches * c_.stationary_launch_us + static_cast<double>(p_.groups) * c_.launch_us + packing;
}

}  // namespace rnnkern::stationary
