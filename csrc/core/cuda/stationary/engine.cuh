// What a stationary sweep does at every step, whatever the cell: the block's weights times the operand, and the way
// from one step's operand to the next.
#pragma once

#include "exchange.cuh"

namespace rnnkern::stationary {

template <Sweep sweep, Math math, Exchange exchange>
class Engine {
 public:
  using T = storage_t<math>;
  using Link = typename LinkOf<exchange>::type;

  RNNKERN_DEVICE Engine(const Sizes& sizes, const Tiling& tiling, const Place& place, Quad* const& exchange_memory,
                        uint32_t* const& flags, const bool& exact)
      : s_(sizes), arrays_{sizes}, link_(sizes, tiling, place, exchange_memory, flags), exact_(exact) {
    int const row_group = device::warp_index() % tiling.row_groups, split = device::warp_index() / tiling.row_groups;
    int const g = device::lane_index() / kChunks, q = device::lane_index() % kChunks;
    first_slab_ = device::uniform(split * s_.split_slabs);
    int const left = s_.slabs - first_slab_;
    slabs_ = left < s_.split_slabs ? left : s_.split_slabs;
    partial_ = split * s_.split_stride + 2 * q * s_.padded_rows + row_group * rows_per_group(sweep) + g;
    RNNKERN_UNROLL for (int i = 0; i < kBiases; ++i) bias_[i] = 0;
  }

  // What is added to the products of the block's weight rows: bias(row).
  template <class Bias>
  RNNKERN_DEVICE void set_bias(const Tiling& tiling, const Bias& bias) {
    if (first_slab_ > 0) return;  // one of the depth splits adds it
    int const first = device::warp_index() % tiling.row_groups * rows_per_group(sweep) + device::lane_index() / kChunks;
    RNNKERN_UNROLL for (int i = 0; i < kBiases; ++i) {
      if (first + 8 * i < tiling.rows()) bias_[i] = bias(first + 8 * i);
    }
  }

  // `weights`: of all heads of this group, as PackWeights wrote them.
  RNNKERN_DEVICE void begin(Quad* weights, int head, int rank) {
    int const lane = device::lane_index(), warps = s_.threads / 32, warp_quads = s_.split_slabs * kSlabQuads;
    Quad* const packed = weights + (int64_t{head * s_.team + rank} * warps + device::warp_index()) * warp_quads + lane;
    // Each thread reads back only what it copied itself. All copies are under way at once, and while registers load.
    RNNKERN_ROLL for (int i = 0; i < s_.shared_slabs * kSlabQuads; i += 32) {
      device::copy_async(arrays_.weights(), shared_weights() + i, {packed}, kSlabs * kSlabQuads + i);
    }
    RNNKERN_UNROLL for (int s = 0; s < kSlabs; ++s) {
      if (s < s_.split_slabs) {
        RNNKERN_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
          weights_[s][tile] = {packed[s * kSlabQuads + 64 * tile], packed[s * kSlabQuads + 64 * tile + 32]};
        }
      }
    }
    device::copy_async_wait();
    link_.begin();
  }

