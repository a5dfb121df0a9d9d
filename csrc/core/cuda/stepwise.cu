#include "stepwise.h"

#include "launch.cuh"
#include "run.h"

namespace rnnkern {

void stepwise_forward(const Problem& problem, const std::vector<Group>& groups, CudaPlatform& platform) {
  CudaForEach<Sources::all> const for_each(platform.stream());
  dispatch(problem.cell, problem.activation,
           [&](const auto& cell) { stepwise::run_forward(cell, problem, groups, platform, for_each); });
}

void stepwise_backward(const Problem& problem, const std::vector<Group>& groups,
                       const std::vector<GroupGradients>& gradients, CudaPlatform& platform) {
  CudaForEach<Sources::all> const for_each(platform.stream());
  dispatch(problem.cell, problem.activation,
           [&](const auto& cell) { stepwise::run_backward(cell, problem, groups, gradients, platform, for_each); });
}

}  // namespace rnnkern
