#include "stationary.h"

#include <stdexcept>
#include <type_traits>

#include "../../dispatch.h"
#include "instances.h"

namespace rnnkern {
namespace {

// Calls body with the problem's cell, which is one that the kernels know.
template <class Body>
void dispatch_stationary(const Problem& problem, Body&& body) {
  dispatch(problem.cell, problem.activation, [&](const auto& cell) {
    if constexpr (std::is_same_v<decltype(cell), const GruV1Cell&>) {
      throw std::logic_error("rnnkern: gru_v1 has no stationary kernel");
    } else {
      body(cell);
    }
  });
}

}  // namespace

void stationary_forward(const Problem& problem, const std::vector<Group>& groups, const stationary::Choice& choice,
                        CudaPlatform& platform) {
  dispatch_stationary(problem, [&](const auto& cell) { stationary::forward(cell, problem, groups, choice, platform); });
}

void stationary_backward(const Problem& problem, const std::vector<Group>& groups,
                         const std::vector<GroupGradients>& gradients, const stationary::Choice& choice,
                         CudaPlatform& platform) {
  dispatch_stationary(
      problem, [&](const auto& cell) { stationary::backward(cell, problem, groups, gradients, choice, platform); });
}

}  // namespace rnnkern
