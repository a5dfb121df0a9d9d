// C[m, n] = op(A)[m, k] B[k, n] for the products over all time steps, shared by `workers` threads. It is here, and not
// the platform's BLAS, because it was measured at twice MKL's speed on Zen 5 (200 against 95 GFLOP/s a core) and
// because its sums do not depend on the number of threads.
#pragma once

#include "matrix_unit.h"
#include "unpacked_product.h"

namespace rnnkern::RNNKERN_ISA {

template <class T>
class PackedGemm {
  using C = compute_t<T>;
  using P = packed_t<T>;
  using Operand = operand_t<T>;
  using V = Vec<C>;
  static constexpr int kColumns = RNNKERN_VECTOR_BYTES == 64 ? 4 : 2;  // the most vectors in a panel
  static constexpr bool kUnit = on_matrix_unit<P>;
  static constexpr int64_t kGroup = kUnit ? kUnitRows : 1;          // a strip begins with a multiple of so many rows
  static constexpr int64_t kCopied = kUnit ? kUnitRows : V::lanes;  // rows of A that is transposed lie side by side
  static constexpr int64_t kStrip =
      kUnit ? 8 * kUnitRows : 8 * int64_t{kMaxAccumulators / kColumns};  // rows that share a panel while it is hot
  static constexpr int64_t kNear = 4;  // panels that stay in the second cache while all rows pass by
  // Rows of A as they are stored: a vector multiplies them, a matrix unit only copies of them.
  static constexpr bool kReadable = std::is_same_v<T, Operand>, kInPlace = kReadable && !kUnit;

 public:
  static constexpr int64_t kDepth = 512 * Packed<P>::together;  // of k at a time
  int64_t m, n, k;                                              // m: with rows(), the most that come at a time
  Matrix<T> a, b;
  T* c;
  int64_t c_stride;
  P* panels = nullptr;   // panel_elements()
  C* partial = nullptr;  // partial_elements(): sums in the compute type, where they are made in several parts
  P* copies = nullptr;   // copy_elements(): rows of op(A), where the tile cannot read them as they are stored

  bool keep_panels = false;  // B is packed whole, by pack(), and rows() may be called for parts of A
  bool one_pass = false;     // rows() is called once, for all of A: the panels are packed there, and forgotten
  bool own_rows = false;     // each worker calls rows() for other rows, and alone
  bool in_pieces = false;    // see piece(): panels of few columns
  int gates = 0;  // if not 0: C is so many gates, and each worker makes mostly those of its part of the units

  // A few rows: the panels would be used once.
  bool unpacked() const { return keep_panels && !in_pieces && m <= kUnpackedRows && b.transposed; }
  bool across() const { return can_lie_across<P, T> && unpacked() && lie_across<P>(m); }
  // Panels that all rows pass by at once need not leave the second cache, if there are some for each worker.
  void use_one_pass(int workers) {
    one_pass = kInPlace && b.transposed && !unpacked() && width() >= workers * near_width();
  }
  int64_t panel_elements(int workers) const {
    if (unpacked()) return 0;
    int64_t const depth = packed_steps<P>(keep_panels && !one_pass ? k : std::min(k, kDepth));
    return depth * (one_pass ? workers * near_width() : width());
  }
  int64_t partial_elements(bool in_turns = false) const {
    return !std::is_same_v<T, C> && (in_turns || k > kDepth) ? m * width() : 0;
  }
  int64_t copy_elements(int workers) const {
    if (a.transposed) return (m + V::lanes - 1) / V::lanes * group_pitch();
    if (across()) return workers * across_pitch();
    return kInPlace ? 0 : workers * strip_pitch();
  }

  // The whole product. Every worker calls it; they wait for each other inside.
  void run(Barrier& barrier, int worker, int workers) const { run_turn(0, k, true, true, barrier, worker, workers); }

