// What the primitives that are called most need to know of the emulated thread that runs, inline.
#pragma once

#include <cstdint>
#include <source_location>
#include <stdexcept>
#include <string>

namespace rnnkern::emulation {

// Where in the source a primitive was called.
using Site = std::source_location;

// A fault of a kernel or of its launch. The text names block, thread and source line.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Running {
  unsigned char* shared = nullptr;  // dynamic shared memory of its block
  uint32_t shared_bytes = 0;
  bool race_check = false;
  int index = 0;  // within the block
  int block = 0;
  int cluster_rank = 0;
};

// All emulated threads of a launch take turns on one thread of the host.
extern constinit thread_local Running* running __attribute__((tls_model("initial-exec")));

// Throws Error, with the place of the running thread before the text.
[[noreturn]] void fail(const std::string& what, Site site);

}  // namespace rnnkern::emulation
