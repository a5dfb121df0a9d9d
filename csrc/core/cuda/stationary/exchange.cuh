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
    return {device::uniform(index / blocks), device::uniform(index % blocks / t.team), device::uniform(index % t.team)};
  }
};

// The shared memory of a block. Each array's place is read from the arguments when it is used.
struct Arrays {
  const Sizes& s;

  RNNKERN_DEVICE Shared<Quad> operand() const { return carve<Quad>(0, s.outbox_at); }
  RNNKERN_DEVICE Shared<Quad> outbox() const { return carve<Quad>(s.outbox_at, s.weights_at); }
  RNNKERN_DEVICE Shared<Quad> weights() const { return carve<Quad>(s.weights_at, s.partial_at); }
  RNNKERN_DEVICE Shared<float> partial() const { return carve<float>(s.partial_at, s.state_at); }
  RNNKERN_DEVICE Shared<float> state() const { return carve<float>(s.state_at, s.barriers_at); }
  RNNKERN_DEVICE Shared<uint64_t> barriers() const { return carve<uint64_t>(s.barriers_at, s.end); }

 private:
  template <class T>
  RNNKERN_DEVICE static Shared<T> carve(int begin, int end) {
    return device::carve<T>(begin, (end - begin) / static_cast<int>(sizeof(T)));
  }
};

// Place of piece `chunk` of the depth, batch row n, in a tile's operand.
RNNKERN_DEVICE int operand_quad(int chunk, int n) {
  unsigned const c = static_cast<unsigned>(chunk);  // divides without a look at the sign
  return static_cast<int>((c / kChunks * kTileRows + static_cast<unsigned>(n)) * kChunks + c % kChunks);
}

// One block has it all: its own shared memory.
class BlockLink {
 public:
  RNNKERN_DEVICE BlockLink(const Sizes& sizes, const Tiling&, const Place& place, Quad* const&, uint32_t* const&)
      : s_(sizes), arrays_{sizes}, rank_(place.rank) {}

  RNNKERN_DEVICE void begin() {
    for (int i = device::thread_index(); i < 2 * s_.operand_quads; i += s_.threads) arrays_.operand().st(i, Quad{});
    device::sync_threads();
  }

  // The operand that wait(p) made readable.
  RNNKERN_DEVICE Shared<Quad> operand(int p) const { return arrays_.operand().from(slot(p)); }

  // Element `depth` of this block's part, batch row n.
  template <class T>
  RNNKERN_DEVICE void put(int p, int depth, int n, T value) const {
    constexpr unsigned per_quad = 16 / sizeof(T);
    unsigned const d = static_cast<unsigned>(depth);
    int const quad = slot(p) + operand_quad(rank_ * s_.block_chunks + static_cast<int>(d / per_quad), n);
    arrays_.operand().template as<T>().st(quad * static_cast<int>(per_quad) + static_cast<int>(d % per_quad), value);
  }

  // `rows`: of the tile that are in the batch; only these travel.
  RNNKERN_DEVICE void publish(int, int, int) const {}
  RNNKERN_DEVICE void wait(int, int, int) const {}

 protected:
  RNNKERN_DEVICE int slot(int p) const { return (p & 1) * s_.operand_quads; }

  const Sizes& s_;
  Arrays arrays_;
  int rank_;
};

// A cluster: a block stores its part into the shared memory of all others, where each store counts on a barrier. So
// does a plain arrival of each block: a store says only that it has come, an arrival also that the block that sent it
// has read the operand before, which the next one overwrites.
//
// What is sent, pieces x blocks, is shared out: each warp has some of the blocks, or, where there are more warps than
// these, some of the pieces for one.
class ClusterLink : public BlockLink {
 public:
  RNNKERN_DEVICE ClusterLink(const Sizes& sizes, const Tiling& tiling, const Place& place, Quad* const& exchange,
                             uint32_t* const& flags)
      : BlockLink(sizes, tiling, place, exchange, flags) {
    int const part = device::warp_index() / s_.targets;
    first_target_ = device::uniform(1 + device::warp_index() % s_.targets);
    first_piece_ = part < s_.parts ? 32 * part + device::lane_index() : s_.block_chunks * kTileRows;
  }

  RNNKERN_DEVICE void begin() {
    if (device::thread_index() == 0) {
      device::mbarrier_init(arrays_.barriers(), 0, s_.team);
      device::mbarrier_init(arrays_.barriers(), 1, s_.team);
      device::mbarrier_init_done();
    }
    BlockLink::begin();
    device::cluster_sync();  // nobody stores into a block that is not ready
  }

