// Weighted Gram matrices, LDLᵀ and log-determinants of one candidate, compiled once per instruction set (kernels.h).
//
//   z   [k, r]  rows of the candidate, removed ones first (problem.h)
//   G_q = Σ_p z_p z_pᵀ / (λ_p + τ_q²) = Σ_s Σ_n c[n, q] M_n,    M_n = Σ_{p in slice s} e_n[p] z_p z_pᵀ
//
// A WeightPlan writes the Q weights of a slice of positions as combinations of a few functions e_n: eigenvalues that are
// neighbours in a sorted spectrum differ little, and 4 to 6 functions do for 12 to 16 nodes.  k²/2 multiply-adds a position and
// function replace those of every node; the combinations cost Q·k²/2 a function.
//
// z is stored by rows, as left operands whose entries are broadcast one at a time, and packed once more as right panels of
// NR rows, which are scaled by e_n, a panel at a time, before the product.
//
//   right  [column block][position][NR]
//   tile (i, j) of M_n  =  Σ_p z[i][p] ⊗ (e_n[p] right[j][p][:])       only tiles that touch the lower triangle
//   tile (i, j) of G_q +=  Σ_n c[n, q] M_n                             kept together for all q: [tile][q][MR·NR]
//
// Legend: p position along the rank, i j row and column blocks, ld row stride of one dense G.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "problem.h"

namespace fastfid {
namespace FASTFID_ISA {

// Register tile of MR rows and WIDE vectors.  Of 16 registers, 6·2 accumulators leave room for two loads and a broadcast; with
// 64-byte vectors one a row keeps the tiles' waste along the diagonal small (k = 100: 8×16 computes 6,272 entries, 6×32 7,104,
// of 5,050 wanted), and 8 accumulators still cover a multiply-add's latency of 4 cycles on two units.
#if FASTFID_VECTOR_BYTES == 64
constexpr int64_t MR = 8, WIDE = 1;
#else
constexpr int64_t MR = 6, WIDE = 2;
#endif
template <class T>
constexpr int64_t NR = WIDE * FASTFID_VECTOR_BYTES / sizeof(T);
template <class T>
constexpr int64_t TILE = MR * NR<T>;

template <class T>
struct Vector {
    typedef T type __attribute__((vector_size(FASTFID_VECTOR_BYTES), may_alias));
    typedef T loose __attribute__((vector_size(FASTFID_VECTOR_BYTES), may_alias, aligned(sizeof(T))));  // any address
    static constexpr int64_t width = FASTFID_VECTOR_BYTES / sizeof(T);
};

// Integers as wide as a T, for shuffles.
template <int bytes>
struct Integers {
    typedef int32_t type __attribute__((vector_size(FASTFID_VECTOR_BYTES)));
};
template <>
struct Integers<8> {
    typedef int64_t type __attribute__((vector_size(FASTFID_VECTOR_BYTES)));
};

inline int64_t blocks(int64_t n, int64_t size) { return (n + size - 1) / size; }
inline int64_t round_up(int64_t n, int64_t size) { return blocks(n, size) * size; }

// First row block whose tile with column block j touches the lower triangle.
template <class T>
int64_t first_row_block(int64_t j) {
    return j * NR<T> / MR;
}

// How one thread's memory is laid out, in elements of T; every part starts on a 64-byte boundary.
template <class T>
struct Layout {
    int64_t k, rank, nodes, row_blocks, column_blocks, length, stride, ld, tiles, most_terms;

    Layout(int64_t k_, int64_t rank_, const WeightPlan<T>& plan)
        : k(k_), rank(rank_), nodes(plan.nodes), row_blocks(blocks(k_, MR)), column_blocks(blocks(k_, NR<T>)),
          length(round_up(rank_, 16)), stride(length + 16), ld(column_blocks * NR<T>), tiles(0), most_terms(0) {
        for (int64_t j = 0; j < column_blocks; j++) tiles += row_blocks - first_row_block<T>(j);
        for (int64_t s = 0; s < plan.slices; s++) most_terms = plan.terms[s] > most_terms ? plan.terms[s] : most_terms;
    }

