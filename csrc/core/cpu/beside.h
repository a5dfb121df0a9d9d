// Gates of x of a later turn, made beside the time loop of a single row. Its weights come from beyond the first cache,
// which takes longer than to multiply them; so does the cell, whose functions wait for each other. Products whose
// operands stay near fill that time.
#pragma once

#include "gemm.h"
#include "run_panels.h"

namespace rnnkern::RNNKERN_ISA {

// A turn is as many steps as a tile of the product has rows. Its sums leave registers for those of a panel of so many
// columns. 16 registers, as AVX2 has them, leave too few rows for each weight that the product reads, which comes from
// the second cache, too.
constexpr int kBesideRows = 10, kPanelColumnsBeside = 4;
template <class T>
constexpr bool can_run_beside = RNNKERN_VECTOR_BYTES == 64 && std::is_same_v<operand_t<T>, T> &&
                                std::is_same_v<compute_t<T>, float> && !on_matrix_unit<packed_t<T>>;

// What a worker makes of the product, for its own units and in memory of its own: tile by tile, as far as it gets;
// finish() makes the rest. Sums are made in the order of k, as everywhere, so that it does not matter how far that was.
template <class T>
class alignas(kLine) Beside {
  using P = packed_t<T>;
  using V = sums_t<P>;
  static constexpr int kSteps = Packed<P>::together;  // of k, in one of a panel
  static constexpr int kColumns = PackedGemm<T>::kPieceColumns;

 public:
  // `gates`: rows of two turns, of the one whose steps run and of the next.
  Beside(const PackedGemm<T>& product, int64_t hidden, Units mine, T* gates, int64_t stride)
      : product_(product), hidden_(hidden), stride_(stride), mine_(mine), made_(gates),
        out_(gates + kBesideRows * stride) {}

  // Gates of x of the turn that was made last, by its steps.
  const T* row(int64_t step) const { return made_ + step * stride_; }

  // Makes those of this turn from now on.
  void begin(Turn const& turn) {
    a_ = product_.a.data + turn.first * product_.a.stride;
    rows_ = int(turn.count);
    k_ = panel_ = 0;
    next();
  }
  bool unfinished() const { return left_ > 0; }
  void finish() {
    while (left_ > 0) advance_alone();
    std::swap(made_, out_);
  }

  // out[c] = sum over k < depth of operand[k] * weights[k][c], as product_tile() makes it for one row, and beside it
  // steps of the tile that is begun.
  template <int COLS, bool STREAMED>
  void advance(const P* weights, int64_t depth, const T* operand, float* out) {
    // Steps of the weights for each of the tile, so that both take as many multiply-adds.
    constexpr int together = COLS == 0 ? 1 : std::max(1, kBesideRows * kColumns / std::max(COLS, 2));
    V sum[COLS + 1];
    unrolled<COLS>([&](auto c) __attribute__((always_inline)) { sum[c] = V(0); });
    auto const step = [&](V x) __attribute__((always_inline)) {
      if constexpr (STREAMED)
        prefetch_lines<COLS * V::lanes * sizeof(P)>(reinterpret_cast<const char*>(weights) + kStreamedAhead);
      unrolled<COLS>([&](auto c) __attribute__((always_inline)) {
        sum[c] = multiply_add<P>(sum[c], x, load_packed<P>(weights + c * V::lanes));
      });
      weights += COLS * V::lanes;
    };
    int64_t s = 0;
    int64_t const whole = depth / kSteps;
    while (int64_t const steps = std::min((whole - s) / together, left_)) {
      V tile[kBesideRows][kColumns];
      unrolled<kBesideRows>([&](auto r) __attribute__((always_inline)) {
        unrolled<kColumns>([&](auto c) __attribute__((always_inline)) { tile[r][c] = load<V>(sums_[r][c]); });
      });
      const T* x = x_;
      const P* panel = piece_.panel;
      int64_t const stride = product_.a.stride;
      for (int64_t const last = s + steps * together; s < last; s += together) {
        V w[kColumns];
        unrolled<kColumns>([&](auto c) __attribute__((always_inline)) { w[c] = load_packed<P>(panel + c * V::lanes); });
        unrolled<together>([&](auto i) __attribute__((always_inline)) {
          if constexpr (COLS > 0) step(broadcast<P>(operand, s + i));
          constexpr int begin = i * kBesideRows / together, end = (i + 1) * kBesideRows / together;
          unrolled<end - begin>([&](auto j) __attribute__((always_inline)) {
            constexpr int r = begin + j;
            V const x_r = broadcast<P>(x + r * stride, 0);
            unrolled<kColumns>(
                [&](auto c) __attribute__((always_inline)) { tile[r][c] = multiply_add<P>(tile[r][c], x_r, w[c]); });
          });
        });
        x += kSteps;
        panel += kColumns * V::lanes;
      }
      unrolled<kBesideRows>([&](auto r) __attribute__((always_inline)) {
        unrolled<kColumns>([&](auto c) __attribute__((always_inline)) { store(sums_[r][c], tile[r][c]); });
      });
      x_ = x, piece_.panel = panel;
      left_ -= steps;
      if (left_ == 0) end_tile();
    }
    if constexpr (COLS > 0) {
      for (; s < whole; ++s) step(broadcast<P>(operand, s));
      if constexpr (kSteps > 1)
        if (depth % 2 == 1) step(broadcast_half(operand, s));
      unrolled<COLS>([&](auto c) __attribute__((always_inline)) { store(out + c * V::lanes, sum[c]); });
    }
  }

