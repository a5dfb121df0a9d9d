// The emulator: every primitive gives what it gives on a GPU, under any schedule, and what a kernel does wrong is said
// in words. test_emulation_faults.cpp holds the faults themselves.
#include <algorithm>
#include <memory>
#include <set>
#include <thread>

#include "cuda/emulation/launch.h"
#include "cuda/emulation/mma.h"
#include "primitive_checks.h"

using namespace primitives;
using emulation::Options;

namespace {

class Runner {
 public:
  explicit Runner(const Options& options) : device(options) {}

  template <class T>
  T* put(const std::vector<T>& values) {
    auto const held = std::make_shared<std::vector<T>>(values);
    memory_.push_back(held);
    return held->data();
  }
  template <class T>
  std::vector<T> get(const T* memory, size_t count) {
    return std::vector<T>(memory, memory + count);
  }
  template <class KernelArgs>
  void launch(void (*kernel)(KernelArgs), const LaunchShape& shape, const KernelArgs& args) {
    device.launch(kernel, shape, args);
  }
  bool has_clusters() { return true; }

  emulation::Device device;

 private:
  std::vector<std::shared_ptr<void>> memory_;
};

int check_primitives() {
  int checks = 0;
  for (bool race_check : {false, true}) {
    for (uint64_t seed = 0; seed < 6; ++seed) {
      Runner runner({.seed = seed, .skewed = seed > 0, .race_check = race_check});
      checks += check_all(runner);
    }
  }
  return checks;
}

void check_halves() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    uint16_t const half = static_cast<uint16_t>(bits);
    for (int i = 0; i < 2; ++i) {
      uint32_t const word = i == 0 ? bits | 0x12340000 : bits << 16 | 0x1234;
      float const read[] = {emulation::Fp16::read(word, i), emulation::Bf16::read(word, i)};
      float const want[] = {to_compute(Float16{half}), to_compute(BFloat16{half})};
      expect(std::memcmp(read, want, sizeof read) == 0, "a 16-bit element of a fragment, bits " + std::to_string(bits));
    }
  }
}

// --- Messages ---

std::string error_of(void (*kernel)(Args), const LaunchShape& shape, const Args& args = {},
                     const Options& options = {}) {
  try {
    emulation::Device(options).launch(kernel, shape, args);
  } catch (const emulation::Error& error) {
    return error.what();
  }
  return "";
}

void expect_text(const std::string& got, const std::string& want) {
  expect(got.find(want) != std::string::npos, "expected a message with \"" + want + "\", got \"" + got + "\"");
}

constexpr int kLine = __LINE__;
void early_exit(Args) {
  if (thread_index() >= 96) return;
  sync_threads();  // kLine + 3
}
void no_release(Args args) {
  if (block_index() == 1) return;
  flag_wait(args.flags, 7);  // kLine + 7
}
void spinning(Args args) {
  Global<uint32_t> const flag = {args.flags};
  while (flag.ld(0) == 0) {  // kLine + 11
  }
}
void beyond(Args) {
  auto const array = carve<float>(16, 8);
  if (thread_index() == 5) array.st(8, 1.0f);  // kLine + 16
}
void misaligned(Args) { carve<Quad>(8, 1); }
void too_large(Args) { carve<float>(0, 65); }
void no_barrier(Args) { mbarrier_wait(carve<uint64_t>(0, 1), 0, 0); }

std::string line(int offset) { return "test_emulation.cpp:" + std::to_string(kLine + offset); }

void check_messages() {
  expect_text(error_of(early_exit, {.threads = 128}),
              "block 0: barrier at " + line(3) + " <- threads 0-95; exited <- threads 96-127");
  uint32_t flag = 3;
  std::string const lonely = error_of(no_release, {.blocks = 2}, {.flags = &flag});
  expect_text(lonely, "(wanted 7, is 3) at " + line(7) + " <- threads 0-31");
  expect(lonely.find("block 1") == std::string::npos, "a block that has ended waits for nothing: " + lonely);
  flag = 0;
  expect_text(error_of(spinning, {}, {.flags = &flag}), "a loop of loads at " + line(11));
  expect_text(error_of(beyond, {.shared_bytes = 256}),
              "block 0, thread 5, at " + line(16) + ": element 8 of an array of 8");
  expect_text(error_of(misaligned, {.shared_bytes = 256}), "aligned to 16");
  expect_text(error_of(too_large, {.shared_bytes = 256}), "260 bytes at byte 0 of 256");
  expect_text(error_of(no_barrier, {.shared_bytes = 256}), "no mbarrier at byte 0");
}

void nothing(Args) {}

