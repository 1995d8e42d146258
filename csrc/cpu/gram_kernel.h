// Weighted Gram matrices of one candidate, all nodes of the quadrature, compiled once per instruction set (kernels.h).
//
//   w   [k, r]  rows of the candidate, removed ones first, before their shift (problem.h)
//   G_q = Σ_p w_p w_pᵀ / (λ_p + τ_q²) = Σ_m c[m, q] Σ_n x[n, m] M_n,    M_n = Σ_{p in slice} e_n[p] w_p w_pᵀ
//
// A WeightPlan writes the Q weights of a slice of positions as combinations of a few functions e_n: eigenvalues that are
// neighbours in a sorted spectrum differ little, and 3 or 4 functions do for 16 nodes.  k²/2 multiply-adds a position and
// function replace those of every node.  The M_n of a slice are added to the functions of its group, some 6 of them, and only
// a group's sums to the nodes.
//
// A slice of w is copied to rows, left operands whose entries are broadcast one at a time, and packed once more as right panels
// of NR rows, which are scaled by e_n before the product.  Meanwhile the next slice is fetched: a candidate's rows lie scattered
// in the reference.
//
//   right  [column block][position][NR]
//   tile (i, j) of M_n  =  Σ_p w[i][p] ⊗ (e_n[p] right[j][p][:])       only tiles that touch the lower triangle
//   lanes  [set of W nodes][entry (i, j ≤ i)][W]                       W of the G_q side by side, as factor_kernel.h wants them
//
// Shifts.  z = A w, the rows of equation 2, adds multiples of two mean rows, so that A G Aᵀ costs sums over rows of G; z itself
// is never formed.
//
// Legend: p position along the rank, i j row and column blocks, m function of a group, n function of a slice, W vector width.
#pragma once

#include "tiles.h"

namespace fastfid {
namespace FASTFID_ISA {

// Rows of a slice's copy are this far apart: 16 past the length keeps them off one cache set.
constexpr int64_t LEFT_STRIDE = SLICE + 16;

// Entries combined at once: as many accumulators as cover a multiply-add's latency of 4 cycles on two units.
template <class T>
constexpr int64_t TOGETHER = NR<T> < 8 ? NR<T> : 8;

// How one thread's memory is laid out, in elements of T; every part starts on a 64-byte boundary.  The products of the first
// `known` rows with each other are not wanted (shared_kernel.h has them).
template <class T>
struct Layout {
    int64_t k, known, rank, nodes, sets, row_blocks, column_blocks, tiles, most_terms, most_group_terms, all_group_terms;

    Layout(int64_t k_, int64_t known_, int64_t rank_, const WeightPlan<T>& plan)
        : k(k_), known(known_), rank(rank_), nodes(plan.nodes), sets(blocks(plan.nodes, Vector<T>::width)),
          row_blocks(blocks(k_, MR)), column_blocks(blocks(k_, NR<T>)), tiles(0), most_terms(0), most_group_terms(0),
          all_group_terms(0) {
        for (int64_t j = 0; j < column_blocks; j++) tiles += row_blocks - first_row_block(j);
        for (int64_t s = 0; s < plan.slices; s++) most_terms = plan.terms[s] > most_terms ? plan.terms[s] : most_terms;
        for (int64_t g = 0; g < plan.groups; g++) {
            most_group_terms = plan.group_terms[g] > most_group_terms ? plan.group_terms[g] : most_group_terms;
            all_group_terms += plan.group_terms[g];
        }
    }

    // First row block whose tile with column block j touches the lower triangle and has a row that is not known.
    int64_t first_row_block(int64_t j) const {
        const int64_t of_triangle = j * NR<T> / MR, of_new = known / MR;
        return of_triangle > of_new ? of_triangle : of_new;
    }
    int64_t rows_padded() const {
        const int64_t by_rows = row_blocks * MR, by_columns = column_blocks * NR<T>;
        return by_rows > by_columns ? by_rows : by_columns;
    }
    int64_t entries() const { return k * (k + 1) / 2 + TOGETHER<T>; }  // reads may pass the last row's end
    int64_t left() const { return round_up(rows_padded() * LEFT_STRIDE, 16); }
    int64_t right() const { return column_blocks * SLICE * NR<T>; }
    int64_t scaled() const { return PANELS * SLICE * NR<T>; }
    int64_t products() const { return PANELS * row_blocks * most_terms * TILE<T>; }
    int64_t group() const { return tiles * most_group_terms * TILE<T>; }
    int64_t coefficients() const { return all_group_terms * sets * Vector<T>::width; }
    int64_t set() const { return entries() * Vector<T>::width; }
    int64_t lanes() const { return sets * set(); }
    int64_t columns() const { return k * Vector<T>::width; }
    int64_t panel() const { return 4 * columns(); }
    int64_t total() const {
        return left() + right() + scaled() + products() + group() + round_up(coefficients(), 16) + lanes() + 3 * columns() + panel();
    }
};

// The parts of that memory.
template <class T>
struct Workspace {
    T *left, *right, *scaled, *products, *group, *coefficients, *lanes, *diagonal, *pivots, *inverses, *panel, *rest;

