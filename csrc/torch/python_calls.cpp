#include "python_calls.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/record_function.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <array>
#include <tuple>

#include "direct.h"
#include "ops.h"

namespace py = pybind11;

namespace rnnkern {
namespace {

using at::Tensor;

// A key that torch had up to 2.11 at least, and that its engine left out while it ran.
template <class Key = c10::DispatchKey>
constexpr c10::DispatchKeySet names_of_dimensions() {
  if constexpr (requires { Key::Named; }) return c10::DispatchKeySet(Key::Named);
  return c10::DispatchKeySet();
}

// Whether an operator that is called now would go to its kernel but for autograd: no autocast, transform, tracer or
// mode waits for it.
bool straight_to_kernels() {
  constexpr c10::DispatchKeySet apart = c10::autograd_dispatch_keyset_with_ADInplaceOrView | names_of_dimensions();
  c10::impl::LocalDispatchKeySet const keys = c10::impl::tls_local_dispatch_key_set();
  return keys.included_ - apart == c10::default_included_set - apart &&
         keys.excluded_ - apart == c10::default_excluded_set - apart && !at::impl::torch_function_mode_enabled();
}

// A tensor of no subclass, for which the dispatcher, but for autograd and autocast, would take a kernel of its device:
// dense, no wrapper of a transform, and its values in memory as they are.
bool is_plain(py::handle object) {
  if (!THPVariable_CheckExact(object.ptr())) return false;
  constexpr c10::DispatchKeySet apart =
      c10::autograd_dispatch_keyset_with_ADInplaceOrView | c10::autocast_dispatch_keyset;
  c10::DispatchKey const first = (THPVariable_Unpack(object.ptr()).key_set() - apart).highestPriorityTypeId();
  return first == c10::DispatchKey::CPU || first == c10::DispatchKey::CUDA;
}

bool requires_grad(const Tensor& tensor) { return tensor.defined() && tensor.requires_grad(); }
bool requires_grad(const OptionalTensor& tensor) { return tensor && requires_grad(*tensor); }
bool requires_grad(const std::vector<Tensor>& tensors) {
  return std::any_of(tensors.begin(), tensors.end(), [](const Tensor& tensor) { return requires_grad(tensor); });
}

// Whether a gradient may be asked for.
template <class... Tensors>
bool is_recorded(const Tensors&... tensors) {
  return c10::GradMode::is_enabled() && !c10::InferenceMode::is_enabled() && (requires_grad(tensors) || ...);
}

// Appends the tensors of a list or tuple, an undefined one for None where that is allowed; false if it is neither, or
// holds something that is not plain.
bool take_plain(py::handle sequence, std::vector<Tensor>& to, bool none_allowed = false) {
  if (!PyList_Check(sequence.ptr()) && !PyTuple_Check(sequence.ptr())) return false;
  auto const items = py::reinterpret_steal<py::object>(PySequence_Fast(sequence.ptr(), ""));
  if (!items) throw py::error_already_set();
  Py_ssize_t const count = PySequence_Fast_GET_SIZE(items.ptr());
  to.reserve(to.size() + size_t(count));
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* const item = PySequence_Fast_GET_ITEM(items.ptr(), i);
    bool const none = none_allowed && item == Py_None;
    if (!none && !is_plain(item)) return false;
    to.push_back(none ? Tensor() : THPVariable_Unpack(item));
  }
  return true;
}

OptionalTensor optional(const Tensor& tensor) { return tensor.defined() ? OptionalTensor(tensor) : OptionalTensor(); }

// hx as a layer takes it: None, a tensor or, of an LSTM, a pair; false if it is something else.
bool take_states(py::handle hx, OptionalTensor& h_0, OptionalTensor& c_0) {
  if (hx.is_none()) return true;
  if (is_plain(hx)) {
    h_0 = THPVariable_Unpack(hx.ptr());
    return true;
  }
  std::vector<Tensor> states;
  if (!take_plain(hx, states) || states.size() != 2) return false;
  h_0 = std::move(states[0]), c_0 = std::move(states[1]);
  return true;
}

py::object attribute(py::handle object, PyObject* name) {
  PyObject* const found = PyObject_GetAttr(object.ptr(), name);
  if (!found) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(found);
}
// By a name that is made once.
#define RNNKERN_ATTRIBUTE(object, name)                                 \
  [&] {                                                                 \
    static PyObject* const interned = PyUnicode_InternFromString(name); \
    return attribute(object, interned);                                 \
  }()

// Weights as `direct.infer` takes them: a list or tuple, or int8.Weights. False where they are not plain, or made
// for another input (packed weights are as wide as the next multiple of four).
bool take_weights(py::handle given, const Tensor& x, Weights& weights) {
  if (PyList_Check(given.ptr()) || PyTuple_Check(given.ptr())) return take_plain(given, weights.all);
  if (x.dim() == 0 || x.size(-1) != RNNKERN_ATTRIBUTE(given, "input_size").cast<int64_t>()) return false;
  weights.hidden_size = RNNKERN_ATTRIBUTE(given, "hidden_size").cast<int64_t>();
  weights.proj_size = RNNKERN_ATTRIBUTE(given, "proj_size").cast<int64_t>();
  return take_plain(RNNKERN_ATTRIBUTE(given, "packed"), weights.all) &&
         take_plain(RNNKERN_ATTRIBUTE(given, "biases"), weights.biases);
}

template <class Run>
auto without_gil(Run run) {
  py::gil_scoped_release released;
  return run();
}

// (y, hx) as a layer gives them.
py::object layer_results(const std::tuple<Tensor, Tensor, OptionalTensor>& results) {
  auto const& [y, h_n, c_n] = results;
  if (!c_n) return py::make_tuple(y, h_n);
  return py::make_tuple(y, py::make_tuple(h_n, *c_n));
}

// infer() for Python. None where something stands between a call and its kernels, a gradient is needed, or an argument
// is not what a layer takes.
py::object infer_if_plain(py::handle x, py::handle weights, py::handle hx, const std::string& cell, int64_t num_layers,
                          bool bidirectional, bool batch_first, int64_t heads, double zoneout) {
  OptionalTensor h_0, c_0;
  Weights own;
  if (!straight_to_kernels() || !is_plain(x) || !take_states(hx, h_0, c_0)) return py::none();
  const Tensor& input = THPVariable_Unpack(x.ptr());
  if (!take_weights(weights, input, own) || is_recorded(input, h_0, c_0, own.all, own.biases)) return py::none();
  return layer_results(without_gil(
      [&] { return infer(input, own, h_0, c_0, cell, num_layers, bidirectional, batch_first, heads, zoneout); }));
}

// A module's parameter as it is now; null where it has none of this name, or makes it of others.
PyObject* parameter(const py::dict& parameters, PyObject* name) {
  PyObject* const found = PyDict_GetItemWithError(parameters.ptr(), name);
  if (!found && PyErr_Occurred()) throw py::error_already_set();
  return found;
}

// A layer's parameters, flat; false where some are made of others.
bool take_parameters(py::handle layer, std::vector<Tensor>& to) {
  py::dict const parameters = RNNKERN_ATTRIBUTE(layer, "_parameters");
  py::list const names = RNNKERN_ATTRIBUTE(layer, "_flat_weights_names");
  to.reserve(names.size());
  for (py::handle name : names) {
    PyObject* const found = parameter(parameters, name.ptr());
    if (!found || !is_plain(found)) return false;
    to.push_back(THPVariable_Unpack(found));
  }
  return true;
}

bool is_true(const py::object& object) {
  int const answer = PyObject_IsTrue(object.ptr());
  if (answer < 0) throw py::error_already_set();
  return answer != 0;
}

// One step x [B, I] or [I] by a layer's parameters, or by int8.Weights. None as above, where a call of the layer would
// run more than `forward` (another method, or what the attributes `must_be_empty` hold), and where parameters are made
// of others.
py::object step_if_plain(py::handle layer, py::handle forward, const py::tuple& must_be_empty, py::handle x,
                         py::handle hx, py::handle int8_weights) {
  OptionalTensor h_0, c_0;
  Weights weights;
  if (!straight_to_kernels() || !is_plain(x) || !take_states(hx, h_0, c_0)) return py::none();
  py::object const called = RNNKERN_ATTRIBUTE(layer, "forward");
  if (!PyMethod_Check(called.ptr()) || PyMethod_GET_FUNCTION(called.ptr()) != forward.ptr() ||
      PyMethod_GET_SELF(called.ptr()) != layer.ptr())
    return py::none();
  for (py::handle name : must_be_empty)
    if (is_true(attribute(layer, name.ptr()))) return py::none();
  const Tensor& input = THPVariable_Unpack(x.ptr());
  bool const taken =
      int8_weights.is_none() ? take_parameters(layer, weights.all) : take_weights(int8_weights, input, weights);
  if (!taken || is_recorded(input, h_0, c_0, weights.all, weights.biases)) return py::none();
  auto const cell = RNNKERN_ATTRIBUTE(layer, "_cell").cast<std::string>();
  auto const num_layers = RNNKERN_ATTRIBUTE(layer, "num_layers").cast<int64_t>();
  auto const heads = RNNKERN_ATTRIBUTE(layer, "heads").cast<int64_t>();
  auto const zoneout = RNNKERN_ATTRIBUTE(layer, "zoneout").cast<double>();
  return layer_results(
      without_gil([&] { return infer_step(input, weights, h_0, c_0, cell, num_layers, heads, zoneout); }));
}

// One step by a cell: its states as a cell gives them, and what backward needs, (gates, x, h, c, *weights), or None
// where no gradient may be asked for. None instead of both as above.
py::object cell_if_plain(py::handle module, const std::string& cell, py::handle x, py::handle hx) {
  static PyObject* const names[] = {PyUnicode_InternFromString("weight_ih"), PyUnicode_InternFromString("weight_hh"),
                                    PyUnicode_InternFromString("bias_ih"), PyUnicode_InternFromString("bias_hh")};
  OptionalTensor h_0, c_0;
  if (!straight_to_kernels() || !is_plain(x) || !take_states(hx, h_0, c_0)) return py::none();
  py::dict const parameters = RNNKERN_ATTRIBUTE(module, "_parameters");
  std::vector<Tensor> weights;
  weights.reserve(std::size(names));
  for (PyObject* name : names) {
    PyObject* const found = parameter(parameters, name);
    if (!found) return py::none();
    if (found == Py_None) continue;  // without biases
    if (!is_plain(found)) return py::none();
    weights.push_back(THPVariable_Unpack(found));
  }
  const Tensor& input = THPVariable_Unpack(x.ptr());
  bool const recorded = is_recorded(input, h_0, c_0, weights);
  auto const [h, c, gates] = without_gil([&] { return cell_forward({cell, input, h_0, c_0, weights}, recorded); });
  py::object const states = c ? py::object(py::make_tuple(h, *c)) : py::cast(h);
  if (!recorded) return py::make_tuple(states, py::none());
  py::tuple kept(4 + weights.size());
  kept[0] = gates, kept[1] = x, kept[2] = h_0, kept[3] = c_0;
  for (size_t i = 0; i < weights.size(); ++i) kept[4 + i] = weights[i];
  return py::make_tuple(states, kept);
}

// An operator's arguments as rnnkern/ops.py has them: `options`, and tensors from `first` on.
struct OperatorArguments {
  explicit OperatorArguments(size_t first) : first(first) {}

