// Gradient of a candidate's log-determinants in its added rows, compiled once per instruction set (kernels.h).
//
//   ∂/∂z Σ_q ω_q log|det(J + G_q)| = 2 Σ_q ω_q H_q z D_q,   H_q = (J + G_q)⁻¹,  D_q = diag 1/(λ + τ_q²)
//                                  = 2 Σ_n K_n (z_s diag e_n) on slice s,   K_n = Σ_q ω_q c[n, q] H_q
//
// by the WeightPlan of gram_kernel.h; only the rows of H_q that belong to added rows are made, from the factor L D Lᵀ.  The
// sum over n is one product of depth k·terms: [K_1 K_2 …] times the z diag e_n on top of each other.
#pragma once

#include "gram_kernel.h"

namespace fastfid {
namespace FASTFID_ISA {

// Memory beyond that of the log-determinants, in elements of T.
template <class T>
struct GradientLayout {
    int64_t k, added, wide, size, nodes, row_blocks, depth;

    GradientLayout(int64_t removed, int64_t added_, const WeightPlan<T>& plan, int64_t most_terms)
        : k(removed + added_), added(added_), wide(round_up(added_, 64 / sizeof(T))), size(round_up(k * wide, TILE<T>)),
          nodes(plan.nodes), row_blocks(blocks(added_, MR)), depth(round_up(k * most_terms, 16)) {}

