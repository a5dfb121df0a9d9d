// Calls past the dispatcher, and past autograd but for a cell's: what prepares a call of an operator takes longer than
// 100 small steps.
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

// A cell: one step from x [B, I] and states [B, H], or without B.
struct Cell {
  const std::string& name;
  const at::Tensor& x;
  const std::optional<at::Tensor>& h_0;  // none: zero states
  const std::optional<at::Tensor>& c_0;
  at::TensorList weights;
};

struct CellResults {
  at::Tensor h_n;
  std::optional<at::Tensor> c_n;    // of an LSTM
  std::optional<at::Tensor> gates;  // if they are saved: what backward needs, [1, 1, B, K*H]
};

CellResults cell_forward(const Cell& cell, bool save);

// Gradients of (x, h_0, c_0, *weights), undefined where `needs` is false; those that come are zero where undefined.
std::vector<at::Tensor> cell_backward(const Cell& cell, const std::vector<bool>& needs, const at::Tensor& d_h_n,
                                      const at::Tensor& d_c_n, const at::Tensor& gates);

}  // namespace rnnkern
