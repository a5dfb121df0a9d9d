#include "plan.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>

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

// The forced strategy if it is one of a GPU's, else none.
std::string forced_on_gpu() {
  std::string const wanted = forced();
  return !wanted.empty() && find(wanted)->backend == Backend::cuda ? wanted : "";
}

Plan known_gpu_plan(const Problem& problem, const DeviceFacts& device) {
  Plan plan;
  plan.forward = plan_sweep(problem, Sweep::forward, device, forced_on_gpu());
  if (problem.save) plan.backward = plan_sweep(problem, Sweep::backward, device, forced_on_gpu());
  plan.strategy = plan.forward->strategy;
  plan.bytes = std::max(plan.forward->bytes, plan.backward ? plan.backward->bytes : 0);
  plan.rejected = plan.forward->rejected;
  plan.floor_us = cuda_floor_us(problem, device);
  return plan;
}

// The first strategy of a backend serves everything.
Plan unknown_gpu_plan(const Problem& problem) {
  Plan plan;
  for (const Strategy& strategy : kStrategies) {
    if (strategy.backend != problem.backend) continue;
    if (plan.strategy.empty())
      plan.strategy = strategy.name;
    else
      plan.rejected.emplace_back(strategy.name, "nothing is known of the GPU");
  }
  if (plan.strategy.empty())
    throw Error{std::string("no strategy for device '") + name(problem.backend) + "' was compiled in"};
  std::string const wanted = forced_on_gpu();
  if (!wanted.empty() && wanted != plan.strategy)
    throw Error{"strategy '" + wanted + "' is forced, but nothing is known of the GPU"};
  plan.bytes = sweep_bytes(problem, Sweep::forward, nullptr);
  if (problem.save) plan.bytes = std::max(plan.bytes, sweep_bytes(problem, Sweep::backward, nullptr));
  return plan;
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
  static_cast<Sharing&>(plan) = share_work(problem, threads);
  return plan;
}

Plan plan(const Problem& problem, int threads, const DeviceFacts* device) {
  Plan plan;
  if (problem.backend == Backend::cpu) {
    plan = cpu_plan(problem, threads);
    plan.floor_us = simd_floor_us(problem, plan.workers);
  } else if (device != nullptr) {
    plan = known_gpu_plan(problem, *device);
  } else {
    plan = unknown_gpu_plan(problem);
  }
  for (const Strategy& strategy : kStrategies)
    if (strategy.backend != problem.backend)
      plan.rejected.emplace_back(strategy.name, std::string("runs on ") + name(strategy.backend));
  return plan;
}

std::shared_ptr<const SweepPlan> cuda_plan(const Problem& problem, Sweep sweep, const DeviceFacts& d) {
  std::string const wanted = forced_on_gpu();
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

}  // namespace rnnkern
