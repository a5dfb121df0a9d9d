// Recurrent weights packed for the time loop: for each panel of hidden units, all the gates of those units, step by
// step of k.
#pragma once

#include "matrix_unit.h"
#include "unpacked_product.h"

namespace rnnkern::RNNKERN_ISA {

struct Panel {
  int64_t unit;     // first unit
  int64_t operand;  // where its head's slice of the operand begins
  int64_t data;     // in PanelSet::data
  int head, blocks, units;
  int columns;  // a vector for each gate of each block; of the last block's units fewer, if they are a dense tail
  int width;    // columns of a tile; where there are more, the panel is packed in parts that lie one after the other
  int tail;     // units of the dense tail, whose gates follow each other without the lanes between, or 0
};

// How panels are run.
struct PanelUse {
  int64_t rows;                    // that a worker runs together
  int workers = 1;                 // that share the panels
  bool packed = true;              // else few rows read the weights where they lie
  int most_columns = kMaxColumns;  // of a panel
};

// A product of the time loop: out[unit][gate] = sum over k < depth of operand[k] * weight.
template <class P>
struct PanelSet {
  static constexpr int lanes = sums_t<P>::lanes;
  int gates = 0;
  int64_t units = 0, heads = 1, depth = 0;
  Panel* panels = nullptr;
  P* data = nullptr;     // null: few rows read the weights where they lie
  bool widened = false;  // what lies there is Widened
  const Tile<P> (*tiles)[kMaxColumns + 1][kMaxRows + 1] = tile_table<P>.at;  // [streamed][columns][rows]
  int64_t steps = 0;                                                         // packed, of a panel
  int count = 0;
  bool streamed = false;        // see kStreamedBytes
  bool streamed_alone = false;  // also where a tile takes all rows: see simd_asks_ahead()
  int unit_rows = 1;            // of a group, on a matrix unit
  bool shared = false;          // workers read panels that others packed

  // Of many rows, tiles of 2 columns by 6 rows read half as many weights for each product as 4 by 3. Beside 24
  // accumulators 4 by 6 do.
  static int tile_width(int columns, int64_t rows) {
    return kMaxAccumulators < 24 && columns == 4 && rows > kMaxAccumulators / 4 ? 2 : columns;
  }

