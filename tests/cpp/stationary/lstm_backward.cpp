#include "cuda/emulation/launch.h"
#include "cuda/stationary/run.h"
#include "emulated.h"

void emulated::backward(const LstmCell& cell, const Problem& problem, const Groups& groups, const Gradients& gradients,
                        CudaPlatform& platform, const Device& device, const Choice& choice, int64_t chunk) {
  stationary::run_backward(cell, problem, groups, gradients, platform, device, choice, chunk);
}
