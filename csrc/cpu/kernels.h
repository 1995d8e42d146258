// The functions compiled once per instruction set, and the table through which band.cpp, moments.cpp and swap.cpp call them.
//
// Each isa_*.cpp defines FASTFID_ISA (a namespace) and FASTFID_VECTOR_BYTES and includes this file, which then includes their
// source.  They use only functions of that namespace and of the C library: the linker might keep a standard template that was
// compiled for wider instructions, and older machines could not run it.
#pragma once

#include "problem.h"

namespace fastfid {

template <class T>
struct Kernels {
    // Elements of T one thread needs for log-determinants and for gradients, zeroed and 64-byte aligned.
    int64_t (*workspace)(int64_t removed, int64_t added, int64_t rank, const WeightPlan<T>& plan, bool gradient);
    // Elements of T of the part shared by candidates that remove the same rows; and that part, from the rows of candidate c.
    int64_t (*shared_size)(int64_t removed, const WeightPlan<T>& plan);
    void (*share_removed)(const ChangedRows<T>& rows, const WeightPlan<T>& plan, double slack, int64_t c, T* memory, T* shared);
    // Candidate c: logdets [nodes], wrong [nodes] where a logdet is NaN, and the smallest eigenvalue of I − G_rr at the first node.
    // shared: its removed rows' part, or null.
    void (*logdets)(const ChangedRows<T>& rows, const WeightPlan<T>& plan, double slack, int64_t c, const T* shared, T* memory,
                    double* logdets, double* wrong, double* remaining);
    // Candidate c: gradient [added, rank] of Σ_q node_weights[q]·log|det(J + G_q)| in its rows z_a.
    void (*gradient)(const ChangedRows<T>& rows, const WeightPlan<T>& plan, const double* node_weights, double slack, int64_t c,
                     const T* shared, T* memory, T* gradient, double* logdets, double* wrong, double* remaining);
    // Candidate c of one row each way: sums [3, nodes] of w_r w_r f, w_r w_a f, w_a w_a f, f the node weights.  memory: 192
    // bytes for each function of the plan's largest group.
    void (*singles)(const ChangedRows<T>& rows, const WeightPlan<T>& plan, int64_t c, T* memory, double* sums);
    // Candidate c of FeatureRows → CentredRows, the same for either T.  memory: [d] doubles.
    void (*centre)(const FeatureRows& rows, int64_t c, double* memory, const CentredRows& out);
    // Shifts first … first + band_lanes() − 1 of BandMatrix → logdets [count], NaN where B + s is not positive definite; the
    // same for either T.  memory: band_workspace doubles, zeroed and 64-byte aligned.
    int64_t (*band_lanes)();
    int64_t (*band_workspace)(int64_t width);
    void (*band_logdets)(const BandMatrix& matrix, int64_t first, double* memory, double* logdets);
    // Columns that sum_columns takes at once; their sums from the first on, or of what is left.
    int64_t (*summed_columns)();
    void (*sum_columns)(const T* rows, int64_t row_stride, int64_t count, int64_t dim, int64_t first, double* sums);
    // Doubles one thread needs for a block of the covariance, 64-byte aligned, and the block.
    int64_t (*scatter_workspace)(int64_t side);
    void (*add_scatter_block)(const ScatterUpdate<T>& update, int64_t side, int64_t row, int64_t column, double* memory);
};

#define FASTFID_DECLARE(isa)               \
    namespace isa {                        \
    template <class T>                     \
    Kernels<T> kernels();                  \
    }

}  // namespace fastfid

#ifdef FASTFID_ISA
namespace fastfid {
FASTFID_DECLARE(FASTFID_ISA)
}
#include "band_kernel.h"
#include "gradient_kernel.h"
#include "rows_kernel.h"
#include "scatter_kernel.h"

namespace fastfid {
namespace FASTFID_ISA {
template <class T>
Kernels<T> kernels() {
    return {workspace<T>,         shared_size<T>,   share_removed<T>, candidate_logdets<T>, candidate_gradient<T>,
            candidate_singles<T>, centre_candidate, band_lanes,       band_workspace,       band_logdets,
            summed_columns,       sum_columns<T>,   scatter_workspace, add_scatter_block<T>};
}
template Kernels<float> kernels<float>();
template Kernels<double> kernels<double>();
}  // namespace FASTFID_ISA
}  // namespace fastfid
#endif
