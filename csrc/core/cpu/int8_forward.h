// A layer forward with int8 weights: the float layer's time loop, schedules and cells on products of bytes.
#pragma once

#include "int8_product.h"
#include "layer_forward.h"

namespace rnnkern::RNNKERN_ISA {

// A product with an int8 weight, divided as the float one's panels are.
struct Int8Panels : PanelSet<float> {
  Int8Weight weight;

  static Int8Panels make(Platform& platform, int64_t units, int64_t heads, int gates, int64_t depth, PanelUse use,
                         const Int8Weight& weight) {
    use.packed = false;
    return {PanelSet<float>::make<float>(platform, units, heads, gates, depth, use), weight};
  }
};

// Quantises what the rows' next product multiplies.
template <class Row>
void quantize_operands(const Int8Panels& panels, Row* rows, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    rows[i].operand_scale = quantize(rows[i].operand, panels.heads, panels.depth, rows[i].bytes);
}

// Runs panels over `count` rows of bytes; finish as in run_panels.
template <class Row, class Finish>
RNNKERN_INLINE void run_int8_panels(const Int8Panels& panels, PanelRange range, Row* rows, int64_t count,
                                    Finish&& finish) {
  using V = Vec<float>;
  constexpr int lanes = V::lanes;
  int const gates = panels.gates;
  int64_t const quads = int8_quads(panels.depth), head_units = panels.units / panels.heads,
                head_blocks = int8_blocks(head_units);
  alignas(64) int32_t sums[kMaxAccumulators * lanes];
  WaitingBlocks<float, Row, Finish> waiting(gates, finish);
  for (int p = 0; p < range.count(); ++p) {
    Panel const& panel = panels.panels[range[p]];
    const int8_t* data[kMaxColumns];
    int64_t facts[kMaxColumns];  // where each block's scales and sums begin
    for (int s = 0; s < panel.blocks; ++s) {
      int64_t const unit = panel.unit - panel.head * head_units + s * lanes;
      int64_t const block = panel.head * head_blocks + unit / kInt8Units, part = unit % kInt8Units;
      data[s] = panels.weight.data + (block * quads * gates * kInt8Units + part) * kInt8Depth;
      facts[s] = block * gates * kInt8Units + part;
    }
    TileRows const tiles(count, tile_rows(gates * panel.blocks));
    for (int64_t r = 0, tile = 0, now; r < count; r += now, ++tile) {
      now = tiles.of(tile);
      const uint8_t* operand[kMaxRows];
      for (int i = 0; i < now; ++i) operand[i] = rows[r + i].bytes + panel.head * quads * kInt8Depth;
      int8_tiles.at[gates][panel.blocks][now](data, quads, operand, sums);
      for (int i = 0; i < now; ++i) {
        V const row_scale(rows[r + i].operand_scale);
        for (int s = 0; s < panel.blocks; ++s) {
          float* const values = waiting.room(1);
          for (int g = 0; g < gates; ++g) {
            Ints sum, of_weights;
            std::memcpy(&sum, sums + ((i * panel.blocks + s) * gates + g) * lanes, sizeof sum);
            std::memcpy(&of_weights, panels.weight.sum + facts[s] + g * kInt8Units, sizeof of_weights);
            V const exact(__builtin_convertvector(sum - kByteZero * of_weights, V::Native));
            store(values + g * lanes, exact * (row_scale * load<V>(panels.weight.scale + facts[s] + g * kInt8Units)));
          }
          waiting.add(rows[r + i], panel, s);
        }
      }
    }
  }
  waiting.finish_all();
}

// What a stage of the time loop calls.
template <class Row, class Finish>
RNNKERN_INLINE void run_quantized(const Int8Panels& panels, PanelRange range, Row* rows, int64_t count,
                                  Finish&& finish) {
  quantize_operands(panels, rows, count);
  run_int8_panels(panels, range, rows, count, finish);
}

// The input product; pack() quantises x, rows() multiplies. To run_forward it is what PackedGemm is.
struct Int8InputProduct {
  struct Row {
    const float* operand;
    uint8_t* bytes;
    float operand_scale;
  };
  Int8Panels panels;
  Row* all;  // [rows]
  int64_t count, gates_stride;
  static constexpr bool own_rows = false;

