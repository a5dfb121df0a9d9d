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

  // How many panels a head's blocks of units are. Workers that share them have as many each where the blocks are
  // enough; but one column alone would wait for each of its sums.
  static int64_t panels_of(int64_t blocks, int64_t heads, int gates, int columns, int workers) {
    int64_t const most = std::max(1, columns / gates), fewest = gates == 1 ? 2 : 1, panels = (blocks + most - 1) / most;
    if (workers == 1) return panels;
    int64_t const dealt = (heads * panels + workers - 1) / workers * workers;
    return std::max(panels, std::min((dealt + heads - 1) / heads, blocks / fewest));
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
                  a_head = panels_of(blocks, heads, gates, columns, use.workers);
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

// Panels [first, last), forwards or backwards: every other step takes them backwards, since what the step before read
// last lies in the nearest cache, where a round through more than it holds would find nothing. `at_rest`: all operands
// are zero, so that the sums are, and no weight is read.
struct PanelRange {
  int first, last;
  bool backwards = false, at_rest = false;

  int count() const { return last - first; }
  int operator[](int i) const { return backwards ? last - 1 - i : first + i; }
};

// Units [begin, end) of a group.
struct Units {
  int64_t begin, end;
};

// Sums of one block of units of one row, [gates][lanes], for the cell to finish; what lies beyond its units is
// nobody's.
template <class Row, class C>
struct Block {
  Row* row;
  const Panel* panel;
  int64_t unit;
  int units;
  C* sums;
};

// Blocks whose sums are made wait for each other: the cell's functions are long chains, and those of many blocks run
// beside each other where one product follows the other no more. finish(blocks, count) takes them and may use the sums'
// memory.
template <class C, class Row, class Finish>
class WaitingBlocks {
  // A matrix unit makes those of two groups of rows at a time.
  static constexpr int lanes = Vec<C>::lanes,
                       kVectors = kMatrixUnit ? 2 * kUnitRows * kMaxColumns / 2 : 4 * kMaxAccumulators;

 public:
  WaitingBlocks(int gates, Finish& finish) : gates_(gates), finish_(finish) {}

  // Where the sums of the next `blocks` go.
  RNNKERN_INLINE C* room(int blocks) {
    if ((count_ + blocks) * gates_ > kVectors) finish_all();
    return sums_ + count_ * gates_ * lanes;
  }
  RNNKERN_INLINE void add(Row& row, const Panel& panel, int s) {
    blocks_[count_] = {&row, &panel, panel.unit + s * lanes, std::min(lanes, panel.units - s * lanes),
                       sums_ + count_ * gates_ * lanes};
    ++count_;
  }
  // All blocks of a panel, of rows that follow each other.
  RNNKERN_INLINE void add_all(Row* rows, int64_t count, const Panel& panel) {
    for (int64_t i = 0; i < count; ++i)
      for (int s = 0; s < panel.blocks; ++s) add(rows[i], panel, s);
  }
  RNNKERN_INLINE void finish_all() {
    finish_(blocks_, count_);
    count_ = 0;
  }

 private:
  alignas(64) C sums_[kVectors * lanes];
  Block<Row, C> blocks_[kVectors];
  int count_ = 0;
  const int gates_;
  Finish& finish_;
};

// Calls f(row, panel, unit, units, sums) for every block; `units` of a full one is a constant, which spares f to ask.
template <class Row, class C, class F>
RNNKERN_INLINE void for_blocks(Block<Row, C>* blocks, int count, F f) {
  for (int i = 0; i < count; ++i) {
    auto const [row, panel, unit, units, sums] = blocks[i];
    if (units == Vec<C>::lanes) {
      f(*row, *panel, unit, std::integral_constant<int, Vec<C>::lanes>{}, sums);
    } else {
      f(*row, *panel, unit, units, sums);
    }
  }
}
template <class F>
auto each_block(F f) {  // flatten: with -O2 GCC would call a function for each block
  return [f](auto* blocks, int count) __attribute__((flatten)) { for_blocks(blocks, count, f); };
}

// Runs panels over `count` rows; finish(blocks, count) takes the sums of some of them, ahead(row, unit) hears of each
// block before its product.
template <class P, class Row, class Finish, class Ahead>
RNNKERN_INLINE void run_on_vectors(const PanelSet<P>& set, PanelRange range, Row* rows, int64_t count, Finish&& finish,
                                   Ahead ahead) {
  constexpr int lanes = sums_t<P>::lanes;
  WaitingBlocks<typename Packed<P>::Sum, Row, Finish> waiting(set.gates, finish);
  int64_t const steps = set.steps;
  int width = 0;
  TileRows tiles(0, 1);
  const Tile<P>* of_rows = nullptr;
  int64_t line_step = 0;
  for (int p = 0; p < range.count(); ++p) {
    Panel const& panel = set.panels[range[p]];
    if (panel.width != width) {  // not for each: divisions take as long as a small tile
      width = panel.width;
      tiles = TileRows(count, set.widened ? kFewRows : tile_rows(width));
      of_rows = set.tiles[tiles.count > 1 ? set.streamed : set.streamed_alone][width];
      line_step = width * lanes * int64_t(sizeof(P));
      if (tiles.count > 1) line_step /= tiles.count;
    }
    int const pitch = panel.blocks * set.gates * lanes;
    int64_t const part = steps * width * lanes;
    // While several tiles of rows pass by this panel, the next one is asked for; one alone asks for what it reads soon.
    const P* const next = set.data + set.panels[range[std::min(p + 1, range.count() - 1)]].data;
    int64_t asked = 0;
    for (int64_t r = 0, tile = 0, now; r < count; r += now, ++tile) {
      now = tiles.of(tile);
      const typename Packed<P>::Operand* operand[kMaxRows];
      for (int i = 0; i < now; ++i) {
        operand[i] = rows[r + i].operand + panel.operand;
        for (int s = 0; s < panel.blocks; ++s) ahead(rows[r + i], panel.unit + s * lanes);
      }
      auto* const sums = waiting.room(int(now) * panel.blocks);
      const P* weights = set.data + panel.data;
      if (range.at_rest) std::memset(sums, 0, now * pitch * sizeof(*sums));
      for (int c = range.at_rest ? panel.columns : 0; c < panel.columns; c += width, weights += part) {
        Prefetch lines{reinterpret_cast<const char*>(weights) + kStreamedAhead, line_step};
        if (tiles.count > 1) {
          lines.at = reinterpret_cast<const char*>(next) + asked;
          asked += steps * line_step;
        }
        of_rows[now](weights, set.depth, operand, 1, rows_apart(sums + c * lanes, pitch, int(now)), lines);
      }
      if (panel.tail > 0) set.spread_tail(panel, sums, int(now));
      waiting.add_all(rows + r, now, panel);
    }
  }
  waiting.finish_all();
}

// The same on a matrix unit; `operands`: see operand_elements().
template <class P, class Row, class Finish, class Ahead>
RNNKERN_INLINE void run_on_unit(const PanelSet<P>& set, PanelRange range, Row* rows, int64_t count, P* operands,
                                Finish&& finish, Ahead ahead) {
  WaitingBlocks<typename Packed<P>::Sum, Row, Finish> waiting(set.gates, finish);
  int const group = set.unit_rows;
  int64_t const blocks = unit_blocks<P>(set.depth);
  int head = -1;
  for (int p = 0; p < range.count(); ++p) {
    Panel const& panel = set.panels[range[p]];
    if (panel.head != head && !range.at_rest) {
      head = panel.head;
      pack_for_unit([&](int64_t r) { return rows[r].operand + panel.operand; }, count, group, set.depth, operands);
    }
    for (int64_t r = 0, now; r < count; r += now) {
      int const groups = count - r > group ? 2 : 1;
      now = std::min<int64_t>(groups * group, count - r);
      for (int i = 0; i < now; ++i)
        for (int s = 0; s < panel.blocks; ++s) ahead(rows[r + i], panel.unit + s * sums_t<P>::lanes);
      auto* const sums = waiting.room(groups * group * panel.blocks);
      if (range.at_rest)
        std::memset(sums, 0, now * panel.columns * sums_t<P>::lanes * sizeof(*sums));
      else
        unit_product(set.data + panel.data, panel.columns, operands + r / group * blocks * kUnitElements, groups,
                     blocks, sums, group);
      waiting.add_all(rows + r, now, panel);
    }
  }
  waiting.finish_all();
}

// What the time loops call.
template <class P, class Row, class Finish, class Ahead>
RNNKERN_INLINE void run_panels(const PanelSet<P>& set, PanelRange range, Row* rows, int64_t count, P* operands,
                               Finish&& finish, Ahead ahead) {
  if constexpr (on_matrix_unit<P>) {
    run_on_unit(set, range, rows, count, operands, finish, ahead);
  } else {
    run_on_vectors(set, range, rows, count, finish, ahead);
  }
}
template <class P, class Row, class Finish>
RNNKERN_INLINE void run_panels(const PanelSet<P>& set, PanelRange range, Row* rows, int64_t count, P* operands,
                               Finish&& finish) {
  run_panels(set, range, rows, count, operands, finish, [](Row&, int64_t) {});
}

// The same for at most kUnpackedRows rows and weights that are not packed (see PanelSet::pack_forward). `across`:
// memory where the rows are to lie across vectors, or null.
template <class P, class T, class Row, class Finish>
RNNKERN_INLINE void run_unpacked(const PanelSet<P>& set, PanelRange range, const T* weight, Row* rows, int count,
                                 P* across, Finish&& finish) {
  using C = typename Packed<P>::Sum;
  constexpr int lanes = sums_t<P>::lanes;
  WaitingBlocks<C, Row, Finish> waiting(set.gates, finish);
  alignas(64) C sums[kUnpackedRows * kMaxColumns * lanes];
  if (range.at_rest) std::memset(sums, 0, count * set.gates * lanes * sizeof(C));
  const typename Packed<P>::Operand* operand[kUnpackedRows];
  int head = -1;
  for (int p = 0; p < range.count(); ++p) {
    Panel const& panel = set.panels[range[p]];
    if (panel.head != head && !range.at_rest) {
      head = panel.head;
      for (int i = 0; i < count; ++i) operand[i] = rows[i].operand + panel.operand;
      if (across) pack_across(operand, count, set.depth, across);
    }
    for (int s = 0; s < panel.blocks; ++s) {
      int64_t const unit = panel.unit + s * lanes;
      int const units = std::min(lanes, panel.units - s * lanes);
      auto const weights = [&](int g) {
        int64_t const row = g < set.gates ? g * set.units + unit : unit + lanes;
        return WeightRows<T>{weight + row * set.depth, set.depth, units};
      };
      if constexpr (can_lie_across<P, T>) {
        if (across && !range.at_rest) product_across<P>(weights, set.gates, set.depth, across, count, sums);
      }
      if (!across && !range.at_rest) product_unpacked<P>(weights, set.gates, set.depth, operand, count, sums);
      for (int i = 0; i < count; ++i) {
        std::memcpy(waiting.room(1), sums + i * set.gates * lanes, set.gates * lanes * sizeof(C));
        waiting.add(rows[i], panel, s);
      }
    }
  }
  waiting.finish_all();
}

}  // namespace rnnkern::RNNKERN_ISA