    int64_t rows_padded() const { return row_blocks * MR > ld ? row_blocks * MR : ld; }
    int64_t shifts() const { return 2 * stride; }
    int64_t left() const { return round_up(rows_padded() * stride, 16); }  // z; the padding of 16 keeps rows off one cache set
    int64_t right() const { return column_blocks * length * NR<T>; }
    int64_t scaled() const { return SLICE * NR<T>; }
    int64_t products() const { return row_blocks * most_terms * TILE<T>; }
    int64_t grams() const { return tiles * nodes * TILE<T>; }
    int64_t dense() const { return round_up(rows_padded() * ld, 16); }
    int64_t column() const { return round_up(ld, 16); }
    int64_t panel() const { return ld * NR<T>; }
    int64_t total() const {
        return shifts() + left() + right() + scaled() + products() + grams() + dense() + column() + panel();
    }
};

// The parts of that memory.
template <class T>
struct Workspace {
    T *shift_removed, *shift_added, *left, *right, *scaled, *products, *grams, *dense, *diagonal, *panel, *rest;

    Workspace(const Layout<T>& at, T* memory) {
        shift_removed = memory;
        shift_added = shift_removed + at.stride;
        left = shift_removed + at.shifts();
        right = left + at.left();
        scaled = right + at.right();
        products = scaled + at.scaled();
        grams = products + at.products();
        dense = grams + at.grams();
        diagonal = dense + at.dense();
        panel = diagonal + at.column();
        rest = panel + at.panel();
    }
};

// Row i of a candidate as stored, before its shift.
template <class T>
const T* row_of(const ChangedRows<T>& rows, int64_t c, int64_t i) {
    if (i < rows.removed) return rows.reference + rows.index[c * rows.removed + i] * rows.rank;
    return rows.added_rows + (c * rows.added + i - rows.removed) * rows.rank;
}

// Σ of rows first … last−1 added to sum [rank].
template <class T>
void add_rows(const ChangedRows<T>& rows, int64_t c, int64_t first, int64_t last, T* sum) {
    using V = typename Vector<T>::loose;
    constexpr int64_t width = Vector<T>::width;
    for (int64_t i = first; i < last; i++) {
        const T* row = row_of(rows, c, i);
        int64_t p = 0;
        for (; p + width <= rows.rank; p += width) *(V*)(sum + p) += *(const V*)(row + p);
        for (; p < rows.rank; p++) sum[p] += row[p];
    }
}

// What each row of a candidate gets: α w̄_r for a removed one, β w̄_a + γ w̄_r for an added one.
template <class T>
void mean_shifts(const ChangedRows<T>& rows, int64_t c, T* shift_removed, T* shift_added) {
    memset(shift_removed, 0, rows.rank * sizeof(T));
    memset(shift_added, 0, rows.rank * sizeof(T));
    if (rows.alpha == 0 && rows.beta == 0 && rows.gamma == 0) return;
    add_rows(rows, c, 0, rows.removed, shift_removed);
    add_rows(rows, c, rows.removed, rows.removed + rows.added, shift_added);
    const T alpha = rows.removed ? T(rows.alpha / rows.removed) : T(0), gamma = rows.removed ? T(rows.gamma / rows.removed) : T(0);
    const T beta = rows.added ? T(rows.beta / rows.added) : T(0);
    for (int64_t p = 0; p < rows.rank; p++) {
        const T removed = shift_removed[p];
        shift_added[p] = beta * shift_added[p] + gamma * removed;
        shift_removed[p] = alpha * removed;
    }
}

// z [k, stride]: stored rows plus their shifts; what lies past the last row or position is zero already.
template <class T>
void shift_rows(const ChangedRows<T>& rows, int64_t c, const Layout<T>& at, const Workspace<T>& of) {
    for (int64_t i = 0; i < at.k; i++) {
        const T *row = row_of(rows, c, i), *shift = i < rows.removed ? of.shift_removed : of.shift_added;
        T* z = of.left + i * at.stride;
        for (int64_t p = 0; p < rows.rank; p++) z[p] = row[p] + shift[p];
    }
}

// W rows of W entries, `stride` apart → W columns, `out_stride` apart; by log₂ W perfect shuffles of register pairs.
template <class T>
void transpose(const T* in, int64_t stride, T* out, int64_t out_stride) {
    constexpr int64_t width = Vector<T>::width;
#if defined(__clang__)
    for (int64_t x = 0; x < width; x++)
        for (int64_t m = 0; m < width; m++) out[x * out_stride + m] = in[m * stride + x];
#else
    using V = typename Vector<T>::type;
    using I = typename Integers<sizeof(T)>::type;
    I low, high;
    for (int64_t x = 0; x < width; x++) {
        low[x] = x / 2 + x % 2 * width;
        high[x] = low[x] + width / 2;
    }
    V a[width], b[width];
#pragma GCC unroll 16
    for (int64_t m = 0; m < width; m++) a[m] = *(const typename Vector<T>::loose*)(in + m * stride);
#pragma GCC unroll 4
    for (int64_t half = 1; half < width; half *= 2) {
#pragma GCC unroll 8
        for (int64_t m = 0; m < width / 2; m++) {
            b[2 * m] = __builtin_shuffle(a[m], a[m + width / 2], low);
            b[2 * m + 1] = __builtin_shuffle(a[m], a[m + width / 2], high);
        }
#pragma GCC unroll 16
        for (int64_t m = 0; m < width; m++) a[m] = b[m];
    }
#pragma GCC unroll 16
    for (int64_t m = 0; m < width; m++) *(V*)(out + m * out_stride) = a[m];
#endif
}

// z as right panels [column block][position][NR].
template <class T>
void pack_right(const Layout<T>& at, const T* left, T* right) {
    constexpr int64_t width = Vector<T>::width;
    for (int64_t j = 0; j < at.column_blocks; j++)
        for (int64_t p = 0; p < at.length; p += width, right += width * NR<T>)
            for (int64_t m = 0; m < NR<T>; m += width)
                transpose(left + (j * NR<T> + m) * at.stride + p, at.stride, right + m, NR<T>);
}

// scaled[p][:] = e[p]·right[p][:] for a slice of a panel.
template <class T>
void scale_panel(const T* right, const T* function, int64_t length, T* scaled) {
    using V = typename Vector<T>::type;
    for (int64_t p = 0; p < length; p++)
#pragma GCC unroll 2
        for (int64_t v = 0; v < WIDE; v++) ((V*)scaled)[p * WIDE + v] = function[p] * ((const V*)right)[p * WIDE + v];
}

// tile [MR][NR] = Σ_p left[:][p] ⊗ right[p][:], rows of `left` `stride` apart.
template <class T>
void multiply_tile(const T* left, int64_t stride, const T* right, int64_t length, T* tile) {
    using V = typename Vector<T>::type;
    V sum[MR][WIDE];
#pragma GCC unroll 8
    for (int64_t m = 0; m < MR; m++)
#pragma GCC unroll 2
        for (int64_t v = 0; v < WIDE; v++) sum[m][v] = V{};
    for (int64_t p = 0; p < length; p++) {
        V b[WIDE];
#pragma GCC unroll 2
        for (int64_t v = 0; v < WIDE; v++) b[v] = ((const V*)right)[p * WIDE + v];
#pragma GCC unroll 8
        for (int64_t m = 0; m < MR; m++)
#pragma GCC unroll 2
            for (int64_t v = 0; v < WIDE; v++) sum[m][v] += left[m * stride + p] * b[v];
    }
#pragma GCC unroll 8
    for (int64_t m = 0; m < MR; m++)
#pragma GCC unroll 2
        for (int64_t v = 0; v < WIDE; v++) ((V*)tile)[m * WIDE + v] = sum[m][v];
}

// grams[q] (+)= Σ_n coefficients[n][q]·products[n], tiles of MR·NR, for every node.
template <class T>
void combine_tiles(const T* products, const T* coefficients, int64_t terms, int64_t nodes, bool accumulate, T* grams) {
    using V = typename Vector<T>::type;
    constexpr int64_t width = Vector<T>::width, vectors = WIDE * MR;
    for (int64_t q = 0; q < nodes; q++) {
        V sum[vectors];
        V* gram = (V*)(grams + q * TILE<T>);
#pragma GCC unroll 12
        for (int64_t v = 0; v < vectors; v++) sum[v] = accumulate ? gram[v] : V{};
        for (int64_t n = 0; n < terms; n++) {
            const T c = coefficients[n * nodes + q];
            const T* product = products + n * TILE<T>;
#pragma GCC unroll 12
            for (int64_t v = 0; v < vectors; v++) sum[v] += c * *(const V*)(product + v * width);
        }
#pragma GCC unroll 12
        for (int64_t v = 0; v < vectors; v++) gram[v] = sum[v];
    }
}

// All G_q of a candidate, tiles touching the lower triangle, [tile][q][MR·NR], by column block and then row block.
template <class T>
void weighted_grams(const Layout<T>& at, const WeightPlan<T>& plan, const Workspace<T>& of) {
    const T *functions = plan.functions, *coefficients = plan.coefficients;
    for (int64_t s = 0; s < plan.slices; s++) {
        const int64_t terms = plan.terms[s], start = plan.bounds[s], length = plan.bounds[s + 1] - start;
        T* grams = of.grams;
        for (int64_t j = 0; j < at.column_blocks; j++) {
            const int64_t first = first_row_block<T>(j);
            for (int64_t n = 0; n < terms; n++) {
                scale_panel(of.right + (j * at.length + start) * NR<T>, functions + n * length, length, of.scaled);
                for (int64_t i = first; i < at.row_blocks; i++)
                    multiply_tile(of.left + i * MR * at.stride + start, at.stride, of.scaled, length,
                                  of.products + ((i - first) * terms + n) * TILE<T>);
            }
            for (int64_t i = first; i < at.row_blocks; i++, grams += at.nodes * TILE<T>)
                combine_tiles(of.products + (i - first) * terms * TILE<T>, coefficients, terms, at.nodes, s > 0, grams);
        }
        functions += terms * length;
        coefficients += terms * at.nodes;
    }
}

// G_q as a dense matrix [rows, ld], its lower triangle.
template <class T>
void unpack_gram(const Layout<T>& at, int64_t q, const T* grams, T* dense) {
    using V = typename Vector<T>::type;
    const T* tile = grams + q * TILE<T>;
    for (int64_t j = 0; j < at.column_blocks; j++)
        for (int64_t i = first_row_block<T>(j); i < at.row_blocks; i++, tile += at.nodes * TILE<T>)
            for (int64_t m = 0; m < MR; m++)
#pragma GCC unroll 2
                for (int64_t v = 0; v < WIDE; v++)
                    ((V*)(dense + (i * MR + m) * at.ld + j * NR<T>))[v] = ((const V*)tile)[m * WIDE + v];
}

// |d_j| − 1 for the pivot d_j = J_j + g, moved to where exact arithmetic has it: a removed row's 1 − g stays positive, an
// added row's g does not turn negative.  NaN when g is further off than rounding explains: by slack, and for an added row by
// slack times the diagonal it started from.
template <class T>
double pivot_excess(T g, bool removed, T diagonal, double slack) {
    const double least = sizeof(T) == 4 ? 4.8e-7 : 8.9e-16;  // 4 ε, the smallest 1 − leverage that is not all rounding
    if (removed) {
        if (!(g <= 1 + slack)) return NAN;
        return g <= 1 - least ? -(double)g : least - 1;
    }
    if (!(g >= -slack * (1 + diagonal))) return NAN;
    return g >= 0 ? (double)g : 0;
}

// Column j of a panel of NR columns (from `start`) eliminated from the panel's part of the rows below: G[i, x] −= L[i, j] G[x, j]
// for j < x in the panel, L[i, j] = G[i, j] / d_j kept in its place.  `column` meets the other positions with zeros.
template <class T>
void eliminate(const Layout<T>& at, int64_t start, int64_t j, T inverse_pivot, T* gram) {
    using V = typename Vector<T>::type;
    constexpr int64_t width = Vector<T>::width;
    alignas(64) T column[NR<T>] = {};
    for (int64_t x = j + 1; x < start + NR<T> && x < at.k; x++) column[x - start] = gram[x * at.ld + j];
    V b[WIDE];
    for (int64_t v = 0; v < WIDE; v++) b[v] = ((const V*)column)[v];
    for (int64_t i = j + 1; i < at.k; i++) {
        T* row = gram + i * at.ld + start;
        const T factor = row[j - start] * inverse_pivot;
#pragma GCC unroll 2
        for (int64_t v = 0; v < WIDE; v++) *(V*)(row + v * width) -= factor * b[v];
        row[j - start] = factor;
    }
}

// The panel of columns start … start+NR−1 eliminated from the columns to its right: G[i, x] −= Σ_j L[i, j] d_j L[x, j].
// Entries above the diagonal are computed along and never read.
template <class T>
void update_trailing(const Layout<T>& at, int64_t start, const T* inverse_pivots, T* gram, T* panel) {
    using V = typename Vector<T>::type;
    alignas(64) T tile[TILE<T>];
    for (int64_t j = start / NR<T> + 1; j < at.column_blocks; j++) {
        for (int64_t x = 0; x < NR<T>; x++)  // rows past the last are zero
            for (int64_t m = 0; m < NR<T>; m++)
                panel[m * NR<T> + x] = gram[(j * NR<T> + x) * at.ld + start + m] / inverse_pivots[start + m];
        for (int64_t i = first_row_block<T>(j); i < at.row_blocks; i++) {
            multiply_tile(gram + i * MR * at.ld + start, at.ld, panel, NR<T>, tile);
            for (int64_t m = 0; m < MR; m++)
#pragma GCC unroll 2
                for (int64_t v = 0; v < WIDE; v++)
                    ((V*)(gram + (i * MR + m) * at.ld + j * NR<T>))[v] -= ((const V*)tile)[m * WIDE + v];
        }
    }
}

// Σ log|d_j| of J + G = L D Lᵀ, the strict lower triangle of G replaced by L and `diagonal` by 1/d_j; NaN, with the pivot in
// *wrong, when one has the wrong sign.
//
// J never enters the matrix.  At the larger nodes G is small beside 1, and 1 + g would keep few of its digits while the
// weight of the node is large; kept apart, g has all of them for log1p, and float32 is enough.
template <class T>
double factor_logdet(const Layout<T>& at, int64_t removed, double slack, T* gram, T* diagonal, T* panel, double* wrong) {
    for (int64_t i = 0; i < at.k; i++) diagonal[i] = gram[i * at.ld + i];
    double logdet = 0;
    for (int64_t start = 0; start < at.k; start += NR<T>) {
        for (int64_t j = start; j < start + NR<T> && j < at.k; j++) {
            const double sign = j < removed ? -1 : 1;
            const T g = gram[j * at.ld + j];
            const double excess = pivot_excess(g, j < removed, diagonal[j], slack);
            if (excess != excess) {
                *wrong = sign + g;
                return NAN;
            }
            logdet += log1p(excess);
            diagonal[j] = T(sign / (1 + excess));
            eliminate(at, start, j, diagonal[j], gram);
        }
        if (start + NR<T> < at.k) update_trailing(at, start, diagonal, gram, panel);
    }
    return logdet;
}

// z packed and all its Gram matrices made.
template <class T>
void prepare_grams(const ChangedRows<T>& rows, const WeightPlan<T>& plan, int64_t c, const Layout<T>& at, const Workspace<T>& of) {
    mean_shifts(rows, c, of.shift_removed, of.shift_added);
    shift_rows(rows, c, at, of);
    pack_right(at, of.left, of.right);
    weighted_grams(at, plan, of);
}

template <class T>
void candidate_logdets(const ChangedRows<T>& rows, const WeightPlan<T>& plan, double slack, int64_t c, T* memory, double* logdets,
                       double* wrong) {
    const Layout<T> at(rows.removed + rows.added, rows.rank, plan);
    const Workspace<T> of(at, memory);
    prepare_grams(rows, plan, c, at, of);
    for (int64_t q = 0; q < at.nodes; q++) {
        unpack_gram(at, q, of.grams, of.dense);
        logdets[q] = factor_logdet(at, rows.removed, slack, of.dense, of.diagonal, of.panel, wrong + q);
    }
}

}  // namespace FASTFID_ISA
}  // namespace fastfid