  static Int8InputProduct make(Platform& platform, const Problem& problem, const Group& group, const Int8Weight& weight,
                               int workers) {
    int64_t const rows = problem.rows, in = problem.input_size, pitch = quantized_bytes(1, in);
    auto* const bytes = scratch<uint8_t>(platform, rows * pitch);
    auto* const all = scratch<Row>(platform, rows);
    for (int64_t i = 0; i < rows; ++i) all[i] = {static_cast<const float*>(group.x) + i * in, bytes + i * pitch, 0};
    PanelUse const use{.rows = rows, .workers = workers};
    return {Int8Panels::make(platform, problem.hidden_size, 1, int(problem.gates()), in, use, weight), all, rows,
            scratch_gates_stride(problem)};
  }

  void pack(int worker, int workers) const {
    Part const mine(count, worker, workers);
    quantize_operands(panels, all + mine.begin, mine.end - mine.begin);
  }
  void rows(int64_t first, RowsOf const& some, float* out, int worker, int workers) const {
    int64_t const height = panels.units;
    Part const mine(panels.count, worker, workers);
    run_int8_panels(panels, {mine.begin, mine.end}, all + first, some.count,
                    each_block([&](const Row& row, const Panel&, int64_t unit, int units, const float* sums) {
                      float* const gates = out + (&row - all - first) * gates_stride + unit;
                      for (int g = 0; g < panels.gates; ++g)
                        store(gates + g * height, load<Vec<float>>(sums + g * Vec<float>::lanes), units);
                    }));
  }
};

template <class Cell>
void int8_forward(const Cell& cell, const Problem& problem, const Group* groups, const Int8Group* weights, int count,
                  const Sharing& sharing, CpuPlatform& platform) {
  using Buffers = ForwardBuffers<float, Int8Panels>;
  bool const two_stage_gru = Cell::kind == CellKind::gru_v1, projection = problem.proj_size > 0;
  int64_t const hidden = problem.hidden_size, heads = problem.heads, head = problem.head_size();
  ForwardTurns const turns(problem, count, sharing);
  Places const places(problem, sharing, Vec<float>::lanes);
  PanelUse const use{.rows = turns.rows_together, .workers = sharing.unit_workers()};
  auto* const buffers = scratch<Buffers>(platform, count);
  auto* const products = scratch<Int8InputProduct>(platform, count);
  for (int g = 0; g < count; ++g) {
    Buffers& own = *new (&buffers[g]) Buffers;
    own.first = Int8Panels::make(platform, hidden, heads, two_stage_gru ? 2 : Cell::gates,
                                 projection ? problem.proj_size : head, use, weights[g].first);
    if (two_stage_gru) own.second = Int8Panels::make(platform, hidden, heads, 1, head, use, weights[g].second);
    if (projection) own.second = Int8Panels::make(platform, problem.proj_size, 1, 1, hidden, use, weights[g].second);
    state_buffers<Cell, float>(own, problem, groups[g], nullptr, &places, platform);
    own.gates = scratch<float>(platform, turns.steps_together * problem.batch * own.gates_stride);
    new (&products[g])
        Int8InputProduct(Int8InputProduct::make(platform, problem, groups[g], weights[g].input, sharing.workers));
  }
  int64_t const lives = count * problem.batch * sharing.workers,
                most =
                    std::max(quantized_bytes(heads, head), quantized_bytes(1, std::max(problem.state_size(), hidden))),
                pitch = (most + kLine - 1) / kLine * kLine;
  auto* const rows = scratch<ForwardRow<float>>(platform, lives);
  auto* const bytes = scratch<uint8_t>(platform, lives * pitch);
  for (int64_t i = 0; i < lives; ++i) rows[i].bytes = bytes + i * pitch;
  run_forward(cell, problem, groups, count, sharing, platform, places, turns, buffers, products, rows);
}

}  // namespace rnnkern::RNNKERN_ISA
