// Runs one case, forward and backward, by a strategy and by definition, and compares. All memory that the strategy is
// to write starts as NaN, and padding holds NaN. The strategy is a runner:
//   name()
//   forward(problem, groups)
//   backward(problem, groups, gradients)
#pragma once

#include <cmath>
#include <limits>
#include <memory>
#include <utility>

#include "layer_case.h"

namespace check {

using host::Tensor;
using reference::Input;
using reference::kInputNames;
using reference::kInputs;
using reference::kOutputNames;
using reference::kOutputs;
using reference::Output;

// Compares results one by one. In 16 bits, and where the case says so, they are compared all together: a small result
// of a small layer is a difference of larger numbers, and its own norm is no measure of the rounding in those.
class Comparison {
 public:
  Comparison(const Case& c, std::string what, double factor) : case_(c), what_(std::move(what)), factor_(factor) {}

  void add(const char* name, const std::vector<double>& got, const std::vector<double>& want) {
    if (got.size() != want.size()) fail(case_, what_ + name + " has another size");
    if (size_of(case_.dtype) > 2 && !case_.together) return expect_close(what_ + name, got, want);
    got_.insert(got_.end(), got.begin(), got.end());
    want_.insert(want_.end(), want.begin(), want.end());
  }
  void finish() const { expect_close(what_ + "all", got_, want_); }

 private:
  void expect_close(const std::string& what, const std::vector<double>& got, const std::vector<double>& want) const {
    double const tolerance = factor_ * reference::tolerance(case_.dtype, case_.tf32);
    double error = 0, norm = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      error += (got[i] - want[i]) * (got[i] - want[i]);
      norm += want[i] * want[i];
    }
    if (std::sqrt(error) <= tolerance * std::sqrt(norm)) return;
    char text[128];
    std::snprintf(text, sizeof text, " differs: |error| %.3g, |expected| %.3g, tolerance %.3g", std::sqrt(error),
                  std::sqrt(norm), tolerance);
    fail(case_, what + text);
  }

  const Case& case_;
  std::string what_;
  double factor_;
  std::vector<double> got_, want_;
};

// One direction: what goes in, what came out, as the strategy sees it and as the definition does.
struct Direction {
  Setting setting;
  reference::Inputs<double> in, d_expected;
  reference::Outputs<double> expected, d_out;
  std::vector<Tensor> inputs, outputs, d_inputs;
  std::unique_ptr<Tensor> mask, gates, d_outputs[kOutputs];  // d_outputs: null where absent
  bool wanted[kInputs] = {};
};

class Check {
 public:
  explicit Check(const Case& c) : case_(c), random_(c.seed) {
    make_problem();
    for (int i = 0; i < case_.directions; ++i) make_direction(i);
    if (case_.mode != Mode::infer) make_gradients();
  }

  // Fails where a result is wrong. Returns the bytes of all results and gradients.
  template <class Runner>
  std::vector<char> run(Runner&& runner) {
    std::vector<char> bytes;
    forward(runner, bytes);
    if (case_.mode != Mode::infer) backward(runner, bytes);
    return bytes;
  }

 private:
  std::vector<double> random_values(size_t count, double scale = 1) {
    std::vector<double> values(count);
    for (double& value : values) value = scale * random_.uniform();
    return Tensor(case_.dtype, values).values();  // as the dtype holds them
  }

  // Rows of a padded tensor become NaN where they are padding.
  void poison_padding(std::vector<double>& values, int64_t width, double poison) const {
    const Setting& s = case_.setting;
    for (int64_t t = 0; t < s.T && !case_.packed && !values.empty(); ++t) {
      for (int64_t b = 0; b < s.B; ++b) {
        if (!s.live(t, b)) std::fill_n(values.begin() + (s.offsets[t] + b) * width, width, poison);
      }
    }
  }
  static constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