    Workspace(const Layout<T>& at, T* memory) {
        left = memory;
        right = left + at.left();
        scaled = right + at.right();
        products = scaled + at.scaled();
        group = products + at.products();
        coefficients = group + at.group();
        lanes = coefficients + round_up(at.coefficients(), 16);
        diagonal = lanes + at.lanes();
        pivots = diagonal + at.columns();
        inverses = pivots + at.columns();
        panel = inverses + at.columns();
        rest = panel + at.panel();
    }
};

// What the rows of a candidate get, in units of its sums of rows: α/m_r, β/m_a, γ/m_r of problem.h.
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

// Positions start … start+length−1 of every row, followed by zeros to a whole vector; what lies past the last row is zero already.
template <class T>
void copy_slice(const ChangedRows<T>& rows, int64_t c, int64_t start, int64_t length, T* left) {
    const int64_t padded = round_up(length, 16);
    for (int64_t i = 0; i < rows.removed + rows.added; i++, left += LEFT_STRIDE) {
        memcpy(left, row_of(rows, c, i) + start, length * sizeof(T));
        for (int64_t p = length; p < padded; p++) left[p] = 0;
    }
}

// The same positions on their way into the second-level cache.
template <class T>
void fetch_slice(const ChangedRows<T>& rows, int64_t c, int64_t start, int64_t length) {
    constexpr int64_t line = 64 / sizeof(T);
    for (int64_t i = 0; i < rows.removed + rows.added; i++) {
        const T* row = row_of(rows, c, i) + start;
        for (int64_t p = 0; p < length; p += line) __builtin_prefetch(row + p, 0, 2);
    }
}

// A slice as right panels [column block][position][NR], panels SLICE·NR apart.
template <class T>
void pack_right(const Layout<T>& at, const T* left, int64_t length, T* right) {
    constexpr int64_t width = Vector<T>::width;
    for (int64_t j = 0; j < at.column_blocks; j++)
        for (int64_t p = 0; p < length; p += width)
            for (int64_t m = 0; m < NR<T>; m += width)
                transpose(left + (j * NR<T> + m) * LEFT_STRIDE + p, LEFT_STRIDE, right + (j * SLICE + p) * NR<T> + m, NR<T>);
}

// scaled[p][:] = e[p]·right[p][:] for a slice of a panel.
template <class T>
void scale_panel(const T* right, const T* function, int64_t length, T* scaled) {
    using V = typename Vector<T>::type;
    for (int64_t p = 0; p < length; p++)
#pragma GCC unroll 2
        for (int64_t v = 0; v < WIDE; v++) ((V*)scaled)[p * WIDE + v] = function[p] * ((const V*)right)[p * WIDE + v];
}

// Tiles of M_n for column blocks j … j+panels−1: products [column block][row block][n][tile].
template <class T>
void multiply_slice(const Layout<T>& at, int64_t j, int64_t panels, const T* functions, int64_t terms, int64_t length,
                    const Workspace<T>& of) {
    const int64_t column = at.row_blocks * terms * TILE<T>, shared = at.first_row_block(j + panels - 1);
    for (int64_t n = 0; n < terms; n++) {
        for (int64_t x = 0; x < panels; x++)
            scale_panel(of.right + (j + x) * SLICE * NR<T>, functions + n * length, length, of.scaled + x * SLICE * NR<T>);
        for (int64_t i = at.first_row_block(j); i < at.row_blocks; i++) {
            const T* left = of.left + i * MR * LEFT_STRIDE;
            T* tile = of.products + (i * terms + n) * TILE<T>;
            if (panels == 2 && i >= shared)
                multiply_tiles<T, 2>(left, LEFT_STRIDE, of.scaled, SLICE * NR<T>, length, tile, column);
            else
                multiply_tiles<T, 1>(left, LEFT_STRIDE, of.scaled, 0, length, tile, 0);
        }
    }
}

// Row i of packed lanes.
template <class V>
V* row_at(V* lanes, int64_t i) {
    return lanes + i * (i + 1) / 2;
}

// A slice's products added to the functions of its group, [tile][m][MR·NR], tiles by column block and then row block.
template <class T>
void add_slice(const Layout<T>& at, const ChangedRows<T>& rows, int64_t c, int64_t start, int64_t length, const T* functions,
               int64_t terms, const T* mix, int64_t group_terms, bool first, const Workspace<T>& of) {
    copy_slice(rows, c, start, length, of.left);
    fetch_slice(rows, c, start + length, start + 2 * length < at.rank ? length : at.rank - start - length);
    pack_right(at, of.left, length, of.right);
    T* sums = of.group;
    for (int64_t j = 0; j < at.column_blocks; j += PANELS) {
        const int64_t panels = at.column_blocks - j < PANELS ? at.column_blocks - j : PANELS;
        multiply_slice(at, j, panels, functions, terms, length, of);
        for (int64_t x = 0; x < panels; x++)
            for (int64_t i = at.first_row_block(j + x); i < at.row_blocks; i++) {
                const T* products = of.products + (x * at.row_blocks + i) * terms * TILE<T>;
                for (int64_t m = 0; m < group_terms; m++, sums += TILE<T>)
                    combine(products, mix + m, group_terms, terms, TILE<T>, !first, sums);
            }
    }
}

// Entries of tile (i, j) added to one set of nodes: lanes[entry][:] += Σ_m functions[m][entry]·coefficients[m][:].
template <class T>
void add_tile(const Layout<T>& at, int64_t i, int64_t j, const T* functions, const T* coefficients, int64_t terms, T* lanes) {
    using V = typename Vector<T>::type;
    const int64_t stride = at.sets * Vector<T>::width;
    for (int64_t r = 0; r < MR; r++) {
        const int64_t row = i * MR + r, wanted = row + 1 - j * NR<T>, columns = wanted < NR<T> ? wanted : NR<T>;
        if (row >= at.k) return;
        V* out = (V*)lanes + row * (row + 1) / 2 + j * NR<T>;
        const T* entries = functions + r * NR<T>;
        for (int64_t start = 0; start < columns; start += TOGETHER<T>) {
            V sum[TOGETHER<T>];
#pragma GCC unroll 8
            for (int64_t x = 0; x < TOGETHER<T>; x++) sum[x] = out[start + x];
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

// A group's functions added to every node.
template <class T>
void add_group(const Layout<T>& at, const T* coefficients, int64_t terms, const Workspace<T>& of) {
    for (int64_t set = 0; set < at.sets; set++) {
        const T* tile = of.group;
        for (int64_t j = 0; j < at.column_blocks; j++)
            for (int64_t i = at.first_row_block(j); i < at.row_blocks; i++, tile += terms * TILE<T>)
                add_tile(at, i, j, tile, coefficients + set * Vector<T>::width, terms, of.lanes + set * at.set());
    }
}

// The plan's coefficients [m][sets·W], zero past the last node.
template <class T>
void pad_coefficients(const Layout<T>& at, const WeightPlan<T>& plan, T* padded) {
    const int64_t stride = at.sets * Vector<T>::width;
    for (int64_t m = 0; m < at.all_group_terms; m++)
        memcpy(padded + m * stride, plan.coefficients + m * at.nodes, at.nodes * sizeof(T));
}

// G of the unshifted rows at every node.
template <class T>
void weighted_grams(const ChangedRows<T>& rows, const WeightPlan<T>& plan, int64_t c, const Layout<T>& at, const Workspace<T>& of) {
    const T *functions = plan.functions, *mixes = plan.mixes, *coefficients = of.coefficients;
    pad_coefficients(at, plan, of.coefficients);
    memset(of.lanes, 0, at.lanes() * sizeof(T));
    for (int64_t g = 0, s = 0; g < plan.groups; g++) {
        const int64_t first = s, group_terms = plan.group_terms[g];
        for (; s < plan.group_ends[g]; s++) {
            const int64_t terms = plan.terms[s], start = plan.bounds[s], length = plan.bounds[s + 1] - start;
            add_slice(at, rows, c, start, length, functions, terms, mixes, group_terms, s == first, of);
            functions += terms * length;
            mixes += terms * group_terms;
        }
        add_group(at, coefficients, group_terms, of);
        coefficients += group_terms * at.sets * Vector<T>::width;
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
