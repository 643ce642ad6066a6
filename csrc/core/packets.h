// Kernels go through memory in packets: kLanes neighbours, loaded to and stored from an array of arithmetic numbers
// that the compiler keeps in registers. Included by foreach_isa.h bodies, once per instruction set.

namespace qatfast {
namespace QATFAST_ISA_NAMESPACE {

template <typename A>
QATFAST_INLINE void LoadPacket(const A* from, A* to) {
  QATFAST_FOR_LANES(lane) to[lane] = from[lane];
}

template <typename A>
QATFAST_INLINE void StorePacket(const A* from, A* to) {
  QATFAST_FOR_LANES(lane) to[lane] = from[lane];
}

#if QATFAST_ISA_AVX512
QATFAST_INLINE void LoadPacket(const Float16* from, float* to) {
  _mm512_storeu_ps(to, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}

QATFAST_INLINE void StorePacket(const float* from, Float16* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_cvtps_ph(_mm512_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

QATFAST_INLINE void LoadPacket(const BFloat16* from, float* to) {
  const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  _mm512_storeu_ps(to, _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)));
}

// Narrow<BFloat16> of half.h.
QATFAST_INLINE void StorePacket(const float* from, BFloat16* to) {
  const __m512 values = _mm512_loadu_ps(from);
  const __m512i bits = _mm512_castps_si512(values);
  const __m512i upper = _mm512_srli_epi32(bits, 16);
  const __m512i is_odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), is_odd), 16);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
  const __m512i result = _mm512_mask_or_epi32(rounded, is_nan, upper, _mm512_set1_epi32(0x40));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(result));
}
#else
#if QATFAST_ISA_AVX2
QATFAST_INLINE void LoadPacket(const Float16* from, float* to) {
  for (int half = 0; half < kLanes; half += 8) {
    _mm256_storeu_ps(to + half, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + half))));
  }
}

QATFAST_INLINE void StorePacket(const float* from, Float16* to) {
  for (int half = 0; half < kLanes; half += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + half),
                     _mm256_cvtps_ph(_mm256_loadu_ps(from + half), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
}
#else
QATFAST_INLINE void LoadPacket(const Float16* from, float* to) { QATFAST_FOR_LANES(lane) to[lane] = Widen(from[lane]); }

QATFAST_INLINE void StorePacket(const float* from, Float16* to) {
  QATFAST_FOR_LANES(lane) to[lane] = Narrow<Float16>(from[lane]);
}
#endif

QATFAST_INLINE void LoadPacket(const BFloat16* from, float* to) {
  QATFAST_FOR_LANES(lane) to[lane] = Widen(from[lane]);
}

QATFAST_INLINE void StorePacket(const float* from, BFloat16* to) {
  QATFAST_FOR_LANES(lane) to[lane] = Narrow<BFloat16>(from[lane]);
}
#endif

// Bit i tells whether conditions[i] is not 0.
QATFAST_INLINE uint16_t PackBits(const int32_t* conditions) {
#if QATFAST_ISA_AVX512
  const __m512i loaded = _mm512_loadu_si512(conditions);
  return _mm512_test_epi32_mask(loaded, loaded);
#elif defined(__x86_64__)
  const __m128i* from = reinterpret_cast<const __m128i*>(conditions);
  const __m128i low = _mm_packs_epi32(_mm_loadu_si128(from), _mm_loadu_si128(from + 1));
  const __m128i high = _mm_packs_epi32(_mm_loadu_si128(from + 2), _mm_loadu_si128(from + 3));
  const __m128i bytes = _mm_packs_epi16(low, high);
  return static_cast<uint16_t>(_mm_movemask_epi8(_mm_cmpgt_epi8(bytes, _mm_setzero_si128())));
#else
  uint16_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits |= static_cast<uint16_t>((conditions[lane] != 0) << lane);
  return bits;
#endif
}

}  // namespace QATFAST_ISA_NAMESPACE
}  // namespace qatfast
