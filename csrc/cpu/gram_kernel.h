// Weighted Gram matrices of one candidate, all nodes of the quadrature, compiled once per instruction set (kernels.h).
//
//   w   [k, r]  rows of the candidate, removed ones first, before their shift (problem.h)
//   G_q = Σ_p w_p w_pᵀ / (λ_p + τ_q²) = Σ_m c[m, q] Σ_n x[n, m] M_n,    M_n = Σ_{p in slice} e_n[p] w_p w_pᵀ
//
// A WeightPlan writes the Q weights of a slice of positions as combinations of a few functions e_n.  Neighbours in a sorted
// spectrum are similar, so 3 or 4 functions suffice for 16 nodes.  Each function takes k²/2 multiply-adds per position, which
// replace those of every node.  The M_n of all slices of a group are combined to the about 6 functions of the group, and these to
// the nodes.
//
// The positions are processed in spans of one group or a few short groups.  A span of w is copied twice: to rows (left operands,
// broadcast entry by entry) and, one column block at a time, to right panels of NR rows, which are scaled by e_n before the
// product.  The M_n of a tile are kept for all slices of the span.  Then they are combined in registers and added to the sums of
// the nodes once per span.  Adding every slice to a sum for its group instead took a fifth longer: at k = 100 it reads and writes
// 300 kB per slice.
//
//   right     [panel][position][NR]
//   products  [row block][panel][slice, n][MR·NR]   M_n = Σ_p w[i][p] ⊗ (e_n[p] right[j][p][:]), tiles that touch the lower triangle
//   sums      [m][MR·NR]                            a tile's functions of the span's groups
//   lanes     [set of W nodes][entry (i, j ≤ i)][W] W of the G_q side by side, as factor_kernel.h wants them
//
// Shifts.  The rows z = A w of equation 2 are w plus multiples of two mean rows.  So A G Aᵀ needs only sums over rows of G, and z
// is never formed.
//
// Legend: p position along the rank, i j row and column blocks, m function of a group, n function of a slice, W vector width.
#pragma once

#include "gram_layout.h"

