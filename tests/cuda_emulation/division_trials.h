// Tries PreparedDivision<float> (core/exact_division.h) on all that could show it wrong, and at random.
#ifndef QATFAST_TESTS_CUDA_EMULATION_DIVISION_TRIALS_H_
#define QATFAST_TESTS_CUDA_EMULATION_DIVISION_TRIALS_H_

#include <pybind11/pybind11.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/exact_division.h"

namespace division_trials {

using qatfast::BitCast;
using qatfast::PreparedDivision;

struct Tally {
  int64_t tried = 0;
  int64_t wrong = 0;
  float dividend = 0, divisor = 0;  // of the last that was wrong

  void Count(float x, float by, bool is_right) {
    ++tried;
    if (is_right) return;
    ++wrong;
    dividend = x;
    divisor = by;
  }
};

// Whether two floats are the same or neighbours but for `units`. Both are of one sign.
inline bool AreWithin(float a, float b, int units) {
  return std::abs(BitCast<int32_t>(a) - BitCast<int32_t>(b)) <= units;
}

inline bool IsRight(float quotient, float expected) {
  if (std::isnan(expected)) return std::isnan(quotient);
  if (std::signbit(quotient) != std::signbit(expected)) return false;
  const float magnitude = std::fabs(expected);
  if (magnitude >= 0x1p125f && std::isinf(quotient)) return true;
  if (magnitude < 0x1p-100f) return AreWithin(quotient, expected, 1) || magnitude < 0x1p-125f;
  return BitCast<uint32_t>(quotient) == BitCast<uint32_t>(expected);
}

inline uint64_t PowerOfHalf(int exponent, uint64_t odd) {  // 2^-exponent modulo an odd number
  const uint64_t half = (odd + 1) / 2 % odd;
  uint64_t power = 1 % odd;
  for (int i = 0; i < exponent; ++i) power = power * half % odd;
  return power;
}

// Every quotient of integers a / b of 24 bits that lies within 2^-22 units in the last place of the middle of two
// numbers: 2^k a = m b + e with m odd, of 25 bits, and |e| <= 8. k is 24 where a >= b, else 25.
inline Tally TryHardest(uint32_t begin, uint32_t end) {
  constexpr uint64_t kLow = 1 << 23, kHigh = 1 << 24;
  constexpr int kNear = 8;
  Tally tally;
  for (uint64_t b = begin; b < end; ++b) {
    const auto by = static_cast<float>(b);
    const auto divide = PreparedDivision<float>::By(by);
    const int twos = __builtin_ctzll(b);  // m is odd, so e has as many
    const uint64_t odd = b >> twos;
    for (const int k : {24, 25}) {
      const uint64_t inverse = PowerOfHalf(k - twos, odd);
      for (int64_t e = -(kNear >> twos); e <= (kNear >> twos); ++e) {
        if (e == 0) continue;
        const uint64_t rest = (e > 0 ? e : static_cast<int64_t>(odd) - (-e) % static_cast<int64_t>(odd)) % odd;
        const uint64_t first = rest * inverse % odd;
        for (uint64_t a = first + (kLow - 1 - first + odd) / odd * odd; a < kHigh; a += odd) {
          if ((a >= b) != (k == 24)) continue;
          const auto m = static_cast<uint64_t>((static_cast<int64_t>(a << (k - twos)) - e) / static_cast<int64_t>(odd));
          if (m % 2 == 0) continue;
          const auto x = static_cast<float>(a);
          tally.Count(x, by, IsRight(divide(x, by), x / by));
        }
      }
    }
  }
  return tally;
}

// Any numbers at all: half of them any bits, half with quotients about those of a grid.
inline Tally TryRandom(int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  Tally tally;
  while (tally.tried < count) {
    const uint64_t bits = random();
    const auto divisor_bits = static_cast<uint32_t>(bits >> 33);
    if (divisor_bits < 0x00800000 || divisor_bits >= 0x7f800000) continue;
    const auto by = BitCast<float>(divisor_bits);
    const auto divide = PreparedDivision<float>::By(by);
    for (int i = 0; i < 64; ++i) {
      const uint64_t draw = random();
      float x = BitCast<float>(static_cast<uint32_t>(draw));
      if (draw >> 63) x = static_cast<float>(static_cast<int32_t>(draw >> 16)) * 0x1p-14f * by;
      if (std::fabs(x) < 0x1p-126f && x != 0) continue;  // it counts as zero on a GPU
      tally.Count(x, by, IsRight(divide(x, by), x / by));
    }
  }
  return tally;
}

template <typename Part>
pybind11::tuple InThreads(int num_threads, const Part& part) {
  std::vector<Tally> tallies(num_threads);
  std::vector<std::thread> threads;
  {
    const pybind11::gil_scoped_release unlocked;
    for (int i = 0; i < num_threads; ++i) threads.emplace_back([&, i] { tallies[i] = part(i); });
    for (std::thread& thread : threads) thread.join();
  }
  Tally all;
  for (const Tally& tally : tallies) {
    all.tried += tally.tried;
    all.wrong += tally.wrong;
    if (tally.wrong > 0) all.dividend = tally.dividend, all.divisor = tally.divisor;
  }
  return pybind11::make_tuple(all.tried, all.wrong, all.dividend, all.divisor);
}

// Both give (tried, wrong, dividend and divisor of one that was wrong).
inline void DefineDivisionTrials(pybind11::module_& m) {
  m.def("try_hardest_divisions", [](int num_threads) {
    return InThreads(num_threads, [&](int i) {
      const uint32_t low = 1 << 23;
      return TryHardest(low + static_cast<uint64_t>(low) * i / num_threads,
                        low + static_cast<uint64_t>(low) * (i + 1) / num_threads);
    });
  });
  m.def("try_random_divisions", [](int64_t count, uint64_t seed, int num_threads) {
    return InThreads(num_threads, [&](int i) { return TryRandom(count / num_threads, seed + i); });
  });
}

}  // namespace division_trials

#endif  // QATFAST_TESTS_CUDA_EMULATION_DIVISION_TRIALS_H_