  // The part of it that `count` of k from `first` on bring; `begins` and `ends`: it is the first, or the last that is
  // run, in whatever order. `before`: the product that was run before this one on the same scratch, for the same turn.
  void run_turn(int64_t first, int64_t count, bool begins, bool ends, Barrier& barrier, int worker, int workers,
                const PackedGemm* before = nullptr) const {
    bool const packed = before && before->a.data == a.data && before->a.stride == a.stride && before->m >= m &&
                        before->copies == copies && count <= kDepth;
    for (int64_t k_0 = 0; k_0 == 0 || k_0 < count; k_0 += kDepth) {
      Block const block{(a.of_turn ? 0 : first) + k_0,
                        (b.of_turn ? 0 : first) + k_0,
                        0,
                        std::min(kDepth, count - k_0),
                        begins && k_0 == 0,
                        ends && k_0 + kDepth >= count};
      pack_block(block, worker, workers, packed);
      end_streams();
      barrier.wait(worker, workers);
      bool const alone = deals_copies(workers);
      multiply_block(block, 0, copied_rows(worker, workers), c, false, worker, alone ? 0 : worker, alone ? 1 : workers);
      barrier.wait(worker, workers);
    }
  }

  // The same in two steps, for some rows at a time; the caller ends its streams and waits in between. `out` is where
  // row `first` goes, or is added to.
  void pack(int worker, int workers) const {
    for (int64_t k_0 = 0; k_0 < k && !unpacked() && !one_pass; k_0 += kDepth)
      pack_block(whole_block(k_0), worker, workers);
  }
  void rows(int64_t first, RowsOf const& some, T* out, int worker, int workers, bool add = false) const {
    if (one_pass) return pass(first, some, out, add, worker, workers);
    for (int64_t k_0 = 0; k_0 == 0 || k_0 < k; k_0 += kDepth)
      multiply_block(whole_block(k_0), first, some, out, add, worker, own_rows ? 0 : worker, own_rows ? 1 : workers);
  }

  // Panel `i` of the block of k from `k_0` on, for who multiplies it himself.
  struct Piece {
    const P* panel;
    int64_t depth, column;
    int columns;
  };
  static constexpr int kPieceColumns = 2;
  int64_t panel_count() const {  // divided by constants
    return in_pieces ? (vectors() + kPieceColumns - 1) / kPieceColumns : (vectors() + kColumns - 1) / kColumns;
  }
  Piece piece(int64_t i, int64_t k_0) const {
    Block const block = whole_block(k_0);
    return {panel_at(i, block), block.depth, column_at(i), panel_columns(i)};
  }

 private:
  // Some of k: where they begin in A, B and `panels`.
  struct Block {
    int64_t a, b, panels, depth;
    bool begins, ends;
  };
  Block whole_block(int64_t k_0) const {
    return {k_0, k_0, packed_steps<P>(k_0) * width(), std::min(kDepth, k - k_0), k_0 == 0, k_0 + kDepth >= k};
  }

  // Rows of op(A) as the tile reads them, or, for a matrix unit, copied in groups.
  struct Strip {
    int64_t at[kStrip], in_c[kStrip];  // see RowsOf
    const Operand* row[kStrip];
    int64_t count, stride;
    const P* groups;
  };
  static int64_t strips(int64_t rows) { return (rows + kStrip - 1) / kStrip; }
  // The first row of one of `all` strips.
  static int64_t strip_at(int64_t strip, int64_t all, int64_t rows) {
    return std::min(rows, (rows * strip / all + kGroup - 1) / kGroup * kGroup);
  }
  // Copies of rows that are contiguous in k; more than is used, so that equal places of several strips lie in different
  // sets of a cache.
  int64_t strip_pitch() const {
    if (kUnit) return kStrip / kUnitRows * unit_pitch<P>(std::min(k, kDepth));
    return kStrip * (std::min(k, kDepth) + V::lanes) + V::lanes;
  }
  int64_t across_pitch() const { return elements_across<P>(m, std::min(k, kDepth)); }
  // Copies of rows that are not: a vector of rows side by side, so that what a tile reads lies close together.
  int64_t group_pitch() const { return V::lanes * (packed_steps<P>(std::min(k, kDepth)) + 1); }
  P* copy_at(int64_t row) const { return copies + row / V::lanes * group_pitch() + row % V::lanes; }
  int64_t copied_groups() const { return (m + kCopied - 1) / kCopied; }
  // Does each worker copy the rows that it multiplies? Else all copy parts of all rows.
  bool deals_copies(int workers) const {
    return a.transposed && (copied_groups() % workers == 0 || copied_groups() >= 8 * workers);
  }
  RowsOf copied_rows(int worker, int workers) const {
    if (!deals_copies(workers)) return {m};
    Part const mine(copied_groups(), worker, workers);
    int64_t const at = mine.begin * kCopied;
    return {std::min(m, mine.end * kCopied) - at, at};
  }

