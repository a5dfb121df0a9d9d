// The CUDA strategy `stepwise` on the host: the same driver and the same functors, run by two loops and a plain GEMM,
// against the layer by definition. All memory that stepwise is to write starts as NaN, padding holds NaN, and the loops
// visit the elements in another order at each launch.
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <string>

#include "cuda/run.h"
#include "host.h"
#include "reference.h"

using namespace rnnkern;
using host::HostForEach;
using host::HostPlatform;
using host::Random;
using host::Tensor;
using reference::Input;
using reference::kInputNames;
using reference::kInputs;
using reference::kOutputNames;
using reference::kOutputs;
using reference::Output;
using reference::Setting;

namespace {

enum class Mode { infer, save, recompute };

struct Case {
  Setting setting;  // of the forward direction
  Dtype dtype = Dtype::float64;
  Mode mode = Mode::save;
  int directions = 1;
  bool bias = true, packed = false, given_lengths = false, masks_per_step = false;
  bool parameters_only = false;  // compare no gradients of x and the initial states
  int64_t chunk_elements = 64;   // small: several chunks
  uint64_t seed = 1;
  std::string name;
};

[[noreturn]] void fail(const Case& c, const std::string& what) {
  std::printf("FAILED %s seed %llu: %s\n", c.name.c_str(), static_cast<unsigned long long>(c.seed), what.c_str());
  std::exit(1);
}

void expect_close(const Case& c, const std::string& what, const std::vector<double>& got,
                  const std::vector<double>& want, double tolerance) {
  if (got.size() != want.size()) fail(c, what + " has another size");
  double error = 0, norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    error += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  if (!(std::sqrt(error) <= tolerance * std::sqrt(norm))) {
    char text[128];
    std::snprintf(text, sizeof text, " differs: |error| %.3g, |expected| %.3g, tolerance %.3g", std::sqrt(error),
                  std::sqrt(norm), tolerance);
    fail(c, what + text);
  }
}

// Compares results one by one. In 16 bits they are compared all together: a small result of a small layer is a
// difference of larger numbers, and its own norm is no measure of the rounding in those.
class Comparison {
 public:
  Comparison(const Case& c, const char* what, double factor) : case_(c), what_(what), factor_(factor) {}

  void add(const char* name, const std::vector<double>& got, const std::vector<double>& want) {
    if (size_of(case_.dtype) > 2) return expect(what_ + name, got, want);
    if (got.size() != want.size()) fail(case_, what_ + name + " has another size");
    got_.insert(got_.end(), got.begin(), got.end());
    want_.insert(want_.end(), want.begin(), want.end());
  }
  void finish() const { expect(what_ + "all", got_, want_); }

 private:
  void expect(const std::string& what, const std::vector<double>& got, const std::vector<double>& want) const {
    expect_close(case_, what, got, want, factor_ * reference::tolerance(case_.dtype));
  }

  const Case& case_;
  std::string what_;
  double factor_;
  std::vector<double> got_, want_;
};

// One direction: what goes in, what came out, as stepwise sees it and as the definition does.
struct Direction {
  Setting setting;
  reference::Inputs<double> in;
  reference::Outputs<double> expected, d_out;
  std::vector<Tensor> inputs, outputs, d_outputs, d_inputs;
  std::unique_ptr<Tensor> mask, gates;
  std::vector<char> zone_h, zone_c;
};

class Check {
 public:
  explicit Check(const Case& c) : case_(c), random_(c.seed) {}

  void run() {
    make_problem();
    for (int d = 0; d < case_.directions; ++d) make_direction(d);
    forward();
    if (case_.mode != Mode::infer) backward();
  }

 private:
  std::vector<double> random_values(int64_t count, double scale = 1) {
    std::vector<double> values(count);
    for (double& value : values) value = scale * random_.uniform();
    return Tensor(case_.dtype, values).values();  // as the dtype holds them
  }

