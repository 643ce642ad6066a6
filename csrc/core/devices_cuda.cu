#include <cuda_runtime.h>

#include "core/cuda_devices.h"

namespace qatfast {
namespace cuda {
namespace {

// What CUDA says of a failure, which it then forgets; null if there is none.
const char* Message(cudaError_t status) {
  if (status == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(status);
}

}  // namespace

PointerDevice DeviceOf(const void* pointer) {
  cudaPointerAttributes attributes;
  const char* error = Message(cudaPointerGetAttributes(&attributes, pointer));
  if (error != nullptr) return {-1, error};
  return {attributes.type == cudaMemoryTypeUnregistered ? -1 : attributes.device, nullptr};
}

ScopedDevice::ScopedDevice(int device) {
  int current = -1;
  error_ = Message(cudaGetDevice(&current));
  if (error_ != nullptr || current == device) return;
  error_ = Message(cudaSetDevice(device));
  if (error_ == nullptr) previous_ = current;
}

ScopedDevice::~ScopedDevice() {
  if (previous_ >= 0) cudaSetDevice(previous_);
}

}  // namespace cuda
}  // namespace qatfast
