// The emulated device: runs what a CUDA strategy's driver launches, on the calling thread.
#pragma once

#include <cstdint>

#include "../launch_shape.h"
#include "options.h"
#include "thread.h"

namespace rnnkern::emulation {

class Device {
 public:
  explicit Device(const Options& options = {}) : options(options) {}

  Options options;
  mutable Statistics statistics;

  // Visits all (row, column): forwards, backwards or inside out, by turns.
  template <class Functor>
  void operator()(int64_t rows, int64_t columns, const Functor& functor) const {
    ++statistics.launches;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) functor(visit(i, rows), visit(j, columns));
    }
  }

  // Throws Error, which says what the kernel did wrong.
  template <class Args>
  void launch(void (*kernel)(Args), const LaunchShape& shape, const Args& args) const {
    struct Call {
      void (*kernel)(Args);
      const Args& args;
      static void run(const void* call) {
        auto const& self = *static_cast<const Call*>(call);
        self.kernel(self.args);
      }
    } const call = {kernel, args};
    run(shape, &Call::run, &call);
  }

 private:
  void run(const LaunchShape& shape, void (*body)(const void*), const void* context) const;

  int64_t visit(int64_t i, int64_t count) const {
    if (statistics.launches % 3 == 0) return i;
    return statistics.launches % 3 == 1 ? count - 1 - i : (i + count / 2) % count;
  }
};

}  // namespace rnnkern::emulation