  void make_problem() {
    Setting& s = case_.setting;
    problem_.cell = s.cell, problem_.activation = s.activation, problem_.dtype = case_.dtype;
    problem_.backend = Backend::cuda;
    problem_.steps = s.T, problem_.batch = s.B, problem_.rows = s.rows();
    problem_.input_size = s.I, problem_.hidden_size = s.H, problem_.proj_size = s.P, problem_.heads = s.heads;
    problem_.groups = case_.directions;
    for (int64_t t = 0; t < s.T && case_.packed; ++t) batch_sizes_.push_back(s.offsets[t + 1] - s.offsets[t]);
    x_ = random_values(s.rows() * s.I);
    // Values outside of [0, T] count as the nearer end.
    device_lengths_ = s.lengths;
    for (int64_t& length : s.lengths) length = std::clamp<int64_t>(length, 0, s.T);
    padded_x_ = x_;
    for_padding([&](int64_t row) {
      for (int64_t i = 0; i < s.I; ++i) padded_x_[row * s.I + i] = std::numeric_limits<double>::quiet_NaN();
    });
  }

  template <class Body>
  void for_padding(Body&& body) const {
    const Setting& s = case_.setting;
    for (int64_t t = 0; t < s.T && !case_.packed; ++t) {
      for (int64_t b = 0; b < s.B; ++b) {
        if (!s.live(t, b)) body(s.offsets[t] + b);
      }
    }
  }

  void make_direction(int index) {
    directions_.emplace_back();
    Direction& d = directions_.back();
    d.setting = case_.setting;
    Setting& s = d.setting;
    s.reverse = index == 1 || case_.setting.reverse;
    int64_t const rows = s.rows(), R = s.R(), GH = s.G() * s.H;
    bool const lstm = s.cell == CellKind::lstm;
    double const scale = 1.5 / std::sqrt(static_cast<double>(s.H));
    int64_t const sizes[] = {rows * s.I, GH * s.I, GH * (R / s.heads),  GH, GH,
                             s.P * s.H,  s.B * R,  lstm ? s.B * s.H : 0};
    for (int i = 0; i < kInputs; ++i)
      d.in.of[i] = random_values(sizes[i], i == Input::h_0 || i == Input::c_0 ? 1 : scale);
    d.in.of[Input::x] = x_;
    if (!case_.bias) d.in.of[Input::b_ih].assign(GH, 0), d.in.of[Input::b_hh].assign(GH, 0);
    if (case_.masks_per_step) {
      for (int64_t i = 0; i < rows * R; ++i) d.zone_h.push_back(random_.one_in(3));
      for (int64_t i = 0; i < rows * s.H && lstm; ++i) d.zone_c.push_back(random_.one_in(3));
      s.zone_h = d.zone_h, s.zone_c = d.zone_c;
    }
    if (!s.mask.empty()) {
      for (double& value : s.mask) value = random_.one_in(3) ? 0 : 1.5;
      d.mask = std::make_unique<Tensor>(case_.dtype, s.mask);
    }
    for (int i = 0; i < kInputs; ++i) d.inputs.emplace_back(case_.dtype, i == Input::x ? padded_x_ : d.in.of[i]);
    d.expected = reference::layer(s, d.in);
    for (int o = 0; o < kOutputs; ++o) {
      d.outputs.emplace_back(case_.dtype, static_cast<int64_t>(o == Output::y ? 0 : d.expected.of[o].size()));
    }
    if (case_.mode == Mode::save) d.gates = std::make_unique<Tensor>(case_.dtype, rows * facts(s.cell).saved * s.H);
    if (!y_) y_ = std::make_unique<Tensor>(case_.dtype, rows * R * case_.directions);
  }

  Group group(int index) {
    Direction& d = directions_[index];
    Group g;
    g.reverse = d.setting.reverse;
    if (case_.given_lengths) g.schedule.lengths = device_lengths_.data();
    if (!d.setting.reset.empty()) g.schedule.reset = reinterpret_cast<const bool*>(case_.setting.reset.data());
    if (case_.packed) g.schedule.batch_sizes = batch_sizes_.data();
    auto input = [&](int i) { return d.inputs[i].data(); };
    g.x = d.inputs[Input::x].data();
    g.w_ih = input(Input::w_ih), g.w_hh = input(Input::w_hh);
    if (case_.bias) g.b_ih = input(Input::b_ih), g.b_hh = input(Input::b_hh);
    if (d.setting.P > 0) g.w_hr = input(Input::w_hr);
    g.h_0 = input(Input::h_0);
    if (d.mask) g.mask = d.mask->data();
    if (!d.zone_h.empty()) g.zone_h = reinterpret_cast<const bool*>(d.zone_h.data());
    if (!d.zone_c.empty()) g.zone_c = reinterpret_cast<const bool*>(d.zone_c.data());
    g.zoneout = d.setting.zoneout;
    g.y_stride = case_.directions * d.setting.R();
    g.y = static_cast<char*>(y_->data()) + index * d.setting.R() * size_of(case_.dtype);
    g.h_n = d.outputs[Output::h_n].data();
    if (d.setting.cell == CellKind::lstm) {
      g.c_0 = input(Input::c_0);
      g.c_n = d.outputs[Output::c_n].data();
      if (case_.mode != Mode::infer || case_.seed % 2 == 0) g.cells = d.outputs[Output::cells].data();
    }
    if (d.gates) g.gates = d.gates->data();
    return g;
  }

