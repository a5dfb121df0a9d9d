// The matrix products of stepwise, in terms of gates and heads, and the scratch memory that its steps work in.
#pragma once

#include <utility>
#include <vector>

#include "../platform.h"
#include "whole.cuh"

namespace rnnkern::stepwise {

// Scratch memory of one group. The groups run one after the other on one stream, so that the next takes the same
// blocks.
class Workspace {
 public:
  explicit Workspace(CudaPlatform& platform) : platform_(platform) {}

  void rewind() { next_ = 0; }

  template <class T>
  T* take(int64_t count) {
    size_t const bytes = static_cast<size_t>(std::max<int64_t>(count, 1)) * sizeof(T);  // never null
    if (next_ == blocks_.size()) blocks_.emplace_back(nullptr, 0);
    auto& [block, size] = blocks_[next_++];
    if (bytes > size) {
      block = platform_.scratch(bytes);
      size = bytes;
    }
    return static_cast<T*>(block);
  }

 private:
  CudaPlatform& platform_;
  std::vector<std::pair<void*, size_t>> blocks_;
  size_t next_ = 0;
};

// Gates [first, first + count) of a weight, whose gradients begin at the `column`-th block of H in a row of d_gates.
struct GateSpan {
  int first, count, column;
};

template <class T, class ForEach>
class Products {
 public:
  using V = compute_t<T>;

  Products(const Problem& problem, CudaPlatform& platform, const ForEach& for_each)
      : platform_(platform), for_each_(for_each), tf32_(problem.tf32), hidden_(problem.hidden_size),
        heads_(problem.heads), state_(problem.state_size()), samples_(problem.samples()),
        block_(problem.heads == 1 ? problem.state_size() : problem.head_size()) {}

  // C (+)= op(A) op(B); the dtypes follow from the pointers' types.
  template <class Out>
  void multiply(Gemm product, const T* a, const T* b, Out* c) const {
    if (product.m == 0 || product.n == 0) return;
    if (product.k == 0) {
      if (product.accumulate) return;
      for (int64_t i = 0; i < product.count; ++i) {
        for_each_(product.m, product.n, Zero<Out>{c + i * product.stride_c, product.n, product.ldc});
      }
      return;
    }
    product.a = a;
    product.b = b;
    product.c = c;
    product.dtype = dtype_of<T>;
    product.out_dtype = dtype_of<Out>;
    product.tf32 = tf32_;
    platform_.gemm(product);
  }

  // out[rows, n] = in[rows, k] @ weight[n, k]^T
  template <class Out>
  void forward(const T* in, int64_t rows, const T* weight, int64_t n, int64_t k, Out* out, int64_t out_stride) const {
    Gemm product;
    product.transpose_b = true;
    product.m = rows, product.n = n, product.k = k;
    product.lda = k, product.ldb = k, product.ldc = out_stride;
    multiply(product, in, weight, out);
  }

  // out[rows, n] (+)= d_out[rows, k] @ weight[k, n]
  template <class Out>
  void backward(const T* d_out, int64_t d_stride, int64_t rows, const T* weight, int64_t k, int64_t n, Out* out,
                bool accumulate) const {
    Gemm product;
    product.m = rows, product.n = n, product.k = k;
    product.lda = d_stride, product.ldb = n, product.ldc = n;
    product.accumulate = accumulate;
    multiply(product, d_out, weight, out);
  }

  // d_weight[m, n] = d_out[rows, m]^T @ in[rows, n], of one sample where each has its own
  void weight_gradient(const T* d_out, int64_t d_stride, int64_t rows, int64_t m, const T* in, int64_t n,
                       T* d_weight) const {
    Gemm product;
    product.transpose_a = true;
    product.m = m, product.n = n, product.k = rows;
    product.lda = d_stride * samples_, product.ldb = n * samples_, product.ldc = n;
    multiply(product, d_out, in, d_weight);
  }

