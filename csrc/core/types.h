// What a recurrent layer is: its sizes, its pointers and what it needs from the caller. No torch here.
//
// Symbols: T steps, B batch, I input size, H hidden size, P projection size, R = P or H (the width of the state that is
// fed back), G gates of the cell. rows = T * B, or the rows of a packed sequence.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace rnnkern {

enum class CellKind { rnn, lstm, gru, gru_v1 };
enum class Activation { tanh, relu, sigmoid };  // of the plain rnn
enum class Dtype { float64, float32, bfloat16, float16 };
enum class Backend { cpu, cuda };

// The error that the torch layer turns into Python's ValueError.
struct Error {
  std::string message;
};

// Constants of a cell; the arithmetic is in cell/*.h.
struct CellFacts {
  const char* name;
  int gates;        // G: rows of a weight are [G, H]
  int saved;        // values that forward keeps per unit for backward
  bool has_cell;    // a second state c beside h
  bool split_gate;  // the last gate's gradient differs between the input's and the recurrent product
};

constexpr CellFacts facts(CellKind kind) {
  switch (kind) {
    case CellKind::rnn: return {"rnn", 1, 1, false, false};
    case CellKind::lstm: return {"lstm", 4, 4, true, false};
    case CellKind::gru: return {"gru", 3, 4, false, true};
    case CellKind::gru_v1: return {"gru_v1", 3, 3, false, false};
  }
  return {};
}

// The names by which Python calls the cells.
struct CellName {
  const char* name;
  CellKind kind;
  Activation activation;
};
inline constexpr CellName kCellNames[] = {
    {"lstm", CellKind::lstm, Activation::tanh},     {"gru", CellKind::gru, Activation::tanh},
    {"gru_v1", CellKind::gru_v1, Activation::tanh}, {"rnn_tanh", CellKind::rnn, Activation::tanh},
    {"rnn_relu", CellKind::rnn, Activation::relu},  {"rnn_sigmoid", CellKind::rnn, Activation::sigmoid},
};
// ... and the storage types.
struct DtypeName {
  const char* name;
  Dtype dtype;
};
inline constexpr DtypeName kDtypeNames[] = {{"float64", Dtype::float64},
                                            {"float32", Dtype::float32},
                                            {"bfloat16", Dtype::bfloat16},
                                            {"float16", Dtype::float16}};

inline size_t size_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::float64: return 8;
    case Dtype::float32: return 4;
    default: return 2;
  }
}

// The entry with this name; throws Error, of a wrong `what`, where there is none.
template <class Entry, size_t N>
const Entry& find_name(const Entry (&entries)[N], const char* what, std::string_view name) {
  for (const Entry& entry : entries)
    if (name == entry.name) return entry;
  std::string known;
  for (const Entry& entry : entries) known += (known.empty() ? "" : ", ") + std::string(entry.name);
  throw Error{std::string(what) + ": expected one of " + known + ", got '" + std::string(name) + "'"};
}

// Sizes and options of one layer: all that a plan depends on.
struct Problem {
  CellKind cell = CellKind::lstm;
  Activation activation = Activation::tanh;
  Dtype dtype = Dtype::float32;
  Backend backend = Backend::cpu;
  int64_t steps = 0;        // T
  int64_t batch = 0;        // B
  int64_t rows = 0;         // T * B, or the rows of a packed sequence
  int64_t input_size = 0;   // I
  int64_t hidden_size = 0;  // H
  int64_t proj_size = 0;    // P, 0 without a projection
  int64_t heads = 1;
  int64_t groups = 1;  // directions x members of an ensemble
  bool bias = true;
  bool int8 = false;  // the weights, which come beside the groups (int8.h); inference in float32 on the CPU
  bool packed = false, lengths = false, reset = false, recurrent_mask = false, zoneout = false;
  bool save = false;        // keep what backward needs
  bool recompute = false;   // ... but not the gates
  bool per_sample = false;  // backward: gradients of the weights for each row of the batch alone, [B, ...]; not packed
  bool tf32 = false;        // CUDA, float32: products may round to TF32

