// Streaming (non-temporal) stores of one instruction set. Included by foreach_isa.h bodies.

namespace qatfast {
namespace QATFAST_ISA_NAMESPACE {

// Copies kBytes, 32 or a multiple of 64, around the caches. Whole cache lines of 64 bytes, in one or several calls in
// a row, need not be read first. Precondition: `to` is aligned to min(kBytes, 64).
template <int kBytes>
QATFAST_INLINE void StreamBytes(void* to, const void* from) {
  static_assert(kBytes == 32 || kBytes % 64 == 0, "half a line, or whole ones");
  char* output = static_cast<char*>(to);
  const char* input = static_cast<const char*>(from);
#if QATFAST_ISA_AVX512
  if constexpr (kBytes % 64 == 0) {
    for (int part = 0; part < kBytes; part += 64) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(output + part), _mm512_loadu_si512(input + part));
    }
    return;
  }
#endif
#if QATFAST_ISA_AVX2
  for (int part = 0; part < kBytes; part += 32) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(input + part));
    _mm256_stream_si256(reinterpret_cast<__m256i*>(output + part), bytes);
  }
#elif defined(__x86_64__)
  for (int part = 0; part < kBytes; part += 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(input + part));
    _mm_stream_si128(reinterpret_cast<__m128i*>(output + part), bytes);
  }
#else
  std::memcpy(output, input, kBytes);
#endif
}

}  // namespace QATFAST_ISA_NAMESPACE
}  // namespace qatfast
