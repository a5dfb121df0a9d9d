// Turns what is known at run time into types: calls a templated lambda with a value of the type.
//   dispatch(problem.dtype, [&](auto type) { using T = typename decltype(type)::type; ... });
//   dispatch(problem.cell, problem.activation, [&](auto cell) { ... });
#pragma once

#include <utility>

#include "cell/gru.h"
#include "cell/lstm.h"
#include "cell/rnn.h"
#include "dtype.h"
#include "types.h"

namespace rnnkern {

template <class T>
struct Type {
  using type = T;
};

template <class Body>
decltype(auto) dispatch(Dtype dtype, Body&& body) {
  switch (dtype) {
    case Dtype::float64: return body(Type<double>{});
    case Dtype::float32: return body(Type<float>{});
    case Dtype::bfloat16: return body(Type<BFloat16>{});
    case Dtype::float16: break;
  }
  return body(Type<Float16>{});
}

// What a caller allocates by `facts`, the cell's kernels fill.
template <class... Cells>
constexpr bool keep_to_facts() {
  return ((Cells::gates == facts(Cells::kind).gates && Cells::saved == facts(Cells::kind).saved &&
           (Cells::states == 2) == facts(Cells::kind).has_cell && Cells::split_gate == facts(Cells::kind).split_gate) &&
          ...);
}
static_assert(keep_to_facts<RnnCell, LstmCell, GruCell, GruV1Cell>());

template <class Body>
decltype(auto) dispatch(CellKind kind, Activation activation, Body&& body) {
  switch (kind) {
    case CellKind::rnn: return body(RnnCell{activation});
    case CellKind::lstm: return body(LstmCell{});
    case CellKind::gru: return body(GruCell{});
    case CellKind::gru_v1: break;
  }
  return body(GruV1Cell{});
}

}  // namespace rnnkern
