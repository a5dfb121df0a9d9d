// What each primitive promises, as kernels that run on the emulator and on a GPU alike. A runner gives
//   put(vector), get(pointer, count)  memory that kernels see
//   launch(kernel, shape, args)
//   has_clusters()
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/launch_shape.h"
#include "cuda/primitives.cuh"
#include "dtype.h"

namespace primitives {

using namespace rnnkern;
using namespace rnnkern::device;

struct Args {
  uint32_t* out = nullptr;
  const uint32_t *a = nullptr, *b = nullptr, *c = nullptr;
  Quad* exchange = nullptr;
  uint32_t* flags = nullptr;
  int n = 0;
};

inline void expect(bool condition, const std::string& what) {
  if (condition) return;
  std::printf("FAILED %s\n", what.c_str());
  std::exit(1);
}

inline void expect_words(const std::string& what, const std::vector<uint32_t>& got, const std::vector<uint32_t>& want) {
  for (size_t i = 0; i < want.size(); ++i) {
    if (got[i] == want[i]) continue;
    std::printf("FAILED %s: word %zu is %#x, expected %#x\n", what.c_str(), i, got[i], want[i]);
    std::exit(1);
  }
}

// --- Places ---

RNNKERN_KERNEL(96) void places(const RNNKERN_PARAMETER Args args) {
  uint32_t* const out = args.out + (block_index() * 96 + thread_index()) * 3;
  out[0] = static_cast<uint32_t>(thread_index());
  out[1] = static_cast<uint32_t>(lane_index());
  out[2] = static_cast<uint32_t>(warp_index());
}

template <class Runner>
void check_places(Runner& runner) {
  uint32_t* const out = runner.put(std::vector<uint32_t>(2 * 96 * 3));
  runner.launch(places, {.blocks = 2, .threads = 96}, Args{.out = out});
  std::vector<uint32_t> want;
  for (uint32_t i = 0; i < 2 * 96; ++i) want.insert(want.end(), {i % 96, i % 96 % 32, i % 96 / 32});
  expect_words("places", runner.get(out, want.size()), want);
}

// --- Memory: every width, through shared memory and through Global ---

template <class T>
RNNKERN_DEVICE void move_words(Shared<T> shared, Global<T> from, Global<T> to) {
  constexpr int per_thread = 16 / sizeof(T);
  int const first = thread_index() * per_thread, other = (63 - thread_index()) * per_thread;
  for (int i = 0; i < per_thread; ++i) shared.st(first + i, from.ld(first + i));
  sync_threads();
  for (int i = 0; i < per_thread; ++i) to.st(other + i, shared.from(other).ld(i));
  sync_threads();
}

RNNKERN_KERNEL(64) void widths(const RNNKERN_PARAMETER Args args) {
  auto const quads = carve<Quad>(32, 64);
  Quad* const in = args.exchange;
  Quad* const out = args.exchange + 64;
  move_words(quads.as<uint16_t>(), Global<uint16_t>{reinterpret_cast<uint16_t*>(in)},
             Global<uint16_t>{reinterpret_cast<uint16_t*>(out)});
  move_words(quads.as<float>(), Global<float>{reinterpret_cast<float*>(in)},
             Global<float>{reinterpret_cast<float*>(out + 64)});
  move_words(quads.as<uint64_t>(), Global<uint64_t>{reinterpret_cast<uint64_t*>(in)},
             Global<uint64_t>{reinterpret_cast<uint64_t*>(out + 128)});
  move_words(quads, Global<Quad>{in}, Global<Quad>{out + 192});
}

RNNKERN_KERNEL(64) void copies(const RNNKERN_PARAMETER Args args) {
  auto const quads = carve<Quad>(0, 128);
  Global<Quad> const from = {args.exchange}, to = {args.exchange + 128};
  for (int i = thread_index(); i < 128; i += 64) copy_async(quads, i, from, 127 - i);
  copy_async_wait();
  sync_threads();
  for (int i = thread_index(); i < 128; i += 64) to.st(i, quads.ld(i ^ 63));
}

inline std::vector<Quad> numbered_quads(uint32_t count) {
  std::vector<Quad> quads(count);
  for (uint32_t i = 0; i < count; ++i) quads[i] = {{4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3}};
  return quads;
}

template <class Runner>
void check_memory(Runner& runner) {
  auto const in = numbered_quads(64 * 5);
  Quad* const memory = runner.put(in);
  runner.launch(widths, {.threads = 64, .shared_bytes = 32 + 64 * 16}, Args{.exchange = memory});
  auto const out = runner.get(memory, in.size());
  for (size_t i = 64; i < in.size(); ++i) {
    expect(std::memcmp(&out[i], &in[i % 64], 16) == 0, "loads and stores, quad " + std::to_string(i));
  }
  runner.launch(copies, {.threads = 64, .shared_bytes = 128 * 16}, Args{.exchange = memory});
  auto const copied = runner.get(memory, in.size());
  for (size_t i = 0; i < 128; ++i) {
    expect(std::memcmp(&copied[128 + i], &out[127 - (i ^ 63)], 16) == 0, "copy_async, quad " + std::to_string(i));
  }
}

// --- Warps ---

RNNKERN_KERNEL(64) void shuffles(const RNNKERN_PARAMETER Args args) {
  for (int mask = 0; mask < 32; ++mask) {
    float const got = shuffle_xor(static_cast<float>(thread_index()), mask);
    args.out[mask * 64 + thread_index()] = static_cast<uint32_t>(got);
  }
}

template <class Runner>
void check_shuffle(Runner& runner) {
  uint32_t* const out = runner.put(std::vector<uint32_t>(32 * 64));
  runner.launch(shuffles, {.threads = 64}, Args{.out = out});
  std::vector<uint32_t> want;
  for (uint32_t i = 0; i < 32 * 64; ++i) want.push_back(i % 64 ^ i / 64);
  expect_words("shuffle_xor", runner.get(out, want.size()), want);
}

enum class Element { bf16, fp16, tf32 };

// c [16, 8] += a [16, depth] b [depth, 8], row-major; two elements a word where they have 16 bits, along the depth.
template <Element element>
RNNKERN_KERNEL(32)
void product(const RNNKERN_PARAMETER Args args) {
  constexpr int words = 8;  // of a row of a, and of a column of b
  int const g = lane_index() / 4, q = lane_index() % 4;
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) a[i] = args.a[(g + i % 2 * 8) * words + i / 2 * words / 2 + q];
  for (int i = 0; i < 2; ++i) b[i] = args.b[g * words + i * words / 2 + q];  // b is given by columns
  float c[4];
  for (int i = 0; i < 4; ++i) std::memcpy(&c[i], &args.c[(g + i / 2 * 8) * 8 + 2 * q + i % 2], 4);
  if constexpr (element == Element::bf16) mma_bf16(c, a, b);
  if constexpr (element == Element::fp16) mma_fp16(c, a, b);
  if constexpr (element == Element::tf32) mma_tf32(c, a, b);
  for (int i = 0; i < 4; ++i) std::memcpy(&args.out[(g + i / 2 * 8) * 8 + 2 * q + i % 2], &c[i], 4);
}