  void forward() {
    std::vector<Group> groups;
    for (int i = 0; i < case_.directions; ++i) groups.push_back(group(i));
    HostPlatform platform;
    dispatch(problem_.cell, problem_.activation, [&](const auto& cell) {
      stepwise::run_forward(cell, problem_, groups, platform, HostForEach{}, case_.chunk_elements);
    });
    std::vector<double> const y = y_->values();
    Comparison comparison(case_, "the result ", 1);
    for (int i = 0; i < case_.directions; ++i) {
      Direction& d = directions_[i];
      int64_t const R = d.setting.R();
      std::vector<double> own;
      for (int64_t j = 0; j < d.setting.rows() * R; ++j) own.push_back(y[(j / R * case_.directions + i) * R + j % R]);
      for (int o = 0; o < kOutputs; ++o) {
        if (o == Output::cells && groups[i].cells == nullptr) continue;
        comparison.add(kOutputNames[o], o == Output::y ? own : d.outputs[o].values(), d.expected.of[o]);
      }
    }
    comparison.finish();
  }

  // Gradients of the results: random, some absent, NaN in the padding.
  GroupGradients make_gradients(int index) {
    Direction& d = directions_[index];
    const Setting& s = d.setting;
    GroupGradients g;
    std::vector<double> d_y_all;
    for (int o = 0; o < kOutputs; ++o) {
      d.d_out.of[o].assign(d.expected.of[o].size(), 0);
      bool const absent = o != Output::y && random_.one_in(3);
      if (!absent) d.d_out.of[o] = random_values(static_cast<int64_t>(d.expected.of[o].size()));
      std::vector<double> given = d.d_out.of[o];
      int64_t const width = o == Output::y ? s.R() : s.H;
      if (o == Output::y || o == Output::cells) {
        for_padding([&](int64_t row) {
          for (int64_t i = 0; i < width && !given.empty(); ++i) {
            d.d_out.of[o][row * width + i] = 0;
            given[row * width + i] = std::numeric_limits<double>::quiet_NaN();
          }
        });
      }
      if (o == Output::y) {  // as wide as y itself
        std::vector<double> wide(given.size() * case_.directions);
        for (size_t j = 0; j < given.size(); ++j) {
          wide[(j / width * case_.directions + index) * width + j % width] = given[j];
        }
        given = wide;
      }
      d.d_outputs.emplace_back(case_.dtype, given);
      const void* const data = absent || given.empty() ? nullptr : d.d_outputs.back().data();
      if (o == Output::y)
        g.d_y = data == nullptr ? nullptr : static_cast<const char*>(data) + index * width * size_of(case_.dtype);
      if (o == Output::h_n) g.d_h_n = data;
      if (o == Output::c_n) g.d_c_n = data;
      if (o == Output::cells) g.d_cells = data;
    }
    for (int i = 0; i < kInputs; ++i) {
      wanted_[i] =
          !(case_.parameters_only && (i == Input::x || i == Input::h_0 || i == Input::c_0)) && !random_.one_in(6);
      if (!case_.bias && (i == Input::b_ih || i == Input::b_hh)) wanted_[i] = false;
      if (d.in.of[i].empty()) wanted_[i] = false;
      d.d_inputs.emplace_back(case_.dtype, static_cast<int64_t>(d.in.of[i].size()));
    }
    auto outgoing = [&](int i) { return wanted_[i] ? d.d_inputs[i].data() : nullptr; };
    g.accumulate_x = index > 0;
    g.d_x = !wanted_[Input::x] ? nullptr : directions_[0].d_inputs[Input::x].data();
    g.d_w_ih = outgoing(Input::w_ih), g.d_w_hh = outgoing(Input::w_hh);
    g.d_b_ih = outgoing(Input::b_ih), g.d_b_hh = outgoing(Input::b_hh), g.d_w_hr = outgoing(Input::w_hr);
    g.d_h_0 = outgoing(Input::h_0), g.d_c_0 = outgoing(Input::c_0);
    return g;
  }