  int64_t state_size() const { return proj_size > 0 ? proj_size : hidden_size; }  // R
  int64_t gates() const { return facts(cell).gates; }                             // G
  int64_t gate_size() const { return facts(cell).gates * hidden_size; }           // G * H
  int64_t saved_size() const { return facts(cell).saved * hidden_size; }          // K * H
  int64_t head_size() const { return hidden_size / heads; }
  // Products of a step that wait for each other: a projection's for h, gru_v1's candidate's for its reset gate.
  int stages() const { return cell == CellKind::gru_v1 || proj_size > 0 ? 2 : 1; }
  // The gradients of the weights are so many sums, each over rows that lie as many rows apart.
  int64_t samples() const { return per_sample ? batch : 1; }
  int64_t sample_rows() const { return per_sample ? steps : rows; }
};

// Which rows live at which step; shared by the directions of a layer. A row that is not live keeps its state and
// outputs zero. A direction in reverse starts at a row's length. Row (t, b) of a padded tensor is t * B + b, of a
// packed one offsets[t] + b.
struct Schedule {
  const int64_t* lengths = nullptr;      // [B], device memory on CUDA; null: every row lives for T steps
  const bool* reset = nullptr;           // [rows], device memory on CUDA: the state is zero before this step
  const int64_t* batch_sizes = nullptr;  // [T], always host memory: packed rows
};

// One independent recurrence with its own parameters: a direction of a layer, or of one member of an ensemble. All
// tensors are row-major and dense except where a stride is named; `void` is the problem's dtype. Null: absent.
struct Group {
  bool reverse = false;
  Schedule schedule;
  const void* x = nullptr;       // [rows, I]
  const void* w_ih = nullptr;    // [G*H, I]
  const void* w_hh = nullptr;    // [G*H, R / heads]
  const void* b_ih = nullptr;    // [G*H]
  const void* b_hh = nullptr;    // [G*H]
  const void* w_hr = nullptr;    // [P, H]
  const void* h_0 = nullptr;     // [B, R]
  const void* c_0 = nullptr;     // [B, H]
  const void* mask = nullptr;    // [B, R] recurrent dropout, multiplies h before the recurrent product
  const bool* zone_h = nullptr;  // [rows, R] true: the old value stays
  const bool* zone_c = nullptr;  // [rows, H]
  double zoneout = 0;            // without masks: the share of the old value that stays
  int64_t y_stride = 0;          // elements between rows of y (D * R)

  // Results of forward, inputs of backward.
  void* y = nullptr;      // [rows, R], rows y_stride apart
  void* h_n = nullptr;    // [B, R]
  void* c_n = nullptr;    // [B, H]
  void* cells = nullptr;  // [rows, H] LSTM's cell states after each step; null: not wanted
  void* gates = nullptr;  // [rows, K*H] what the cell keeps per unit, K values [K, H] a row; null: not kept
};

// Gradients of one group. Incoming ones may be null (zero), outgoing ones null (not wanted).
struct GroupGradients {
  const void* d_y = nullptr;      // [rows, R], rows y_stride apart
  const void* d_h_n = nullptr;    // [B, R]
  const void* d_c_n = nullptr;    // [B, H]
  const void* d_cells = nullptr;  // [rows, H]

  void* d_x = nullptr;        // [rows, I]
  bool accumulate_x = false;  // d_x is that of the group before, which is of the other direction: add to its part
  void* d_w_ih = nullptr;
  void* d_w_hh = nullptr;
  void* d_b_ih = nullptr;
  void* d_b_hh = nullptr;
  void* d_w_hr = nullptr;
  void* d_h_0 = nullptr;
  void* d_c_0 = nullptr;
};

}  // namespace rnnkern
