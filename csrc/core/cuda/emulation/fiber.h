// A fiber: a stack of its own and where it stopped. Only one runs at a time; a switch is a function call.
#pragma once

#include <cstddef>
#include <memory>

namespace rnnkern::emulation {

class Fiber {
 public:
  Fiber();
  ~Fiber();  // gives the stack back to the pool
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Gives it a stack; the first switch to it calls entry(argument), which must never return. `color` spreads the tops
  // of the stacks over the cache's sets: all of them begin on a page.
  void prepare(void (*entry)(void*), void* argument, size_t color);

  // Stops `from`, which runs now, and goes on with `to`. `last`: nobody will ever switch back to `from`.
  static void switch_between(Fiber& from, Fiber& to, bool last = false);

  // Every entry function calls this first.
  static void entered(Fiber& self, Fiber& came_from);

 private:
  struct Portable;

  void* stack_pointer_ = nullptr;
  char* stack_ = nullptr;  // the lowest byte above the guard page; null: the host's own stack
  std::unique_ptr<Portable> portable_;
  // For the address sanitizer: where the stack lies, and the sanitizer's own shadow of it.
  const void* bottom_ = nullptr;
  size_t size_ = 0;
  void* fake_stack_ = nullptr;
};

}  // namespace rnnkern::emulation
