// log|det(J + G(τ))| of many low-rank changes of a covariance, for every node τ of a quadrature (fastfid/swap.py, eq. 3).
//
//   W  [k, r]   rows of one candidate: `removed` rows first, then `added`, k = removed + added
//   G  = W diag(1 / (λ + τ²)) Wᵀ,   J = diag(−1 … −1, +1 … +1)
//
// Nothing here knows Python or torch: pointers, sizes, a thread count.
#pragma once

#include <cstdint>

namespace fastfid {

template <class T>
struct SwapLogdet {
    const T* removed_rows;      // [candidates, removed, rank]
    const T* added_rows;        // [candidates, added, rank]
    int64_t candidates, removed, added, rank;
    const double* spectrum;     // [rank] λ
    const double* tau_squares;  // [nodes] τ²
    int64_t nodes;
    double slack;               // rounding allowed to a pivot before it counts as wrong
    int threads;                // at most this many are used; results do not depend on it
};

struct WrongPivot {
    int64_t candidate = -1;  // −1: every pivot had its sign
    double value = 0;
};

// Fills logdets [candidates, nodes].  Returns the first candidate whose pivot has the wrong sign (its log-dets are NaN).
// Throws std::bad_alloc.
template <class T>
WrongPivot swap_logdet(const SwapLogdet<T>& problem, double* logdets);

// Name of the instruction set chosen on this machine: "avx2" or "baseline".
const char* cpu_kernel_name();

// The same for tests: computes with the portable kernel whatever the machine offers.
template <class T>
WrongPivot swap_logdet_baseline(const SwapLogdet<T>& problem, double* logdets);

}  // namespace fastfid