    int64_t inverses() const { return nodes * size; }         // ω_q H_q[:, added] [k, wide] of every node
    int64_t mixed() const { return size; }                    // K_n of one function
    int64_t left() const { return row_blocks * MR * depth; }  // rows of [K_1 K_2 …]
    int64_t right() const { return depth * NR<T>; }
    int64_t total() const { return inverses() + mixed() + left() + right() + TILE<T>; }
};

template <class T>
int64_t workspace(int64_t removed, int64_t added, int64_t rank, const WeightPlan<T>& plan, bool gradient) {
    const Layout<T> at(removed + added, rank, plan);
    return gradient ? at.total() + GradientLayout<T>(removed, added, plan, at.most_terms).total() : at.total();
}

// row[:] −= factor·other[:], whole vectors.
template <class T>
void subtract_row(T* row, T factor, const T* other, int64_t wide) {
    using V = typename Vector<T>::type;
    for (int64_t x = 0; x < wide; x += Vector<T>::width) *(V*)(row + x) -= factor * *(const V*)(other + x);
}

// X [k, wide] = weight·(L D Lᵀ)⁻¹ restricted to the columns of added rows: forward substitution, which starts at the first of
// them, division by D, back substitution.
template <class T>
void invert_added(const Layout<T>& at, int64_t removed, const T* factor, const T* inverse_pivots, double weight, int64_t wide,
                  T* x) {
    memset(x, 0, at.k * wide * sizeof(T));
    for (int64_t i = removed; i < at.k; i++) {
        x[i * wide + i - removed] = T(weight);
        for (int64_t j = removed; j < i; j++) subtract_row(x + i * wide, factor[i * at.ld + j], x + j * wide, wide);
    }
    for (int64_t i = removed; i < at.k; i++)
        for (int64_t m = 0; m < wide; m++) x[i * wide + m] *= inverse_pivots[i];
    for (int64_t i = at.k - 1; i >= 0; i--)
        for (int64_t j = i + 1; j < at.k; j++) subtract_row(x + i * wide, factor[j * at.ld + i], x + j * wide, wide);
}

// mixed [size] = Σ_q coefficients[q]·inverses[q], size a multiple of a tile's.
template <class T>
void mix_inverses(const T* inverses, const T* coefficients, int64_t nodes, int64_t size, T* mixed) {
    using V = typename Vector<T>::type;
    constexpr int64_t vectors = WIDE * MR;
    for (int64_t start = 0; start < size; start += TILE<T>) {
        V sum[vectors];
#pragma GCC unroll 12
        for (int64_t v = 0; v < vectors; v++) sum[v] = V{};
        for (int64_t q = 0; q < nodes; q++)
#pragma GCC unroll 12
            for (int64_t v = 0; v < vectors; v++) sum[v] += coefficients[q] * ((const V*)(inverses + q * size + start))[v];
#pragma GCC unroll 12
        for (int64_t v = 0; v < vectors; v++) ((V*)(mixed + start))[v] = sum[v];
    }
}

// right [terms·k][NR]: columns p … p+NR−1 of z diag e_n on top of each other; `columns` of them exist.
template <class T>
void stack_columns(const Layout<T>& at, const T* z, const T* functions, int64_t length, int64_t terms, int64_t p, int64_t columns,
                   T* right) {
    for (int64_t n = 0; n < terms; n++) {
        alignas(64) T e[NR<T>] = {};
        for (int64_t x = 0; x < columns; x++) e[x] = functions[n * length + x];
        for (int64_t i = 0; i < at.k; i++, right += NR<T>)
            for (int64_t x = 0; x < NR<T>; x++) right[x] = e[x] * z[i * at.stride + p + x];
    }
}

// gradient [added, rank] = 2 Σ_n K_n z diag(e_n), slice by slice.
template <class T>
void apply_inverses(const Layout<T>& at, const GradientLayout<T>& grad, const WeightPlan<T>& plan, const T* z, const T* inverses,
                    T* memory, T* gradient) {
    T *mixed = memory, *left = mixed + grad.mixed(), *right = left + grad.left(), *tile = right + grad.right();
    const T *functions = plan.functions, *coefficients = plan.coefficients;
    for (int64_t s = 0; s < plan.slices; s++) {
        const int64_t terms = plan.terms[s], start = plan.bounds[s], length = plan.bounds[s + 1] - start;
        for (int64_t n = 0; n < terms; n++, coefficients += at.nodes) {
            mix_inverses(inverses, coefficients, at.nodes, grad.size, mixed);
            for (int64_t i = 0; i < at.k; i++)
                for (int64_t m = 0; m < grad.added; m++) left[m * grad.depth + n * at.k + i] = 2 * mixed[i * grad.wide + m];
        }
        for (int64_t offset = 0; offset < length; offset += NR<T>) {
            const int64_t columns = length - offset < NR<T> ? length - offset : NR<T>;
            stack_columns(at, z, functions + offset, length, terms, start + offset, columns, right);
            for (int64_t b = 0; b < grad.row_blocks; b++) {
                multiply_tile(left + b * MR * grad.depth, grad.depth, right, terms * at.k, tile);
                for (int64_t m = 0; m < MR && b * MR + m < grad.added; m++)
                    memcpy(gradient + (b * MR + m) * at.rank + start + offset, tile + m * NR<T>, columns * sizeof(T));
            }
        }
        functions += terms * length;
    }
}

template <class T>
void candidate_gradient(const ChangedRows<T>& rows, const WeightPlan<T>& plan, const double* node_weights, double slack, int64_t c,
                        T* memory, T* gradient, double* logdets, double* wrong) {
    const Layout<T> at(rows.removed + rows.added, rows.rank, plan);
    const GradientLayout<T> grad(rows.removed, rows.added, plan, at.most_terms);
    const Workspace<T> of(at, memory);
    T* inverses = of.rest;
    prepare_grams(rows, plan, c, at, of);
    for (int64_t q = 0; q < at.nodes; q++) {
        unpack_gram(at, q, of.grams, of.dense);
        logdets[q] = factor_logdet(at, rows.removed, slack, of.dense, of.diagonal, of.panel, wrong + q);
        if (logdets[q] != logdets[q]) return;
        invert_added(at, rows.removed, of.dense, of.diagonal, node_weights[q], grad.wide, inverses + q * grad.size);
    }
    apply_inverses(at, grad, plan, of.left, inverses, inverses + grad.inverses(), gradient);
}

}  // namespace FASTFID_ISA
}  // namespace fastfid
