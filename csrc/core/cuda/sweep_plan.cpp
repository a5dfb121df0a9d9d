#include "sweep_plan.h"

#include <algorithm>
#include <bit>
#include <cstdio>

#include "costs.h"
#include "stepwise.h"

namespace rnnkern {
namespace {

using stationary::Choice;
using stationary::Exchange;

constexpr Exchange kExchanges[] = {Exchange::block, Exchange::cluster, Exchange::grid};

std::string microseconds(double us) {
  char text[48];
  std::snprintf(text, sizeof text, us < 100 ? "%.2f us" : "%.0f us", us);
  return text;
}

// Products on all of the GPU.
struct Peak {
  double rate;  // multiply-adds a microsecond
  double efficiency;
};

Peak peak(const Problem& p, const DeviceFacts& device, const Costs& c) {
  bool const half = p.dtype == Dtype::bfloat16 || p.dtype == Dtype::float16;
  bool const tensor = half || (p.dtype == Dtype::float32 && p.tf32 && device.capability >= 80);
  double const cycles = c.cycles * std::max(device.multiprocessors, 1);
  if (tensor) return {c.gemm_rate / (half ? 1 : 2) * cycles, c.gemm_efficiency};
  return {c.fma_lanes / (p.dtype == Dtype::float64 ? 2 : 1) * cycles, c.gemm_efficiency_fma};
}

// Products of one step, their weights from the L2 cache or, where they do not fit, from memory; the pointwise kernel.
double stepwise_us(const Problem& p, const DeviceFacts& device, const Costs& c) {
  double const work = double(p.gate_size()) * p.state_size() / p.heads + double(p.proj_size) * p.hidden_size;
  double const bytes = work * size_of(p.dtype);
  double const rate =
      bytes < device.l2_bytes / 2 ? c.l2_bytes * c.cycles * std::max(device.multiprocessors, 1) : c.memory_bytes;
  Peak const most = peak(p, device, c);
  double const product = std::max(bytes / rate, p.batch * work / (most.efficiency * most.rate));
  double const values = double(p.batch) * p.hidden_size * (2 * p.gates() + 4);
  double const pointwise = values * size_of(p.dtype) / c.memory_bytes;
  return p.groups * (product + pointwise + p.stages() * (2 * c.launch_us + c.gemm_latency_us));
}

// What `count` groups that run together take from the caller: gates that nobody keeps, as many as are held at once, or
// what backward leaves for the gradients of the parameters (surroundings.h).
int64_t buffer_elements(const Problem& p, Sweep sweep, int64_t count) {
  CellFacts const cell = facts(p.cell);
  int64_t const width = cell.gates * p.hidden_size;
  if (sweep == Sweep::forward) {
    if (p.save && !p.recompute) return 0;
    int64_t const steps = stepwise::kChunkElements / std::max<int64_t>(p.batch * width * count, 1);
    return count * std::min(p.rows, std::max<int64_t>(steps, 1) * p.batch) * width;
  }
  int64_t const columns = p.recompute ? cell.saved : cell.gates + cell.split_gate;
  int64_t const second = p.proj_size > 0 ? p.proj_size + p.hidden_size : p.cell == CellKind::gru_v1 ? p.hidden_size : 0;
  return count * p.rows * (columns * p.hidden_size + p.state_size() + second);
}

}  // namespace

size_t sweep_bytes(const Problem& p, Sweep sweep, const Choice* choice) {
  size_t const element = size_of(p.dtype), compute = p.dtype == Dtype::float64 ? 8 : 4;
  if (choice == nullptr) {  // stepwise runs one group after the other, with the states and a product of one step
    int64_t const width = sweep == Sweep::forward ? p.gate_size() + 3 * p.hidden_size : 3 * p.hidden_size;
    return size_t(buffer_elements(p, sweep, 1)) * element + size_t(p.batch * width) * compute;
  }
  int64_t const weights = choice->tiling.packed_quads() * 16 * p.heads * choice->groups_per_launch;
  return size_t(buffer_elements(p, sweep, choice->groups_per_launch)) * element + size_t(weights) +
         choice->exchange_bytes;
}

double cuda_floor_us(const Problem& p, const DeviceFacts& device) {
  Costs const c = costs(device);
  double const recurrent = double(p.gate_size()) * p.state_size() / p.heads + double(p.proj_size) * p.hidden_size;
  double const rows = double(p.rows) * p.groups, sweeps = p.save ? 3 : 1;  // each product has two gradients
  double const products = sweeps * rows * (recurrent + double(p.gate_size()) * p.input_size) / peak(p, device, c).rate;
  double const step = (c.shared_latency + c.mma_latency + c.pointwise_latency + 2 * c.barrier) / c.cycles;
  return products + (p.save ? 2 : 1) * double(p.steps) * step;
}

const char* name(Exchange exchange) {
  switch (exchange) {
    case Exchange::block: return "block";
    case Exchange::cluster: return "cluster";
    default: return "grid";
  }
}

const char* name(stationary::Math math, bool exact) {
  switch (math) {
    case stationary::Math::bfloat16: return "bfloat16";
    case stationary::Math::float16: return "float16";
    case stationary::Math::tf32: return exact ? "3xTF32" : "TF32";
    default: return "float32";
  }
}

int64_t typical_steps(int64_t steps) {
  return steps <= 0 ? 0 : static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(steps)));
}

SweepPlan plan_sweep(const Problem& problem, Sweep sweep, const DeviceFacts& device, const std::string& forced) {
  struct Candidate {
    std::string name;
    Choice choice;  // of stepwise: its time alone
  };
  Problem typical = problem;
  typical.steps = typical_steps(problem.steps);
  std::vector<Candidate> candidates;
  candidates.push_back({"stepwise", {}});
  candidates[0].choice.us_per_step = stepwise_us(problem, device, costs(device));
  for (Exchange exchange : kExchanges)
    candidates.push_back({std::string("stationary:") + name(exchange), choose(typical, sweep, exchange, device)});

  const Candidate* best = nullptr;
  std::string reasons;
  for (const Candidate& candidate : candidates) {
    bool const wanted =
        forced.empty() || candidate.name == forced || (forced == "stationary" && candidate.name != "stepwise");
    if (!wanted) continue;
    Choice const& choice = candidate.choice;
    if (choice.why_not.empty()) {
      if (best == nullptr || choice.us(typical.steps) < best->choice.us(typical.steps)) best = &candidate;
    } else {
      reasons += (reasons.empty() ? "" : "; ") + candidate.name + " " + choice.why_not;
    }
  }
  if (best == nullptr) throw Error{"strategy '" + forced + "' is forced, but " + reasons};

  SweepPlan plan;
  plan.strategy = best->name;
  plan.stationary = best->choice;
  plan.us_per_step = best->choice.us_per_step, plan.us = best->choice.us(problem.steps);
  plan.bytes = sweep_bytes(problem, sweep, plan.stepwise() ? nullptr : &best->choice);
  for (const Candidate& candidate : candidates) {
    if (&candidate == best) continue;
    Choice const& choice = candidate.choice;
    std::string reason = choice.why_not;
    if (reason.empty()) {
      reason = choice.us(typical.steps) < best->choice.us(typical.steps)
                   ? "'" + forced + "' is forced"
                   : microseconds(choice.us_per_step) + " a step, " + microseconds(choice.us(problem.steps)) +
                         " in all: slower";
    }
    plan.rejected.emplace_back(candidate.name, reason);
  }
  return plan;
}

}  // namespace rnnkern
