// Writing large outputs around the caches.
//
// A plain store first reads the line that it overwrites; a streaming (non-temporal) store does not, and leaves the
// caches to the inputs. That saves a third of the traffic of a kernel that reads and writes one stream each, but
// costs the reader that would have found the output in cache: for large outputs only (kStreamingBytes).
#ifndef QATFAST_CORE_STREAM_STORE_H_
#define QATFAST_CORE_STREAM_STORE_H_

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#include "core/channel_tiles.h"

namespace qatfast {

// Copies bytes with streaming stores where the processor has them. Needs StreamFence before others may read them.
inline void StreamCopy(void* destination, const void* source, int64_t bytes) {
  char* to = static_cast<char*>(destination);
  const char* from = static_cast<const char*>(source);
#if defined(__x86_64__)
  const int64_t head = std::min<int64_t>(bytes, -reinterpret_cast<uintptr_t>(to) & 63);
  std::memcpy(to, from, head);
  int64_t i = head;
  // Four stores fill a cache line: a line that is written whole needs not be read.
  for (; i + 64 <= bytes; i += 64) {
    for (int part = 0; part < 64; part += 16) {
      const __m128i value = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i + part));
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + i + part), value);
    }
  }
  std::memcpy(to + i, from + i, bytes - i);
#else
  std::memcpy(to, from, bytes);
#endif
}

inline void StreamFence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// Writes the parts of one block: in place, or computed into a buffer in the first-level cache and streamed out.
template <typename T>
class StreamingWriter {
 public:
  explicit StreamingWriter(bool stream) : stream_(stream) {}
  ~StreamingWriter() {
    if (stream_) StreamFence();
  }
  StreamingWriter(const StreamingWriter&) = delete;
  StreamingWriter& operator=(const StreamingWriter&) = delete;

  // Has compute(buffer) write `length` <= kPartWidth elements, which go to `output`.
  template <typename Compute>
  void Write(T* output, int64_t length, Compute compute) {
    WriteRows(output, length, 1, length, [&](T* row, int64_t) { compute(row); });
  }

  // Has compute(buffer, buffer_stride) write `rows` <= kRowsAtOnce rows, which go to `output` and every `stride`
  // elements on.
  template <typename Compute>
  void WriteRows(T* output, int64_t length, int64_t rows, int64_t stride, Compute compute) {
    if (!stream_) {
      compute(output, stride);
      return;
    }
    compute(buffer_, kPaddedPartWidth);
    for (int64_t row = 0; row < rows; ++row) {
      StreamCopy(output + row * stride, buffer_ + row * kPaddedPartWidth, length * static_cast<int64_t>(sizeof(T)));
    }
  }

 private:
  bool stream_;
  alignas(64) T buffer_[kRowsAtOnce * kPaddedPartWidth];
};

}  // namespace qatfast

#endif  // QATFAST_CORE_STREAM_STORE_H_
