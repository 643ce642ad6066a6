// The module _core.cuda on the emulator, the emulator's settings, and what only tests need.

#include <cuda_runtime.h>

#include "division_trials.h"
#include "py/array_view.h"
#include "py/cuda_functions.h"

namespace {

void SetThreadOrder(const std::string& order) {
  using cuda_emulation::Order;
  for (const auto& [name, value] :
       {std::pair("forward", Order::kForward), {"backward", Order::kBackward}, {"shuffled", Order::kShuffled}}) {
    if (order == name) return cuda_emulation::SetThreadOrder(value);
  }
  qatfast::Fail("set_thread_order", "order", "forward, backward or shuffled", order);
}

}  // namespace

PYBIND11_MODULE(_emulated_cuda, m) {
  qatfast::DefineCuda(m);
  division_trials::DefineDivisionTrials(m);
  m.def("set_thread_order", &SetThreadOrder);
  m.def("set_blocks_run", &cuda_emulation::SetBlocksRun);
  m.def("launch_count", &cuda_emulation::LaunchCount);
  m.def("launch_device", &cuda_emulation::LaunchDevice);
  m.def("set_device_of", &cuda_emulation::SetDeviceOf);
  m.def("forget_devices", &cuda_emulation::ForgetDevices);
  m.def("current_device", [] { return cuda_emulation::current_device; });
  m.def("set_current_device", [](int device) { cudaSetDevice(device); });
}
