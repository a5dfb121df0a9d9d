// What a stationary sweep does at every step, whatever the cell: the block's weights times the operand, and the way
// from one step's operand to the next.
#pragma once

#include "../course.h"
#include "exchange.cuh"

namespace rnnkern::stationary {

template <Sweep sweep, Math math, Exchange exchange, int granules>
class Engine {
 public:
  using T = storage_t<math>;
  using Link = typename LinkOf<exchange>::type;

  // `weights`: of all recurrences of this group, as PackWeights wrote them; `head` is this one's.
  RNNKERN_DEVICE Engine(const Tiling& t, const Place& place, Quad* exchange_memory, uint32_t* flags, bool exact)
      : t_(t), arrays_(t), link_(t, place, arrays_, exchange_memory, flags), exact_(exact) {}

  RNNKERN_DEVICE void begin(const Quad* weights, int64_t head, int rank) {
    int const lane = device::lane_index(), warp = device::warp_index(), rows = t_.slab_quads() / 32;
    int64_t const own = ((head * t_.team + rank) * (t_.threads() / 32) + warp) * packed_warp_quads_() + lane;
    const Quad* const packed = weights + own;
    RNNKERN_UNROLL for (int s = 0; s < kSlabs; ++s) {
      if (s < t_.register_slabs()) {
        RNNKERN_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
          weights_[s][tile] = {packed[(s * rows + 2 * tile) * 32], packed[(s * rows + 2 * tile + 1) * 32]};
        }
      }
    }
    int const kept = t_.shared_slabs() * rows;
    for (int i = 0; i < kept; ++i) {
      arrays_.weights.st((warp * kept + i) * 32 + lane, packed[(t_.register_slabs() * rows + i) * 32]);
    }
    link_.begin();
  }

  // This block's rows times operand p: partial sums, one of each depth split. A barrier makes them readable.
  RNNKERN_DEVICE void product(int p) {
    Sum<math> sums[kTiles][granules];
    int const warp = device::warp_index(), row_group = warp % t_.row_groups, split = warp / t_.row_groups;
    int const first = split * t_.split_slabs(), left = t_.slabs() - first;
    int const count = left < t_.split_slabs() ? left : t_.split_slabs();
    Shared<Quad> const operand = link_.operand(p);
    RNNKERN_UNROLL for (int s = 0; s < kSlabs; ++s) {
      if (s < count) multiply(sums, weights_[s], operand, first + s);
    }
    for (int s = kSlabs; s < count; ++s) {
      WeightTile weights[kTiles];
      int const at = (warp * t_.shared_slabs() + s - kSlabs) * t_.slab_quads() + device::lane_index();
      RNNKERN_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
        weights[tile] = {arrays_.weights.ld(at + 64 * tile), arrays_.weights.ld(at + 64 * tile + 32)};
      }
      multiply(sums, weights, operand, first + s);
    }
    keep(sums, row_group, split);
    device::sync_threads();
  }

  // The product of weight row `row` of this block and batch row n.
  RNNKERN_DEVICE float total(int n, int row) const {
    float sum = 0;
    for (int split = 0; split < t_.depth_splits; ++split) {
      sum += arrays_.partial.ld((split * t_.tile_rows() + n) * t_.padded_rows() + row);
    }
    return sum;
  }

  // Element of this block's part of operand p: gate (of the depth), unit, batch row.
  RNNKERN_DEVICE void put(int p, int gate, int unit, int n, T value) const {
    if constexpr (math == Math::tf32) {
      link_.put(p, gate * t_.units + unit, n, exact_ ? value : round_to_tf32(value));
    } else {
      link_.put(p, gate * t_.units + unit, n, value);
    }
  }

  RNNKERN_DEVICE void publish(int p, int tile) const {
    device::sync_threads();
    link_.publish(p, tile);
  }
  RNNKERN_DEVICE void wait(int p, int tile) const { link_.wait(p, tile); }

  // The two float states of an element of the block's part of the batch; only the thread that owns it comes here.
  RNNKERN_DEVICE float state(int which, int tile, int item) const {
    return arrays_.state.ld(state_at(which, tile, item));
  }
  RNNKERN_DEVICE void set_state(int which, int tile, int item, float value) const {
    arrays_.state.st(state_at(which, tile, item), value);
  }

 private:
  static constexpr int kTiles = rows_per_group(sweep) / 16, kSlabs = capacity(exchange, sweep, granules).slabs;

  RNNKERN_DEVICE int64_t packed_warp_quads_() const { return int64_t{t_.split_slabs()} * t_.slab_quads(); }
  RNNKERN_DEVICE int state_at(int which, int tile, int item) const {
    return (which * t_.tiles + tile) * t_.units * t_.tile_rows() + item;
  }

  RNNKERN_DEVICE void multiply(Sum<math> (&sums)[kTiles][granules], const WeightTile (&weights)[kTiles],
                               Shared<Quad> operand, int slab) const {
    RNNKERN_UNROLL for (int granule = 0; granule < granules; ++granule) {
      Shared<Quad> const piece = operand.from((granule * t_.slabs() + slab) * 32);
      RNNKERN_UNROLL for (int tile = 0; tile < kTiles; ++tile) sums[tile][granule].add(weights[tile], piece, exact_);
    }
  }

  RNNKERN_DEVICE void keep(Sum<math> (&sums)[kTiles][granules], int row_group, int split) const {
    int const g = device::lane_index() / kChunks, q = device::lane_index() % kChunks;
    RNNKERN_UNROLL for (int granule = 0; granule < granules; ++granule) {
      RNNKERN_UNROLL for (int tile = 0; tile < kTiles; ++tile) {
        sums[tile][granule].finish();
        int const row = row_group * rows_per_group(sweep) + tile * 16 + g;
        int const at = (split * t_.tile_rows() + granule * kGranule + 2 * q) * t_.padded_rows() + row;
        const float (&sum)[4] = sums[tile][granule].sum;
        arrays_.partial.st(at, sum[0]);
        arrays_.partial.st(at + t_.padded_rows(), sum[1]);
        arrays_.partial.st(at + 8, sum[2]);
        arrays_.partial.st(at + t_.padded_rows() + 8, sum[3]);
      }
    }
  }

  const Tiling& t_;
  Arrays arrays_;
  Link link_;
  bool exact_;
  WeightTile weights_[kSlabs][kTiles];
};

}  // namespace rnnkern::stationary
