// The inner loop of straight_through_cpu.cc, compiled once per instruction set by foreach_isa.h.

namespace qatfast {
namespace QATFAST_ISA_NAMESPACE {

// grad_x[i] = grad_y[i] if bit i of the mask is set, else 0. Numbers as unsigned integers of their size.
template <typename Bits>
void PassMasked(const Bits* grad_y, const uint8_t* mask, Bits* grad_x, int64_t size) {
  constexpr int kWord = 16;
  int64_t i = 0;
  for (; i + kWord <= size; i += kWord) {
    uint16_t word;
    std::memcpy(&word, mask + i / 8, sizeof(word));
    _Pragma("GCC ivdep") _Pragma("GCC unroll 1") for (int bit = 0; bit < kWord; ++bit) grad_x[i + bit] =
        word & 1 << bit ? grad_y[i + bit] : Bits{0};
  }
  for (; i < size; ++i) grad_x[i] = mask[i / 8] & 1 << i % 8 ? grad_y[i] : Bits{0};
}

}  // namespace QATFAST_ISA_NAMESPACE
}  // namespace qatfast