  void backward() {
    std::vector<Group> groups;
    std::vector<GroupGradients> gradients;
    std::vector<reference::Inputs<double>> expected;
    bool x_wanted = true;
    for (int i = 0; i < case_.directions; ++i) {
      groups.push_back(group(i));
      if (case_.setting.T == 1) groups.back().y = groups.back().cells = nullptr;  // never read for one step
      gradients.push_back(make_gradients(i));
      x_wanted = x_wanted && gradients.back().d_x != nullptr;
      wanted_per_direction_.emplace_back(std::begin(wanted_), std::end(wanted_));
    }
    for (int i = 0; i < case_.directions; ++i) {
      if (!x_wanted) gradients[i].d_x = nullptr, wanted_per_direction_[i][Input::x] = false;
      bool wanted[kInputs];
      std::copy(wanted_per_direction_[i].begin(), wanted_per_direction_[i].end(), wanted);
      expected.push_back(reference::gradients(directions_[i].setting, directions_[i].in, directions_[i].d_out, wanted));
    }
    for (int i = 1; i < case_.directions && x_wanted; ++i) {
      for (size_t j = 0; j < x_.size(); ++j) expected[0].of[Input::x][j] += expected[i].of[Input::x][j];
    }
    std::vector<char> const y = y_->bytes();
    std::vector<std::vector<char>> gates;
    for (Direction& d : directions_) gates.push_back(d.gates ? d.gates->bytes() : std::vector<char>());

    HostPlatform platform;
    dispatch(problem_.cell, problem_.activation, [&](const auto& cell) {
      stepwise::run_backward(cell, problem_, groups, gradients, platform, HostForEach{}, case_.chunk_elements);
    });

    Comparison comparison(case_, "the gradient of ", 4);
    for (int i = 0; i < case_.directions; ++i) {
      for (int j = 0; j < kInputs; ++j) {
        if (!wanted_per_direction_[i][j] || (j == Input::x && i > 0)) continue;
        comparison.add(kInputNames[j], directions_[i].d_inputs[j].values(), expected[i].of[j]);
      }
      if (directions_[i].gates && directions_[i].gates->bytes() != gates[i])
        fail(case_, "backward changed the saved gates");
    }
    comparison.finish();
    if (y_->bytes() != y) fail(case_, "backward changed y");
  }

