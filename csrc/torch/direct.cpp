#include "direct.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/record_function.h>
#include <c10/util/Exception.h>

#include "layer.h"

namespace rnnkern {
namespace {

using at::Tensor;

Tensor empty_beside(const Tensor& x, at::IntArrayRef sizes) {
  return x.is_cpu() ? Tensor(at::detail::empty_cpu(sizes, x.options())) : at::empty(sizes, x.options());
}

at::TensorList of_layer(const std::vector<Tensor>& all, int64_t l, int64_t num_layers) {
  size_t const count = all.size() / num_layers;
  return {all.data() + l * count, count};
}

OptionalTensor const kNone;

// What these calls can have: no lengths, resets, packed rows or masks. It holds references.
LayerArguments arguments_of(const Tensor& x, at::TensorList weights, const OptionalTensor& h_0,
                            const OptionalTensor& c_0, const std::string& cell) {
  return {.x = x,
          .weights = weights,
          .h_0 = h_0,
          .c_0 = c_0,
          .lengths = kNone,
          .reset_mask = kNone,
          .batch_sizes = kNone,
          .recurrent_mask = kNone,
          .zoneout_h = kNone,
          .zoneout_c = kNone,
          .zoneout = 0,
          .cell = cell,
          .bidirectional = false,
          .heads = 1,
          .ensemble = false,
          .one_step = x.dim() == 2};
}

}  // namespace

Inferred infer(const Tensor& x, const Weights& weights, const OptionalTensor& h_0, const OptionalTensor& c_0,
               const std::string& cell, int64_t num_layers, bool bidirectional, bool batch_first, int64_t heads,
               double zoneout) {
  RECORD_FUNCTION("rnnkern::infer", c10::ArrayRef<const c10::IValue>{});
  at::AutoDispatchBelowAutograd below;
  int64_t const directions = bidirectional ? 2 : 1, state_rows = num_layers * directions;
  for (auto const* tensors : {&weights.all, &weights.biases})
    TORCH_CHECK_VALUE(num_layers > 0 && tensors->size() % num_layers == 0, "weights: expected a multiple of ",
                      num_layers, ", got ", tensors->size());
  bool const one_step = x.dim() == 2, int8 = weights.hidden_size > 0;
  auto const states_of_layer = [&](const OptionalTensor& states, const char* name, int64_t l) {
    if (!states || num_layers == 1) return states.value_or(Tensor());
    TORCH_CHECK_VALUE(states->dim() == 3 && states->size(0) == state_rows, name, ": expected ", state_rows,
                      " layers and directions, got ", states->sizes());
    return states->narrow(0, l * directions, directions);
  };
  OptionalTensor h_n, c_n;
  Tensor output = batch_first && !one_step ? x.transpose(0, 1) : x;
  auto const run = [&](auto layer, int64_t l) {
    Problem const& problem = layer.problem;
    int64_t const batch = problem.batch, size = problem.state_size();
    if (l == 0) {
      h_n = empty_beside(x, {state_rows, batch, size});
      if (facts(problem.cell).has_cell) c_n = empty_beside(x, {state_rows, batch, problem.hidden_size});
    }
    output = empty_beside(x, one_step ? Shape{batch, directions * size} : layer.y_shape());
    layer.set_results(output, states_of_layer(h_n, "h_n", l), states_of_layer(c_n, "c_n", l));
    run_forward(layer);
  };
  for (int64_t l = 0; l < num_layers; ++l) {
    Tensor const input = output;
    OptionalTensor const h = states_of_layer(h_0, "h_0", l), c = states_of_layer(c_0, "c_0", l);
    at::TensorList const of_l = of_layer(weights.all, l, num_layers), biases = of_layer(weights.biases, l, num_layers);
    LayerArguments arguments = arguments_of(input, int8 ? biases : of_l, h, c, cell);
    arguments.bidirectional = bidirectional, arguments.heads = heads, arguments.zoneout = zoneout;
    arguments.hidden_size = weights.hidden_size, arguments.proj_size = weights.proj_size;
    if (int8) {
      run(Int8Layer(arguments, of_l), l);
    } else {
      run(Layer(arguments), l);
    }
  }
  return {batch_first && !one_step ? output.transpose(0, 1) : output, *h_n, c_n};
}

Inferred infer_step(const Tensor& x, const Weights& weights, const OptionalTensor& h_0, const OptionalTensor& c_0,
                    const std::string& cell, int64_t num_layers, int64_t heads, double zoneout) {
  auto const run = [&](const Tensor& row, const OptionalTensor& h, const OptionalTensor& c) {
    return infer(row, weights, h, c, cell, num_layers, /*bidirectional=*/false, /*batch_first=*/false, heads, zoneout);
  };
  if (x.dim() != 1) {
    TORCH_CHECK_VALUE(x.dim() == 2, "input: expected 1 or 2 dimensions, got ", x.dim());
    return run(x, h_0, c_0);
  }
  at::AutoDispatchBelowAutograd below;
  auto const with_batch = [](const OptionalTensor& state) {
    return state ? OptionalTensor(state->unsqueeze(1)) : OptionalTensor();
  };
  auto [y, h_n, c_n] = run(x.unsqueeze(0), with_batch(h_0), with_batch(c_0));
  if (c_n) c_n = c_n->squeeze(1);
  return {y.squeeze(0), h_n.squeeze(1), c_n};
}

namespace {

// The layer of one step that a cell is.
Layer layer_of(const Cell& cell) {
  int64_t const dimensions = cell.x.dim();
  bool const batched = dimensions == 2;
  TORCH_CHECK_VALUE(batched || dimensions == 1, "input: expected 1 or 2 dimensions, got ", dimensions);
  auto const with_batch = [&](const Tensor& tensor) { return batched ? tensor : tensor.unsqueeze(0); };
  auto const state = [&](const OptionalTensor& tensor) {
    if (!tensor) return OptionalTensor();
    TORCH_CHECK_VALUE(tensor->dim() == dimensions, "hx: expected ", dimensions, " dimensions, got ", tensor->dim());
    return OptionalTensor(with_batch(*tensor).unsqueeze(0));
  };
  TORCH_CHECK_VALUE(cell.weights.size() % 2 == 0, "weights: expected 2 or 4 tensors, got ", cell.weights.size());
  Tensor const row = with_batch(cell.x);
  OptionalTensor const h = state(cell.h_0), c = state(cell.c_0);
  return Layer(arguments_of(row, cell.weights, h, c, cell.name));
}

// [B, H], or [H] without B.
Shape state_shape(const Cell& cell, const Problem& problem) {
  return cell.x.dim() == 2 ? Shape{problem.batch, problem.hidden_size} : Shape{problem.hidden_size};
}

}  // namespace

CellResults cell_forward(const Cell& cell, bool save) {
  RECORD_FUNCTION("rnnkern::cell_forward", c10::ArrayRef<const c10::IValue>{});
  at::AutoDispatchBelowAutograd below;
  Layer layer = layer_of(cell);
  Problem& problem = layer.problem;
  problem.save = save;
  auto const state = [&] { return empty_beside(cell.x, state_shape(cell, problem)); };
  CellResults results{.h_n = state(), .c_n = {}, .gates = {}};
  if (facts(problem.cell).has_cell) results.c_n = state();
  if (save) results.gates = empty_beside(cell.x, layer.sequence_shape(problem.saved_size()));
  // The output is the state: on the CPU, which writes one after the other, in the same memory.
  Tensor const y = cell.x.is_cpu() ? results.h_n : state();
  layer.set_results(y, results.h_n, results.c_n.value_or(Tensor()), {}, results.gates.value_or(Tensor()));
  run_forward(layer);
  return results;
}

std::vector<Tensor> cell_backward(const Cell& cell, const std::vector<bool>& needs, const Tensor& d_h_n,
                                  const Tensor& d_c_n, const Tensor& gates) {
  RECORD_FUNCTION("rnnkern::cell_backward", c10::ArrayRef<const c10::IValue>{});
  at::AutoDispatchBelowAutograd below;
  Layer layer = layer_of(cell);
  Problem& problem = layer.problem;
  problem.save = true;
  TORCH_CHECK_VALUE(gates.defined(), "gates: expected a tensor, got None");
  TORCH_CHECK_VALUE(needs.size() == cell.weights.size() + 3, "needs: expected ", cell.weights.size() + 3,
                    " values, got ", needs.size());
  Shape const shape = state_shape(cell, problem);
  layer.set_results({}, {}, {}, {}, layer.dense(gates, "gates", layer.sequence_shape(problem.saved_size())));

  std::vector<Tensor> results;
  std::vector<GroupGradients> gradients(1);
  auto const part = [&](const Tensor& tensor) { return layer.writable_part(tensor, 0, 0); };
  auto const wanted = [&](const OptionalTensor& like) {
    results.push_back(needs[results.size()] && like ? empty_beside(cell.x, like->sizes()) : Tensor());
    return part(results.back());
  };
  GroupGradients& own = gradients[0];
  own.d_h_n = part(layer.dense(d_h_n, "d_h", shape));
  own.d_c_n = part(layer.dense(d_c_n, "d_c", shape));
  own.d_x = wanted(cell.x);
  own.d_h_0 = wanted(cell.h_0);
  own.d_c_0 = wanted(cell.c_0);
  own.d_w_ih = wanted(cell.weights[0]);
  own.d_w_hh = wanted(cell.weights[1]);
  if (problem.bias) own.d_b_ih = wanted(cell.weights[2]), own.d_b_hh = wanted(cell.weights[3]);
  run_backward(layer, gradients);
  return results;
}

}  // namespace rnnkern
