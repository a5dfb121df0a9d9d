// One call of stationary for one cell: picks the compiled kernel of a choice, and runs the groups launch by launch.
#pragma once

#include <stdexcept>
#include <type_traits>
#include <vector>

#include "backward_kernel.cuh"
#include "driver.h"
#include "forward_kernel.cuh"

namespace rnnkern::stationary {

// The kernels that exist. Float on plain multipliers is for small batches.
constexpr bool is_compiled(Math math, Exchange exchange, int granules) {
  return granules == 1 || (granules == 4 && exchange != Exchange::block && math != Math::fma);
}

namespace detail {

// Calls body with the one of `values` that equals `value`, as a constant.
template <auto... values, class T, class Body>
void with_constant(T value, Body&& body) {
  ((value == values ? body(std::integral_constant<T, values>{}) : void()), ...);
}

// Calls body(math, exchange, granules) with constants.
template <class Body>
void with_instance(const Choice& choice, Body&& body) {
  bool found = false;
  const Tiling& tiling = choice.tiling;
  with_constant<Math::bfloat16, Math::float16, Math::tf32, Math::fma>(choice.math, [&](auto math) {
    with_constant<Exchange::block, Exchange::cluster, Exchange::grid>(tiling.exchange, [&](auto exchange) {
      with_constant<1, 4>(tiling.granules, [&](auto granules) {
        if constexpr (is_compiled(math, exchange, granules)) {
          found = true;
          body(math, exchange, granules);
        }
      });
    });
  });
  if (!found) throw std::logic_error("rnnkern: no kernel was compiled for this plan");
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
  detail::with_instance(choice, [&](auto math, auto exchange, auto granules) {
    Driver<Cell, storage_t<math>, Device> driver(cell, problem, platform, device, choice, chunk_elements);
    detail::each_launch(groups.size(), choice, [&](size_t first, int count) {
      driver.forward(&groups[first], count, forward_kernel<Cell, math, exchange, granules>);
    });
  });
}

template <class Cell, class Device>
void run_backward(const Cell& cell, const Problem& problem, const std::vector<Group>& groups,
                  const std::vector<GroupGradients>& gradients, CudaPlatform& platform, const Device& device,
                  const Choice& choice, int64_t chunk_elements = stepwise::kChunkElements) {
  detail::with_instance(choice, [&](auto math, auto exchange, auto granules) {
    Driver<Cell, storage_t<math>, Device> driver(cell, problem, platform, device, choice, chunk_elements);
    detail::each_launch(groups.size(), choice, [&](size_t first, int count) {
      driver.backward(&groups[first], &gradients[first], count, backward_kernel<Cell, math, exchange, granules>);
    });
  });
}

}  // namespace rnnkern::stationary