template <Element element>
uint32_t pack(float low, float high) {
  if constexpr (element == Element::bf16)
    return from_compute<BFloat16>(low).bits | uint32_t{from_compute<BFloat16>(high).bits} << 16;
  if constexpr (element == Element::fp16)
    return from_compute<Float16>(low).bits | uint32_t{from_compute<Float16>(high).bits} << 16;
  uint32_t const noise = static_cast<uint32_t>(high) & 0x1fff;  // what the tensor core must not see
  return rnnkern::detail::float_bits(low) | noise;
}

// Small whole numbers: every sum is exact, so the result is that of the definition.
template <Element element, class Runner>
void check_product(Runner& runner, const char* name) {
  constexpr int depth = element == Element::tf32 ? 8 : 16, per_word = depth / 8;
  auto const value = [](int i, int j) { return static_cast<float>((i * 37 + j * 11) % 31 - 15); };
  std::vector<uint32_t> a, b, c, want;
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < depth; k += per_word) a.push_back(pack<element>(value(i, k), value(i, k + 1)));
  }
  for (int j = 0; j < 8; ++j) {
    for (int k = 0; k < depth; k += per_word) b.push_back(pack<element>(value(k + 3, j), value(k + 4, j)));
  }
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      float sum = value(i + 5, j + 7);
      c.push_back(rnnkern::detail::float_bits(sum));
      for (int k = 0; k < depth; ++k) sum += value(i, k) * value(k + 3, j);
      want.push_back(rnnkern::detail::float_bits(sum));
    }
  }
  uint32_t* const out = runner.put(std::vector<uint32_t>(16 * 8));
  runner.launch(product<element>, {.threads = 32},
                Args{.out = out, .a = runner.put(a), .b = runner.put(b), .c = runner.put(c)});
  expect_words(name, runner.get(out, want.size()), want);
}

RNNKERN_KERNEL(32) void rounding(const RNNKERN_PARAMETER Args args) {
  for (int i = thread_index(); i < args.n; i += 32) {
    float value;
    std::memcpy(&value, &args.a[i], 4);
    value = round_tf32(value);
    std::memcpy(&args.out[i], &value, 4);
  }
}

template <class Runner>
void check_round_tf32(Runner& runner) {
  std::vector<uint32_t> const in = {0,          0x80000000, 0x3f800000, 0x3f800fff, 0x3f801000, 0xbf801000,
                                    0x3f803000, 0x3fffffff, 0x3fffefff, 0x7f7fefff, 0x7f800000, 0xff800000};
  std::vector<uint32_t> const want = {0,          0x80000000, 0x3f800000, 0x3f800000, 0x3f802000, 0xbf802000,
                                      0x3f804000, 0x40000000, 0x3fffe000, 0x7f7fe000, 0x7f800000, 0xff800000};
  uint32_t* const out = runner.put(std::vector<uint32_t>(in.size()));
  runner.launch(rounding, {.threads = 32}, Args{.out = out, .a = runner.put(in), .n = static_cast<int>(in.size())});
  expect_words("round_tf32", runner.get(out, want.size()), want);
}

