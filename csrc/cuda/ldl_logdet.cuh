// Batched log|det(J + G)| by LDLᵀ, one matrix a block, the lower triangle in shared memory.
//
//   J + G = L D Lᵀ,   J = diag(−1 … −1, +1 … +1),   log|det| = Σ_j log|d_j|
//
// J + G is quasi-definite (fastfid/swap/engine.py), so no pivoting: column after column,
//
//   G[i, x] −= G[i, j] G[x, j] / d_j      for j < x ≤ i < k,
//
// J is never added to the matrix: where G is small beside 1, log1p(g) keeps the digits that 1 + g would round away.
// One warp a row, its lanes along the row.  k³/6 multiply-adds against k²/2 loads of G from memory: the whole factorisation
// runs at shared-memory speed, two barriers a column.  Packed rows (row i starts at i(i+1)/2) halve the memory: k = 256 takes
// 137 kB in float32, within the 167 kB an A100 block may ask for, and with the 24 kB of k = 100 eight matrices share a
// multiprocessor.
//
// Of every candidate's first node the engine also needs the smallest eigenvalue of A = I − G_rr, what the removal leaves.  There
// the first `removed` steps are sweeps: with d_j − 1 in the place of d_j in the column, the same update makes A⁻¹ of the leading
// block, up to 3 on its diagonal (fastfid/triton_kernels/ldl_logdet.py derives it), and later steps leave that block alone.
//
// The file compiles as CUDA and, with a header that supplies threadIdx, blockIdx, blockDim, __syncthreads and
// FASTFID_SHARED_MEMORY, as C++: tests/fastfid/test_cuda_source.py runs it block by block on the CPU.
//
// Legend: k order, removed number of leading negative pivots, i row, x and j columns.
#pragma once

#include <stdint.h>

namespace fastfid {

constexpr int LDL_THREADS = 256;
constexpr int LDL_WARP = 32;
constexpr int LDL_STEPS = 12;  // of inverse iteration, as in fastfid/triton_kernels/ldl_logdet.py, which says why

__host__ __device__ inline int packed_row(int i) { return i * (i + 1) / 2; }

// Bytes of shared memory: reduction buffers, packed triangle, the current column, the diagonal before elimination.
template <class T>
__host__ __device__ inline size_t ldl_shared_bytes(int k) {
    return LDL_THREADS * (sizeof(double) + sizeof(int)) + (packed_row(k) + 2 * k) * sizeof(T);
}

// |d_j| − 1 for the pivot d_j = J_j + g, where exact arithmetic has it: 1 − g > 0 for a removed row, g ≥ 0 for an added one.
template <class T>
__device__ inline double pivot_excess(T g, bool removed) {
    const double least = sizeof(T) == 4 ? 4.8e-7 : 8.9e-16;  // 4 ε
    if (removed) return g <= 1 - least ? -static_cast<double>(g) : least - 1;
    return g >= 0 ? static_cast<double>(g) : 0;
}

// Whether rounding explains the pivot; false for NaN.
template <class T>
__device__ inline bool plausible(T g, bool removed, T diagonal, double slack) {
    return removed ? g <= 1 + slack : g >= -slack * (1 + diagonal);
}

// Σ of the threads' values, given to every thread; a fixed tree: the same bits every run.
__device__ inline double sum_of_block(double value, double* sums) {
    const int thread = threadIdx.x;
    __syncthreads();  // nobody reads an earlier sum
    sums[thread] = value;
    for (int half = LDL_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread < half) sums[thread] += sums[thread + half];
    }
    __syncthreads();
    return sums[0];
}

// Smallest eigenvalue of A from above, by inverse iteration with the A⁻¹ + 3 that the sweeps left; x is memory for [removed].
template <class T>
__device__ inline double smallest_eigenvalue(const T* triangle, T* x, double* sums, int removed) {
    const int i = threadIdx.x;  // removed ≤ LDL_MAX_K = LDL_THREADS
    const double multiple = 0.6180339887498949 * (double(i + 1) * (i + 1));  // a start without symmetry
    double value = i < removed ? multiple - floor(multiple) : 0;
    double norm = 0;
    for (int step = 0; step <= LDL_STEPS; step++) {
        norm = sqrt(sum_of_block(value * value, sums));
        if (step == LDL_STEPS) break;
        if (i < removed) x[i] = T(value / norm);
        __syncthreads();
        value = 0;
        if (i < removed) {
            for (int j = 0; j < removed; j++)
                value += double(triangle[i >= j ? packed_row(i) + j : packed_row(j) + i]) * x[j];
            value -= 3 * double(x[i]);
        }
    }
    return 1 / norm;
}

