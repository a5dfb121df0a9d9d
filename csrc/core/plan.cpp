#include "plan.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>

#include "cpu/share.h"

namespace rnnkern {
namespace {

struct Strategy {
  const char* name;
  Backend backend;
};

constexpr Strategy kStrategies[] = {
    {"simd", Backend::cpu},
#if defined(RNNKERN_WITH_CUDA)
    {"stepwise", Backend::cuda},
    {"stationary:block", Backend::cuda},
#if defined(RNNKERN_WITH_CLUSTERS)
    {"stationary:cluster", Backend::cuda},
#endif
    {"stationary:grid", Backend::cuda},
#endif
};

const char* name(Backend backend) { return backend == Backend::cpu ? "cpu" : "cuda"; }

// Of the whole process: backward passes run on threads of their own.
std::mutex forced_mutex;
std::string forced_name;
std::atomic<bool> forced_set = false;

std::string forced() {
  if (forced_set) {
    std::lock_guard const lock(forced_mutex);
    return forced_name;
  }
  // Once: other threads may change the environment while it is read.
  static std::string const wanted = [] {
    const char* const value = std::getenv("RNNKERN_FORCE_STRATEGY");
    return value ? value : "";
  }();
  return wanted;
}

#if defined(RNNKERN_WITH_CUDA)
constexpr Strategy kStationary = {"stationary", Backend::cuda};  // with any exchange
#endif

const Strategy* find(const std::string& wanted) {
#if defined(RNNKERN_WITH_CUDA)
  if (wanted == kStationary.name) return &kStationary;
#endif
  return &find_name(kStrategies, "strategy", wanted);
}

constexpr size_t kKnownPlans = 256;

}  // namespace

std::vector<std::string> strategies() {
  std::vector<std::string> names;
  for (const Strategy& strategy : kStrategies) names.push_back(strategy.name);
  return names;
}

std::string force_strategy(const std::string& wanted) {
  if (!wanted.empty()) find(wanted);
  std::lock_guard const lock(forced_mutex);
  std::string before = std::exchange(forced_name, wanted);
  forced_set = !wanted.empty();
  return before;
}

Plan cpu_plan(const Problem& problem, int threads) {
  std::string const wanted = forced();
  if (!wanted.empty()) find(wanted);  // throws where there is none of this name
  Plan plan;
  plan.strategy = kStrategies[0].name;
  share_work(problem, threads, plan);
  return plan;
}

Plan plan(const Problem& problem, int threads, const DeviceFacts* device) {
  bool const on_cpu = problem.backend == Backend::cpu, known = !on_cpu && device != nullptr;
  Plan plan = on_cpu ? cpu_plan(problem, threads) : Plan();
  std::string const wanted = forced();
  const Strategy* const only = wanted.empty() ? nullptr : find(wanted);
  for (const Strategy& strategy : kStrategies) {
    if (strategy.backend != problem.backend) {
      plan.rejected.emplace_back(strategy.name, std::string("runs on ") + name(strategy.backend));
    } else if (known || strategy.name == plan.strategy) {
      continue;
    } else if (plan.strategy.empty()) {  // the first one of a backend serves everything
      plan.strategy = strategy.name;
    } else {
      plan.rejected.emplace_back(strategy.name, "nothing is known of the GPU");
    }
  }
  if (!known && only && only->backend == problem.backend && only->name != plan.strategy) {
    throw Error{"strategy '" + wanted + "' is forced, but nothing is known of the GPU"};
  }
  if (known) {
    std::string const here = only && only->backend == Backend::cuda ? wanted : "";
    plan.forward = plan_sweep(problem, Sweep::forward, *device, here);
    if (problem.save) plan.backward = plan_sweep(problem, Sweep::backward, *device, here);
    plan.strategy = plan.forward->strategy;
    plan.bytes = std::max(plan.forward->bytes, plan.backward ? plan.backward->bytes : 0);
    plan.rejected.insert(plan.rejected.end(), plan.forward->rejected.begin(), plan.forward->rejected.end());
    plan.floor_us = cuda_floor_us(problem, *device);
    return plan;
  }
  if (plan.strategy.empty()) {
    throw Error{std::string("no strategy for device '") + name(problem.backend) + "' was compiled in"};
  }
  if (on_cpu) {
    plan.floor_us = simd_floor_us(problem, plan.workers);
    return plan;
  }
  plan.bytes = sweep_bytes(problem, Sweep::forward, nullptr);
  if (problem.save) plan.bytes = std::max(plan.bytes, sweep_bytes(problem, Sweep::backward, nullptr));
  return plan;
}

std::shared_ptr<const SweepPlan> cuda_plan(const Problem& problem, Sweep sweep, const DeviceFacts& d) {
  std::string wanted = forced();
  if (!wanted.empty() && find(wanted)->backend != Backend::cuda) wanted.clear();
  Problem p = problem;
  p.steps = typical_steps(p.steps), p.rows = p.steps * p.batch;
  auto const key =
      std::tuple(std::tuple(p.cell, p.dtype, p.steps, p.batch, p.hidden_size, p.proj_size, p.heads, p.groups, p.save,
                            p.recompute, p.tf32, stationary::is_plain(p)),
                 std::tuple(d.capability, d.multiprocessors, d.shared_bytes, d.registers, d.max_cluster, d.clock_ghz,
                            d.bandwidth_gbs, d.l2_bytes, d.clusters[0], d.clusters[1], d.clusters[2], d.clusters[3]),
                 sweep, wanted);
  // A search takes about as long as a small layer; a program asks for the same few plans again and again.
  thread_local std::map<std::remove_const_t<decltype(key)>, std::shared_ptr<const SweepPlan>> known;
  auto const found = known.find(key);
  if (found != known.end()) return found->second;
  if (known.size() >= kKnownPlans) known.clear();
  auto const made = std::make_shared<const SweepPlan>(plan_sweep(p, sweep, d, wanted));
  known.emplace(key, made);
  return made;
}

const char* name(Split split) {
  switch (split) {
    case Split::rows: return "rows";
    case Split::units: return "units";
    default: return "none";
  }
}

}  // namespace rnnkern