  // The vectors of a row of C are dealt out evenly: 9 of them as 3, 3, 3 and not 4, 4, 1.
  int64_t vectors() const { return (n + V::lanes - 1) / V::lanes; }
  int64_t width() const { return vectors() * V::lanes; }
  static constexpr int64_t near_width() { return kNear * kColumns * V::lanes; }
  // Whether workers multiply panels that others packed.
  bool shares_panels(int workers) const { return workers > 1 && (own_rows || !keep_panels) && simd_streams_shared(); }
  // The i-th panel to be dealt out: those of the same units follow each other, where each gate has as many and B is not
  // read where it lies.
  int64_t dealt(int64_t i) const {
    if (gates <= 1 || unpacked() || panel_count() % gates != 0) return i;
    return i % gates * (panel_count() / gates) + i / gates;
  }
  int64_t column_at(int64_t p) const { return vectors() * p / panel_count() * V::lanes; }
  int panel_columns(int64_t p) const { return int((column_at(p + 1) - column_at(p)) / V::lanes); }
  P* panel_at(int64_t p, Block const& block) const {
    return panels + block.panels + column_at(p) * packed_steps<P>(block.depth);
  }

  void pack_block(Block const& block, int worker, int workers, bool panels_alone = false) const {
    int64_t const steps = packed_steps<P>(block.depth);
    if (b.transposed) {
      Part const mine(panel_count(), worker, workers);
      for (int i = mine.begin; i < mine.end; ++i)
        pack_panel(i, block, panel_at(dealt(i), block), shares_panels(workers));
    } else {
      pack_rows_of_b(block, Part(steps, worker, workers), shares_panels(workers));
    }
    if (!a.transposed || panels_alone) return;
    RowsOf const rows = copied_rows(worker, workers);
    if (deals_copies(workers)) worker = 0, workers = 1;  // each copies all of k of its rows
    const T* const from = a.data + block.a * a.stride;
    if constexpr (kUnit)
      return pack_steps_for_unit(from, a.stride, Part(steps / kUnitPairs, worker, workers), rows, m, block.depth,
                                 copies);
    Part const part(steps, worker, workers);  // in the order of memory: a strip's own rows lie far apart
    for (int64_t step = part.begin; step < part.end; ++step)
      for (int64_t r = rows.begin; r < rows.begin + rows.count; r += V::lanes) {
        P* const out = copy_at(r) + step * V::lanes;
        prefetch_lines<kLine, 2>(out + 4 * V::lanes);
        store_packed(out, load_columns<P, T>([&](int64_t i) { return from + i * a.stride + r; }, step, block.depth,
                                             int(std::min<int64_t>(V::lanes, m - r))));
      }
  }

  // Steps of B that is not transposed, in the order of memory: it may come from beyond all caches.
  void pack_rows_of_b(Block const& block, Part part, bool shared) const {
    constexpr int64_t kSteps = 4, kAhead = 8 * Packed<P>::together;  // steps for a division that finds a panel; rows
    for (int64_t s = part.begin; s < part.end; s += kSteps)
      for (int64_t p = 0; p < panel_count(); ++p) {
        int64_t const begin = column_at(p), end = column_at(p + 1);
        P* out = panel_at(p, block) + s * (end - begin);
        for (int64_t step = s; step < std::min<int64_t>(part.end, s + kSteps); ++step)
          for (int64_t column = begin; column < end; column += V::lanes, out += V::lanes) {
            auto const row = [&](int64_t i) { return b.data + (block.b + i) * b.stride + column; };
            prefetch_lines<kLine, 2>(row(step * Packed<P>::together + kAhead));
            store_packed(out, load_columns<P, T>(row, step, block.depth, int(std::min<int64_t>(n - column, V::lanes))),
                         shared);
          }
      }
  }

