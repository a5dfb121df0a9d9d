// Small pieces that the forward and backward kernels of stepwise share: element access, zoneout, values of the step
// before.
#pragma once

#include "../dtype.h"
#include "course.h"

namespace rnnkern::stepwise {

template <class T>
RNNKERN_HD compute_t<T> load(const T* from) {
  return to_compute(*from);
}

template <class T>
RNNKERN_HD void store(T* to, compute_t<T> value) {
  *to = from_compute<T>(value);
}

// As load, but an absent tensor is zero.
template <class T>
RNNKERN_HD compute_t<T> load_or_zero(const T* tensor, int64_t index) {
  return tensor == nullptr ? compute_t<T>(0) : to_compute(tensor[index]);
}

// Krueger et al. 2016. `mask` [rows, width] true: the old value stays; without it, `share` of the old value does.
template <class T>
struct Zoneout {
  using V = compute_t<T>;

  const bool* mask = nullptr;
  int64_t width = 0;
  V share = 0;

  RNNKERN_HD V blend(int64_t row, int64_t unit, V fresh, V old) const {
    if (mask != nullptr) return mask[row * width + unit] ? old : fresh;
    return share == V(0) ? fresh : share * old + (V(1) - share) * fresh;
  }

  // Splits the gradient of the blend.
  RNNKERN_HD void split(int64_t row, int64_t unit, V d_blend, V& d_fresh, V& d_old) const {
    if (mask != nullptr) {
      bool const stays = mask[row * width + unit];
      d_fresh = stays ? V(0) : d_blend;
      d_old = stays ? d_blend : V(0);
    } else {
      d_fresh = share == V(0) ? d_blend : (V(1) - share) * d_blend;
      d_old = share == V(0) ? V(0) : share * d_blend;
    }
  }
};

// A state before each step, read back from what forward left.
template <class T>
struct Past {
  using V = compute_t<T>;

  const T* initial = nullptr;   // [B, width], null: zero
  const T* sequence = nullptr;  // [rows, width], rows `stride` apart: the state after each step
  int64_t width = 0;
  int64_t stride = 0;

  RNNKERN_HD V at(const Course& course, int64_t b, int64_t unit) const {
    if (course.cut(b)) return V(0);
    if (course.first(b)) return load_or_zero(initial, b * width + unit);
    return load(sequence + (course.before.offset + b) * stride + unit);
  }
};

}  // namespace rnnkern::stepwise
