// Prints how many blocks walk a depthwise 3x3 kernel of 2^22 channels, for packs of 4 and of 8 elements: for
// tools/hot_kernels.py.
#include <cstdio>

#include "core/channel_tiles_cuda.h"

int main() {
  const qatfast::ChannelLayout layout = {9, int64_t{1} << 22, 1};
  for (const int pack_width : {4, 8}) {
    const qatfast::cuda::Lanes lanes(layout, {layout.size(), 0, true}, pack_width);
    std::printf("%lld\n", static_cast<long long>(lanes.num_blocks()));
  }
}
