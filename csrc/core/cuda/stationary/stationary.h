// The strategy `stationary` on CUDA: one kernel for all steps of a sweep, with the recurrent weights in registers and
// shared memory. As with stepwise, all work goes to platform.stream() and nothing waits.
#pragma once

#include <vector>

#include "../../platform.h"
#include "../../types.h"
#include "stationary_plan.h"

namespace rnnkern {

// `choice` fits the problem and this sweep.
void stationary_forward(const Problem& problem, const std::vector<Group>& groups, const stationary::Choice& choice,
                        CudaPlatform& platform);

// Reads y and cells of the groups only where there is more than one step; rebuilds gates that are null.
void stationary_backward(const Problem& problem, const std::vector<Group>& groups,
                         const std::vector<GroupGradients>& gradients, const stationary::Choice& choice,
                         CudaPlatform& platform);

}  // namespace rnnkern