// matrices [gridDim.x, k, k] → logdets [gridDim.x], bad [gridDim.x] the first implausible pivot's column or −1, and of every
// `nodes`th matrix, from the first, remaining [gridDim.x / nodes]; unchanged where no row is removed.
template <class T>
__global__ void __launch_bounds__(LDL_THREADS)
ldl_logdet(const T* matrices, double* logdets, int* bad, double* remaining, int nodes, int k, int removed, double slack) {
    FASTFID_SHARED_MEMORY(memory);
    double* sums = reinterpret_cast<double*>(memory);
    int* firsts = reinterpret_cast<int*>(sums + LDL_THREADS);
    T* triangle = reinterpret_cast<T*>(firsts + LDL_THREADS);
    T* column = triangle + packed_row(k);
    T* diagonal = column + k;
    const int thread = threadIdx.x, lane = thread % LDL_WARP, warp = thread / LDL_WARP, warps = LDL_THREADS / LDL_WARP;
    const T* matrix = matrices + static_cast<int64_t>(blockIdx.x) * k * k;

    for (int i = warp; i < k; i += warps)
        for (int x = lane; x <= i; x += LDL_WARP) {
            T value = matrix[static_cast<int64_t>(i) * k + x];
            if (x == i) diagonal[i] = value;
            triangle[packed_row(i) + x] = value;
        }

    const bool first_node = blockIdx.x % nodes == 0;
    T own_pivot = 0;  // of column `thread`; k ≤ LDL_MAX_K = LDL_THREADS
    for (int j = 0; j < k; j++) {
        __syncthreads();  // column j is final
        const bool sweep = first_node && j < removed;
        const int begin = sweep ? 0 : j + 1;
        const T pivot = triangle[packed_row(j) + j];
        if (thread == j) own_pivot = pivot;
        for (int i = begin + thread; i < k; i += LDL_THREADS)
            column[i] = i == j ? pivot - 2 : triangle[i > j ? packed_row(i) + j : packed_row(j) + i];
        const T inverse_pivot = T((j < removed ? -1 : 1) / (1 + pivot_excess(pivot, j < removed)));
        __syncthreads();  // its copy is complete
        for (int i = begin + warp; i < k; i += warps) {
            const T factor = column[i] * inverse_pivot;
            for (int x = begin + lane; x <= i; x += LDL_WARP) triangle[packed_row(i) + x] -= factor * column[x];
        }
    }

    double sum = 0;
    int first = k;
    if (thread < k) {
        sum = log1p(pivot_excess(own_pivot, thread < removed));
        if (!plausible(own_pivot, thread < removed, diagonal[thread], slack)) first = thread;
    }
    if (first_node && removed > 0) {
        __syncthreads();  // the last column's sweep is complete
        const double left = smallest_eigenvalue(triangle, column, sums, removed);
        if (thread == 0) remaining[blockIdx.x / nodes] = left;
        __syncthreads();  // `sums` is free again
    }
    sums[thread] = sum;
    firsts[thread] = first;
    for (int half = LDL_THREADS / 2; half > 0; half /= 2) {  // a fixed tree: the same bits every run
        __syncthreads();
        if (thread < half) {
            sums[thread] += sums[thread + half];
            firsts[thread] = firsts[thread] < firsts[thread + half] ? firsts[thread] : firsts[thread + half];
        }
    }
    if (thread == 0) {
        const bool wrong = firsts[0] < k;
        logdets[blockIdx.x] = wrong ? NAN : sums[0];
        bad[blockIdx.x] = wrong ? firsts[0] : -1;
    }
}

}  // namespace fastfid
