// Kernels with a planted fault, each in a correct form as well: as small as shows the fault.
#pragma once

#include <cstring>

#include "cuda/primitives.cuh"

namespace faults {

using namespace rnnkern;
using namespace rnnkern::device;

struct Args {
  uint32_t* out;
  Quad* exchange;
  uint32_t* flags;
};

inline uint32_t index() { return static_cast<uint32_t>(thread_index()); }
inline Quad quad(uint32_t value) { return {{value, value, value, value}}; }

// --- Shared memory and barriers ---

template <bool faulty>
void missing_barrier(Args args) {
  auto const array = carve<uint32_t>(0, 128);
  array.st(thread_index(), index());
  if (!faulty) sync_threads();
  args.out[127 - thread_index()] = array.ld(127 - thread_index());
}

// The next turn overwrites what the slowest warp still reads.
template <bool faulty>
void missing_second_barrier(Args args) {
  auto const array = carve<uint32_t>(0, 128);
  for (uint32_t turn = 0; turn < 4; ++turn) {
    array.st(thread_index(), turn * 128 + index());
    sync_threads();
    int const other = (thread_index() + 32) % 128;
    args.out[turn * 128 + static_cast<uint32_t>(other)] = array.ld(other);
    if (!faulty) sync_threads();
  }
}

template <bool faulty>
void missing_sync_warp(Args args) {
  auto const array = carve<uint32_t>(0, 32);
  array.st(thread_index(), index());
  if (!faulty) sync_warp();
  args.out[31 - thread_index()] = array.ld(31 - thread_index());
}

template <bool faulty>
void half_barrier(Args args) {
  if (!faulty || thread_index() < 64) sync_threads();
  args.out[thread_index()] = index();
}

template <bool faulty>
void divergent_barrier(Args args) {
  if (faulty && thread_index() < 64) {
    sync_threads();
  } else {
    sync_threads();
  }
  args.out[thread_index()] = index();
}

template <bool faulty>
void exited_thread(Args args) {
  args.out[thread_index()] = index();
  if (faulty && thread_index() == 127) return;
  sync_threads();
}

template <bool faulty>
void half_warp_shuffle(Args args) {
  float value = 0;
  if (!faulty || lane_index() < 16) value = shuffle_xor(static_cast<float>(index() ^ 1), 1);
  args.out[thread_index()] = static_cast<uint32_t>(value);
}

template <bool faulty>
void past_the_end(Args args) {
  auto const array = carve<uint32_t>(0, 128);
  array.st(thread_index() + (faulty ? 1 : 0), index());
  args.out[thread_index()] = array.ld(thread_index() + (faulty ? 1 : 0));
}

// Nothing is beyond the block's memory: the first array runs into the second.
template <bool faulty>
void into_the_next_array(Args args) {
  auto const first = carve<uint32_t>(0, 64), second = carve<uint32_t>(256, 64);
  int const i = thread_index();
  if (i < 64 || faulty) {
    first.st(i, index());
  } else {
    second.st(i - 64, index());
  }
  sync_threads();
  args.out[i] = i < 64 ? first.ld(i) : second.ld(i - 64);
}

template <bool faulty>
void before_the_array(Args args) {
  auto const second = carve<uint32_t>(256, 128);
  second.st(thread_index() - (faulty ? 1 : 0), index());
  args.out[thread_index()] = second.ld(thread_index() - (faulty ? 1 : 0));
}

template <bool faulty>
void misaligned_quads(Args args) {
  auto const words = carve<uint32_t>(0, 516);
  auto const quads = words.from(faulty ? 2 : 4).as<Quad>();
  quads.st(thread_index(), quad(index()));
  args.out[thread_index()] = quads.ld(thread_index()).word[3];
}

// --- Tensor cores: c [16, 8] = a b with a[i][k] = (3 i + k) % 7, b[k][j] = (k + 2 j) % 5 ---

enum class Fragment { right, wrong_index, swapped };

template <Fragment fragment>
void product(Args args) {
  int const g = lane_index() / 4, q = lane_index() % 4;
  auto const pack = [](int low, int high) {  // two small whole numbers as bfloat16
    auto const bits = [](int value) {
      float const number = static_cast<float>(value);
      uint32_t word;
      std::memcpy(&word, &number, sizeof word);
      return word >> 16;
    };
    return bits(low) | bits(high) << 16;
  };
  uint32_t a[4], b[2];
  for (int r = 0; r < 4; ++r) {
    int const row = g + r % 2 * 8, k = r / 2 * 8 + 2 * q + (fragment == Fragment::wrong_index ? 1 : 0);
    a[r] = pack((3 * row + k) % 7, (3 * row + k + 1) % 7);
  }
  for (int r = 0; r < 2; ++r) {
    int const k = r * 8 + 2 * q;
    b[r] = pack((k + 2 * g) % 5, (k + 1 + 2 * g) % 5);
  }
  if (fragment == Fragment::swapped) std::swap(a[1], a[2]);
  float c[4] = {};
  mma_bf16(c, a, b);
  for (int i = 0; i < 4; ++i) args.out[(g + i / 2 * 8) * 8 + 2 * q + i % 2] = static_cast<uint32_t>(c[i]);
}
template <bool faulty>
void wrong_fragment_index(Args args) {
  product<faulty ? Fragment::wrong_index : Fragment::right>(args);
}
template <bool faulty>
void swapped_fragments(Args args) {
  product<faulty ? Fragment::swapped : Fragment::right>(args);
}
inline uint32_t product_element(uint32_t at) {
  uint32_t sum = 0;
  for (uint32_t k = 0; k < 16; ++k) sum += (3 * (at / 8) + k) % 7 * ((k + 2 * (at % 8)) % 5);
  return sum;
}

// --- Asynchronous copies; the exchange buffer holds quad(i) in element i ---

inline void fill(Args args) { Global<Quad>{args.exchange}.st(thread_index(), quad(index())); }

template <bool faulty>
void late_copy_wait(Args args) {
  auto const quads = carve<Quad>(0, 128);
  fill(args);
  sync_threads();
  copy_async(quads, thread_index(), {args.exchange}, thread_index());
  if (!faulty) copy_async_wait();
  sync_threads();
  args.out[127 - thread_index()] = quads.ld(127 - thread_index()).word[0];
  if (faulty) copy_async_wait();
}

template <bool faulty>
void no_copy_wait(Args args) {
  fill(args);
  copy_async(carve<Quad>(0, 128), thread_index(), {args.exchange}, thread_index());
  if (!faulty) copy_async_wait();
  args.out[thread_index()] = index();
}

// A copy begins while another warp still reads what it overwrites.
template <bool faulty>
void early_copy(Args args) {
  auto const quads = carve<Quad>(0, 128);
  fill(args);
  quads.st(thread_index(), quad(1000 + index()));
  sync_threads();
  int const other = 127 - thread_index();
  if (faulty) copy_async(quads, thread_index(), {args.exchange}, thread_index());
  uint32_t const old = quads.ld(other).word[1];
  sync_threads();
  if (!faulty) copy_async(quads, thread_index(), {args.exchange}, thread_index());
  copy_async_wait();
  sync_threads();
  args.out[other] = quads.ld(other).word[1] + old - 1000 - static_cast<uint32_t>(other);
}

// --- Flags: block 0 writes, block 1 reads; two grid blocks of 128 threads ---

enum class Pass {
  right,
  missing_wait,
  missing_barrier_before_release,
  missing_barrier_after_wait,
  relaxed_load,
  plain_store
};

template <Pass pass>
void pass_on(Args args) {
  Global<Quad> const memory = {args.exchange};
  Global<uint32_t> const flag = {args.flags};
  if (block_index() == 0) {
    memory.st(thread_index(), quad(index()));
    if (pass != Pass::missing_barrier_before_release) sync_threads();
    if (thread_index() != 0) return;
    if (pass == Pass::plain_store) {
      flag.st(0, 1);
    } else {
      flag_release(args.flags, 1);
    }
    return;
  }
  if (thread_index() == 0) {
    if (pass == Pass::relaxed_load) {
      while (flag.ld(0) == 0) {
      }
    } else if (pass != Pass::missing_wait) {
      flag_wait(args.flags, 1);
    }
  }
  if (pass != Pass::missing_barrier_after_wait) sync_threads();
  args.out[thread_index()] = memory.ld(thread_index()).word[0];
}
template <Pass wrong, bool faulty>
void pass_wrongly(Args args) {
  pass_on<faulty ? wrong : Pass::right>(args);
}

// --- Clusters: rank 0 stores to rank 1; two blocks of 32 threads ---

enum class Send {
  right,
  missing_sync,
  missing_init_done,
  two_arrivals,
  too_many_bytes,
  too_few_bytes,
  missing_wait,
  wrong_parity,
  early_exit,
  missing_reply
};

template <Send send>
void send_over(Args args) {
  auto const quads = carve<Quad>(0, 32);
  auto const barriers = carve<uint64_t>(512, 2);  // 0: the stores have come; 1: they have been read
  constexpr uint32_t kBytes = 512 + (send == Send::too_many_bytes ? 16 : 0) - (send == Send::too_few_bytes ? 16 : 0);
  if (thread_index() == 0) {
    mbarrier_init(barriers, 0, send == Send::two_arrivals ? 2 : 1);
    mbarrier_init(barriers, 1, 1);
    if (send != Send::missing_init_done) mbarrier_init_done();
  }
  if (send == Send::missing_sync) {
    sync_threads();
  } else {
    cluster_sync();
  }
  if (cluster_rank() == 1 && send == Send::early_exit) return;
  for (int turn = 0; turn < 3; ++turn) {
    if (cluster_rank() == 0) {
      store_async(quads, thread_index(), 1, quad(32 * static_cast<uint32_t>(turn) + index()), barriers, 0);
      if (send != Send::missing_reply) mbarrier_wait(barriers, 1, turn % 2);
      continue;
    }
    if (thread_index() == 0) mbarrier_expect(barriers, 0, kBytes);
    if (send != Send::missing_wait) mbarrier_wait(barriers, 0, send == Send::wrong_parity ? 1 - turn % 2 : turn % 2);
    args.out[turn * 32 + 31 - thread_index()] = quads.ld(31 - thread_index()).word[0];
    if (send == Send::missing_wait) mbarrier_wait(barriers, 0, turn % 2);
    sync_warp();
    if (thread_index() == 0 && send != Send::missing_reply) mbarrier_arrive(barriers, 1, 0);
  }
  if (send != Send::early_exit) cluster_sync();
}
template <bool faulty>
void store_without_clusters(Args args) {
  auto const quads = carve<Quad>(0, 32);
  auto const barriers = carve<uint64_t>(512, 1);
  if (thread_index() == 0) {
    mbarrier_init(barriers, 0, 1);
    mbarrier_init_done();
  }
  sync_warp();
  if (faulty) store_async(quads, thread_index(), 0, quad(index()), barriers, 0);
  args.out[thread_index()] = static_cast<uint32_t>(thread_index());
}

// An mbarrier orders shared memory alone between blocks: what lies in global memory needs a flag or a cluster_sync.
template <bool faulty>
void global_behind_an_mbarrier(Args args) {
  auto const barriers = carve<uint64_t>(512, 1);
  auto const memory = Global<Quad>{args.exchange};
  if (thread_index() == 0) {
    mbarrier_init(barriers, 0, 1);
    mbarrier_init_done();
  }
  cluster_sync();
  if (cluster_rank() == 0) {
    memory.st(thread_index(), quad(index()));
    sync_warp();
    if (thread_index() == 0) mbarrier_arrive(barriers, 0, 1);
  } else {
    mbarrier_wait(barriers, 0, 0);
  }
  if (!faulty) cluster_sync();
  if (cluster_rank() == 1) args.out[thread_index()] = memory.ld(thread_index()).word[0];
  cluster_sync();
}

template <Send wrong, bool faulty>
void send_wrongly(Args args) {
  send_over<faulty ? wrong : Send::right>(args);
}

}  // namespace faults