  Case case_;
  Random random_;
  Problem problem_;
  std::vector<double> x_, padded_x_;
  std::vector<int64_t> batch_sizes_, device_lengths_;
  std::vector<Direction> directions_;
  std::unique_ptr<Tensor> y_;
  bool wanted_[kInputs];
  std::vector<std::vector<bool>> wanted_per_direction_;
};

struct NamedCell {
  const char* name;
  CellKind kind;
  Activation activation;
};
constexpr NamedCell kCells[] = {{"rnn_tanh", CellKind::rnn, Activation::tanh},
                                {"rnn_relu", CellKind::rnn, Activation::relu},
                                {"rnn_sigmoid", CellKind::rnn, Activation::sigmoid},
                                {"lstm", CellKind::lstm, Activation::tanh},
                                {"gru", CellKind::gru, Activation::tanh},
                                {"gru_v1", CellKind::gru_v1, Activation::tanh}};
constexpr Dtype kDtypes[] = {Dtype::float64, Dtype::float32, Dtype::bfloat16, Dtype::float16};
constexpr const char* kDtypeNames[] = {"float64", "float32", "bfloat16", "float16"};
enum Schedule_ { plain, lengths, reset, lengths_reset, packed, packed_reset, kSchedules };
constexpr const char* kScheduleNames[] = {"plain", "lengths", "reset", "lengths+reset", "packed", "packed+reset"};

void set_schedule(Case& c, int schedule, Random& random) {
  Setting& s = c.setting;
  c.packed = schedule == packed || schedule == packed_reset;
  c.given_lengths = schedule == lengths || schedule == lengths_reset;
  s.lengths.assign(s.B, s.T);
  if (c.given_lengths) {
    for (int64_t& length : s.lengths) length = random.below(s.T + 4) - 1;  // some outside of [0, T]
  }
  if (c.packed) {
    for (int64_t b = 1; b < s.B; ++b) s.lengths[b] = s.T - random.below(std::max<int64_t>(s.T, 1));
    std::sort(s.lengths.rbegin(), s.lengths.rend());
  }
  s.offsets.assign(1, 0);
  for (int64_t t = 0; t < s.T; ++t) {
    int64_t live = s.B;
    if (c.packed) live = std::count_if(s.lengths.begin(), s.lengths.end(), [&](int64_t length) { return length > t; });
    s.offsets.push_back(s.offsets.back() + live);
  }
  if (schedule == reset || schedule == lengths_reset || schedule == packed_reset) {
    bool const all = random.one_in(6);
    for (int64_t i = 0; i < s.rows(); ++i) s.reset.push_back(all || random.one_in(3));
  }
}

// Every cell x dtype x schedule x direction, the other options drawn.
int check_options() {
  int cases = 0;
  for (const NamedCell& cell : kCells) {
    for (Dtype dtype : kDtypes) {
      for (int schedule = 0; schedule < kSchedules; ++schedule) {
        for (int repeat = 0; repeat < 30; ++repeat) {
          Case c;
          c.seed = static_cast<uint64_t>(++cases);
          Random random(c.seed + 1000);
          Setting& s = c.setting;
          s.cell = cell.kind, s.activation = cell.activation;
          c.dtype = dtype;
          c.directions = repeat % 3 == 2 ? 2 : 1;
          s.reverse = repeat % 3 == 1;
          int64_t const steps[] = {5, 4, 3, 2, 1, 0}, batches[] = {3, 4, 5, 2, 1, 0};
          s.T = steps[random.one_in(2) ? 0 : random.below(6)];
          s.B = batches[random.one_in(2) ? 0 : random.below(6)];
          s.I = 1 + random.below(4);
          s.H = 4 + 2 * random.below(2);
          if (cell.kind == CellKind::lstm && random.one_in(3)) {
            s.P = s.H - 1 - random.below(2);
          } else if (random.one_in(3)) {
            s.heads = 2;
          }
          c.bias = !random.one_in(4);
          c.mode = static_cast<Mode>(random.below(3));
          // Rounding to 16 bits may cross zero, where relu's derivative jumps: forward only.
          if (cell.activation == Activation::relu && size_of(dtype) == 2) c.mode = Mode::infer;
          if (random.one_in(3)) s.mask.assign(s.B * s.R(), 1);
          int64_t const zoneout = random.below(4);
          c.masks_per_step = zoneout == 1;
          s.zoneout = zoneout == 2 ? 0.25 : 0;
          set_schedule(c, schedule, random);
          c.name = std::string(cell.name) + " " + kDtypeNames[static_cast<int>(dtype)] + " " +
                   kScheduleNames[schedule] +
                   (c.directions == 2 ? " both directions"
                    : s.reverse       ? " reverse"
                                      : "") +
                   " T " + std::to_string(s.T) + " B " + std::to_string(s.B) + " H " + std::to_string(s.H) + " P " +
                   std::to_string(s.P) + " heads " + std::to_string(s.heads) +
                   (c.mode == Mode::recompute ? " recompute" : "");
          Check(c).run();
        }
      }
    }
  }
  return cases;
}

// More rows than one level, and than two levels, of the sums of the bias gradients take.
int check_many_rows() {
  for (int64_t batch : {129, 33000}) {
    Case c;
    c.name = "many rows, batch " + std::to_string(batch);
    c.setting.cell = CellKind::gru;
    c.setting.T = c.setting.I = c.setting.H = 1;
    c.setting.B = batch;
    c.parameters_only = true;
    Random random(7);
    set_schedule(c, plain, random);
    Check(c).run();
  }
  return 2;
}

// More steps than one upload of a packed sequence's offsets carries.
int check_many_steps() {
  for (int reverse = 0; reverse < 2; ++reverse) {
    Case c;
    c.name = "many packed steps";
    c.setting.cell = CellKind::lstm;
    c.setting.T = 600, c.setting.B = 3, c.setting.I = 1, c.setting.H = 2;
    c.setting.reverse = reverse == 1;
    c.mode = Mode::recompute;
    c.parameters_only = true;
    Random random(8);
    set_schedule(c, packed, random);
    Check(c).run();
  }
  return 2;
}

}  // namespace

int main() {
  int const cases = check_options() + check_many_rows() + check_many_steps();
  std::printf("stepwise equals its definition in %d cases\n", cases);
  return 0;
}
