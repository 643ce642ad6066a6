// The kernels on arrays in the memory of a CUDA device.
#ifndef QATFAST_PY_CUDA_FUNCTIONS_H_
#define QATFAST_PY_CUDA_FUNCTIONS_H_

#include <pybind11/pybind11.h>

namespace qatfast {

// Adds the functions to `m`. They write into arrays that the caller gives, and allocate, copy and wait for nothing.
void DefineCuda(pybind11::module_& m);

}  // namespace qatfast

#endif  // QATFAST_PY_CUDA_FUNCTIONS_H_