  // This block's rows times operand p, of which `rows` batch rows count: partial sums, one of each depth split.
  RNNKERN_DEVICE void product(int p, int rows) {
    Sums sums;
    if (math == Math::tf32 && exact_) {
      add_up<Way::exact>(sums, p, rows);
    } else if (math == Math::fma && rows == 1) {
      add_up<Way::one_row>(sums, p, rows);
    } else {
      add_up<Way::plain>(sums, p, rows);
    }
    RNNKERN_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
      sums[tile].finish();
      const float (&total)[4] = sums[tile].total;
      arrays_.partial().st(partial_ + 16 * tile, total[0] + bias(2 * tile));
      arrays_.partial().st(partial_ + 16 * tile + s_.padded_rows, total[1] + bias(2 * tile));
      arrays_.partial().st(partial_ + 16 * tile + 8, total[2] + bias(2 * tile + 1));
      arrays_.partial().st(partial_ + 16 * tile + s_.padded_rows + 8, total[3] + bias(2 * tile + 1));
    }
    device::sync_threads();
  }

  // The products of a unit's weight rows, one of each gate, and batch row n.
  template <int gates>
  RNNKERN_DEVICE void totals(int n, int unit, float (&sum)[gates]) const {
    int at = n * s_.padded_rows + unit;
    RNNKERN_UNROLL for (int gate = 0; gate < gates; ++gate) sum[gate] = arrays_.partial().ld(at + gate * s_.units);
    RNNKERN_UNROLL_BY_4 for (int split = 1; split < s_.depth_splits; ++split) {
      at += s_.split_stride;
      RNNKERN_UNROLL for (int gate = 0; gate < gates; ++gate) sum[gate] += arrays_.partial().ld(at + gate * s_.units);
    }
  }

  // Element of this block's part of operand p: gate (of the depth), unit, batch row.
  RNNKERN_DEVICE void put(int p, int gate, int unit, int n, T value) const {
    if constexpr (math == Math::tf32) {
      link_.put(p, gate * s_.units + unit, n, exact_ ? value : round_to_tf32(value));
    } else {
      link_.put(p, gate * s_.units + unit, n, value);
    }
  }

  RNNKERN_DEVICE void publish(int p, int tile, int rows) const {
    device::sync_threads();
    link_.publish(p, tile, rows);
  }
  RNNKERN_DEVICE void wait(int p, int tile, int rows) const { link_.wait(p, tile, rows); }

  // The two float states of an element of the block's part of the batch; only the thread that owns it comes here.
  RNNKERN_DEVICE float state(int which, int tile, int item) const {
    return arrays_.state().ld(state_at(which, tile, item));
  }
  RNNKERN_DEVICE void set_state(int which, int tile, int item, float value) const {
    arrays_.state().st(state_at(which, tile, item), value);
  }

 private:
  static constexpr int kTiles = rows_per_group(sweep) / 16, kSlabs = register_slabs(exchange, sweep, sizeof(T));
  static constexpr int kSlabQuads = kTiles * 64;
  // Of each tile: four products of a warp are under way, or two where four warps share a scheduler and its registers.
  static constexpr int kChains = (exchange == Exchange::block ? 2 : 4) / kTiles;

  RNNKERN_DEVICE int shared_weights() const {
    return device::warp_index() * s_.shared_slabs * kSlabQuads + device::lane_index();
  }
  RNNKERN_DEVICE float bias(int i) const { return kBiases > 0 ? bias_[i < kBiases ? i : 0] : 0.0f; }
  RNNKERN_DEVICE int state_at(int which, int tile, int item) const { return (2 * tile + which) * s_.tile_items + item; }

  using Sums = Sum<math, kChains>[kTiles];

  template <Way way>
  RNNKERN_DEVICE void add_up(Sums& sums, int p, int rows) const {
    Shared<Quad> const operand = link_.operand(p).from(first_slab_ * 32);
    RNNKERN_UNROLL for (int s = 0; s < kSlabs; ++s) {
      if (s < slabs_) multiply<way>(sums, weights_[s], operand, s, s, rows);
    }
    RNNKERN_ROLL for (int s = kSlabs; s < slabs_; ++s) {
      WeightTile weights[kTiles];
      int const at = shared_weights() + (s - kSlabs) * kSlabQuads;
      RNNKERN_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
        weights[tile] = {arrays_.weights().ld(at + 64 * tile), arrays_.weights().ld(at + 64 * tile + 32)};
      }
      multiply<way>(sums, weights, operand, s, 0, rows);
    }
  }
  template <Way way>
  RNNKERN_DEVICE void multiply(Sums& sums, const WeightTile (&weights)[kTiles], Shared<Quad> operand, int slab,
                               int turn, int rows) const {
    RNNKERN_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
      sums[tile].template add<way>(weights[tile], operand.from(slab * 32), turn, rows);
    }
  }

  const Sizes& s_;
  Arrays arrays_;
  Link link_;
  const bool& exact_;
  int first_slab_, slabs_, partial_;  // of this warp
  WeightTile weights_[kSlabs][kTiles];
  static constexpr int kBiases = sweep == Sweep::forward ? 2 * kTiles : 0;  // weight rows of a lane
  float bias_[kBiases + 1];
};

}  // namespace rnnkern::stationary