  // Tasks (some panels, strip of rows, panel) are dealt out, the same to the same worker for each block of k.
  void multiply_block(Block const& block, int64_t first, RowsOf const& some, T* out, bool add, int place, int worker,
                      int workers) const {
    int64_t const all = strips(some.count), tasks = all * panel_count();
    int64_t near = kInPlace || a.transposed ? kNear : panel_count();  // else each turn copies the rows again
    if (kInPlace && gates > 0) {
      // So many that the workers can share the turns.
      int64_t const turns = ((panel_count() - 1) / (kNear * workers) + 1) * workers;
      near = (panel_count() - 1) / turns + 1;
    }
    MatrixUnit<P> const unit(kUnitRows);
    Strip strip;
    int64_t current = -1;
    for (int64_t task = tasks * worker / workers; task < tasks * (worker + 1) / workers; ++task) {
      int64_t const p = task / (all * near) * near, panels_now = std::min(near, panel_count() - p),
                    turn = task - all * p;
      int64_t const s = turn / panels_now;
      if (s != current) set_strip(strip, first, some, s, all, place, block);
      current = s;
      int64_t const now = dealt(p + turn % panels_now);
      const P* const packed = unpacked() ? nullptr : panel_at(now, block);
      multiply(strip, now, packed, place, block, out, add);
    }
  }

  // Each worker packs its own panels, some at a time, into the same memory again and again.
  void pass(int64_t first, RowsOf const& some, T* out, bool add, int worker, int workers) const {
    int64_t const all = strips(some.count);
    Part const mine(panel_count(), worker, workers);
    Strip strip;
    for (int64_t p = mine.begin, next; p < mine.end; p = next) {
      next = std::min<int64_t>(p + kNear, mine.end);
      auto const place = [&](int64_t i) {
        return panels + (worker * kNear + i - p) * kColumns * V::lanes * packed_steps<P>(std::min(k, kDepth));
      };
      for (int64_t k_0 = 0; k_0 == 0 || k_0 < k; k_0 += kDepth) {
        Block const block = whole_block(k_0);
        for (int64_t i = p; i < next; ++i) pack_panel(i, block, place(i), false);
        for (int64_t s = 0; s < all; ++s) {
          set_strip(strip, first, some, s, all, worker, block);
          for (int64_t i = p; i < next; ++i) multiply(strip, dealt(i), place(i), worker, block, out, add);
        }
      }
    }
  }

  // The i-th of B transposed.
  void pack_panel(int64_t i, Block const& block, P* panel, bool shared) const {
    int64_t const p = dealt(i), after = dealt(std::min(i + 1, panel_count() - 1));
    int const columns = panel_columns(p);
    for (int j = 0; j < columns; ++j) {
      int64_t const column = column_at(p) + j * V::lanes, next = j + 1 < columns ? column + V::lanes : column_at(after);
      int const count = int(std::min<int64_t>(n - column, V::lanes));
      Column<P> const to{panel + j * V::lanes, columns * V::lanes, shared};
      auto const row = [&](int64_t c) { return b.data + c * b.stride + block.b; };
      pack_transposed<T>([&](int lane) { return row(column + lane); }, count, block.depth, to,
                         b.stride == block.depth ? row(next) : nullptr);
    }
  }

  // Strip `s` of `all`.
  void set_strip(Strip& strip, int64_t first, RowsOf const& some, int64_t s, int64_t all, int place,
                 Block const& block) const {
    int64_t const begin = strip_at(s, all, some.count), rows = strip_at(s + 1, all, some.count) - begin;
    strip.count = rows;
    for (int64_t r = 0; r < rows; ++r) {
      strip.at[r] = some[begin + r];
      strip.in_c[r] = some.together_in_c ? begin + r : strip.at[r];
    }
    if (a.transposed && kUnit) {
      strip.groups = copies + strip.at[0] / kUnitRows * unit_pitch<P>(block.depth);
      return;
    }
    if (a.transposed) {
      strip.stride = V::lanes;
      for (int64_t r = 0; r < rows; ++r) strip.row[r] = reinterpret_cast<const Operand*>(copy_at(strip.at[r]));
      return;
    }
    strip.stride = 1;
    auto const stored = [&](int64_t r) { return a.data + (first + strip.at[r]) * a.stride + block.a; };
    if constexpr (kReadable) {
      for (int64_t r = 0; r < rows; ++r) strip.row[r] = stored(r);
      if (across()) return pack_across<P>(strip.row, int(rows), block.depth, copies + place * across_pitch());
      if constexpr (kUnit) {
        P* const groups = copies + place * strip_pitch();
        if (!unpacked()) pack_for_unit([&](int64_t r) { return strip.row[r]; }, rows, kUnitRows, block.depth, groups);
        strip.groups = groups;
      }
    } else {
      int64_t const depth = block.depth, pitch = (depth + V::lanes - 1) / V::lanes * V::lanes;
      for (int64_t r = 0; r < rows; ++r) {
        P* const out = copies + place * strip_pitch() + r * pitch;
        strip.row[r] = out;
        for (int64_t i = 0; i < depth; i += V::lanes)
          store(out + i, load<V>(stored(r) + i, int(std::min<int64_t>(V::lanes, depth - i))));
      }
    }
  }

