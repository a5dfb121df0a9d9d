// Plans of the suites' problems on four GPUs: each is made, checked and printed.
#include <map>

#include "plan_check.h"

using namespace rnnkern;
using namespace rnnkern::test;

namespace {

struct Precision {
  const char* name;
  Dtype dtype;
  bool tf32;
};
constexpr Precision kPrecisions[] = {{"float32", Dtype::float32, false},
                                     {"tf32", Dtype::float32, true},
                                     {"bfloat16", Dtype::bfloat16, false},
                                     {"float16", Dtype::float16, false}};
std::string cell_text(const SweepPlan& plan) {
  char text[64];
  std::string const name = plan.stepwise() ? "step" : plan.strategy.substr(plan.strategy.find(':') + 1);
  const Tiling& t = plan.stationary.tiling;
  long long const blocks = plan.stepwise() ? 0 : (long long)t.blocks();
  std::snprintf(text, sizeof text, "%-7s %3lld %6.2f %7.1f", name.c_str(), blocks, plan.us_per_step, plan.bytes / 1e6);
  return text;
}

// A line for each problem of a suite: strategy, blocks of a group, predicted us a step and MB of each sweep.
void check_suite(const std::vector<SuiteProblem>& suite, const DeviceFacts& device,
                 std::map<std::string, int>& counts) {
  for (const Precision& precision : kPrecisions) {
    std::printf("\n%s on %s, %s: strategy, blocks, us a step, MB; forward | backward\n", suite[0].suite.c_str(),
                device.name, precision.name);
    for (const SuiteProblem& one : suite) {
      Problem const p = one.problem(precision.dtype, precision.tf32);
      SweepPlan const forward = check(p, Sweep::forward, device);
      ++counts[forward.strategy];
      std::string line = cell_text(forward);
      if (one.training) {
        SweepPlan const backward = check(p, Sweep::backward, device);
        ++counts[backward.strategy];
        line += " | " + cell_text(backward);
      }
      std::printf("%-4s H %4lld B %3lld T %4lld  %s\n", facts(p.cell).name, (long long)p.hidden_size,
                  (long long)p.batch, (long long)p.steps, line.c_str());
    }
  }
}

}  // namespace

int main() {
  for (const DeviceFacts* device : kDevices) {
    std::map<std::string, int> counts;
    check_suite(deepbench(), *device, counts);
    check_suite(grid(), *device, counts);
    std::printf("\n%s:", device->name);
    for (const auto& [strategy, count] : counts) std::printf(" %d sweeps %s", count, strategy.c_str());
    std::printf("\n");
    expect(device->capability >= 80 || counts.size() == 1, "a stationary kernel below compute capability 8.0", "T4");
    expect(device->max_cluster > 0 || counts.count("stationary:cluster") == 0, "clusters", device->name);
  }
  return 0;
}
