// A layer with int8 weights, and its operator, whose fake is in rnnkern/int8.py.
#include <torch/library.h>

#include <array>

#include "ops.h"

namespace rnnkern {
namespace {

using at::Tensor;

// Checks one packed weight: its data, scales and sums.
class Int8Checker {
 public:
  Int8Checker(Layer& layer, at::TensorList weights) : layer_(layer), weights_(weights) {}

  Int8Weight operator()(size_t at, const char* name, int64_t heads, int64_t units, int64_t gates, int64_t depth) {
    int64_t const blocks = int8_blocks(units / heads);
    TORCH_CHECK_VALUE(depth <= kInt8MostDepth, name, ": int8 weights reach to ", kInt8MostDepth, " columns, got ",
                      depth);
    std::array<int64_t, 4> const facts{heads, blocks, gates, kInt8Units};
    Int8Weight weight;
    weight.data = check<int8_t>(at, name, {heads, blocks, int8_quads(depth), gates, kInt8Units, kInt8Depth});
    weight.scale = check<float>(at + 1, name, facts);
    weight.sum = check<int32_t>(at + 2, name, facts);
    return weight;
  }

 private:
  template <class T>
  const T* check(size_t at, const char* name, at::IntArrayRef shape) {
    const Tensor& tensor = weights_[at];
    check_tensor(tensor, name, shape, c10::CppTypeToScalarType<T>::value, at::kCPU);
    layer_.owned.push_back(tensor.contiguous());
    return layer_.owned.back().template const_data_ptr<T>();
  }

  Layer& layer_;
  at::TensorList weights_;
};

// What must hold before a layer's sizes can be read.
const LayerArguments& checked(const LayerArguments& arguments, at::TensorList weights) {
  const Tensor& x = arguments.x;
  at::TensorList const biases = arguments.weights;
  int64_t const directions = arguments.bidirectional ? 2 : 1, per_direction = int64_t(weights.size()) / directions;
  TORCH_CHECK_VALUE(arguments.hidden_size > 0, "hidden_size: expected a positive number, got ", arguments.hidden_size);
  TORCH_CHECK_VALUE(arguments.proj_size >= 0, "proj_size: expected 0 or a positive number, got ", arguments.proj_size);
  TORCH_CHECK_VALUE(int64_t(weights.size()) == directions * per_direction && (per_direction == 6 || per_direction == 9),
                    "weights: expected 6 or 9 tensors per direction, got ", weights.size(), " for ", directions,
                    " direction(s)");
  TORCH_CHECK_VALUE(biases.empty() || int64_t(biases.size()) == 2 * directions,
                    "biases: expected none or 2 tensors per direction, got ", biases.size());
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat, "input: int8 weights take float32, got ", x.scalar_type());
  TORCH_CHECK(x.is_cpu(), "input: int8 weights are for the CPU, got a tensor on ", x.device());
  return arguments;
}

}  // namespace

Int8Layer::Int8Layer(const LayerArguments& arguments, at::TensorList weights) : Layer(checked(arguments, weights)) {
  bool const two_stage_gru = problem.cell == CellKind::gru_v1, projection = problem.proj_size > 0;
  TORCH_CHECK_VALUE(!projection || problem.cell == CellKind::lstm, "proj_size: expected 0 for cell ", arguments.cell,
                    ", got ", problem.proj_size);
  size_t const per_direction = weights.size() / directions, expected = two_stage_gru || projection ? 9 : 6;
  TORCH_CHECK_VALUE(per_direction == expected, "weights: expected ", expected, " tensors per direction for cell ",
                    arguments.cell, ", got ", per_direction);
  int64_t const gates = problem.gates(), first_gates = two_stage_gru ? 2 : gates, head = problem.head_size(),
                heads = problem.heads, hidden = problem.hidden_size, size = problem.state_size();
  Int8Checker check(*this, weights);
  for (size_t at = 0; at < weights.size(); at += per_direction) {
    Int8Group& own = packed_weights.emplace_back();
    own.input = check(at, "weight_ih", 1, hidden, gates, problem.input_size);
    own.first = check(at + 3, "weight_hh", heads, hidden, first_gates, projection ? size : head);
    if (two_stage_gru) own.second = check(at + 6, "weight_hh of n", heads, hidden, 1, head);
    if (projection) own.second = check(at + 6, "weight_hr", 1, size, 1, hidden);
  }
}

namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> int8_forward(const Tensor& x, at::TensorList weights, at::TensorList biases,
                                                        const OptionalTensor& h_0, const OptionalTensor& c_0,
                                                        const OptionalTensor& lengths, const OptionalTensor& reset_mask,
                                                        const OptionalTensor& batch_sizes, double zoneout,
                                                        std::string_view cell, int64_t hidden_size, int64_t proj_size,
                                                        bool bidirectional, int64_t heads, bool want_cells) {
  OptionalTensor const none;
  LayerArguments const arguments{
      .x = x,
      .weights = biases,
      .h_0 = h_0,
      .c_0 = c_0,
      .lengths = lengths,
      .reset_mask = reset_mask,
      .batch_sizes = batch_sizes,
      .recurrent_mask = none,
      .zoneout_h = none,
      .zoneout_c = none,
      .zoneout = zoneout,
      .cell = cell,
      .bidirectional = bidirectional,
      .heads = heads,
      .ensemble = false,
      .hidden_size = hidden_size,
      .proj_size = proj_size,
  };
  Int8Layer layer(arguments, weights);
  auto const [y, h_n, c_n, cells, gates] = new_results(layer, arguments, want_cells);
  run_forward(layer);
  return {y, h_n, c_n, cells};
}

TORCH_LIBRARY_FRAGMENT(rnnkern, library) {
  library.def(
      "int8_forward(Tensor x, Tensor[] weights, Tensor[] biases, Tensor? h_0, Tensor? c_0, Tensor? lengths, "
      "Tensor? reset_mask, Tensor? batch_sizes, float zoneout, str cell, int hidden_size, int proj_size, "
      "bool bidirectional, int heads, bool want_cells) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor cells)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(rnnkern, CPU, library) { library.impl("int8_forward", int8_forward); }

}  // namespace
}  // namespace rnnkern
