// The strategy `stepwise` on CUDA: one GEMM and one fused pointwise kernel a step (two of each with a projection and
// for gru_v1). It serves every problem. Nothing here synchronises or allocates but through the platform, and all work
// goes to platform.stream(), so that a call can be captured in a graph.
#pragma once

#include <vector>

#include "../platform.h"
#include "../types.h"

namespace rnnkern {

namespace stepwise {
// Elements of a buffer that need not hold all steps at once: enough for products of full speed.
inline constexpr int64_t kChunkElements = int64_t{1} << 25;
}  // namespace stepwise

void stepwise_forward(const Problem& problem, const std::vector<Group>& groups, CudaPlatform& platform);

// Reads y and cells of the groups only where there is more than one step; rebuilds gates that are null.
void stepwise_backward(const Problem& problem, const std::vector<Group>& groups,
                       const std::vector<GroupGradients>& gradients, CudaPlatform& platform);

}  // namespace rnnkern
