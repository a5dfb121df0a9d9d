#include "primitives.h"

#include "machine.h"
#include "mma.h"
#include "report.h"

namespace rnnkern::device {

using emulation::fail;
using emulation::Machine;
using emulation::Wait;

namespace detail {

void out_of_bounds(int i, int count, uint32_t address, Site site) {
  fail("element " + std::to_string(i) + " of an array of " + std::to_string(count) + " at byte " +
           std::to_string(address) + " of shared memory",
       site);
}

void misplaced(uint32_t address, int64_t bytes, uint32_t alignment, Site site) {
  fail("an array of " + std::to_string(bytes) + " bytes at byte " + std::to_string(static_cast<int>(address)) + " of " +
           std::to_string(emulation::running->shared_bytes) + " of shared memory, whose elements are aligned to " +
           std::to_string(alignment),
       site);
}

void check_shared(uint32_t address, uint32_t bytes, bool write, Site site) {
  Machine::current().access_shared(address, bytes, write, site);
}

void check_global(const void* address, uint32_t bytes, bool write, Site site) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    fail("global memory that is not aligned to " + std::to_string(bytes) + " bytes", site);
  }
  Machine::current().access_global(address, bytes, write, site);
}

}  // namespace detail

void copy_async(Shared<Quad> to, int i, Global<Quad> from, int64_t j, Site site) {
  if (reinterpret_cast<uintptr_t>(from.base) % sizeof(Quad) != 0)
    fail("a copy from an address that is not aligned", site);
  Machine::current().begin_copy(to.place(i, site), from.base + j, site);
}
void copy_async_wait(Site site) { Machine::current().finish_copies(site); }

void sync_threads(Site site) { Machine::current().barrier(site); }

void sync_warp(Site site) {
  if (Machine::current().join_collective(Wait::warp, nullptr, site)) Machine::current().finish_collective();
}

float shuffle_xor(float value, int mask, Site site) {
  if (mask < 0 || mask > 31) fail("a shuffle with mask " + std::to_string(mask), site);
  struct Operand {
    float in, out;
    int mask;
  } own = {value, 0, mask};
  Machine& machine = Machine::current();
  if (machine.join_collective(Wait::shuffle, &own, site)) {
    emulation::Thread* const lanes = Machine::self().warp->lanes;
    for (int i = 0; i < emulation::kLanes; ++i) {
      auto* const operand = static_cast<Operand*>(lanes[i].operand);
      operand->out = static_cast<Operand*>(lanes[i ^ operand->mask].operand)->in;
    }
    machine.finish_collective();
  }
  return own.out;
}

namespace {

template <class Element>
void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
  emulation::Fragments own = {c, a, b};
  Machine& machine = Machine::current();
  if (!machine.join_collective(Wait::mma, &own, site)) return;
  emulation::Thread* const lanes = Machine::self().warp->lanes;
  const emulation::Fragments* fragments[emulation::kLanes];
  for (int i = 0; i < emulation::kLanes; ++i) fragments[i] = static_cast<const emulation::Fragments*>(lanes[i].operand);
  emulation::multiply<Element>(fragments);
  machine.finish_collective();
}

}  // namespace

void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
  mma<emulation::Bf16>(c, a, b, site);
}
void mma_fp16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
  mma<emulation::Fp16>(c, a, b, site);
}
void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
  mma<emulation::Tf32>(c, a, b, site);
}

float round_tf32(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7f800000) == 0x7f800000) return value;  // infinity, NaN
  bits = (bits + 0x1000) & 0xffffe000;
  std::memcpy(&value, &bits, sizeof bits);
  return value;
}

void flag_release(uint32_t* flag, uint32_t value, Site site) { Machine::current().release_flag(flag, value, site); }
void flag_wait(const uint32_t* flag, uint32_t at_least, Site site) {
  Machine::current().wait_flag(flag, at_least, site);
}

void cluster_sync(Site site) { Machine::current().cluster_barrier(site); }
void mbarrier_init(Shared<uint64_t> b, int i, int arrivals, Site site) {
  Machine::current().init_mbarrier(b.place(i, site), arrivals, site);
}
void mbarrier_init_done(Site site) { Machine::current().announce_mbarriers(site); }
void mbarrier_expect(Shared<uint64_t> b, int i, uint32_t bytes, Site site) {
  Machine::current().expect_mbarrier(b.place(i, site), bytes, site);
}
void mbarrier_arrive(Shared<uint64_t> b, int i, int rank, Site site) {
  Machine::current().arrive_remote(b.place(i, site), rank, site);
}
void mbarrier_wait(Shared<uint64_t> b, int i, int parity, Site site) {
  Machine::current().wait_mbarrier(b.place(i, site), parity, site);
}
void store_async(Shared<Quad> to, int i, int rank, Quad value, Shared<uint64_t> b, int j, Site site) {
  Machine::current().store_remote(to.place(i, site), rank, value.word, b.place(j, site), site);
}

}  // namespace rnnkern::device