  void make_problem() {
    Setting& s = case_.setting;
    problem_.cell = s.cell, problem_.activation = s.activation, problem_.dtype = case_.dtype;
    problem_.backend = case_.backend;
    problem_.steps = s.T, problem_.batch = s.B, problem_.rows = s.rows();
    problem_.input_size = s.I, problem_.hidden_size = s.H, problem_.proj_size = s.P, problem_.heads = s.heads;
    problem_.groups = case_.directions;
    problem_.tf32 = case_.tf32;
    problem_.bias = case_.bias, problem_.packed = case_.packed, problem_.lengths = case_.given_lengths;
    problem_.reset = !s.reset.empty(), problem_.recurrent_mask = !s.mask.empty();
    problem_.zoneout = case_.masks_per_step || s.zoneout != 0;
    problem_.save = case_.mode != Mode::infer, problem_.recompute = case_.mode == Mode::recompute;
    problem_.per_sample = case_.per_sample;
    for (int64_t t = 0; t < s.T && case_.packed; ++t) batch_sizes_.push_back(s.offsets[t + 1] - s.offsets[t]);
    given_lengths_ = s.lengths;
    for (int64_t& length : s.lengths) length = std::clamp<int64_t>(length, 0, s.T);  // the nearer end counts
    x_ = padded_x_ = random_values(s.rows() * s.I);
    poison_padding(padded_x_, s.I, kNaN);
  }

  void make_direction(int index) {
    Direction& d = directions_.emplace_back();
    d.setting = case_.setting;
    Setting& s = d.setting;
    s.reverse = (index == 1) != case_.setting.reverse;
    int64_t const rows = s.rows(), R = s.R(), GH = s.G() * s.H;
    bool const lstm = s.cell == CellKind::lstm;
    double const hidden_scale = case_.weight_scale / std::sqrt(static_cast<double>(s.H)),
                 input_scale = std::min(hidden_scale, case_.weight_scale / std::sqrt(static_cast<double>(s.I)));
    auto const draw = [&](int i, int64_t count, double scale) { d.in.of[i] = random_values(count, scale); };
    d.in.of[Input::x] = x_;
    draw(Input::w_ih, GH * s.I, input_scale), draw(Input::w_hh, GH * (R / s.heads), hidden_scale);
    draw(Input::b_ih, GH, hidden_scale), draw(Input::b_hh, GH, hidden_scale);
    draw(Input::w_hr, s.P * s.H, hidden_scale);
    double const state_scale = case_.from_zero ? 0 : 1;
    draw(Input::h_0, s.B * R, state_scale), draw(Input::c_0, lstm ? s.B * s.H : 0, state_scale);
    if (!case_.bias) d.in.of[Input::b_ih].assign(GH, 0), d.in.of[Input::b_hh].assign(GH, 0);
    if (case_.away_from_kink) {  // each unit is far on one side
      for (double& bias : d.in.of[Input::b_ih]) bias = random_.one_in(2) ? 1.25 : -1.25;
    }
    if (case_.masks_per_step) {
      s.zone_h.resize(rows * R), s.zone_c.resize(lstm ? rows * s.H : 0);
      for (char& keep : s.zone_h) keep = random_.one_in(3);
      for (char& keep : s.zone_c) keep = random_.one_in(3);
    }
    if (!s.mask.empty()) {
      for (double& value : s.mask) value = random_.one_in(3) ? 0 : 1.5;
      d.mask = std::make_unique<Tensor>(case_.dtype, s.mask);
    }
    for (int i = 0; i < kInputs; ++i) {
      d.inputs.emplace_back(case_.dtype, i == Input::x ? padded_x_ : d.in.of[i]);
      int64_t const samples = is_weight(i) ? problem_.samples() : 1;
      d.d_inputs.emplace_back(case_.dtype, samples * static_cast<int64_t>(d.in.of[i].size()));
    }
    reference::nearest_kink = std::numeric_limits<double>::infinity();
    d.expected = reference::layer(s, d.in);
    if (case_.away_from_kink && reference::nearest_kink < 0.1) fail(case_, "relu's inputs come too close to zero");
    for (int o = 0; o < kOutputs; ++o) {
      d.outputs.emplace_back(case_.dtype, static_cast<int64_t>(o == Output::y ? 0 : d.expected.of[o].size()));
    }
    if (case_.mode == Mode::save) d.gates = std::make_unique<Tensor>(case_.dtype, rows * facts(s.cell).saved * s.H);
    if (!y_) y_ = std::make_unique<Tensor>(case_.dtype, rows * R * case_.directions);
  }

