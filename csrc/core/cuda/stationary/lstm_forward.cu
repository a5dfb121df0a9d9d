#include "../launch.cuh"
#include "instances.h"
#include "run.h"

namespace rnnkern::stationary {

void forward(const LstmCell& cell, const Problem& problem, const std::vector<Group>& groups, const Choice& choice,
             CudaPlatform& platform) {
  run_forward(cell, problem, groups, platform, CudaForEach<Sources::stationary>(platform.stream()), choice);
}

}  // namespace rnnkern::stationary