 private:
  void advance_alone() { advance<0, false>(nullptr, left_ * kSteps, nullptr, nullptr); }

  // Does it hold gates of this worker's units?
  bool is_mine(typename PackedGemm<T>::Piece const& piece) const {
    int64_t const end = std::min(piece.column + piece.columns * V::lanes, product_.n);
    for (int64_t gate = piece.column / hidden_ * hidden_; gate < end; gate += hidden_)
      if (piece.column < gate + mine_.end && end > gate + mine_.begin) return true;
    return false;
  }

  // The next tile. What is none, of fewer rows or of one column, is made at once.
  void next() {
    for (; k_ < product_.k; k_ += PackedGemm<T>::kDepth, panel_ = 0)
      for (; panel_ < product_.panel_count(); ++panel_) {
        piece_ = product_.piece(panel_, k_);
        if (!is_mine(piece_)) continue;
        if (rows_ == kBesideRows && piece_.columns == kColumns) {
          ++panel_;
          x_ = a_ + k_;
          left_ = piece_.depth / kSteps;
          std::memset(sums_, 0, sizeof sums_);
          return;
        }
        make_piece();
      }
    left_ = 0;
  }
  void make_piece() {
    alignas(kLine) float sums[kMaxRows * kColumns * V::lanes];
    TileRows const tiles(rows_, tile_rows(kColumns));
    for (int first = 0, tile = 0, now; first < rows_; first += now, ++tile) {
      now = tiles.of(tile);
      const T* row[kMaxRows];
      for (int r = 0; r < now; ++r) row[r] = a_ + (first + r) * product_.a.stride + k_;
      tile_table<P>.at[false][piece_.columns][now](piece_.panel, piece_.depth, row, 1,
                                                   rows_apart(sums, piece_.columns * V::lanes, now), {});
      put(sums, first, now);
    }
  }
  // Of an odd depth the last step is half of a pair.
  void end_tile() {
    if constexpr (kSteps > 1) {
      for (int r = 0; piece_.depth % 2 == 1 && r < kBesideRows; ++r)
        for (int c = 0; c < kColumns; ++c)
          store(sums_[r][c], multiply_add<P>(load<V>(sums_[r][c]), broadcast_half(x_ + r * product_.a.stride, 0),
                                             load_packed<P>(piece_.panel + c * V::lanes)));
    }
    put(&sums_[0][0][0], 0, kBesideRows);
    next();
  }
  void put(const float* sums, int first, int rows) {
    int64_t const n = product_.n;
    for (int r = first; r < first + rows; ++r)
      for (int c = 0; c < piece_.columns; ++c, sums += V::lanes) {
        int64_t const column = piece_.column + c * V::lanes;
        int const count = int(std::min<int64_t>(V::lanes, n - column));
        T* const to = out_ + r * stride_ + column;
        V const sum = load<V>(sums);
        store(to, k_ > 0 ? load<V>(to, count) + sum : sum, count);
      }
  }

  PackedGemm<T> const& product_;
  int64_t const hidden_, stride_;
  Units const mine_;
  T *made_, *out_;
  const T *a_ = nullptr, *x_ = nullptr;
  int rows_ = 0;
  int64_t k_ = 0, panel_ = 0;  // the part of the sums, and the panel after the tile that is begun
  typename PackedGemm<T>::Piece piece_{};
  int64_t left_ = 0;  // steps of the tile
  alignas(kLine) float sums_[kBesideRows][kColumns][V::lanes];
};

// run_panels() for one row.
template <class T, class Row, class Finish, class Ahead>
RNNKERN_INLINE void run_beside(const PanelSet<packed_t<T>>& set, PanelRange range, Row* row, Beside<T>& beside,
                               Finish&& finish, Ahead ahead) {
  WaitingBlocks<float, Row, Finish> waiting(set.gates, finish);
  for (int p = 0; p < range.count(); ++p) {
    Panel const& panel = set.panels[range[p]];
    for (int s = 0; s < panel.blocks; ++s) ahead(*row, panel.unit + s * Vec<float>::lanes);
    auto* const sums = waiting.room(panel.blocks);
    const T* const operand = row->operand + panel.operand;
    auto const run = [&](auto columns) {
      if (set.streamed_alone)
        return beside.template advance<columns, true>(set.data + panel.data, set.depth, operand, sums);
      beside.template advance<columns, false>(set.data + panel.data, set.depth, operand, sums);
    };
    switch (panel.columns) {
      case 1: run(std::integral_constant<int, 1>{}); break;
      case 2: run(std::integral_constant<int, 2>{}); break;
      case 3: run(std::integral_constant<int, 3>{}); break;
      default: run(std::integral_constant<int, 4>{});
    }
    if (panel.tail > 0) set.spread_tail(panel, sums, 1);
    waiting.add_all(row, 1, panel);
  }
  waiting.finish_all();
}

}  // namespace rnnkern::RNNKERN_ISA