  // Gradients of the results: random, some absent, NaN in the padding; and some that are not wanted.
  void make_gradients() {
    bool x_wanted = true;
    bool const final_alone = case_.seed % 5 == 0;  // nobody asks for y's gradient, as where a classifier reads h_n
    for (int index = 0; index < case_.directions; ++index) {
      Direction& d = directions_[index];
      const Setting& s = d.setting;
      for (int o = 0; o < kOutputs; ++o) {
        d.d_out.of[o].assign(d.expected.of[o].size(), 0);
        bool const absent = o == Output::y ? final_alone : random_.one_in(3) && !(final_alone && o == Output::h_n);
        if (absent || d.expected.of[o].empty()) continue;
        d.d_out.of[o] = random_values(d.expected.of[o].size());
        std::vector<double> given = d.d_out.of[o];
        int64_t const width = o == Output::y ? s.R() : s.H;
        if (o == Output::y || o == Output::cells) {
          poison_padding(d.d_out.of[o], width, 0);
          poison_padding(given, width, kNaN);
        }
        if (o == Output::y) {  // as wide as y itself, and the other direction's part is not its own
          std::vector<double> wide(given.size() * case_.directions, kNaN);
          for (size_t j = 0; j < given.size(); ++j) {
            wide[(j / width * case_.directions + index) * width + j % width] = given[j];
          }
          given = wide;
        }
        d.d_outputs[o] = std::make_unique<Tensor>(case_.dtype, given);
      }
      for (int i = 0; i < kInputs; ++i) {
        d.wanted[i] = !random_.one_in(6) && !d.in.of[i].empty();
        if (!case_.bias && (i == Input::b_ih || i == Input::b_hh)) d.wanted[i] = false;
        if (case_.from_zero && (i == Input::h_0 || i == Input::c_0)) d.wanted[i] = false;
      }
      x_wanted = x_wanted && d.wanted[Input::x];
      d.d_expected = reference::gradients(s, d.in, d.d_out);
      if (case_.per_sample) expect_gradients_of_each_sample(d);
    }
    std::vector<double>& d_x = directions_[0].d_expected.of[Input::x];
    for (Direction& d : directions_) {
      d.wanted[Input::x] = x_wanted;
      for (size_t j = 0; j < d_x.size() && &d != &directions_[0]; ++j) d_x[j] += d.d_expected.of[Input::x][j];
    }
  }

  static bool is_weight(int input) { return input >= Input::w_ih && input <= Input::w_hr; }

  void expect_gradients_of_each_sample(Direction& d) const {
    const Setting& s = d.setting;
    int64_t const widths[kOutputs] = {s.R(), s.R(), s.H, s.H};
    for (int i = 0; i < kInputs; ++i)
      if (is_weight(i)) d.d_expected.of[i].clear();
    for (int64_t b = 0; b < s.B; ++b) {
      reference::Outputs<double> own = d.d_out;
      for (int o = 0; o < kOutputs; ++o)
        for (size_t j = 0; j < own.of[o].size(); ++j)
          if (static_cast<int64_t>(j) / widths[o] % s.B != b) own.of[o][j] = 0;
      reference::Inputs<double> const gradients = reference::gradients(s, d.in, own);
      for (int i = 0; i < kInputs; ++i)
        if (is_weight(i))
          d.d_expected.of[i].insert(d.d_expected.of[i].end(), gradients.of[i].begin(), gradients.of[i].end());
    }
  }

  Group group(int index) {
    Direction& d = directions_[index];
    const Setting& s = d.setting;
    Group g;
    g.reverse = s.reverse;
    if (case_.given_lengths) g.schedule.lengths = given_lengths_.data();
    if (!s.reset.empty()) g.schedule.reset = reinterpret_cast<const bool*>(case_.setting.reset.data());
    if (case_.packed) g.schedule.batch_sizes = batch_sizes_.data();
    auto input = [&](int i) { return d.inputs[i].data(); };
    g.x = directions_[0].inputs[Input::x].data();
    g.w_ih = input(Input::w_ih), g.w_hh = input(Input::w_hh);
    if (case_.bias) g.b_ih = input(Input::b_ih), g.b_hh = input(Input::b_hh);
    if (s.P > 0) g.w_hr = input(Input::w_hr);
    if (!case_.from_zero) g.h_0 = input(Input::h_0);
    if (d.mask) g.mask = d.mask->data();
    if (!s.zone_h.empty()) g.zone_h = reinterpret_cast<const bool*>(s.zone_h.data());
    if (!s.zone_c.empty()) g.zone_c = reinterpret_cast<const bool*>(s.zone_c.data());
    g.zoneout = s.zoneout;
    g.y_stride = case_.directions * s.R();
    g.y = static_cast<char*>(y_->data()) + index * s.R() * size_of(case_.dtype);
    g.h_n = d.outputs[Output::h_n].data();
    if (s.cell == CellKind::lstm) {
      if (!case_.from_zero) g.c_0 = input(Input::c_0);
      g.c_n = d.outputs[Output::c_n].data();
      if (case_.mode != Mode::infer || case_.seed % 2 == 0) g.cells = d.outputs[Output::cells].data();
    }
    if (d.gates) g.gates = d.gates->data();
    return g;
  }

