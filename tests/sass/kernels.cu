// What tests/test_sass.py reads the machine code of, kernels.sass:
//   nvcc -O3 -arch=sm_90 -ftz=true -fmad=false -cubin kernels.cu && cuobjdump -sass kernels.cubin, less the NOPs.

// Both loads before the first use, or byte by byte; no loop.
extern "C" __global__ void Together(const uint4* x, uint4* y, int aligned) {
  const uint4* p = x + threadIdx.x;
  if (aligned) {
    uint4 a, b;
    asm volatile("ld.global.v4.u32 {%0,%1,%2,%3},[%4];" : "=r"(a.x), "=r"(a.y), "=r"(a.z), "=r"(a.w) : "l"(p));
    asm volatile("ld.global.v4.u32 {%0,%1,%2,%3},[%4];" : "=r"(b.x), "=r"(b.y), "=r"(b.z), "=r"(b.w) : "l"(p + 256));
    a.x += 1;
    b.x += 1;
    y[threadIdx.x] = a;
    y[threadIdx.x + 256] = b;
  } else {
    ((unsigned char*)y)[threadIdx.x] = ((const unsigned char*)x)[threadIdx.x];
  }
}
// A loop whose second load waits for the first; a division whose slow path is a subroutine.
extern "C" __global__ void OneByOne(const float4* x, float4* y, int n, float d) {
#pragma unroll 1
  for (int i = threadIdx.x; i < n; i += 512) {
    float4 a, b;
    asm volatile("ld.global.v4.f32 {%0,%1,%2,%3},[%4];" : "=f"(a.x), "=f"(a.y), "=f"(a.z), "=f"(a.w) : "l"(x + i));
    a.x = a.x / d;
    asm volatile("ld.global.v4.f32 {%0,%1,%2,%3},[%4];"
                 : "=f"(b.x), "=f"(b.y), "=f"(b.z), "=f"(b.w)
                 : "l"(x + i + 256 + (a.x > 0 ? 1 : 0)));
    y[i] = a;
    y[i + 256] = b;
  }
}