namespace fastfid {
namespace FASTFID_ISA {

// Vectors of a tile and functions of a group that are combined at once: 24 accumulators of 32 registers, or 12 of 16.
#if FASTFID_VECTOR_BYTES == 64
constexpr int64_t TILE_PART = 4, FUNCTIONS_TOGETHER = 6;
#else
constexpr int64_t TILE_PART = 3, FUNCTIONS_TOGETHER = 4;
#endif

// Shifts of a candidate's rows as multiples of its sums of rows: α/m_r, β/m_a, γ/m_r of problem.h.
template <class T>
struct Shifts {
    T alpha, beta, gamma;
    explicit Shifts(const ChangedRows<T>& rows)
        : alpha(rows.removed ? T(rows.alpha / rows.removed) : T(0)), beta(rows.added ? T(rows.beta / rows.added) : T(0)),
          gamma(rows.removed ? T(rows.gamma / rows.removed) : T(0)) {}
    bool none() const { return alpha == 0 && beta == 0 && gamma == 0; }
};

// Row i of a candidate as stored, before its shift.
template <class T>
const T* row_of(const ChangedRows<T>& rows, int64_t c, int64_t i) {
    if (i < rows.removed) return rows.reference + rows.index[c * rows.removed + i] * rows.rank;
    return rows.added_rows + (c * rows.added + i - rows.removed) * rows.rank;
}

// Positions start … start+length−1 of every row, padded with zeros to a whole vector; rows past the last one are zero already.
// The rows are scattered in the reference, so the next one is prefetched while one is copied.
template <class T>
void copy_positions(const ChangedRows<T>& rows, int64_t c, int64_t start, int64_t length, T* left) {
    constexpr int64_t line = 64 / sizeof(T);
    const int64_t k = rows.removed + rows.added, padded = round_up(length, 16);
    for (int64_t i = 0; i < k; i++, left += LEFT_STRIDE) {
        const T* next = row_of(rows, c, i + 1 < k ? i + 1 : i) + start;
        for (int64_t p = 0; p < length; p += line) __builtin_prefetch(next + p);
        memcpy(left, row_of(rows, c, i) + start, length * sizeof(T));
        for (int64_t p = length; p < padded; p++) left[p] = 0;
    }
}

// The span's copy of column block j as right panel [position][NR].
template <class T>
void pack_right(const T* left, int64_t j, int64_t length, T* right) {
    constexpr int64_t width = Vector<T>::width;
    for (int64_t p = 0; p < length; p += width)
        for (int64_t m = 0; m < NR<T>; m += width)
            transpose(left + (j * NR<T> + m) * LEFT_STRIDE + p, LEFT_STRIDE, right + p * NR<T> + m, NR<T>);
}

// scaled[p][:] = e[p]·right[p][:] for a slice of a panel.
template <class T>
void scale_panel(const T* right, const T* function, int64_t length, T* scaled) {
    using V = typename Vector<T>::type;
    for (int64_t p = 0; p < length; p++)
#pragma GCC unroll 2
        for (int64_t v = 0; v < WIDE; v++) ((V*)scaled)[p * WIDE + v] = function[p] * ((const V*)right)[p * WIDE + v];
}

// Row i of packed lanes.
template <class V>
V* row_at(V* lanes, int64_t i) {
    return lanes + i * (i + 1) / 2;
}

// Products of row blocks i … end−1 and column blocks j … j+panels−1.
template <class T>
void multiply_span(const Layout<T>& at, const WeightPlan<T>& plan, const Span<T>& span, const T* functions, int64_t i, int64_t end,
                   int64_t j, int64_t panels, const Workspace<T>& of) {
    const int64_t panel_tiles = span.functions * TILE<T>, shared = at.first_row_block(j + panels - 1);
    const T *left = of.left, *right = of.right;
    T* products = of.products;
    for (int64_t s = span.first; s < span.last; s++) {
        const int64_t length = plan.bounds[s + 1] - plan.bounds[s];
        for (int64_t n = 0; n < plan.terms[s]; n++, functions += length, products += TILE<T>) {
            for (int64_t x = 0; x < panels; x++)
                scale_panel(right + x * SPAN * NR<T>, functions, length, of.scaled + x * SLICE * NR<T>);
            for (int64_t r = i; r < end; r++) {
                const T* rows = left + r * MR * LEFT_STRIDE;
                T* tile = products + (r - i) * panels * panel_tiles;
                if (panels == 2 && r >= shared)
                    multiply_tiles<T, 2>(rows, LEFT_STRIDE, of.scaled, SLICE * NR<T>, length, tile, panel_tiles);
                else
                    multiply_tiles<T, 1>(rows, LEFT_STRIDE, of.scaled, 0, length, tile, 0);
            }
        }
        left += length;
        right += length * NR<T>;
    }
}

// sums [m][tile] = Σ_e mixes[e][m]·products[e][tile] for the first `count` of a group's `terms` functions m.
template <class T, int64_t count>
void combine_some(const T* products, const T* mixes, int64_t functions, int64_t terms, T* sums) {
    using V = typename Vector<T>::type;
    for (int64_t start = 0; start < MR * WIDE; start += TILE_PART) {
        V sum[count][TILE_PART];
#pragma GCC unroll 8
        for (int64_t m = 0; m < count; m++)
#pragma GCC unroll 4
            for (int64_t v = 0; v < TILE_PART; v++) sum[m][v] = V{};
        for (int64_t e = 0; e < functions; e++) {
            const V* product = (const V*)(products + e * TILE<T>) + start;
#pragma GCC unroll 8
            for (int64_t m = 0; m < count; m++)
#pragma GCC unroll 4
                for (int64_t v = 0; v < TILE_PART; v++) sum[m][v] += mixes[e * terms + m] * product[v];
        }
#pragma GCC unroll 8
        for (int64_t m = 0; m < count; m++)
#pragma GCC unroll 4
            for (int64_t v = 0; v < TILE_PART; v++) ((V*)(sums + m * TILE<T>))[start + v] = sum[m][v];
    }
}

// The same for `count` functions, at most `most`.
template <class T, int64_t most>
void combine_at_most(int64_t count, const T* products, const T* mixes, int64_t functions, int64_t terms, T* sums) {
    if (count >= most) return combine_some<T, most>(products, mixes, functions, terms, sums);
    if constexpr (most > 1) combine_at_most<T, most - 1>(count, products, mixes, functions, terms, sums);
}

// sums [m][tile] of every function of the span's groups from a tile's products.
template <class T>
void combine_tile(const WeightPlan<T>& plan, const Span<T>& span, const T* products, const T* mixes, T* sums) {
    for (int64_t g = span.first_group, s = span.first; g < span.last_group; g++) {
        const int64_t terms = plan.group_terms[g];
        int64_t functions = 0;
        for (; s < plan.group_ends[g]; s++) functions += plan.terms[s];
        for (int64_t m = 0; m < terms; m += FUNCTIONS_TOGETHER)
            combine_at_most<T, FUNCTIONS_TOGETHER>(terms - m, products, mixes + m, functions, terms, sums + m * TILE<T>);
        products += functions * TILE<T>;
        mixes += functions * terms;
        sums += terms * TILE<T>;
    }
}

// Entries of tile (i, j) for one set of nodes: lanes[entry][:] (+)= Σ_m sums[m][entry]·coefficients[m][:].
template <class T, bool accumulate>
void add_tile(const Layout<T>& at, int64_t i, int64_t j, const T* sums, const T* coefficients, int64_t terms, T* lanes) {
    using V = typename Vector<T>::type;
    const int64_t stride = at.sets * Vector<T>::width;
    for (int64_t r = 0; r < MR; r++) {
        const int64_t row = i * MR + r, wanted = row + 1 - j * NR<T>, columns = wanted < NR<T> ? wanted : NR<T>;
        if (row >= at.k) return;
        V* out = (V*)lanes + row * (row + 1) / 2 + j * NR<T>;
        const T* entries = sums + r * NR<T>;
        for (int64_t start = 0; start < columns; start += TOGETHER<T>) {
            V sum[TOGETHER<T>];
#pragma GCC unroll 8
            for (int64_t x = 0; x < TOGETHER<T>; x++) sum[x] = accumulate ? out[start + x] : V{};
            for (int64_t m = 0; m < terms; m++) {
                const V c = *(const V*)(coefficients + m * stride);
#pragma GCC unroll 8
                for (int64_t x = 0; x < TOGETHER<T>; x++) sum[x] += entries[m * TILE<T> + start + x] * c;
            }
#pragma GCC unroll 8
            for (int64_t x = 0; x < TOGETHER<T>; x++)
                if (start + x < columns) out[start + x] = sum[x];
        }
    }
}

// The products of row blocks i … end−1 combined and added to every node.
template <class T>
void add_span(const Layout<T>& at, const WeightPlan<T>& plan, const Span<T>& span, const T* mixes, const T* coefficients, int64_t i,
              int64_t end, int64_t j, int64_t panels, const Workspace<T>& of) {
    const auto add = span.first ? add_tile<T, true> : add_tile<T, false>;
    const T* products = of.products;
    for (int64_t r = i; r < end; r++)
        for (int64_t x = 0; x < panels; x++, products += span.functions * TILE<T>) {
            if (r < at.first_row_block(j + x)) continue;
            combine_tile(plan, span, products, mixes, of.sums);
            for (int64_t set = 0; set < at.sets; set++)
                add(at, r, j + x, of.sums, coefficients + set * Vector<T>::width, span.terms, of.lanes + set * at.set());
        }
}

// The plan's coefficients [m][sets·W], zero past the last node.
template <class T>
void pad_coefficients(const Layout<T>& at, const WeightPlan<T>& plan, T* padded) {
    const int64_t stride = at.sets * Vector<T>::width;
    for (int64_t m = 0; m < at.all_group_terms; m++)
        memcpy(padded + m * stride, plan.coefficients + m * at.nodes, at.nodes * sizeof(T));
}

// What a span adds to G of the unshifted rows at every node.
template <class T>
void span_grams(const ChangedRows<T>& rows, const WeightPlan<T>& plan, const Span<T>& span, int64_t c, const T* functions,
                const T* mixes, const T* coefficients, const Layout<T>& at, const Workspace<T>& of) {
    const int64_t together = at.blocks_together(span.functions);
    copy_positions(rows, c, span.start, span.length, of.left);
    for (int64_t j = 0; j < at.column_blocks; j += PANELS) {
        const int64_t panels = at.column_blocks - j < PANELS ? at.column_blocks - j : PANELS;
        for (int64_t x = 0; x < panels; x++) pack_right(of.left, j + x, span.length, of.right + x * SPAN * NR<T>);
        for (int64_t i = at.first_row_block(j), end; i < at.row_blocks; i = end) {
            end = i + together < at.row_blocks ? i + together : at.row_blocks;
            multiply_span(at, plan, span, functions, i, end, j, panels, of);
            add_span(at, plan, span, mixes, coefficients, i, end, j, panels, of);
        }
    }
}

// G of the unshifted rows at every node.
template <class T>
void weighted_grams(const ChangedRows<T>& rows, const WeightPlan<T>& plan, int64_t c, const Layout<T>& at, const Workspace<T>& of) {
    const T *functions = plan.functions, *mixes = plan.mixes, *coefficients = of.coefficients;
    pad_coefficients(at, plan, of.coefficients);
    if (!plan.groups) memset(of.lanes, 0, at.lanes() * sizeof(T));
    for (Span<T> span = next_span(plan, 0, 0); span.length; span = next_span(plan, span.last, span.last_group)) {
        span_grams(rows, plan, span, c, functions, mixes, coefficients, at, of);
        for (int64_t g = span.first_group, s = span.first; g < span.last_group; g++)
            for (; s < plan.group_ends[g]; s++) {
                functions += plan.terms[s] * (plan.bounds[s + 1] - plan.bounds[s]);
                mixes += plan.terms[s] * plan.group_terms[g];
            }
        coefficients += span.terms * at.sets * Vector<T>::width;
    }
}

// Sums of G over its removed and over its added columns, [k][W] each, from the lower triangle; those of the known rows over
// removed columns are there already.
template <class T>
void row_sums(const Layout<T>& at, int64_t removed, const T* lanes, typename Vector<T>::type* over_removed,
              typename Vector<T>::type* over_added) {
    using V = typename Vector<T>::type;
    memset(over_removed + at.known, 0, (at.k - at.known) * sizeof(V));
    memset(over_added, 0, at.k * sizeof(V));
    const V* gram = row_at((const V*)lanes, at.known);
    for (int64_t i = at.known; i < at.k; i++) {
        V* mirrored = i < removed ? over_removed : over_added;
        for (int64_t j = 0; j <= i; j++, gram++) {
            (j < removed ? over_removed : over_added)[i] += *gram;
            if (j < i) mirrored[j] += *gram;
        }
    }
}

// G → A G Aᵀ for one set of nodes.  With u_i = z_i − w_i the same for all removed and for all added rows,
//   z_i·z_j = w_i·w_j + w_i·u_j + u_i·w_j + u_i·u_j,
// w_i·u_r = α' R_i and w_i·u_a = β' S_i + γ' R_i from the sums R_i, S_i of row i over removed and added columns.  Rows that are
// known stay as they are, their R_i is in `known_sums`.
template <class T>
void shift_gram(const ChangedRows<T>& rows, const Layout<T>& at, const T* known_sums, T* lanes, T* memory) {
    using V = typename Vector<T>::type;
    const Shifts<T> by(rows);
    if (by.none()) return;
    V *gram = row_at((V*)lanes, at.known), *to_removed = (V*)memory, *to_added = to_removed + at.k;  // R, S; then w_i·u_r, w_i·u_a
    if (at.known) memcpy(to_removed, known_sums, at.known * sizeof(V));
    row_sums(at, rows.removed, lanes, to_removed, to_added);
    V rr{}, ra{}, aa{};  // sums of G over its three blocks
    for (int64_t i = 0; i < at.k; i++) {
        (i < rows.removed ? rr : ra) += to_removed[i];
        if (i >= rows.removed) aa += to_added[i];
        to_added[i] = by.beta * to_added[i] + by.gamma * to_removed[i];
        to_removed[i] *= by.alpha;
    }
    const V both_removed = by.alpha * by.alpha * rr, mixed = by.alpha * (by.beta * ra + by.gamma * rr);
    const V both_added = by.beta * by.beta * aa + 2 * by.beta * by.gamma * ra + by.gamma * by.gamma * rr;
    for (int64_t i = at.known; i < at.k; i++) {
        const bool removed = i < rows.removed;
        const V with_removed = to_removed[i] + (removed ? both_removed : mixed), with_added = to_added[i] + both_added;
        const V* mirrored = removed ? to_removed : to_added;
        for (int64_t j = 0; j <= i; j++) *gram++ += mirrored[j] + (j < rows.removed ? with_removed : with_added);
    }
}

}  // namespace FASTFID_ISA
}  // namespace fastfid
