// CUDA's devices, of which a machine may have several: kernels are launched on the calling thread's current one,
// whatever memory they are given. It needs no CUDA header.
#ifndef QATFAST_CORE_CUDA_DEVICES_H_
#define QATFAST_CORE_CUDA_DEVICES_H_

namespace qatfast {
namespace cuda {

struct PointerDevice {
  int device = -1;  // -1: none whose memory CUDA knows
  const char* error = nullptr;
};

// The device that has the memory that `pointer` points to.
PointerDevice DeviceOf(const void* pointer);

// Makes a device the current one of the calling thread, and, when it dies, the one that was.
class ScopedDevice {
 public:
  explicit ScopedDevice(int device);
  ~ScopedDevice();
  ScopedDevice(const ScopedDevice&) = delete;
  ScopedDevice& operator=(const ScopedDevice&) = delete;

  // What CUDA said if it could not; else null.
  const char* error() const { return error_; }

 private:
  int previous_ = -1;  // -1: it was the current one already
  const char* error_ = nullptr;
};

}  // namespace cuda
}  // namespace qatfast

#endif  // QATFAST_CORE_CUDA_DEVICES_H_
