// The operator of a layer with int8 weights: inference in float32 on the CPU. Its fake is in rnnkern/int8.py.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "layer.h"

namespace rnnkern {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Checks one packed weight: its data, scales and sums.
class Int8Checker {
 public:
  Int8Checker(Layer& layer, at::TensorList weights) : layer_(layer), weights_(weights) {}

  Int8Weight operator()(size_t at, const char* name, int64_t heads, int64_t units, int64_t gates, int64_t depth) {
    int64_t const blocks = int8_blocks(units / heads);
    TORCH_CHECK_VALUE(depth <= kInt8MostDepth, name, ": int8 weights reach to ", kInt8MostDepth, " columns, got ",
                      depth);
    Shape const facts{heads, blocks, gates, kInt8Units};
    Int8Weight weight;
    weight.data = check<int8_t>(at, name, {heads, blocks, int8_quads(depth), gates, kInt8Units, kInt8Depth});
    weight.scale = check<float>(at + 1, name, facts);
    weight.sum = check<int32_t>(at + 2, name, facts);
    return weight;
  }

 private:
  template <class T>
  const T* check(size_t at, const char* name, Shape const& shape) {
    const Tensor& tensor = weights_[at];
    TORCH_CHECK_VALUE(tensor.sizes() == shape, name, ": expected shape ", at::IntArrayRef(shape), ", got ",
                      tensor.sizes());
    TORCH_CHECK_TYPE(tensor.scalar_type() == c10::CppTypeToScalarType<T>::value, name, ": expected dtype ",
                     c10::CppTypeToScalarType<T>::value, ", got ", tensor.scalar_type());
    TORCH_CHECK(tensor.is_cpu(), name, ": expected a tensor on the CPU, got one on ", tensor.device());
    layer_.owned.push_back(tensor.contiguous());
    return layer_.owned.back().template const_data_ptr<T>();
  }

  Layer& layer_;
  at::TensorList weights_;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> int8_forward(const Tensor& x, at::TensorList weights, at::TensorList biases,
                                                        const Tensor& h_0, const OptionalTensor& c_0,
                                                        const OptionalTensor& lengths, const OptionalTensor& reset_mask,
                                                        const OptionalTensor& batch_sizes, double zoneout,
                                                        std::string_view cell, int64_t hidden_size, bool bidirectional,
                                                        int64_t heads, bool want_cells) {
  int64_t const directions = bidirectional ? 2 : 1, per_direction = int64_t(weights.size()) / directions;
  TORCH_CHECK_VALUE(hidden_size > 0, "hidden_size: expected a positive number, got ", hidden_size);
  TORCH_CHECK_VALUE(int64_t(weights.size()) == directions * per_direction && (per_direction == 6 || per_direction == 9),
                    "weights: expected 6 or 9 tensors per direction, got ", weights.size(), " for ", directions,
                    " direction(s)");
  TORCH_CHECK_VALUE(biases.empty() || int64_t(biases.size()) == 2 * directions,
                    "biases: expected none or 2 tensors per direction, got ", biases.size());
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat, "input: int8 weights take float32, got ", x.scalar_type());
  TORCH_CHECK(x.is_cpu(), "input: int8 weights are for the CPU, got a tensor on ", x.device());
  OptionalTensor const none;
  Layer layer({x, biases, h_0, c_0, lengths, reset_mask, batch_sizes, none, none, none, zoneout, cell, bidirectional,
               heads, false, false, hidden_size, per_direction == 9 && cell == "lstm"});
  Problem const& problem = layer.problem;
  int64_t const rows = problem.rows, batch = problem.batch, size = problem.state_size(), hidden = problem.hidden_size;
  bool const has_cell = facts(problem.cell).has_cell, two_stage_gru = problem.cell == CellKind::gru_v1,
             projection = problem.proj_size > 0;
  TORCH_CHECK_VALUE((per_direction == 9) == (two_stage_gru || projection), "weights: expected ", two_stage_gru ? 9 : 6,
                    " tensors per direction for cell ", cell, ", got ", per_direction);
  int64_t const gates = problem.gates(), first_gates = two_stage_gru ? 2 : gates, head = problem.head_size();
  std::vector<Int8Group> packed(directions);
  Int8Checker check(layer, weights);
  for (int64_t d = 0; d < directions; ++d) {
    size_t const at = d * per_direction;
    packed[d].input = check(at, "weight_ih", 1, hidden, gates, problem.input_size);
    packed[d].first = check(at + 3, "weight_hh", heads, hidden, first_gates, projection ? size : head);
    if (two_stage_gru) packed[d].second = check(at + 6, "weight_hh of n", heads, hidden, 1, head);
    if (projection) packed[d].second = check(at + 6, "weight_hr", 1, size, 1, hidden);
  }

  auto const options = x.options();
  auto const absent = [&] { return at::empty({0}, options); };
  Tensor const y = at::empty(
      layer.packed ? Shape{rows, directions * size} : Shape{problem.steps, batch, directions * size}, options);
  Tensor const h_n = at::empty({directions, batch, size}, options);
  Tensor const c_n = has_cell ? at::empty({directions, batch, hidden}, options) : absent();
  Tensor const cells = has_cell && want_cells ? at::empty(layer.sequence_shape(hidden), options) : absent();
  layer.set_results(y, h_n, c_n, cells);
  run_int8_forward(layer, packed);
  return {y, h_n, c_n, cells};
}

TORCH_LIBRARY_FRAGMENT(rnnkern, library) {
  library.def(
      "int8_forward(Tensor x, Tensor[] weights, Tensor[] biases, Tensor h_0, Tensor? c_0, Tensor? lengths, Tensor? "
      "reset_mask, Tensor? batch_sizes, float zoneout, str cell, int hidden_size, bool bidirectional, int heads, bool "
      "want_cells) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor cells)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(rnnkern, CPU, library) { library.impl("int8_forward", int8_forward); }

}  // namespace
}  // namespace rnnkern