void check_launches() {
  Options options;
  options.resident_blocks = 4;
  auto const error = [&](const LaunchShape& shape) { return error_of(nothing, shape, {}, options); };
  expect_text(error({.blocks = 5, .cooperative = true}), "5 blocks cannot be resident at once: 4 can");
  expect(error({.blocks = 5}).empty(), "blocks beyond the resident ones wait for their turn");
  expect(error({.blocks = 4, .cooperative = true}).empty(), "as many blocks as can be resident");
  expect_text(error({.threads = 48}), "multiple of 32");
  expect_text(error({.threads = 1056}), "up to 1024");
  expect_text(error({.blocks = 0}), "blocks must be positive");
  expect_text(error({.shared_bytes = 228 * 1024}), "bytes of shared memory");
  expect_text(error({.blocks = 6, .cluster = 4}), "divide");
  expect_text(error({.blocks = 8, .cluster = 8}), "a cluster of 8 blocks does not fit 4 multiprocessors");

  // Blocks that wait for each other without a cooperative launch hang as soon as they are more than the device holds.
  std::vector<Quad> memory(5 * 64);
  std::vector<uint32_t> flags(5);
  expect_text(error_of(ring, {.blocks = 5, .threads = 64, .shared_bytes = 256},
                       {.exchange = memory.data(), .flags = flags.data(), .n = 5}, options),
              "1 blocks wait for a multiprocessor");
}

void uninitialised(Args args) { args.out[thread_index()] = carve<uint32_t>(0, 32).ld(thread_index()); }

void check_fill() {
  std::vector<uint32_t> out(32);
  emulation::Device().launch(uninitialised, {.shared_bytes = 128}, Args{.out = out.data()});
  expect_words("shared memory starts as NaN", out, std::vector<uint32_t>(32, ~uint32_t{0}));
}

// Neighbours within a word are not each other's races; nor is what a thread does to its own memory.
void neighbours(Args args) {
  auto const halves = carve<uint16_t>(0, 64);
  for (int turn = 0; turn < 3; ++turn) {
    halves.st(thread_index(), static_cast<uint16_t>(halves.ld(thread_index()) + 2 + thread_index()));
  }
  args.out[thread_index()] = halves.ld(thread_index());
}

void check_neighbours() {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    std::vector<uint32_t> out(64), want;
    for (uint32_t i = 0; i < 64; ++i) want.push_back(5 + 3 * i);
    emulation::Device const device({.seed = seed, .skewed = true, .race_check = true});
    device.launch(neighbours, {.threads = 64, .shared_bytes = 128}, Args{.out = out.data()});
    expect_words("neighbours", out, want);
  }
}

// --- Schedules ---

void order(Args args) {  // each thread notes when it came, three times
  for (int turn = 0; turn < 3; ++turn) {
    args.out[args.flags[0]++] = static_cast<uint32_t>(block_index() * 256 + thread_index());
    sync_threads();
  }
}

std::vector<uint32_t> order_of(const Options& options) {
  std::vector<uint32_t> out(3 * 4 * 96);
  uint32_t count = 0;
  emulation::Device(options).launch(order, {.blocks = 4, .threads = 96}, Args{.out = out.data(), .flags = &count});
  expect(count == out.size(), "every thread came three times");
  return out;
}

void check_schedules() {
  std::set<std::vector<uint32_t>> seen = {order_of({})};
  expect(seen.count(order_of({.seed = 1})) == 1, "the plain schedule is always the same");
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Options const options = {.seed = seed, .skewed = true};
    auto const first = order_of(options);
    expect(first == order_of(options), "a seed gives one schedule");
    seen.insert(first);
  }
  expect(seen.size() == 21, "20 seeds give 20 schedules");
}

void counted(Args args) {
  sync_threads();
  sync_warp();
  if (thread_index() == 0) flag_release(args.flags + block_index(), 1);
}

void check_statistics() {
  emulation::Device device;
  std::vector<uint32_t> flags(3);
  device.launch(counted, {.blocks = 3, .threads = 64}, Args{.flags = flags.data()});
  device(2, 3, [](int64_t, int64_t) {});
  auto const& seen = device.statistics;
  expect(seen.launches == 2 && seen.barriers == 3 && seen.collectives == 6 && seen.flags == 3, "statistics");
}

// A launch that failed leaves nothing behind: the next one is clean, many times over.
void check_recovery() {
  for (int i = 0; i < 50; ++i) {
    error_of(early_exit, {.blocks = 8, .threads = 256});
    expect(error_of(nothing, {.blocks = 8, .threads = 256}).empty(), "a launch after one that failed");
  }
}

// Launches from several threads of the host have nothing to do with each other.
void check_host_threads() {
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) threads.emplace_back(check_primitives);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

int main() {
  int const checks = check_primitives();
  check_halves();
  check_messages();
  check_launches();
  check_fill();
  check_neighbours();
  check_schedules();
  check_statistics();
  check_recovery();
  check_host_threads();
  std::printf("emulation: %d checks of primitives, messages, launches, schedules\n", checks);
  return 0;
}
