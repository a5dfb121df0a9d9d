#include "sweep_plan.h"

#include <algorithm>
#include <cstdio>

#include "costs.h"

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
  double const stages = p.cell == CellKind::gru_v1 || p.proj_size > 0 ? 2 : 1;
  double const work = double(p.gate_size()) * p.state_size() / p.heads + double(p.proj_size) * p.hidden_size;
  double const bytes = work * size_of(p.dtype);
  double const rate =
      bytes < device.l2_bytes / 2 ? c.l2_bytes * c.cycles * std::max(device.multiprocessors, 1) : c.memory_bytes;
  Peak const most = peak(p, device, c);
  double const product = std::max(bytes / rate, p.batch * work / (most.efficiency * most.rate));
  double const values = double(p.batch) * p.hidden_size * (2 * p.gates() + 4);
  double const pointwise = values * size_of(p.dtype) / c.memory_bytes;
  return p.groups * (product + pointwise + stages * (2 * c.launch_us + c.gemm_latency_us));
}

size_t stationary_bytes(const Problem& p, const Choice& choice) {
  const stationary::Tiling& t = choice.tiling;
  size_t const weights = size_t(t.team) * t.row_groups * t.depth_splits * t.split_slabs() * t.slab_quads() * 16;
  return choice.exchange_bytes + weights * size_t(choice.groups_per_launch) * p.heads;
}

// Gates that nobody keeps, or gradients of the gates.
size_t gate_bytes(const Problem& p, Sweep sweep) {
  CellFacts const cell = facts(p.cell);
  int64_t const columns = sweep == Sweep::backward ? (p.recompute ? cell.saved : cell.gates + cell.split_gate)
                          : p.save && !p.recompute ? 0
                                                   : cell.gates;
  return size_t(p.rows) * columns * p.hidden_size * size_of(p.dtype);
}

}  // namespace

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

SweepPlan plan_sweep(const Problem& problem, Sweep sweep, const DeviceFacts& device, const std::string& forced) {
  struct Candidate {
    std::string name;
    Choice choice;  // of a stationary strategy
    double us_per_step, us;
    std::string why_not;
  };
  bool const any = forced == "stationary";
  std::vector<Candidate> candidates;
  double const step = stepwise_us(problem, device, costs(device));
  candidates.push_back({"stepwise", {}, step, step * problem.steps, ""});
  for (Exchange exchange : kExchanges) {
    Candidate candidate{std::string("stationary:") + name(exchange), choose(problem, sweep, exchange, device), 0, 0,
                        ""};
    candidate.why_not = candidate.choice.why_not;
    candidate.us_per_step = candidate.choice.us_per_step, candidate.us = candidate.choice.us(problem.steps);
    candidates.push_back(candidate);
  }

  const Candidate* best = nullptr;
  std::string reasons;
  for (const Candidate& candidate : candidates) {
    bool const wanted = forced.empty() || candidate.name == forced || (any && candidate.name != "stepwise");
    if (!wanted) continue;
    if (candidate.why_not.empty()) {
      if (best == nullptr || candidate.us < best->us) best = &candidate;
    } else {
      reasons += (reasons.empty() ? "" : "; ") + candidate.name + " " + candidate.why_not;
    }
  }
  if (best == nullptr) throw Error{"strategy '" + forced + "' is forced, but " + reasons};

  SweepPlan plan;
  plan.strategy = best->name;
  plan.stationary = best->choice;
  plan.us_per_step = best->us_per_step, plan.us = best->us;
  plan.bytes = gate_bytes(problem, sweep) * size_t(problem.groups);
  if (!plan.stepwise()) plan.bytes += stationary_bytes(problem, best->choice);
  for (const Candidate& candidate : candidates) {
    if (&candidate == best) continue;
    std::string reason = candidate.why_not;
    if (reason.empty()) {
      reason = candidate.us < best->us
                   ? "'" + forced + "' is forced"
                   : microseconds(candidate.us_per_step) + " a step, " + microseconds(candidate.us) + " in all: slower";
    }
    plan.rejected.emplace_back(candidate.name, reason);
  }
  return plan;
}

}  // namespace rnnkern
