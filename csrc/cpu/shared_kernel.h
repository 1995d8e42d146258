// The part that candidates share if they remove the same rows: the Gram matrices of these rows, shifted and factored.  They are
// the leading block of G in equation 3.  Compiled once per instruction set (kernels.h).
//
//   J + G = [J_r + G_rr  ·       ]      rows and columns of whole blocks of COLUMNS are factored; a block that reaches into the
//           [G_ar        I + G_aa]      added rows is left to each candidate.
#pragma once

#include "factor_kernel.h"

namespace fastfid {
namespace FASTFID_ISA {

// The removed rows' part, one set of nodes after the other, in elements of T.
template <class T>
struct SharedPart {
    static constexpr int64_t width = Vector<T>::width;
    int64_t removed;

    explicit SharedPart(int64_t removed_) : removed(removed_) {}
    int64_t lanes() const { return removed * (removed + 1) / 2 * width; }  // shifted, L where it is done
    int64_t column() const { return removed * width; }                     // Σ_j G_ij before the shift; G_ii; d_i; 1/d_i
    int64_t logs() const { return round_up(blocks(sizeof(LogDeterminants<T>), sizeof(T)), 16); }
    int64_t set() const { return lanes() + 4 * column() + logs(); }
};

template <class T>
int64_t shared_size(int64_t removed, const WeightPlan<T>& plan) {
    return SharedPart<T>(removed).set() * blocks(plan.nodes, Vector<T>::width);
}

// The part of the rows that candidate c removes; memory as for its log-determinants.
template <class T>
void share_removed(const ChangedRows<T>& rows, const WeightPlan<T>& plan, double slack, int64_t c, T* memory, T* shared) {
    using V = typename Vector<T>::type;
    ChangedRows<T> alone = rows;
    alone.added = 0;
    const Layout<T> at(rows.removed, 0, rows.rank, plan);
    const Workspace<T> of(at, memory);
    const SharedPart<T> part(rows.removed);
    weighted_grams(alone, plan, c, at, of);
    for (int64_t set = 0; set < at.sets; set++, shared += part.set()) {
        T *lanes = of.lanes + set * at.set(), *sums = shared + part.lanes(), *columns = sums + part.column();
        row_sums(at, rows.removed, lanes, (V*)sums, (V*)of.panel);
        shift_gram(alone, at, (const T*)nullptr, lanes, of.pivots);
        LogDeterminants<T> logs;
        factor(at, rows.removed, rows.removed / COLUMNS * COLUMNS, slack, lanes, of, logs);
        memcpy(shared, lanes, part.lanes() * sizeof(T));
        memcpy(columns, of.diagonal, 3 * part.column() * sizeof(T));  // diagonal, pivots and inverses lie in this order
        memcpy(columns + 3 * part.column(), &logs, sizeof(logs));
    }
}

// J + G = L D Lᵀ of one set of nodes from its unshifted Gram matrices; `shared` may be null.
template <class T>
LogDeterminants<T> decompose(const ChangedRows<T>& rows, const Layout<T>& at, double slack, const T* shared, int64_t set,
                             const Workspace<T>& of) {
    const SharedPart<T> part(rows.removed);
    T* lanes = of.lanes + set * at.set();
    LogDeterminants<T> logs;
    if (shared) shared += set * part.set();
    shift_gram(rows, at, shared ? shared + part.lanes() : nullptr, lanes, of.pivots);
    if (shared) {
        const T* columns = shared + part.lanes() + part.column();
        memcpy(lanes, shared, part.lanes() * sizeof(T));
        memcpy(of.diagonal, columns, part.column() * sizeof(T));
        memcpy(of.pivots, columns + part.column(), part.column() * sizeof(T));
        memcpy(of.inverses, columns + 2 * part.column(), part.column() * sizeof(T));
        memcpy((void*)&logs, columns + 3 * part.column(), sizeof(logs));
    }
    factor(at, rows.removed, at.k, slack, lanes, of, logs);
    logs.fold();
    return logs;
}

// Of the candidate whose first set of nodes is decomposed, `remaining_share`; the panel is free by then.
template <class T>
double remaining_share_of(const ChangedRows<T>& rows, const Workspace<T>& of) {
    return remaining_share(rows.removed, of.lanes, of.pivots, (double*)of.panel);
}

template <class T>
void candidate_logdets(const ChangedRows<T>& rows, const WeightPlan<T>& plan, double slack, int64_t c, const T* shared, T* memory,
                       double* logdets, double* wrong, double* remaining) {
    const Layout<T> at(rows.removed + rows.added, shared ? rows.removed : 0, rows.rank, plan);
    const Workspace<T> of(at, memory);
    weighted_grams(rows, plan, c, at, of);
    for (int64_t set = 0; set < at.sets; set++) {
        store(decompose(rows, at, slack, shared, set, of), at, set, logdets, wrong);
        if (!set) *remaining = remaining_share_of(rows, of);
    }
}

}  // namespace FASTFID_ISA
}  // namespace fastfid