  // T: the weights' type. Few rows need more columns to hide the latency of the sums, and wait for weights that come
  // from beyond the first cache.
  template <class T>
  static PanelSet make(Platform& platform, int64_t units, int64_t heads, int gates, int64_t depth,
                       PanelUse const& use) {
    PanelSet set;
    set.gates = gates, set.units = units, set.heads = heads, set.depth = depth;
    set.unit_rows = int(std::clamp<int64_t>(use.rows, 1, kUnitRows));
    bool const few = use.rows <= kFewRows;
    int const columns = std::min(few ? kMaxColumns : kMaxColumns / 2, use.most_columns);
    int64_t const per_head = units / heads, blocks = (per_head + lanes - 1) / lanes,
                  a_head = panels_of(blocks, heads, gates, columns, use.workers, use.rows);
    // All gates of the last few units often fit fewer vectors: of 16 lanes, H 129 takes 33 for an LSTM, and not 36. One
    // block alone would wait for its sums as long.
    int const last_units = int(per_head % lanes), last_columns = (last_units * gates + lanes - 1) / lanes;
    int const tail = use.packed && !on_matrix_unit<P> && blocks > 1 && last_columns < gates ? last_units : 0;
    int const spared = tail > 0 ? gates - last_columns : 0;
    set.count = int(heads * a_head);
    set.panels = static_cast<Panel*>(platform.scratch(set.count * sizeof(Panel)));
    int64_t const vectors = heads * (blocks * gates - spared);
    set.steps = packed_steps<P>(depth);
    if constexpr (can_be_widened<T>) {
      set.widened = few && vectors * lanes * set.steps * int64_t(sizeof(P)) > kFirstCacheBytes;
      if (set.widened) set.steps = packed_steps<Widened<T>>(depth), set.tiles = tile_table<Widened<T>>.at;
    }
    int64_t const column_size = lanes * set.steps, size = vectors * column_size;
    set.streamed = size * int64_t(sizeof(P)) > kStreamedBytes;
    set.streamed_alone = set.streamed && simd_asks_ahead();
    if (use.packed) set.data = static_cast<P*>(platform.scratch(size * sizeof(P)));
    int64_t data = 0;
    Panel* panel = set.panels;
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t i = 0; i < a_head; ++i, ++panel) {  // evenly: a panel of few columns waits for its sums
        int64_t const block = blocks * i / a_head, now = blocks * (i + 1) / a_head - block, first = block * lanes;
        bool const last = i == a_head - 1;
        int const all = int(now) * gates - (last ? spared : 0);
        *panel = {head * per_head + first,
                  head * depth,
                  data,
                  int(head),
                  int(now),
                  int(std::min(per_head - first, now * lanes)),
                  all,
                  tile_width(all, use.rows),
                  last ? tail : 0};
        data += all * column_size;
      }
    }
    return set;
  }

  // What a worker needs to copy the operands of so many rows into.
  int64_t operand_elements(int64_t rows) const {
    if constexpr (!on_matrix_unit<P>) return 0;
    return (rows + unit_rows - 1) / unit_rows * unit_pitch<P>(depth);
  }

  // Where one of a panel's columns begins; its steps lie `width` vectors apart.
  P* column_at(Panel const& panel, int c) const {
    int const before = c % panel.width;
    return data + panel.data + ((c - before) * steps + before) * lanes;
  }
  // Calls pack(to) with where column `c` of a panel is packed.
  template <class T, class Pack>
  void pack_column(Panel const& panel, int c, Pack pack) const {
    P* const out = column_at(panel, c);
    int64_t const pitch = panel.width * lanes;
    if constexpr (can_be_widened<T>) {
      using To = std::conditional_t<std::is_same_v<T, BFloat16>, Column<Pair>, ColumnOfHalves>;
      if (widened) return pack(To{reinterpret_cast<typename To::Weight*>(out), pitch});
    }
    pack(Column<P>{out, pitch, shared});
  }

  // Forward: weight [(gate, unit), k], gate rows `height` units apart.
  template <class T>
  void pack_forward(int p, const T* weight, int64_t height) const {
    Panel const& panel = panels[p];
    int const whole = panel.blocks - (panel.tail > 0);
    for (int s = 0; s < whole; ++s)
      for (int g = 0; g < gates; ++g) {
        const T* const first = weight + (g * height + panel.unit + s * lanes) * depth;
        const T* const next = g + 1 < gates ? first + height * depth : first + (lanes - g * height) * depth;
        pack_column<T>(panel, s * gates + g, [&](auto to) {
          pack_transposed<T>([&](int lane) { return first + lane * depth; }, std::min(lanes, panel.units - s * lanes),
                             depth, to, next);
        });
      }
    int g = 0, unit = 0;  // of the dense tail
    for (int c = whole * gates; c < panel.columns; ++c) {
      const T* row[lanes];
      int count = 0;
      for (; count < lanes && g < gates; ++count) {
        row[count] = weight + (g * height + panel.unit + whole * lanes + unit) * depth;
        if (++unit == panel.tail) ++g, unit = 0;
      }
      pack_column<T>(panel, c, [&](auto to) {
        pack_transposed<T>([&](int lane) { return row[lane]; }, count, depth, to, nullptr);
      });
    }
  }
  // Gives each gate of a dense tail a vector of its own, zero beyond the tail, in place and so the last gate first.
  // `sums` are those of all blocks of a panel, of some rows. Not inlined: sizes without a tail are faster so.
  __attribute__((noinline)) void spread_tail(Panel const& panel, typename Packed<P>::Sum* sums, int rows) const {
    sums += (panel.blocks - 1) * gates * lanes;
    for (int r = 0; r < rows; ++r, sums += panel.blocks * gates * lanes)
      for (int g = gates - 1; g >= 0; --g) store(sums + g * lanes, load<sums_t<P>>(sums + g * panel.tail, panel.tail));
  }

  // Backward: the same weight [(gate, k), unit] with `width` columns transposed; k runs over (gate, unit of the head).
  template <class T>
  void pack_backward(int p, const T* weight, int64_t height, int64_t width) const {
    Panel const& panel = panels[p];
    int64_t const per_head = height / heads, column = panel.unit - panel.head * (units / heads);
    for (int s = 0; s < panel.blocks; ++s)
      pack_column<T>(panel, s, [&](auto to) {
        pack_rows<T>(
            [&](int64_t k) {
              return weight + (k / per_head * height + panel.head * per_head + k % per_head) * width + column +
                     s * lanes;
            },
            std::min(lanes, panel.units - s * lanes), depth, to);
      });
  }
};

}  // namespace rnnkern::RNNKERN_ISA
