#include "cuda/emulation/launch.h"
#include "cuda/stationary/run.h"
#include "emulated.h"

void emulated::forward(const RnnCell& cell, const Problem& problem, const Groups& groups, CudaPlatform& platform,
                       const Device& device, const Choice& choice, int64_t chunk) {
  stationary::run_forward(cell, problem, groups, platform, device, choice, chunk);
}
