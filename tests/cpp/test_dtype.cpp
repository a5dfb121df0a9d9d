// The 16-bit storage types: every value survives a round trip, and what lies between two values goes to the nearer one,
// or to the even one from the middle.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>

#include "dtype.h"

using namespace rnnkern;

namespace {

void expect(bool condition, const char* type, const char* what, unsigned bits) {
  if (condition) return;
  std::printf("FAILED %s %s at bits %#x\n", type, what, bits);
  std::exit(1);
}

template <class T>
void check(const char* type, unsigned infinity) {
  auto value = [](unsigned bits) { return to_compute(T{static_cast<uint16_t>(bits)}); };
  auto rounded = [](float x) { return from_compute<T>(x).bits; };
  for (unsigned sign : {0u, 0x8000u}) {
    for (unsigned bits = 0; bits <= 0x7fff; ++bits) {
      float const x = value(sign | bits);
      if (bits > infinity) {
        expect(std::isnan(x) && std::isnan(value(rounded(x))), type, "NaN is not kept", sign | bits);
        continue;
      }
      expect(rounded(x) == (sign | bits), type, "a round trip changes the value", sign | bits);
      expect(std::signbit(x) == (sign != 0), type, "the sign is lost", sign | bits);
      if (bits + 1 >= infinity) continue;
      float const next = value(sign | (bits + 1)), middle = x + (next - x) / 2;
      expect(rounded(middle) == (sign | (bits + (bits & 1))), type, "a tie does not go to the even neighbour",
             sign | bits);
      expect(rounded(std::nextafter(middle, x)) == (sign | bits), type, "rounding down fails", sign | bits);
      expect(rounded(std::nextafter(middle, next)) == (sign | (bits + 1)), type, "rounding up fails", sign | bits);
    }
  }
  expect(rounded(std::numeric_limits<float>::max()) == infinity, type, "overflow is not infinity", infinity);
  expect(rounded(std::numeric_limits<float>::denorm_min()) == 0, type, "underflow is not zero", 0);
}

}  // namespace

int main() {
  check<Float16>("float16", 0x7c00);
  check<BFloat16>("bfloat16", 0x7f80);
  static_assert(sizeof(compute_t<double>) == 8 && sizeof(compute_t<Float16>) == 4);
  std::printf("16-bit storage rounds to nearest, ties to even\n");
  return 0;
}
