#include "../launch.cuh"
#include "instances.h"
#include "run.h"

namespace rnnkern::stationary {

void backward(const RnnCell& cell, const Problem& problem, const std::vector<Group>& groups,
              const std::vector<GroupGradients>& gradients, const Choice& choice, CudaPlatform& platform) {
  run_backward(cell, problem, groups, gradients, platform, CudaForEach<Sources::stationary>(platform.stream()), choice);
}

}  // namespace rnnkern::stationary
