// C[m, n] = op(A)[m, k] B[k, n] for the products over all time steps, shared by `workers` threads. It is here, and not
// the platform's BLAS, because it was measured at twice MKL's speed on Zen 5 (200 against 95 GFLOP/s a core) and
// because its sums do not depend on the number of threads.
#pragma once

#include "product.h"

namespace rnnkern::RNNKERN_ISA {

template <class T>
struct Matrix {
  const T* data;
  int64_t stride;           // elements between rows as stored
  bool transposed = false;  // stored [columns, rows]
};

template <class T>
class PackedGemm {
  using C = compute_t<T>;
  using P = packed_t<T>;
  using Operand = operand_t<T>;
  using V = Vec<C>;
  static constexpr int kColumns = RNNKERN_VECTOR_BYTES == 64 ? 4 : 2;  // the most vectors in a panel
  static constexpr int64_t kStrip =
      8 * int64_t{kMaxAccumulators / kColumns};  // rows that share a panel while it is hot
  static constexpr int64_t kDepth = 512;         // of k at a time

 public:
  int64_t m, n, k;
  Matrix<T> a, b;
  T* c;
  int64_t c_stride;
  bool accumulate = false;
  P* panels = nullptr;   // panel_elements()
  C* partial = nullptr;  // partial_elements(): sums in the compute type, where they are made in several parts
  P* copies = nullptr;   // copy_elements(): rows of op(A), where the tile cannot read them as they are stored

  bool keep_panels = false;  // B is packed whole, by pack(), and rows() may be called for parts of A

  // A few rows: the panels would be used once.
  bool unpacked() const { return keep_panels && m <= kUnpackedRows && b.transposed; }
  int64_t panel_elements() const {
    return unpacked() ? 0 : width() * packed_steps<P>(keep_panels ? k : std::min(k, kDepth));
  }
  int64_t partial_elements() const { return !std::is_same_v<T, C> && k > kDepth ? m * width() : 0; }
  int64_t copy_elements(int workers) const {
    if (a.transposed) return strips(m) * strip_pitch();
    return std::is_same_v<T, Operand> ? 0 : workers * strip_pitch();
  }

  // The whole product. Every worker calls it; they wait for each other inside.
  void run(Barrier& barrier, int worker, int workers) const {
    for (int64_t k_0 = 0; k_0 == 0 || k_0 < k; k_0 += kDepth) {
      pack_block(k_0, worker, workers);
      barrier.wait(workers);
      multiply_block(k_0, 0, m, c, worker, workers);
      barrier.wait(workers);
    }
  }

  // The same in two steps, for some rows at a time; the caller waits in between. `out` is where row `first` goes.
  void pack(int worker, int workers) const {
    for (int64_t k_0 = 0; k_0 < k && !unpacked(); k_0 += kDepth) pack_block(k_0, worker, workers);
  }
  void rows(int64_t first, int64_t count, T* out, int worker, int workers) const {
    for (int64_t k_0 = 0; k_0 == 0 || k_0 < k; k_0 += kDepth) multiply_block(k_0, first, count, out, worker, workers);
  }

 private:
  // Rows of op(A) as the tile reads them.
  struct Strip {
    const Operand* row[kStrip];
    int64_t stride;
  };
  static int64_t strips(int64_t rows) { return (rows + kStrip - 1) / kStrip; }
  // Of copies; more than is used, so that equal places of several strips lie in different sets of a cache.
  int64_t strip_pitch() const { return kStrip * (std::min(k, kDepth) + V::lanes) + V::lanes; }
  P* copy_at(int64_t row) const { return copies + row / kStrip * strip_pitch() + row % kStrip; }

  // The vectors of a row of C are dealt out evenly: 9 of them as 3, 3, 3 and not 4, 4, 1.
  int64_t vectors() const { return (n + V::lanes - 1) / V::lanes; }
  int64_t width() const { return vectors() * V::lanes; }
  int64_t panel_count() const { return (vectors() + kColumns - 1) / kColumns; }
  int64_t column_at(int64_t p) const { return vectors() * p / panel_count() * V::lanes; }
  int panel_columns(int64_t p) const { return int((column_at(p + 1) - column_at(p)) / V::lanes); }
  P* panel_at(int64_t p, int64_t k_0, int64_t depth) const {
    return panels + (keep_panels ? packed_steps<P>(k_0) * width() : 0) + column_at(p) * packed_steps<P>(depth);
  }

  void pack_block(int64_t k_0, int worker, int workers) const {
    int64_t const depth = std::min(kDepth, k - k_0), steps = packed_steps<P>(depth);
    for (int64_t p = worker; p < panel_count(); p += workers) pack_panel(p, k_0, depth);
    if (!a.transposed) return;
    // All of it, kStrip columns side by side, in the order of memory: a strip's own rows lie far apart.
    for (int64_t step = steps * worker / workers; step < steps * (worker + 1) / workers; ++step)
      for (int64_t r = 0; r < m; r += V::lanes)
        store_packed(copy_at(r) + step * kStrip,
                     load_columns<P, T>([&](int64_t i) { return a.data + (k_0 + i) * a.stride + r; }, step, depth,
                                        int(std::min<int64_t>(V::lanes, m - r))));
  }

