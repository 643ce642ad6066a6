// Runs the CPU kernels on the threads of the TensorFlow device that an op was placed on.
#ifndef QATFAST_TF_CPU_EXECUTION_OF_H_
#define QATFAST_TF_CPU_EXECUTION_OF_H_

#include <optional>

#include "core/cpu_execution.h"
#include "tensorflow/core/framework/device_base.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/platform/threadpool.h"

namespace qatfast {

inline CpuExecution CpuExecutionOf(tensorflow::OpKernelContext* context) {
  tensorflow::thread::ThreadPool* pool = context->device()->tensorflow_cpu_worker_threads()->workers;
  CpuExecution execution;
  execution.parallel_for = [pool](int64_t count, int64_t cycles_each, const RangeBody& body) {
    using Scheduling = tensorflow::thread::ThreadPool::SchedulingParams;
    const auto adaptive = tensorflow::thread::ThreadPool::SchedulingStrategy::kAdaptive;
    pool->ParallelFor(count, Scheduling(adaptive, cycles_each, std::nullopt), body);
  };
  return execution;
}

}  // namespace qatfast

#endif  // QATFAST_TF_CPU_EXECUTION_OF_H_