// --- Blocks: a value goes round all blocks n times, one more each time ---

RNNKERN_KERNEL(64) void ring(const RNNKERN_PARAMETER Args args) {
  auto const sum = carve<uint32_t>(0, 64);
  int const blocks = args.n, own = block_index(), before = (own + blocks - 1) % blocks;
  Global<Quad> const memory = {args.exchange};
  for (int turn = 0; turn < 3; ++turn) {
    uint32_t value = 0;
    if (turn > 0 || own > 0) {
      flag_wait(args.flags + before, static_cast<uint32_t>(own == 0 ? turn : turn + 1));
      value = memory.ld(before * 64 + (thread_index() + 1) % 64).word[2];
    }
    sum.st(thread_index(), value + 1);
    sync_threads();
    uint32_t const passed = sum.ld((thread_index() + 63) % 64);
    memory.st(own * 64 + thread_index(), {{0, 0, passed, 0}});
    sync_threads();
    if (thread_index() == 0) flag_release(args.flags + own, static_cast<uint32_t>(turn) + 1);
  }
}

template <class Runner>
void check_flags(Runner& runner) {
  int const blocks = 5;
  Quad* const memory = runner.put(std::vector<Quad>(blocks * 64));
  uint32_t* const flags = runner.put(std::vector<uint32_t>(blocks));
  runner.launch(ring, {.blocks = blocks, .threads = 64, .shared_bytes = 256, .cooperative = true},
                Args{.exchange = memory, .flags = flags, .n = blocks});
  auto const out = runner.get(memory, blocks * 64);
  for (int i = 0; i < blocks * 64; ++i) {
    expect(out[i].word[2] == static_cast<uint32_t>(2 * blocks + i / 64 + 1), "flags, quad " + std::to_string(i));
  }
}

// --- Clusters: each block sends its number to all others, four times over two barriers. An arrival says that the
// sender has read what its next store overwrites. ---

RNNKERN_KERNEL(32) void cluster_exchange(const RNNKERN_PARAMETER Args args) {
  if constexpr (kHasClusters) {
    int const size = args.n, own = cluster_rank();
    auto const quads = carve<Quad>(0, 2 * size * 32);
    auto const barriers = carve<uint64_t>(2 * size * 32 * 16, 2);
    if (thread_index() == 0) {
      mbarrier_init(barriers, 0, size);
      mbarrier_init(barriers, 1, size);
      mbarrier_init_done();
    }
    cluster_sync();
    uint32_t sum = 0;
    for (int turn = 0; turn < 4; ++turn) {
      int const slot = turn % 2;
      if (thread_index() == 0) mbarrier_expect(barriers, slot, static_cast<uint32_t>(size) * 32 * 16);
      auto const word = static_cast<uint32_t>(1 + block_index() * 100 + turn);
      for (int rank = 0; rank < size; ++rank) {
        store_async(quads, (slot * size + own) * 32 + thread_index(), rank, {{word, word, word, word}}, barriers, slot);
      }
      sync_warp();
      if (thread_index() < size && thread_index() != own) mbarrier_arrive(barriers, slot, thread_index());
      mbarrier_wait(barriers, slot, turn / 2 % 2);
      for (int rank = 0; rank < size; ++rank) {
        sum += quads.ld((slot * size + rank) * 32 + (thread_index() + turn) % 32).word[turn];
      }
    }
    cluster_sync();  // no block ends while another may still arrive
    args.out[block_index() * 32 + thread_index()] = sum;
  }
}

template <class Runner>
void check_clusters(Runner& runner) {
  for (int size : {2, 8}) {
    int const blocks = 2 * size;
    uint32_t* const out = runner.put(std::vector<uint32_t>(static_cast<size_t>(blocks) * 32));
    auto const bytes = static_cast<size_t>(2 * size * 32 * 16 + 16);
    runner.launch(cluster_exchange, {.blocks = blocks, .threads = 32, .shared_bytes = bytes, .cluster = size},
                  Args{.out = out, .n = size});
    std::vector<uint32_t> want;
    for (int block = 0; block < blocks; ++block) {
      int sum = 0;
      for (int rank = 0; rank < size; ++rank) sum += 4 * (1 + (block / size * size + rank) * 100) + 6;
      want.insert(want.end(), 32, static_cast<uint32_t>(sum));
    }
    expect_words("clusters of " + std::to_string(size), runner.get(out, want.size()), want);
  }
}

template <class Runner>
int check_all(Runner& runner) {
  check_places(runner);
  check_memory(runner);
  check_shuffle(runner);
  check_product<Element::bf16>(runner, "mma_bf16");
  check_product<Element::fp16>(runner, "mma_fp16");
  check_product<Element::tf32>(runner, "mma_tf32");
  check_round_tf32(runner);
  check_flags(runner);
  if (!runner.has_clusters()) return 8;
  check_clusters(runner);
  return 9;
}

}  // namespace primitives