  GroupGradients group_gradients(int index) {
    Direction& d = directions_[index];
    GroupGradients g;
    auto incoming = [&](int o) { return d.d_outputs[o] ? d.d_outputs[o]->data() : nullptr; };
    if (incoming(Output::y)) {
      g.d_y = static_cast<const char*>(incoming(Output::y)) + index * d.setting.R() * size_of(case_.dtype);
    }
    g.d_h_n = incoming(Output::h_n), g.d_c_n = incoming(Output::c_n), g.d_cells = incoming(Output::cells);
    auto outgoing = [&](int i) { return d.wanted[i] ? d.d_inputs[i].data() : nullptr; };
    g.accumulate_x = index > 0;
    if (d.wanted[Input::x]) g.d_x = directions_[0].d_inputs[Input::x].data();
    g.d_w_ih = outgoing(Input::w_ih), g.d_w_hh = outgoing(Input::w_hh);
    g.d_b_ih = outgoing(Input::b_ih), g.d_b_hh = outgoing(Input::b_hh), g.d_w_hr = outgoing(Input::w_hr);
    g.d_h_0 = outgoing(Input::h_0), g.d_c_0 = outgoing(Input::c_0);
    return g;
  }

  static void append(std::vector<char>& bytes, const Tensor& tensor) {
    bytes.insert(bytes.end(), tensor.bytes().begin(), tensor.bytes().end());
  }

  template <class Runner>
  void forward(Runner& runner, std::vector<char>& bytes) {
    std::vector<Group> groups;
    y_->poison();
    for (int i = 0; i < case_.directions; ++i) {
      for (Tensor& output : directions_[i].outputs) output.poison();
      if (directions_[i].gates) directions_[i].gates->poison();
      groups.push_back(group(i));
    }
    runner.forward(std::as_const(problem_), std::as_const(groups));
    append(bytes, *y_);
    std::vector<double> const y = y_->values();
    Comparison comparison(case_, runner.name() + ": the result ", 1);
    for (int i = 0; i < case_.directions; ++i) {
      Direction& d = directions_[i];
      int64_t const R = d.setting.R();
      std::vector<double> own;
      for (int64_t j = 0; j < d.setting.rows() * R; ++j) own.push_back(y[(j / R * case_.directions + i) * R + j % R]);
      for (int o = 0; o < kOutputs; ++o) {
        if (o == Output::cells && groups[i].cells == nullptr) continue;
        comparison.add(kOutputNames[o], o == Output::y ? own : d.outputs[o].values(), d.expected.of[o]);
        append(bytes, d.outputs[o]);
      }
    }
    comparison.finish();
  }

  template <class Runner>
  void backward(Runner& runner, std::vector<char>& bytes) {
    std::vector<Group> groups;
    std::vector<GroupGradients> gradients;
    std::vector<char> const y = y_->bytes();
    std::vector<std::vector<char>> gates;
    for (int i = 0; i < case_.directions; ++i) {
      Direction& d = directions_[i];
      for (Tensor& d_input : d.d_inputs) d_input.poison();
      groups.push_back(group(i));
      if (d.setting.T == 1) groups.back().y = groups.back().cells = nullptr;  // never read for one step
      gradients.push_back(group_gradients(i));
      gates.push_back(d.gates ? d.gates->bytes() : std::vector<char>());
    }
    runner.backward(std::as_const(problem_), std::as_const(groups), std::as_const(gradients));
    Comparison comparison(case_, runner.name() + ": the gradient of ", 4);
    for (int i = 0; i < case_.directions; ++i) {
      Direction& d = directions_[i];
      for (int j = 0; j < kInputs; ++j) {
        if (!d.wanted[j] || (j == Input::x && i > 0)) continue;
        comparison.add(kInputNames[j], d.d_inputs[j].values(), d.d_expected.of[j]);
        append(bytes, d.d_inputs[j]);
      }
      if (d.gates && d.gates->bytes() != gates[i]) fail(case_, runner.name() + ": backward changed the saved gates");
    }
    comparison.finish();
    if (y_->bytes() != y) fail(case_, runner.name() + ": backward changed y");
  }

  Case case_;
  Random random_;
  Problem problem_;
  std::vector<double> x_, padded_x_;
  std::vector<int64_t> batch_sizes_, given_lengths_;
  std::vector<Direction> directions_;
  std::unique_ptr<Tensor> y_;
};

}  // namespace check