  RNNKERN_DEVICE void publish(int p, int, int rows) const {
    for (int i = first_piece_; i < s_.block_chunks * kTileRows; i += 32 * s_.parts) {
      if (i % kTileRows >= rows) continue;
      int const quad = slot(p) + operand_quad(rank_ * s_.block_chunks + i / kTileRows, i % kTileRows);
      Quad const piece = arrays_.operand().ld(quad);
      for (int k = first_target_; k < s_.team; k += s_.targets) {
        device::store_async(arrays_.operand(), quad, other(k), piece, arrays_.barriers(), p % 2);
      }
    }
    int const k = device::thread_index() + 1;
    if (k < s_.team) device::mbarrier_arrive(arrays_.barriers(), p % 2, other(k));
  }

  RNNKERN_DEVICE void wait(int p, int, int rows) const {
    if (device::thread_index() == 0) {
      int const bytes = s_.block_chunks * rows * (s_.team - 1) * 16;
      device::mbarrier_expect(arrays_.barriers(), p % 2, static_cast<uint32_t>(bytes));
    }
    device::mbarrier_wait(arrays_.barriers(), p % 2, p / 2 % 2);
  }

 private:
  // The k-th block after this one: each begins with another, so that no block is everybody's first.
  RNNKERN_DEVICE int other(int k) const { return rank_ + k < s_.team ? rank_ + k : rank_ + k - s_.team; }

  int first_target_, first_piece_;  // of this thread
};

// Any number of blocks that run at the same time: through global memory, with a flag of each block that says how many
// operands it has published. All of that memory starts as zero.
class GridLink {
 public:
  RNNKERN_DEVICE GridLink(const Sizes& sizes, const Tiling& tiling, const Place& place, Quad* const& exchange,
                          uint32_t* const& flags)
      : s_(sizes), arrays_{sizes}, exchange_(exchange), flags_(flags), rank_(place.rank),
        first_tile_((place.recurrence * tiling.teams + place.team) * tiling.tiles) {
    // Each warp fetches some slabs, as soon as the blocks that make them have published.
    int const warps = s_.threads / 32, count = (s_.slabs + warps - 1) / warps;
    first_slab_ = device::uniform(device::warp_index() * count), last_slab_ = min(first_slab_ + count, s_.slabs);
    first_block_ = device::uniform(first_slab_ * kChunks / s_.block_chunks);
    last_block_ = device::uniform(min((last_slab_ * kChunks - 1) / s_.block_chunks, s_.team - 1));
  }

  RNNKERN_DEVICE void begin() const {
    for (int i = device::thread_index(); i < s_.block_chunks * kTileRows; i += s_.threads)
      arrays_.outbox().st(i, Quad{});
    device::sync_threads();
  }

  RNNKERN_DEVICE Shared<Quad> operand(int) const { return arrays_.operand(); }

  template <class T>
  RNNKERN_DEVICE void put(int, int depth, int n, T value) const {
    constexpr unsigned per_quad = 16 / sizeof(T);
    unsigned const d = static_cast<unsigned>(depth);
    int const quad = static_cast<int>(d / per_quad) * kTileRows + n;
    arrays_.outbox().template as<T>().st(quad * static_cast<int>(per_quad) + static_cast<int>(d % per_quad), value);
  }

  // The first warp alone, so that no barrier stands between the stores and the flag.
  RNNKERN_DEVICE void publish(int p, int tile, int rows) const {
    if (device::warp_index() != 0) return;
    for (int i = device::lane_index(); i < s_.block_chunks * kTileRows; i += 32) {
      if (i % kTileRows >= rows) continue;
      int const quad = operand_quad(rank_ * s_.block_chunks + i / kTileRows, i % kTileRows);
      copy(p, tile).st(quad, arrays_.outbox().ld(i));
    }
    device::sync_warp();
    if (device::lane_index() == 0) device::flag_release(flag(tile, rank_), static_cast<uint32_t>(p) + 1);
  }

  RNNKERN_DEVICE void wait(int p, int tile, int rows) const {
    for (int block = first_block_ + device::lane_index(); block <= last_block_; block += 32) {
      device::flag_wait(flag(tile, block), static_cast<uint32_t>(p) + 1);
    }
    device::sync_warp();
    int const lane = device::lane_index();
    for (int slab = first_slab_; slab < last_slab_ && lane / kChunks < rows; ++slab) {
      device::copy_async(arrays_.operand(), slab * 32 + lane, copy(p, tile), slab * 32 + lane);
    }
    device::copy_async_wait();
    device::sync_threads();
  }

 private:
  RNNKERN_DEVICE static int min(int a, int b) { return a < b ? a : b; }
  RNNKERN_DEVICE device::Global<Quad> copy(int p, int tile) const {
    return {exchange_ + int64_t{2 * (first_tile_ + tile) + p % 2} * s_.operand_quads};
  }
  RNNKERN_DEVICE uint32_t* flag(int tile, int block) const {
    return flags_ + int64_t{first_tile_ + tile} * s_.team + block;
  }

  const Sizes& s_;
  Arrays arrays_;
  Quad* const& exchange_;
  uint32_t* const& flags_;
  int rank_, first_tile_;
  int first_slab_, last_slab_, first_block_, last_block_;  // of this warp
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
