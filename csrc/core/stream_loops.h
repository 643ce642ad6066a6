// The copy of stream_store.cc, compiled once per instruction set by foreach_isa.h.

namespace qatfast {
namespace QATFAST_ISA_NAMESPACE {

// Copies a cache line, whole: then it needs not be read first. Precondition: `to` is aligned to 64 bytes.
QATFAST_INLINE void CopyLine(char* to, const char* from) {
#if QATFAST_ISA_AVX512
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
#elif QATFAST_ISA_AVX2
  for (int part = 0; part < 64; part += 32) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + part));
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + part), bytes);
  }
#elif defined(__x86_64__)
  for (int part = 0; part < 64; part += 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + part));
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + part), bytes);
  }
#else
  std::memcpy(to, from, 64);
#endif
}

inline void CopyAroundCaches(void* destination, const void* source, int64_t bytes) {
  char* to = static_cast<char*>(destination);
  const char* from = static_cast<const char*>(source);
  int64_t i = std::min<int64_t>(bytes, -reinterpret_cast<uintptr_t>(to) & 63);
  std::memcpy(to, from, i);
  for (; i + 64 <= bytes; i += 64) CopyLine(to + i, from + i);
  std::memcpy(to + i, from + i, bytes - i);
}

}  // namespace QATFAST_ISA_NAMESPACE
}  // namespace qatfast
