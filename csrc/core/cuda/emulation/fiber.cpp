#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

#if defined(__x86_64__) && defined(__ELF__)
#define RNNKERN_OWN_SWITCH 1
#else
#define RNNKERN_OWN_SWITCH 0
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace rnnkern::emulation {

#if RNNKERN_OWN_SWITCH
// Saves what a function must preserve, and goes on where `to` stopped. A new stack starts in rnnkern_enter_fiber with
// the entry function in r12 and its argument in r13; a function finds rsp % 16 == 8 when it is entered.
extern "C" void rnnkern_switch_stack(void** from, void* to);
extern "C" void rnnkern_enter_fiber();
asm(R"(
.text
.p2align 4
.hidden rnnkern_switch_stack
.globl rnnkern_switch_stack
.type rnnkern_switch_stack, @function
rnnkern_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size rnnkern_switch_stack, .-rnnkern_switch_stack
.hidden rnnkern_enter_fiber
.globl rnnkern_enter_fiber
.type rnnkern_enter_fiber, @function
rnnkern_enter_fiber:
  .cfi_startproc
  .cfi_undefined rip
  movq %r13, %rdi
  call *%r12
  ud2
  .cfi_endproc
.size rnnkern_enter_fiber, .-rnnkern_enter_fiber
)");

struct Fiber::Portable {};
#else
struct Fiber::Portable {
  ucontext_t context;
  void (*entry)(void*) = nullptr;
  void* argument = nullptr;

  static void enter(unsigned high, unsigned low) {
    auto* const self = reinterpret_cast<Portable*>(uintptr_t{high} << 32 | low);
    self->entry(self->argument);
  }
};
#endif

namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 * 1024;  // the sanitizer puts red zones around every local variable
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

// A guard page splits the kernel's list of mappings, whose length is limited; beyond this many stacks there are none.
constexpr size_t kGuardedStacks = 16384;

// Stacks of this host thread that no fiber uses. Memory is the system's again when the thread ends.
class StackPool {
 public:
  ~StackPool() {
    for (char* stack : free_) munmap(stack - page_, kStackBytes + page_);
  }
  char* take() {
    if (!free_.empty()) {
      char* const stack = free_.back();
      free_.pop_back();
      return stack;
    }
    void* const memory =
        mmap(nullptr, kStackBytes + page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    if (++made_ <= kGuardedStacks) mprotect(memory, page_, PROT_NONE);
    return static_cast<char*>(memory) + page_;
  }
  void give_back(char* stack) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack, kStackBytes);
#endif
    free_.push_back(stack);
  }

 private:
  size_t const page_ = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  std::vector<char*> free_;
  size_t made_ = 0;
};

StackPool& pool() {
  thread_local StackPool stacks;
  return stacks;
}

}  // namespace

Fiber::Fiber() = default;

Fiber::~Fiber() {
  if (stack_ != nullptr) pool().give_back(stack_);
}

void Fiber::prepare(void (*entry)(void*), void* argument, size_t color) {
  if (stack_ == nullptr) stack_ = pool().take();
  bottom_ = stack_;
  size_ = kStackBytes;
  char* const top = stack_ + kStackBytes - color % 32 * 128;
#if RNNKERN_OWN_SWITCH
  // What rnnkern_switch_stack pops: r15, r14, r13, r12, rbx, rbp, the return address. Then rsp is `top` - 16.
  void** const frame = reinterpret_cast<void**>(top) - 9;
  for (int i = 0; i < 9; ++i) frame[i] = nullptr;
  frame[2] = argument;
  frame[3] = reinterpret_cast<void*>(entry);
  frame[6] = reinterpret_cast<void*>(rnnkern_enter_fiber);
  stack_pointer_ = frame;
#else
  portable_ = std::make_unique<Portable>();
  portable_->entry = entry;
  portable_->argument = argument;
  getcontext(&portable_->context);
  portable_->context.uc_stack.ss_sp = stack_;
  portable_->context.uc_stack.ss_size = static_cast<size_t>(top - stack_);
  portable_->context.uc_link = nullptr;
  auto const self = reinterpret_cast<uintptr_t>(portable_.get());
  makecontext(&portable_->context, reinterpret_cast<void (*)()>(Portable::enter), 2, static_cast<unsigned>(self >> 32),
              static_cast<unsigned>(self));
#endif
}

void Fiber::switch_between(Fiber& from, Fiber& to, [[maybe_unused]] bool last) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack_, to.bottom_, to.size_);
#endif
#if RNNKERN_OWN_SWITCH
  rnnkern_switch_stack(&from.stack_pointer_, to.stack_pointer_);
#else
  if (!from.portable_) from.portable_ = std::make_unique<Portable>();
  swapcontext(&from.portable_->context, &to.portable_->context);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack_, nullptr, nullptr);
#endif
}

void Fiber::entered([[maybe_unused]] Fiber& self, [[maybe_unused]] Fiber& came_from) {
#if defined(__SANITIZE_ADDRESS__)
  // The host's own stack is known only from here.
  const void* bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(self.fake_stack_, &bottom, &size);
  if (came_from.stack_ == nullptr) {
    came_from.bottom_ = bottom;
    came_from.size_ = size;
  }
#endif
}

}  // namespace rnnkern::emulation