  size_t const first;
  std::vector<Tensor> tensors;
  std::array<OptionalTensor, 8> after_x;
  std::string cell;
  double zoneout;
  bool bidirectional, ensemble, save, recompute, want_cells;
  int64_t heads;

  // False where something stands between a call and its kernels, as above, or a profiler listens, which may ask for
  // more of an operator than its name.
  bool take(const py::tuple& options, py::handle sequence) {
    if (at::hasCallbacks() || !straight_to_kernels() || !take_plain(sequence, tensors, /*none_allowed=*/true))
      return false;
    if (tensors.size() < first + 9 || !tensors[first].defined()) return false;
    for (size_t i = 0; i < after_x.size(); ++i) after_x[i] = optional(tensors[first + 1 + i]);
    std::tie(zoneout, cell, bidirectional, heads, ensemble, save, recompute, want_cells) =
        options.cast<std::tuple<double, std::string, bool, int64_t, bool, bool, bool, bool>>();
    return true;
  }
  LayerArguments arguments() const {
    auto const& [h_0, c_0, lengths, reset_mask, batch_sizes, recurrent_mask, zoneout_h, zoneout_c] = after_x;
    return {tensors[first],
            at::TensorList(tensors).slice(first + 9),
            h_0,
            c_0,
            lengths,
            reset_mask,
            batch_sizes,
            recurrent_mask,
            zoneout_h,
            zoneout_c,
            zoneout,
            cell,
            bidirectional,
            heads,
            ensemble};
  }
};

// The operators' results without the dispatcher, which takes longer than a small layer; None as above.
py::object forward_if_plain(const py::tuple& options, py::handle tensors) {
  OperatorArguments own(0);
  if (!own.take(options, tensors)) return py::none();
  return py::cast(without_gil([&] {
    at::AutoDispatchBelowAutograd below;
    return forward(own.arguments(), own.save, own.recompute, own.want_cells);
  }));
}
py::object backward_if_plain(const py::tuple& options, const std::vector<bool>& needs, py::handle tensors,
                             bool per_sample) {
  OperatorArguments own(7);
  if (!own.take(options, tensors)) return py::none();
  auto [d_x, d_h_0, d_c_0, d_weights] = without_gil([&] {
    at::AutoDispatchBelowAutograd below;
    OptionalTensor const d_y = optional(own.tensors[0]), d_h_n = optional(own.tensors[1]),
                         d_c_n = optional(own.tensors[2]), d_cells = optional(own.tensors[3]);
    Tensor const absent = at::empty({0}, own.tensors[own.first].options());
    auto const kept = [&](size_t i) -> const Tensor& { return own.tensors[i].defined() ? own.tensors[i] : absent; };
    return backward(own.arguments(), {d_y, d_h_n, d_c_n, d_cells, kept(4), kept(5), kept(6)}, own.recompute, needs,
                    per_sample);
  });
  py::tuple results(3 + d_weights.size());
  results[0] = d_x, results[1] = d_h_0, results[2] = d_c_0;
  for (size_t i = 0; i < d_weights.size(); ++i) results[3 + i] = d_weights[i];
  return results;
}

// Gradients of (x, h, c, *weights) from `tensors` = (d_h, d_c, gates, x, h, c, *weights), where what is absent or zero
// is None; or None where something stands between, or a gradient of these may be asked for.
py::object cell_backward_if_plain(const std::string& cell, const std::vector<bool>& needs, const py::tuple& tensors) {
  if (!straight_to_kernels() || c10::GradMode::is_enabled()) return py::none();
  std::vector<Tensor> taken;
  if (!take_plain(tensors, taken, /*none_allowed=*/true)) return py::none();
  OptionalTensor const h_0 = optional(taken.at(4)), c_0 = optional(taken.at(5));
  Cell const of{cell, taken[3], h_0, c_0, at::TensorList(taken).slice(6)};
  return py::cast(without_gil([&] { return cell_backward(of, needs, taken[0], taken[1], taken[2]); }));
}

}  // namespace

void define_direct_calls(py::module_& module) {
  module.def("infer", infer_if_plain, py::arg("x"), py::arg("weights"), py::arg("hx"), py::arg("cell"),
             py::arg("num_layers"), py::arg("bidirectional"), py::arg("batch_first"), py::arg("heads"),
             py::arg("zoneout"));
  module.def("infer_step", step_if_plain, py::arg("layer"), py::arg("forward"), py::arg("must_be_empty"), py::arg("x"),
             py::arg("hx"), py::arg("weights"));
  module.def("run_cell", cell_if_plain, py::arg("module"), py::arg("cell"), py::arg("x"), py::arg("hx"));
  module.def("layer_forward", torch::wrap_pybind_function(forward_if_plain), py::arg("options"), py::arg("tensors"));
  module.def("layer_backward", torch::wrap_pybind_function(backward_if_plain), py::arg("options"), py::arg("needs"),
             py::arg("tensors"), py::arg("per_sample"));
  module.def("cell_backward", torch::wrap_pybind_function(cell_backward_if_plain), py::arg("cell"), py::arg("needs"),
             py::arg("tensors"));
}

}  // namespace rnnkern
