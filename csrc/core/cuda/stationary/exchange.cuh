// How the operand of a step (h forward, the gradients of the gates backward) gets from the blocks that make it to the
// blocks that multiply it. Operand p of a tile is made by
//   put(...)      each thread writes elements of its own block's part
//   a barrier of the block
//   publish(p)    all threads of the block
// and read after wait(p), which all threads of the block call. Two operands are kept: a block can publish p + 1 only
// after it has waited for operand p of every other block, and by then nobody reads p - 1 any more.
#pragma once

#include "math.cuh"

namespace rnnkern::stationary {

// Where a block stands: which recurrence, which part of the batch, which units.
struct Place {
  int recurrence;  // group * heads + head
  int team, rank;

  RNNKERN_DEVICE static Place of(const Tiling& t) {
    int const blocks = t.teams * t.team, index = device::block_index();
    return {index / blocks, index % blocks / t.team, index % t.team};
  }
};

// The shared memory of a block, in the order of Tiling.
struct Arrays {
  Shared<Quad> operand, outbox, weights;
  Shared<float> partial, state;
  Shared<uint64_t> barriers;

  RNNKERN_DEVICE explicit Arrays(const Tiling& t) {
    int offset = 0;
    auto const next = [&](int bytes) {
      offset += bytes;
      return offset - bytes;
    };
    operand = device::carve<Quad>(next(t.operand_bytes()), t.operand_bytes() / 16);
    outbox = device::carve<Quad>(next(t.outbox_bytes()), t.outbox_bytes() / 16);
    weights = device::carve<Quad>(next(t.weight_bytes()), t.weight_bytes() / 16);
    partial = device::carve<float>(next(t.partial_bytes()), t.partial_bytes() / 4);
    state = device::carve<float>(next(t.state_bytes()), t.state_bytes() / 4);
    barriers = device::carve<uint64_t>(next(t.barrier_bytes()), t.barrier_bytes() / 8);
  }
};

// Place of piece `chunk` of the depth, batch row n, in a tile's operand.
RNNKERN_DEVICE int operand_quad(const Tiling& t, int chunk, int n) {
  return ((n / kGranule * t.slabs() + chunk / kChunks) * kGranule + n % kGranule) * kChunks + chunk % kChunks;
}

// One block has it all: its own shared memory.
class BlockLink {
 public:
  RNNKERN_DEVICE BlockLink(const Tiling& t, const Place& place, const Arrays& arrays, Quad*, uint32_t*)
      : t_(t), rank_(place.rank), operand_(arrays.operand) {}

  RNNKERN_DEVICE void begin() {
    for (int i = device::thread_index(); i < 2 * t_.operand_quads(); i += t_.threads()) operand_.st(i, Quad{});
    device::sync_threads();
  }

  // The operand that wait(p) made readable.
  RNNKERN_DEVICE Shared<Quad> operand(int p) const { return operand_.from(slot(p)); }

  // Element `depth` of this block's part, batch row n.
  template <class T>
  RNNKERN_DEVICE void put(int p, int depth, int n, T value) const {
    constexpr int per_quad = 16 / sizeof(T);
    int const quad = slot(p) + operand_quad(t_, rank_ * t_.block_chunks() + depth / per_quad, n);
    operand_.template as<T>().st(quad * per_quad + depth % per_quad, value);
  }

  RNNKERN_DEVICE void publish(int, int) const {}
  RNNKERN_DEVICE void wait(int, int) const {}

 protected:
  RNNKERN_DEVICE int slot(int p) const { return p % 2 * t_.operand_quads(); }

  const Tiling& t_;
  int rank_;
  Shared<Quad> operand_;
};

// A cluster: a block stores its part into the shared memory of all others, where each store counts on a barrier. So
// does a plain arrival of each block: a store says only that it has come, an arrival also that the block that sent it
// has read the operand before, which the next one overwrites.
class ClusterLink : public BlockLink {
 public:
  RNNKERN_DEVICE ClusterLink(const Tiling& t, const Place& place, const Arrays& arrays, Quad* exchange, uint32_t* flags)
      : BlockLink(t, place, arrays, exchange, flags), barriers_(arrays.barriers) {}

  RNNKERN_DEVICE void begin() {
    if (device::thread_index() == 0) {
      device::mbarrier_init(barriers_, 0, t_.team);
      device::mbarrier_init(barriers_, 1, t_.team);
      device::mbarrier_init_done();
    }
    BlockLink::begin();
    device::cluster_sync();  // nobody stores into a block that is not ready
  }

