// Input of the kernels: plain structs of pointers and sizes, without Python or torch.
//
// Legend (fastfid/swap/engine.py has the equations): k = removed + added rows of a candidate, r rank, d features, Q nodes.
#pragma once

#include <stdint.h>

namespace fastfid {

// Projected rows of many candidates and how they become the rows z of equation 2:
//   z_r = w_r + α w̄_r,   z_a = w_a + β w̄_a + γ w̄_r,   w̄ a candidate's mean row.
template <class T>
struct ChangedRows {
    const T* reference;         // [N, rank], projected reference rows
    const int64_t* index;       // [candidates, removed], rows of `reference`
    const T* added_rows;        // [candidates, added, rank]
    int64_t candidates, removed, added, rank;
    double alpha, beta, gamma;
};

// The node weights 1/(λ_p + τ_q²), a slice of positions p at a time, as combinations of a few functions, in two steps:
//   Σ_m coefficient[m, q] Σ_n mix[n, m]·function[n, p],   n over functions of the slice, m over those of its group of slices
// (fastfid/linalg/weight_plan.py): a Gram matrix per function instead of one per node.
template <class T>
struct WeightPlan {
    int64_t nodes, slices, groups;
    const int64_t* bounds;       // [slices + 1], first position of each slice, the rank at the end
    const int64_t* terms;        // [slices], functions n of each slice
    const T* functions;          // slice after slice, [terms, length] each
    const int64_t* group_ends;   // [groups], one past the last slice of each group
    const int64_t* group_terms;  // [groups], functions m of each group
    const T* mixes;              // slice after slice, [terms, group_terms] each
    const T* coefficients;       // [Σ group_terms, nodes]
};

// Most positions of a slice: its scaled right panel (256·16·4 B = 16 kB) leaves half of a 32 kB first-level cache.
constexpr int64_t SLICE = 256;

// Most positions of a group of slices.  For 2,048 eigenvalues that fall like those of network features, 17 nodes and a relative
// error of 1e-5, a group of 512 needs 6 functions and one of 1,024 needs 8.  100 rows of 512 take 220 kB of a second-level cache.
constexpr int64_t SPAN = 512;

struct WrongPivot {
    int64_t candidate = -1;  // −1: every pivot had its sign
    double value = 0;
};

// Features of many candidates; reference, added and centred rows are float or double, each on its own.
struct FeatureRows {
    const void* reference;      // [N, d]
    const int64_t* index;       // [candidates, removed]
    const void* added;          // [candidates, added, d], strides in elements below
    int64_t candidate_stride, row_stride;
    int64_t candidates, removed, added_count, dim;
    bool reference_is_double, added_is_double, centred_is_double;
    const double* mean;         // [d] μ_g
    const double* gap;          // [d] μ_r − μ_g
};

// y = x − μ_g of the added rows, and the sums over features in equation 4; s = Σ y_a − Σ y_r.
struct CentredRows {
    void* added;                // [candidates, added, d] y
    double* square_norms;       // [candidates, added] |y_a|²
    double* sums;               // [candidates, 3]: |s|², s·(μ_r − μ_g), Σ|y_a|² − Σ|y_r|²
    double* totals;             // [candidates, d] s, or null where it is not wanted
};

// A symmetric band matrix B and the multiples of the identity that are added to it (band_kernel.h).
struct BandMatrix {
    const double* band;    // [dim, width + 1], row i from B_{i,i−width} to B_ii; what would lie left of column 0 is not read
    int64_t dim, width;
    const double* shifts;  // [count] s
    int64_t count;
    double origin;         // a of log det(B + s) − dim·log(a + s)
};

// cov ← β·cov + α·(Σ_p (x_p − m)(x_p − m)ᵀ + e eᵀ), upper triangle; below it nothing is read or written.
template <class T>
struct ScatterUpdate {
    const T* rows;              // [count, dim] x, row_stride elements apart
    int64_t row_stride, count, dim;
    const double* mean;         // [dim] m
    const double* extra;        // [dim] e
    double alpha, beta;         // where beta is 0, cov is not read
    double* cov;                // [dim, dim]
};

}  // namespace fastfid
