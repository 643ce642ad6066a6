// How the CUDA kernels run: the counterpart of CpuExecution. It needs no CUDA header.
#ifndef QATFAST_CORE_CUDA_EXECUTION_H_
#define QATFAST_CORE_CUDA_EXECUTION_H_

struct CUstream_st;

namespace qatfast {

using CudaStream = CUstream_st*;  // what CUDA calls cudaStream_t

// Entry points queue their work on `stream` and return; nothing waits for the device, and nothing is copied to or from
// it. All pointers that they are given are to the device's memory.
struct CudaExecution {
  CudaStream stream = nullptr;          // null: the default stream
  mutable const char* error = nullptr;  // what CUDA said of the first launch that failed, if one did
};

}  // namespace qatfast

#endif  // QATFAST_CORE_CUDA_EXECUTION_H_
