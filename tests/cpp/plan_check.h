// What every plan for a GPU must keep: nothing is refused, and no layout asks for more than the GPU has. The limits are
// worked out again here, from the sizes alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "gpu_suites.h"
#include "plan.h"

namespace rnnkern::test {

using stationary::Choice;
using stationary::Exchange;
using stationary::Math;
using stationary::Tiling;

inline constexpr const DeviceFacts* kDevices[] = {&kH100, &kA100, &kRtx4090, &kT4};
inline const std::vector<std::string> kStrategies = {"stepwise", "stationary:block", "stationary:cluster",
                                                     "stationary:grid"};

inline std::string describe(const Problem& p, Sweep sweep, const DeviceFacts& device) {
  char text[200];
  std::snprintf(text, sizeof text, "%s %s H %lld B %lld T %lld heads %lld groups %lld %d-byte%s on %s",
                facts(p.cell).name, sweep == Sweep::forward ? "forward" : "backward", (long long)p.hidden_size,
                (long long)p.batch, (long long)p.steps, (long long)p.heads, (long long)p.groups, int(size_of(p.dtype)),
                p.tf32 ? " tf32" : "", device.name);
  return text;
}

inline void expect(bool condition, const std::string& what, const std::string& where) {
  if (condition) return;
  std::printf("FAILED %s: %s\n", where.c_str(), what.c_str());
  std::exit(1);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline void check_resident(const Problem& p, const Choice& choice, const DeviceFacts& device,
                           const std::string& where) {
  const Tiling& t = choice.tiling;
  int64_t const blocks = p.heads * choice.groups_per_launch * t.teams * t.team;
  expect(choice.groups_per_launch >= 1 && choice.groups_per_launch <= std::min<int64_t>(8, p.groups), "groups", where);
  expect(blocks < int64_t{1} << 31, "more blocks than a launch can have", where);
  switch (t.exchange) {
    case Exchange::block: expect(t.team == 1 && t.tiles == 1, "a block is alone, with one tile", where); break;
    case Exchange::cluster:
      expect(t.team == 2 || t.team == 4 || t.team == 8 || t.team == 16, "no cluster has this size", where);
      expect(t.team <= device.max_cluster && t.tiles == 1, "the cluster does not fit", where);
      break;
    case Exchange::grid:
      expect(blocks <= device.multiprocessors, "blocks that wait for each other do not all run", where);
  }
  int const most_threads = t.exchange == Exchange::block ? 512 : 256;  // as the kernels are compiled
  int const threads = 32 * t.row_groups * t.depth_splits;
  expect(threads == t.threads() && threads <= most_threads, "threads", where);
  expect(threads * (65536 / most_threads) <= device.registers, "registers", where);
}

// Shared memory: operand, outbox, weights that are not in registers, partial sums, states.
inline int64_t shared_bytes(const Problem& p, Sweep sweep, const Choice& choice) {
  const Tiling& t = choice.tiling;
  int64_t const gates = p.gates(), element = int64_t(size_of(p.dtype));
  int64_t const depth_gates = sweep == Sweep::forward ? 1 : gates;
  int64_t const tile_rows = 8, warp_rows = sweep == Sweep::forward ? 32 : 16;
  int64_t const slabs = ceil_div(int64_t{t.team} * t.units * depth_gates * element, 64);
  int64_t const each = ceil_div(slabs, t.depth_splits);
  int64_t const kept = stationary::register_slabs(t.exchange, sweep, t.element_bytes);
  int64_t const copies = t.exchange == Exchange::grid ? 1 : 2;
  int64_t bytes = copies * tile_rows * slabs * 64;
  if (t.exchange == Exchange::grid) bytes += tile_rows * t.units * depth_gates * element;
  if (t.exchange == Exchange::cluster) bytes += 16;
  bytes += t.row_groups * t.depth_splits * std::max<int64_t>(0, each - kept) * warp_rows * 64;
  bytes += t.depth_splits * tile_rows * (t.row_groups * warp_rows + 4) * 4;
  return bytes + int64_t{2} * t.tiles * t.units * tile_rows * 4;
}

inline void check_layout(const Problem& p, Sweep sweep, const Choice& choice, const DeviceFacts& device,
                         const std::string& where) {
  const Tiling& t = choice.tiling;
  int64_t const size = p.hidden_size / p.heads, gates = p.gates();
  int64_t const tile_rows = t.tile_rows, warp_rows = sweep == Sweep::forward ? 32 : 16;
  expect(tile_rows >= 1 && tile_rows <= 8 && (tile_rows == 8 || (t.tiles == 1 && t.exchange != Exchange::grid)),
         "rows of a tile", where);
  expect(t.sweep == sweep && t.element_bytes == int(size_of(p.dtype)), "another sweep's layout", where);
  expect(t.row_gates == (sweep == Sweep::forward ? gates : 1) && t.depth_gates == (sweep == Sweep::forward ? 1 : gates),
         "gates", where);
  expect(t.units > 0 && t.units % 8 == 0, "units of a block", where);
  expect(int64_t{t.team} * t.units >= size, "units without a block", where);
  bool const idle = int64_t{t.team - 1} * t.units >= size;  // clusters come in few sizes
  expect(!idle || t.exchange == Exchange::cluster, "a block without units", where);
  expect(t.row_groups * warp_rows >= int64_t{t.units} * t.row_gates, "weight rows without a warp", where);
  expect(t.teams * t.tiles * tile_rows >= p.batch, "batch rows without a tile", where);
  expect((t.teams - 1) * t.tiles * tile_rows < p.batch, "a team without batch rows", where);
  int64_t const bytes = shared_bytes(p, sweep, choice);
  expect(bytes == t.shared_bytes(), std::to_string(bytes) + " bytes of shared memory are not those of the layout",
         where);
  expect(bytes <= device.shared_bytes, std::to_string(bytes) + " bytes of shared memory", where);
  check_resident(p, choice, device, where);

  bool const half = p.dtype != Dtype::float32;
  expect(half     ? choice.math == (p.dtype == Dtype::bfloat16 ? Math::bfloat16 : Math::float16)
         : p.tf32 ? choice.math == Math::tf32
                  : choice.math == Math::fma || choice.math == Math::tf32,
         "arithmetic of another type", where);
  expect(choice.exact == (!half && !p.tf32 && choice.math == Math::tf32), "3xTF32 is for exact float32", where);
}

// Memory: packed weights of the groups of a launch, the exchange's two copies of each tile and its flags.
inline size_t least_bytes(const Problem& p, Sweep sweep, const SweepPlan& plan) {
  const Tiling& t = plan.stationary.tiling;
  int64_t const element = int64_t(size_of(p.dtype)), size = p.hidden_size / p.heads;
  int64_t const recurrences = p.heads * plan.stationary.groups_per_launch;
  int64_t bytes = recurrences * p.gates() * size * size * element;
  if (t.exchange == Exchange::grid) {
    int64_t const width = size * (sweep == Sweep::forward ? 1 : p.gates());
    bytes += recurrences * (2 * p.batch * width * element + int64_t{t.teams} * t.tiles * t.team * 4);
  }
  int64_t const row = p.gates() * p.hidden_size * plan.stationary.groups_per_launch * element;
  if (sweep == Sweep::backward) return size_t(bytes + p.rows * row);
  // Gates that nobody keeps are made for some steps at a time.
  bool const kept = p.save && !p.recompute;
  return size_t(bytes + (kept ? 0 : std::min(p.rows * row, int64_t{1} << 24)));
}

inline SweepPlan check(const Problem& p, Sweep sweep, const DeviceFacts& device) {
  std::string const where = describe(p, sweep, device);
  SweepPlan const plan = plan_sweep(p, sweep, device);
  expect(std::isfinite(plan.us_per_step) && plan.us_per_step >= 0 && plan.us >= 0, "no time", where);
  expect(plan.rejected.size() + 1 == kStrategies.size(), "a strategy is neither chosen nor rejected", where);
  for (const auto& [name, reason] : plan.rejected) {
    expect(name != plan.strategy && !reason.empty(), name + " is rejected without a reason", where);
  }
  if (!plan.stepwise()) {
    check_layout(p, sweep, plan.stationary, device, where);
    expect(plan.bytes >= least_bytes(p, sweep, plan), std::to_string(plan.bytes) + " bytes are too few", where);
  }
  // Every other strategy is either slower or cannot run; where it runs, its layout is as good.
  for (const std::string& name : kStrategies) {
    std::string error;
    try {
      SweepPlan const other = plan_sweep(p, sweep, device, name);
      expect(other.strategy == name, "another strategy than the forced one", where);
      double const more = static_cast<double>(typical_steps(p.steps) - p.steps);  // than there are
      expect(other.us + more * other.us_per_step >= (plan.us + more * plan.us_per_step) * (1 - 1e-12),
             name + " is faster", where);
      if (!other.stepwise()) check_layout(p, sweep, other.stationary, device, where + ", forced");
    } catch (const Error& caught) {
      error = caught.message;
    }
    bool told = error.empty();
    for (const auto& [other, reason] : plan.rejected) {
      told |= other == name && error.find(reason) != std::string::npos;
    }
    expect(told, "forcing " + name + " fails for another reason than it is rejected: " + error, where);
    expect(error.empty() || name != "stepwise", "stepwise is refused", where);
  }
  return plan;
}

}  // namespace rnnkern::test
