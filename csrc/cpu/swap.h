// The functions that bindings.cpp calls for fastfid/swap/engine.py: they divide candidates among threads, and choose the
// instruction set at run time.
//
// `isa` names an instruction set ("avx512", "avx2", "baseline", or "wide" for tests); an empty string takes the best this machine
// has.  std::invalid_argument for a name this build or machine lacks, std::bad_alloc when memory runs out.  Results do not
// depend on `threads`: a candidate is computed by one thread, in one order, its nodes side by side in the lanes of vectors.
// Dividing one candidate between two threads is slower: 2.3 instead of 1.9 ms at d = 1024.
#pragma once

#include <string>
#include <vector>

#include "problem.h"

namespace fastfid {

// log|det(J + G_q)| of every candidate and node: logdets [candidates, nodes], and remaining
// [candidates], the share that remains of the direction that the removal reduces most: an upper estimate of the smallest
// eigenvalue of I − G_rr at the first node.
template <class T>
WrongPivot swap_logdet(const ChangedRows<T>& rows, const WeightPlan<T>& plan, double slack, int threads, const std::string& isa,
                       double* logdets, double* remaining);

// The same and the gradient [candidates, added, rank] of Σ_q node_weights[q]·logdets[:, q] in the rows z_a.
template <class T>
WrongPivot swap_gradient(const ChangedRows<T>& rows, const WeightPlan<T>& plan, const double* node_weights, double slack,
                         int threads, const std::string& isa, double* logdets, double* remaining, T* gradient);

// Products [candidates, 3, nodes] of single swaps: Σ w_r w_r f, Σ w_r w_a f, Σ w_a w_a f, f the node weights.
template <class T>
void swap_singles(const ChangedRows<T>& rows, const WeightPlan<T>& plan, int threads, const std::string& isa, double* sums);

void centre_rows(const FeatureRows& rows, int threads, const std::string& isa, const CentredRows& out);

}  // namespace fastfid
