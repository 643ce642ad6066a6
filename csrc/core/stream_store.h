// Writing large outputs around the caches.
//
// A plain store first reads the line that it overwrites; a streaming (non-temporal) store does not, and leaves the
// caches to the inputs. That saves a third of the traffic of a kernel that reads and writes one stream each, but
// costs the reader that would have found the output in cache: for large outputs only (kStreamingBytes).
#ifndef QATFAST_CORE_STREAM_STORE_H_
#define QATFAST_CORE_STREAM_STORE_H_

#include <cstdint>

#include "core/channel_tiles.h"
#include "core/cpu_execution.h"

namespace qatfast {

// Copies bytes with streaming stores where the processor has them. Needs StreamFence before others may read them.
using StreamCopy = void (*)(void* destination, const void* source, int64_t bytes);
StreamCopy SelectStreamCopy(Isa isa);
void StreamFence();

// Writes the parts of one block: in place, or computed into a buffer in the first-level cache and streamed out.
template <typename T>
class StreamingWriter {
 public:
  StreamingWriter(bool stream, Isa isa) : copy_(stream ? SelectStreamCopy(isa) : nullptr) {}
  ~StreamingWriter() {
    if (copy_ != nullptr) StreamFence();
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
    if (copy_ == nullptr) {
      compute(output, stride);
      return;
    }
    compute(buffer_, kPaddedPartWidth);
    for (int64_t row = 0; row < rows; ++row) {
      copy_(output + row * stride, buffer_ + row * kPaddedPartWidth, length * static_cast<int64_t>(sizeof(T)));
    }
  }

 private:
  StreamCopy copy_;
  alignas(64) T buffer_[kRowsAtOnce * kPaddedPartWidth];
};

}  // namespace qatfast

#endif  // QATFAST_CORE_STREAM_STORE_H_
