// Masks of one bit per element: element i is bit i % 8 of byte i / 8.
#ifndef QATFAST_CORE_BIT_MASK_H_
#define QATFAST_CORE_BIT_MASK_H_

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace qatfast {

inline int64_t BitMaskBytes(int64_t size) { return (size + 7) / 8; }

// Writes bits one after another, from a bit at the start of a byte on. Bytes are written whole: after the last bit
// come zeros up to the end of its byte.
class BitWriter {
 public:
  // Precondition: first_bit % 8 == 0, unless `mask` is null; then nothing is written.
  BitWriter(uint8_t* mask, int64_t first_bit) : mask_(mask), position_(first_bit) {}

  // Appends the first `count` bits of `bits`. Precondition: the rest of their last byte is 0.
  void Append(const uint16_t* bits, int64_t count) {
    if (mask_ == nullptr || count == 0) return;
    const uint8_t* from = reinterpret_cast<const uint8_t*>(bits);  // the lowest bits come first on all our processors
    uint8_t* to = mask_ + position_ / 8;
    const int shift = position_ % 8;
    const int64_t bytes = BitMaskBytes(count);
    if (shift == 0) {
      std::memcpy(to, from, bytes);
    } else {
      for (int64_t i = 0; i < bytes; ++i) {
        to[i] = static_cast<uint8_t>(to[i] | from[i] << shift);
        if (8 * i + 8 - shift < count) to[i + 1] = static_cast<uint8_t>(from[i] >> (8 - shift));
      }
    }
    position_ += count;
  }

  void AppendOnes(int64_t count) {
    constexpr int64_t kBits = 512;
    uint16_t ones[kBits / 16];
    std::memset(ones, 0xff, sizeof(ones));
    for (; count >= kBits; count -= kBits) Append(ones, kBits);
    std::memset(ones, 0, sizeof(ones));
    for (int64_t i = 0; i < count; ++i) ones[i / 16] = static_cast<uint16_t>(ones[i / 16] | 1 << i % 16);
    Append(ones, count);
  }

 private:
  uint8_t* mask_;
  int64_t position_;
};

}  // namespace qatfast

#endif  // QATFAST_CORE_BIT_MASK_H_