  void multiply(const Strip& strip, int64_t p, const P* panel, int place, Block const& block, T* out, bool add) const {
    alignas(64) C sums[std::max(kMaxAccumulators, kUnpackedRows * kColumns) * V::lanes];
    int const columns = panel_columns(p);
    if (unpacked()) {
      multiply_unpacked(strip, p, place, block, sums);
      return finish(out, strip, 0, strip.count, p, sums, block, add);
    }
    int64_t const column = column_at(p);
    if constexpr (kUnit) return multiply_groups(strip, p, panel, block, sums, out, add);
    bool const whole = column + columns * V::lanes <= n;
    TileRows const tiles(strip.count, tile_rows(columns));
    for (int64_t r = 0, i = 0, now; r < strip.count; r += now, ++i) {
      now = tiles.of(i);
      auto const tile = tile_table<P>.at[false][columns][now];
      TileSums<C> to;
      for (int64_t j = 0; j < now; ++j) {  // by the time that the sums are made, their place is near
        T* const row = out + strip.in_c[r + j] * c_stride + column;
        prefetch_lines<kColumns * V::lanes * sizeof(T), 2>(row);
        if constexpr (std::is_same_v<T, C>) to.row[j] = row;
      }
      if constexpr (std::is_same_v<T, C>) {
        if (whole) {  // sums that need nothing more go straight to their place
          to.add = add || !block.begins;
          tile(panel, block.depth, strip.row + r, strip.stride, to, {});
          continue;
        }
      }
      tile(panel, block.depth, strip.row + r, strip.stride, rows_apart(sums, columns * V::lanes, int(now)), {});
      finish(out, strip, r, now, p, sums, block, add);
    }
  }

  void multiply_groups(const Strip& strip, int64_t p, const P* panel, Block const& block, C* sums, T* out,
                       bool add) const {
    int64_t const blocks = unit_blocks<P>(block.depth);
    for (int64_t r = 0, now; r < strip.count; r += now) {
      int const groups = strip.count - r > kUnitRows ? 2 : 1;
      now = std::min<int64_t>(groups * kUnitRows, strip.count - r);
      unit_product(panel, panel_columns(p), strip.groups + r * blocks * kUnitPairs, groups, blocks, sums, kUnitRows);
      finish(out, strip, r, now, p, sums, block, add);
    }
  }

  void multiply_unpacked(const Strip& strip, int64_t p, int place, Block const& block, C* sums) const {
    auto const weights = [&](int j) {
      int64_t const column = column_at(p) + j * V::lanes;
      return WeightRows<T>{b.data + column * b.stride + block.b, b.stride,
                           int(std::min<int64_t>(n - column, V::lanes))};
    };
    if constexpr (can_lie_across<P, T>) {
      if (across())
        return product_across<P>(weights, panel_columns(p), block.depth, copies + place * across_pitch(),
                                 int(strip.count), sums);
    }
    product_unpacked<P>(weights, panel_columns(p), block.depth, strip.row, int(strip.count), sums);
  }

  // Stores the sums of rows [first, first + rows) of a strip, or adds them to what is there.
  void finish(T* base, const Strip& strip, int64_t first, int64_t rows, int64_t p, const C* sums, Block const& block,
              bool add) const {
    constexpr bool in_place = std::is_same_v<T, C>;              // what other blocks of k brought is in C itself
    int64_t const begin = column_at(p), end = column_at(p + 1);  // divisions, which no vector should wait for
    for (int64_t r = first; r < first + rows; ++r)
      for (int64_t column = begin; column < end; column += V::lanes, sums += V::lanes) {
        int const count = int(std::min<int64_t>(V::lanes, n - column));
        T* const out = base + strip.in_c[r] * c_stride + column;
        V sum = load<V>(sums);
        if (!in_place && partial) {
          C* const part = partial + strip.at[r] * width() + column;
          if (!block.begins) sum = load<V>(part) + sum;
          if (!block.ends) {
            store(part, sum);
            continue;
          }
        }
        store(out, add || (in_place && !block.begins) ? load<V>(out, count) + sum : sum, count);
      }
  }
};

}  // namespace rnnkern::RNNKERN_ISA