  // out[rows, count*H] = operand[rows, R] @ w_hh[gates of the span]^T. With heads, a batch of products a gate.
  void recurrent(const T* operand, int64_t rows, const T* w_hh, GateSpan span, V* out) const {
    each_block(span, [&](Gemm product, int64_t height, int64_t gate, int64_t weight) {
      product.transpose_b = true;
      product.m = rows, product.n = height, product.k = block_;
      product.lda = state_, product.ldb = block_, product.ldc = span.count * hidden_;
      product.stride_a = block_, product.stride_b = block_ * block_, product.stride_c = block_;
      multiply(product, operand, w_hh + weight, out + gate * hidden_);
    });
  }

  // out[rows, R] (+)= d_gates[rows, the span's columns] @ w_hh[gates of the span]
  void recurrent_backward(const T* d_gates, int64_t d_stride, int64_t rows, const T* w_hh, GateSpan span, V* out,
                          bool accumulate) const {
    each_block(span, [&](Gemm product, int64_t height, int64_t gate, int64_t weight) {
      product.m = rows, product.n = block_, product.k = height;
      product.lda = d_stride, product.ldb = block_, product.ldc = state_;
      product.stride_a = block_, product.stride_b = block_ * block_, product.stride_c = block_;
      product.accumulate = accumulate || gate > 0;
      multiply(product, d_gates + (span.column + gate) * hidden_, w_hh + weight, out);
    });
  }

  // d_w_hh[gates of the span] = d_gates[rows, the span's columns]^T @ operand[rows, R], likewise
  void recurrent_weight_gradient(const T* d_gates, int64_t d_stride, int64_t rows, const T* operand, GateSpan span,
                                 T* d_w_hh) const {
    each_block(span, [&](Gemm product, int64_t height, int64_t gate, int64_t weight) {
      product.transpose_a = true;
      product.m = height, product.n = block_, product.k = rows;
      product.lda = d_stride * samples_, product.ldb = state_ * samples_, product.ldc = block_;
      product.stride_a = block_, product.stride_b = block_, product.stride_c = block_ * block_;
      multiply(product, d_gates + (span.column + gate) * hidden_, operand, d_w_hh + weight);
    });
  }

  // Sums d[rows, width] over its rows, of one sample where each has its own.
  template <class Sink>
  void sum_rows(const T* d, int64_t d_stride, int64_t rows, int64_t width, const Sink& sink,
                Workspace& workspace) const {
    using Partial = PartialSums<V>;
    constexpr int64_t fan_in = SumRows<T, Sink>::fan_in;
    d_stride *= samples_;
    if (rows <= fan_in) {
      for_each_(1, width, SumRows<T, Sink>{d, rows, d_stride, sink});
      return;
    }
    int64_t count = (rows + fan_in - 1) / fan_in;
    V* sums = workspace.take<V>(count * width);
    for_each_(count, width, SumRows<T, Partial>{d, rows, d_stride, {sums, width}});
    while (count > fan_in) {
      int64_t const fewer = (count + fan_in - 1) / fan_in;
      V* const next = workspace.take<V>(fewer * width);
      for_each_(fewer, width, SumRows<V, Partial>{sums, count, width, {next, width}});
      sums = next;
      count = fewer;
    }
    for_each_(1, width, SumRows<V, Sink>{sums, count, width, sink});
  }

 private:
  // Without heads the gates of a span are one product: call(product, its gates' units, 0, offset of its weight). With
  // heads each gate is a batch over its heads.
  template <class Call>
  void each_block(GateSpan span, Call&& call) const {
    int const calls = heads_ == 1 ? 1 : span.count;
    int64_t const height = heads_ == 1 ? span.count * hidden_ : block_;
    for (int64_t gate = 0; gate < calls; ++gate) {
      Gemm product;
      product.count = heads_;
      call(product, height, gate, (span.first + gate) * hidden_ * block_);
    }
  }

  CudaPlatform& platform_;
  const ForEach& for_each_;
  bool tf32_;
  int64_t hidden_, heads_, state_, samples_;
  int64_t block_;  // columns of w_hh: R, or a head's
};

}  // namespace rnnkern::stepwise
