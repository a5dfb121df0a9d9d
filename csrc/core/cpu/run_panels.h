// How the time loops run panels over their rows, and when the cell finishes the sums.
#pragma once

#include "panels.h"

namespace rnnkern::RNNKERN_ISA {

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