  RNNKERN_DEVICE void publish(int p, int) const {
    int const own = t_.outbox_quads();
    for (int i = device::thread_index(); i < own * (t_.team - 1); i += t_.threads()) {
      int const other = i / own, piece = i % own;
      int const chunk = rank_ * t_.block_chunks() + piece / t_.tile_rows();
      int const quad = slot(p) + operand_quad(t_, chunk, piece % t_.tile_rows());
      device::store_async(operand_, quad, other + (other >= rank_), operand_.ld(quad), barriers_, p % 2);
    }
    int const other = device::thread_index();
    if (other < t_.team - 1) device::mbarrier_arrive(barriers_, p % 2, other + (other >= rank_));
  }

  RNNKERN_DEVICE void wait(int p, int) const {
    if (device::thread_index() == 0) {
      device::mbarrier_expect(barriers_, p % 2, static_cast<uint32_t>(t_.outbox_quads() * (t_.team - 1) * 16));
    }
    device::mbarrier_wait(barriers_, p % 2, p / 2 % 2);
  }

 private:
  Shared<uint64_t> barriers_;
};

// Any number of blocks that run at the same time: through global memory, with a flag of each block that says how many
// operands it has published. All of that memory starts as zero.
class GridLink {
 public:
  RNNKERN_DEVICE GridLink(const Tiling& t, const Place& place, const Arrays& arrays, Quad* exchange, uint32_t* flags)
      : t_(t), rank_(place.rank), operand_(arrays.operand), outbox_(arrays.outbox) {
    int64_t const first_tile = (int64_t{place.recurrence} * t.teams + place.team) * t.tiles;
    exchange_.base = exchange + first_tile * 2 * t.operand_quads();
    flags_ = flags + first_tile * t.team;
  }

  RNNKERN_DEVICE void begin() {
    for (int i = device::thread_index(); i < t_.outbox_quads(); i += t_.threads()) outbox_.st(i, Quad{});
    device::sync_threads();
  }

  RNNKERN_DEVICE Shared<Quad> operand(int) const { return operand_; }

  template <class T>
  RNNKERN_DEVICE void put(int, int depth, int n, T value) const {
    constexpr int per_quad = 16 / sizeof(T);
    int const quad = depth / per_quad * t_.tile_rows() + n;
    outbox_.template as<T>().st(quad * per_quad + depth % per_quad, value);
  }

  // The first warp alone, so that no barrier stands between the stores and the flag.
  RNNKERN_DEVICE void publish(int p, int tile) const {
    if (device::warp_index() != 0) return;
    int64_t const to = copy(p, tile);
    for (int i = device::lane_index(); i < t_.outbox_quads(); i += 32) {
      int const chunk = rank_ * t_.block_chunks() + i / t_.tile_rows();
      exchange_.st(to + operand_quad(t_, chunk, i % t_.tile_rows()), outbox_.ld(i));
    }
    device::sync_warp();
    if (device::lane_index() == 0) device::flag_release(flag(tile, rank_), static_cast<uint32_t>(p) + 1);
  }

  // Each warp fetches some slabs, as soon as the blocks that make them have published.
  RNNKERN_DEVICE void wait(int p, int tile) const {
    int const warps = t_.threads() / 32, count = (t_.slabs() + warps - 1) / warps;
    int const first = device::warp_index() * count, last = min(first + count, t_.slabs());
    int const last_block = min((last * kChunks - 1) / t_.block_chunks(), t_.team - 1);
    for (int block = first * kChunks / t_.block_chunks() + device::lane_index(); block <= last_block; block += 32) {
      device::flag_wait(flag(tile, block), static_cast<uint32_t>(p) + 1);
    }
    device::sync_warp();
    int64_t const from = copy(p, tile);
    for (int granule = 0; granule < t_.granules; ++granule) {
      int const begin = (granule * t_.slabs() + first) * 32, end = (granule * t_.slabs() + last) * 32;
      for (int i = begin + device::lane_index(); i < end; i += 32) device::copy_async(operand_, i, exchange_, from + i);
    }
    device::copy_async_wait();
    device::sync_threads();
  }

 private:
  RNNKERN_DEVICE static int min(int a, int b) { return a < b ? a : b; }
  RNNKERN_DEVICE int64_t copy(int p, int tile) const { return int64_t{2 * tile + p % 2} * t_.operand_quads(); }
  RNNKERN_DEVICE uint32_t* flag(int tile, int block) const { return flags_ + int64_t{tile} * t_.team + block; }

  const Tiling& t_;
  int rank_;
  Shared<Quad> operand_, outbox_;
  device::Global<Quad> exchange_;
  uint32_t* flags_;
};

template <Exchange exchange>
struct LinkOf;
template <>
struct LinkOf<Exchange::block> {
  using type = BlockLink;
};
template <>
struct LinkOf<Exchange::cluster> {
  using type = ClusterLink;
};
template <>
struct LinkOf<Exchange::grid> {
  using type = GridLink;
};

}  // namespace rnnkern::stationary
