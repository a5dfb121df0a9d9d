// The two operators: check (layer.cpp), allocate, call the core. Their fakes are in rnnkern/ops.py, their autograd in
// rnnkern/autograd.py.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "ops.h"

namespace rnnkern {
using at::Tensor;

Forward new_results(Layer& layer, const LayerArguments& arguments, bool want_cells) {
  Problem const& problem = layer.problem;
  int64_t const batch = problem.batch, hidden = problem.hidden_size, directions = layer.directions;
  bool const has_cell = facts(problem.cell).has_cell, keep_gates = problem.save && !problem.recompute;

  auto const options = arguments.x.options();
  auto const absent = [&] { return at::empty({0}, options); };  // each a tensor of its own: results never share memory
  Tensor const y = at::empty(layer.y_shape(), options);
  Tensor const h_n = at::empty(layer.shape({directions, batch, problem.state_size()}), options);
  Tensor const c_n = has_cell ? at::empty(layer.shape({directions, batch, hidden}), options) : absent();
  Tensor const cells =
      has_cell && (want_cells || problem.save) ? at::empty(layer.sequence_shape(hidden), options) : absent();
  // Rows past a length are never written: zeros there, so that equal calls give equal results.
  Tensor const gates = !keep_gates         ? absent()
                       : arguments.lengths ? at::zeros(layer.sequence_shape(problem.saved_size()), options)
                                           : at::empty(layer.sequence_shape(problem.saved_size()), options);
  layer.set_results(y, h_n, c_n, cells, gates);
  return {y, h_n, c_n, cells, gates};
}

Forward forward(const LayerArguments& arguments, bool save, bool recompute, bool want_cells) {
  Layer layer(arguments);
  layer.problem.save = save, layer.problem.recompute = recompute;
  Forward results = new_results(layer, arguments, want_cells);
  run_forward(layer);
  return results;
}

Gradients backward(const LayerArguments& arguments, const BackwardArguments& results, bool recompute,
                   const std::vector<bool>& needs, bool per_sample) {
  Layer layer(arguments);
  auto const& [d_y, d_h_n, d_c_n, d_cells, y, cells, gates] = results;
  const Tensor& x = arguments.x;
  at::TensorList const weights = arguments.weights;
  const OptionalTensor &h_0 = arguments.h_0, &c_0 = arguments.c_0;
  Problem& problem = layer.problem;
  problem.save = true, problem.recompute = recompute, problem.per_sample = per_sample;
  TORCH_CHECK_VALUE(!per_sample || !(layer.ensemble || problem.packed),
                    "per_sample: expected false with an ensemble or a packed sequence, got true");
  TORCH_CHECK_VALUE(needs.size() == weights.size() + 3, "needs: expected ", weights.size() + 3, " values, got ",
                    needs.size());
  int64_t const rows = problem.rows, batch = problem.batch, size = problem.state_size(), hidden = problem.hidden_size;
  int64_t const directions = layer.directions, members = layer.members;

  // A shape that is not the result's would be read out of bounds.
  auto const gradient = [&](const OptionalTensor& tensor, const char* name, const Shape& shape) {
    return tensor ? layer.dense(*tensor, name, shape) : Tensor();
  };
  bool const has_cell = facts(problem.cell).has_cell, sequences = problem.steps > 1;
  Tensor const grad_y = gradient(d_y, "d_y", layer.y_shape());
  Tensor const grad_h_n = gradient(d_h_n, "d_h_n", layer.shape({directions, batch, size}));
  Tensor const grad_c_n = has_cell ? gradient(d_c_n, "d_c_n", layer.shape({directions, batch, hidden})) : Tensor();
  Tensor const grad_cells = has_cell ? gradient(d_cells, "d_cells", layer.sequence_shape(hidden)) : Tensor();
  Tensor const saved_y = sequences ? layer.dense(y, "y", layer.y_shape()) : Tensor();
  Tensor const saved_cells =
      sequences && has_cell ? layer.dense(cells, "cells", layer.sequence_shape(hidden)) : Tensor();
  Tensor const saved_gates =
      recompute ? Tensor() : layer.dense(gates, "gates", layer.sequence_shape(problem.saved_size()));

  auto const options = x.options();
  auto const result = [&](bool wanted, const Tensor& like, bool of_each_sample = false) {
    if (!wanted) return at::empty({0}, options);
    Shape shape(like.sizes());
    if (of_each_sample) shape.insert(shape.begin(), batch);
    return at::empty(shape, options);
  };
  Tensor const d_x = result(needs[0], x);
  bool const states = h_0 && h_0->defined();
  TORCH_CHECK_VALUE(states || !(needs[1] || needs[2]), "needs: expected false for h_0 and c_0, which are None");
  Tensor const d_h_0 = result(needs[1], states ? *h_0 : x);
  Tensor const d_c_0 = result(needs[2] && has_cell, states && has_cell ? *c_0 : x);
  std::vector<Tensor> d_weights;
  for (size_t i = 0; i < weights.size(); ++i) d_weights.push_back(result(needs[i + 3], weights[i], per_sample));

  layer.set_results(saved_y, {}, {}, saved_cells, saved_gates);
  std::vector<GroupGradients> gradients(problem.groups);
  for (int64_t i = 0; i < problem.groups; ++i) {
    int64_t const n = i / directions, d = i % directions;
    GroupGradients& own = gradients[i];
    own.d_y = layer.y_part(grad_y, i);
    own.d_h_n = layer.part(grad_h_n, i, batch * size);
    own.d_c_n = layer.part(grad_c_n, i, batch * hidden);
    own.d_cells = layer.part(grad_cells, i, rows * hidden);
    own.d_x = layer.writable_part(d_x, n, rows * problem.input_size);
    own.accumulate_x = d > 0;
    own.d_h_0 = layer.writable_part(d_h_0, i, batch * size);
    own.d_c_0 = layer.writable_part(d_c_0, i, batch * hidden);
    auto const weight = [&](int64_t which) {
      const Tensor& tensor = d_weights[d * layer.weights_per_direction + which];
      return layer.writable_part(tensor, n, tensor.numel() / std::max<int64_t>(members, 1));
    };
    own.d_w_ih = weight(0);
    own.d_w_hh = weight(1);
    if (problem.bias) own.d_b_ih = weight(2), own.d_b_hh = weight(3);
    if (problem.proj_size > 0) own.d_w_hr = weight(layer.weights_per_direction - 1);
  }
  run_backward(layer, gradients);
  return {d_x, d_h_0, d_c_0, d_weights};
}

namespace {

Forward layer_forward(const Tensor& x, at::TensorList weights, const OptionalTensor& h_0, const OptionalTensor& c_0,
                      const OptionalTensor& lengths, const OptionalTensor& reset_mask,
                      const OptionalTensor& batch_sizes, const OptionalTensor& recurrent_mask,
                      const OptionalTensor& zoneout_h, const OptionalTensor& zoneout_c, double zoneout,
                      std::string_view cell, bool bidirectional, int64_t heads, bool ensemble, bool save,
                      bool recompute, bool want_cells) {
  return forward({x, weights, h_0, c_0, lengths, reset_mask, batch_sizes, recurrent_mask, zoneout_h, zoneout_c, zoneout,
                  cell, bidirectional, heads, ensemble},
                 save, recompute, want_cells);
}

Gradients layer_backward(const OptionalTensor& d_y, const OptionalTensor& d_h_n, const OptionalTensor& d_c_n,
                         const OptionalTensor& d_cells, const Tensor& x, at::TensorList weights,
                         const OptionalTensor& h_0, const OptionalTensor& c_0, const OptionalTensor& lengths,
                         const OptionalTensor& reset_mask, const OptionalTensor& batch_sizes,
                         const OptionalTensor& recurrent_mask, const OptionalTensor& zoneout_h,
                         const OptionalTensor& zoneout_c, double zoneout, std::string_view cell, bool bidirectional,
                         int64_t heads, bool ensemble, bool recompute, const Tensor& y, const Tensor& cells,
                         const Tensor& gates, c10::List<bool> needs, bool per_sample) {
  return backward({x, weights, h_0, c_0, lengths, reset_mask, batch_sizes, recurrent_mask, zoneout_h, zoneout_c,
                   zoneout, cell, bidirectional, heads, ensemble},
                  {d_y, d_h_n, d_c_n, d_cells, y, cells, gates}, recompute, {needs.begin(), needs.end()}, per_sample);
}

#define RNNKERN_LAYER_ARGUMENTS                                                                                      \
  "Tensor x, Tensor[] weights, Tensor? h_0, Tensor? c_0, Tensor? lengths, Tensor? reset_mask, Tensor? batch_sizes, " \
  "Tensor? recurrent_mask, Tensor? zoneout_h, Tensor? zoneout_c, float zoneout, str cell, bool bidirectional, "      \
  "int heads, bool ensemble"

TORCH_LIBRARY(rnnkern, library) {
  library.def(
      "layer_forward(" RNNKERN_LAYER_ARGUMENTS
      ", bool save, bool recompute, bool want_cells) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor cells, Tensor gates)",
      {at::Tag::pt2_compliant_tag});
  library.def("layer_backward(Tensor? d_y, Tensor? d_h_n, Tensor? d_c_n, Tensor? d_cells, " RNNKERN_LAYER_ARGUMENTS
              ", bool recompute, Tensor y, Tensor cells, Tensor gates, bool[] needs, *, bool per_sample=False)"
              " -> (Tensor d_x, Tensor d_h_0, Tensor d_c_0, Tensor[] d_weights)",
              {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(rnnkern, CPU, library) {
  library.impl("layer_forward", layer_forward);
  library.impl("layer_backward", layer_backward);
}
#if defined(RNNKERN_WITH_CUDA)
TORCH_LIBRARY_IMPL(rnnkern, CUDA, library) {
  library.impl("layer_forward", layer_forward);
  library.impl("layer_backward", layer_backward);
}
#endif

}  // namespace
}  // namespace rnnkern