  // Tasks (strip of rows, panel) are dealt out, the same to the same worker for each block of k.
  void multiply_block(int64_t k_0, int64_t first, int64_t count, T* out, int worker, int workers) const {
    int64_t const depth = std::min(kDepth, k - k_0), all = strips(count), tasks = all * panel_count();
    Strip strip;
    int64_t current = -1;
    for (int64_t task = tasks * worker / workers; task < tasks * (worker + 1) / workers; ++task) {
      int64_t const s = task / panel_count(), at = count * s / all, rows = count * (s + 1) / all - at;
      if (s != current) set_strip(strip, worker, first + at, rows, k_0, depth);
      current = s;
      multiply(strip, at, rows, task % panel_count(), k_0, depth, out);
    }
  }

  void pack_panel(int64_t p, int64_t k_0, int64_t depth) const {
    P* const panel = panel_at(p, k_0, depth);
    int const columns = panel_columns(p);
    for (int j = 0; j < columns; ++j) {
      int64_t const column = column_at(p) + j * V::lanes;
      int const count = int(std::min<int64_t>(n - column, V::lanes));
      P* const out = panel + j * V::lanes;
      if (b.transposed) {
        pack_transposed<P, T>([&](int lane) { return b.data + (column + lane) * b.stride + k_0; }, count, depth, out,
                              columns * V::lanes);
      } else {
        pack_rows<P, T>([&](int64_t i) { return b.data + (k_0 + i) * b.stride + column; }, count, depth, out,
                        columns * V::lanes);
      }
    }
  }

  void set_strip(Strip& strip, int worker, int64_t first, int64_t rows, int64_t k_0, int64_t depth) const {
    if (a.transposed) {
      strip.stride = kStrip;
      for (int64_t r = 0; r < rows; ++r) strip.row[r] = reinterpret_cast<const Operand*>(copy_at(first + r));
      return;
    }
    strip.stride = 1;
    if constexpr (std::is_same_v<T, Operand>) {
      for (int64_t r = 0; r < rows; ++r) strip.row[r] = a.data + (first + r) * a.stride + k_0;
    } else {
      int64_t const pitch = (depth + V::lanes - 1) / V::lanes * V::lanes;
      for (int64_t r = 0; r < rows; ++r) {
        P* const out = copies + worker * strip_pitch() + r * pitch;
        strip.row[r] = out;
        for (int64_t i = 0; i < depth; i += V::lanes)
          store(out + i,
                load<V>(a.data + (first + r) * a.stride + k_0 + i, int(std::min<int64_t>(V::lanes, depth - i))));
      }
    }
  }

  void multiply(const Strip& strip, int64_t at, int64_t rows, int64_t p, int64_t k_0, int64_t depth, T* out) const {
    alignas(64) C sums[std::max(kMaxAccumulators, kUnpackedRows * kColumns) * V::lanes];
    const P* const panel = panel_at(p, k_0, depth);
    int const columns = panel_columns(p);
    for (int64_t r = 0, count; r < rows; r += count) {
      count = unpacked() ? rows : next_rows(rows - r, tile_rows(columns));
      if (unpacked()) {
        multiply_unpacked(strip, int(rows), p, k_0, depth, sums);
      } else {
        tile_table<P>.at[false][columns][count](panel, depth, strip.row + r, strip.stride, sums);
      }
      for (int i = 0; i < count; ++i)
        for (int j = 0; j < columns; ++j)
          finish(out, at + r + i, column_at(p) + j * V::lanes, load<V>(sums + (i * columns + j) * V::lanes), k_0,
                 k_0 + depth >= k);
    }
  }

  void multiply_unpacked(const Strip& strip, int rows, int64_t p, int64_t k_0, int64_t depth, C* sums) const {
    product_unpacked<P>(
        [&](int j) {
          int64_t const column = column_at(p) + j * V::lanes;
          return WeightRows<T>{b.data + column * b.stride + k_0, b.stride,
                               int(std::min<int64_t>(n - column, V::lanes))};
        },
        panel_columns(p), depth, strip.row, rows, sums);
  }

  void finish(T* base, int64_t row, int64_t column, V sum, int64_t k_0, bool last) const {
    int const count = int(std::min<int64_t>(V::lanes, n - column));
    T* const out = base + row * c_stride + column;
    if constexpr (std::is_same_v<T, C>) {
      store(out, accumulate || k_0 > 0 ? load<V>(out, count) + sum : sum, count);
    } else {
      if (k > kDepth) {
        C* const part = partial + row * width() + column;
        if (k_0 > 0) sum = load<V>(part) + sum;
        if (!last) return store(part, sum);
      }
      store(out, accumulate ? load<V>(out, count) + sum : sum, count);
    }
  }
};

}  // namespace rnnkern::RNNKERN_ISA
