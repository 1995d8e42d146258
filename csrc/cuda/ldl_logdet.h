// Batched log|det(J + G)| on a CUDA device; the launch side of ldl_logdet.cuh, free of CUDA headers.
#pragma once

#include <cstdint>

namespace fastfid {

constexpr int LDL_MAX_K = 256;  // also LDL_THREADS: a thread keeps the pivot of one column

// Error codes are cudaError_t: 0 launched, 35 and 100 no usable device, 1 k too large for the device's shared memory: every k
// fits in float32, in float64 those up to 199 on sm_80 and 236 on sm_90 and sm_100 (k = 256 would take 270 kB).  Nothing is
// computed then, and the caller takes another route; fastfid/triton_kernels/ldl_logdet.py has Triton's.
// matrices [count, k, k] (lower triangles are read), logdets [count], bad [count], remaining [count / nodes] are device addresses;
// stream a cudaStream_t.
int launch_ldl_logdet(const float* matrices, double* logdets, int* bad, double* remaining, int64_t count, int nodes, int k,
                      int removed, double slack, void* stream);
int launch_ldl_logdet(const double* matrices, double* logdets, int* bad, double* remaining, int64_t count, int nodes, int k,
                      int removed, double slack, void* stream);

int cuda_device_status();

}  // namespace fastfid
