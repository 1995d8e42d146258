// Launches of ldl_logdet.cuh.
#include <cuda_runtime.h>

#include <cmath>

#define FASTFID_SHARED_MEMORY(name) extern __shared__ double name[]
#include "ldl_logdet.cuh"
#include "ldl_logdet.h"

namespace fastfid {
namespace {

constexpr int64_t MAX_GRID = 2147483647;  // blocks along x

template <class T>
int launch(const T* matrices, double* logdets, int* bad, double* remaining, int64_t count, int nodes, int k, int removed,
           double slack, void* stream) {
    if (int status = cuda_device_status()) return status;
    if (count == 0) return cudaSuccess;
    if (count > MAX_GRID) return cudaErrorInvalidValue;
    const size_t shared = ldl_shared_bytes<T>(k);
    // above 48 kB a kernel must ask; a device that has less refuses here
    cudaError_t status = cudaFuncSetAttribute(ldl_logdet<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
    if (status != cudaSuccess) {
        cudaGetLastError();  // the error is returned, not left behind for the next launch
        return status;
    }
    // logdets[b] = Σ_j log|d_j| of J + matrices[b]
    ldl_logdet<T><<<unsigned(count), LDL_THREADS, shared, static_cast<cudaStream_t>(stream)>>>(matrices, logdets, bad, remaining,
                                                                                            nodes, k, removed, slack);
    return cudaGetLastError();
}

}  // namespace

int launch_ldl_logdet(const float* matrices, double* logdets, int* bad, double* remaining, int64_t count, int nodes, int k,
                      int removed, double slack, void* stream) {
    return launch(matrices, logdets, bad, remaining, count, nodes, k, removed, slack, stream);
}

int launch_ldl_logdet(const double* matrices, double* logdets, int* bad, double* remaining, int64_t count, int nodes, int k,
                      int removed, double slack, void* stream) {
    return launch(matrices, logdets, bad, remaining, count, nodes, k, removed, slack, stream);
}

int cuda_device_status() {
    int devices = 0;
    cudaError_t status = cudaGetDeviceCount(&devices);
    if (status != cudaSuccess) {
        cudaGetLastError();  // the error is returned, not left behind for the next call
        return status;
    }
    return devices > 0 ? cudaSuccess : cudaErrorNoDevice;
}

}  // namespace fastfid
