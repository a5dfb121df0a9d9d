// One call of stepwise for one cell: picks the storage type and runs the groups one after the other.
#pragma once

#include "../dispatch.h"
#include "driver.h"

namespace rnnkern::stepwise {

template <class Cell, class ForEach>
void run_forward(const Cell& cell, const Problem& problem, const std::vector<Group>& groups, CudaPlatform& platform,
                 const ForEach& for_each, int64_t chunk_elements = kChunkElements) {
  dispatch(problem.dtype, [&](auto type) {
    Driver<Cell, typename decltype(type)::type, ForEach> driver(cell, problem, platform, for_each, chunk_elements);
    for (const Group& group : groups) driver.forward(group);
  });
}

template <class Cell, class ForEach>
void run_backward(const Cell& cell, const Problem& problem, const std::vector<Group>& groups,
                  const std::vector<GroupGradients>& gradients, CudaPlatform& platform, const ForEach& for_each,
                  int64_t chunk_elements = kChunkElements) {
  dispatch(problem.dtype, [&](auto type) {
    Driver<Cell, typename decltype(type)::type, ForEach> driver(cell, problem, platform, for_each, chunk_elements);
    for (size_t i = 0; i < groups.size(); ++i) driver.backward(groups[i], gradients[i]);
  });
}

}  // namespace rnnkern::stepwise
