// One call of stationary for one cell: picks the compiled kernel of a choice, and runs the groups launch by launch.
#pragma once

#include <type_traits>
#include <vector>

#include "backward_kernel.cuh"
#include "driver.h"
#include "forward_kernel.cuh"

namespace rnnkern::stationary {

namespace detail {

// Calls body with the one of `values` that equals `value`, as a constant.
template <auto... values, class T, class Body>
void with_constant(T value, Body&& body) {
  ((value == values ? body(std::integral_constant<T, values>{}) : void()), ...);
}

// Calls body(math, exchange) with constants.
template <class Body>
void with_instance(const Choice& choice, Body&& body) {
  with_constant<Math::bfloat16, Math::float16, Math::tf32, Math::fma>(choice.math, [&](auto math) {
    with_constant<Exchange::block, Exchange::cluster, Exchange::grid>(choice.tiling.exchange,
                                                                      [&](auto exchange) { body(math, exchange); });
  });
}

// Calls body(first, count) for the groups of each launch.
template <class Body>
void each_launch(size_t groups, const Choice& choice, Body&& body) {
  size_t const most = static_cast<size_t>(choice.groups_per_launch);
  for (size_t first = 0; first < groups; first += most) {
    body(first, static_cast<int>(groups - first < most ? groups - first : most));
  }
}

}  // namespace detail

template <class Cell, class Device>
void run_forward(const Cell& cell, const Problem& problem, const std::vector<Group>& groups, CudaPlatform& platform,
                 const Device& device, const Choice& choice, int64_t chunk_elements = stepwise::kChunkElements) {
  detail::with_instance(choice, [&](auto math, auto exchange) {
    Driver<Cell, storage_t<math>, Device> driver(cell, problem, platform, device, choice, chunk_elements);
    detail::each_launch(groups.size(), choice, [&](size_t first, int count) {
      driver.forward(&groups[first], count, forward_kernel<Cell, math, exchange>);
    });
  });
}

template <class Cell, class Device>
void run_backward(const Cell& cell, const Problem& problem, const std::vector<Group>& groups,
                  const std::vector<GroupGradients>& gradients, CudaPlatform& platform, const Device& device,
                  const Choice& choice, int64_t chunk_elements = stepwise::kChunkElements) {
  detail::with_instance(choice, [&](auto math, auto exchange) {
    Driver<Cell, storage_t<math>, Device> driver(cell, problem, platform, device, choice, chunk_elements);
    detail::each_launch(groups.size(), choice, [&](size_t first, int count) {
      driver.backward(&groups[first], &gradients[first], count, backward_kernel<Cell, math, exchange>);
    });
  });
}

}  // namespace rnnkern::stationary
