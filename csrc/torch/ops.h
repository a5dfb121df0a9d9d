// What the two operators do, for those who call it past the dispatcher.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "layer.h"

namespace rnnkern {

using Forward = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;  // y, h_n, c_n, cells, gates
using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, std::vector<at::Tensor>>;

// Allocates what the layer's forward will write, and hands it over; what is not wanted is empty.
Forward new_results(Layer& layer, const LayerArguments& arguments, bool want_cells);

Forward forward(const LayerArguments& arguments, bool save, bool recompute, bool want_cells);

// The results' gradients are zero where there are none; of y, cells and gates what is not read is empty.
struct BackwardArguments {
  const OptionalTensor& d_y;
  const OptionalTensor& d_h_n;
  const OptionalTensor& d_c_n;
  const OptionalTensor& d_cells;
  const at::Tensor& y;
  const at::Tensor& cells;
  const at::Tensor& gates;
};

Gradients backward(const LayerArguments& arguments, const BackwardArguments& results, bool recompute,
                   const std::vector<bool>& needs, bool per_sample);

}  // namespace rnnkern
