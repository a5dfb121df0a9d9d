// Inference past autograd and the dispatcher: no operator's call, whose preparations take longer than 100 small steps.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace rnnkern {

// All layers' weights, flat. In int8: with the biases apart, and the sizes that packed weights do not show.
struct Weights {
  std::vector<at::Tensor> all, biases;
  int64_t hidden_size = 0, proj_size = 0;
};

using Inferred = std::tuple<at::Tensor, at::Tensor, std::optional<at::Tensor>>;  // y, h_n, c_n

// All layers without autograd, on x [T, B, I] (`batch_first`: [B, T, I]) or one time step [B, I]. The states are zero
// where none are given.
Inferred infer(const at::Tensor& x, const Weights& weights, const std::optional<at::Tensor>& h_0,
               const std::optional<at::Tensor>& c_0, const std::string& cell, int64_t num_layers, bool bidirectional,
               bool batch_first, int64_t heads, double zoneout);

// One time step [B, I], or [I] with states without B.
Inferred infer_step(const at::Tensor& x, const Weights& weights, const std::optional<at::Tensor>& h_0,
                    const std::optional<at::Tensor>& c_0, const std::string& cell, int64_t num_layers, int64_t heads,
                    double zoneout);

// A cell: one step from [B, I] and states [B, H], or without B: (h', c').
std::tuple<at::Tensor, std::optional<at::Tensor>> infer_cell(const at::Tensor& x, at::TensorList weights,
                                                             const std::optional<at::Tensor>& h_0,
                                                             const std::optional<at::Tensor>& c_0,
                                                             const std::string& cell);

}  // namespace rnnkern
