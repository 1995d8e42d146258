// Gradient of a candidate's log-determinants in its added rows, compiled once per instruction set (kernels.h).
//
//   ∂/∂z Σ_q ω_q log|det(J + G_q)| = 2 Σ_q ω_q H_q z D_q,   H_q = (J + G_q)⁻¹,  D_q = diag 1/(λ + τ_q²)
//                                  = 2 Σ_n K_n A (w_s diag e_n) on slice s,
//   K_n = Σ_m x[n, m] K_m,   K_m = Σ_q ω_q c[m, q] H_q
//
// by the WeightPlan of gram_kernel.h, which defines A and w.  Only the rows of H_q that belong to added rows are computed, from
// the factor L D Lᵀ, for W nodes at once.  The sum over n is one product of depth k·terms: [K_1 A, K_2 A …] times the stacked
// w diag e_n.
#pragma once

#include "shared_kernel.h"

namespace fastfid {
namespace FASTFID_ISA {

// Memory beyond that of the log-determinants, in elements of T.
template <class T>
struct GradientLayout {
    int64_t k, added, wide, size, nodes, row_blocks, depth, most_group_terms;

    GradientLayout(int64_t removed, int64_t added_, const WeightPlan<T>& plan, const Layout<T>& at)
        : k(removed + added_), added(added_), wide(round_up(added_, 64 / sizeof(T))),
          size(round_up(round_up(k, Vector<T>::width) * wide, TILE<T>)), nodes(plan.nodes),
          row_blocks(blocks(round_up(added_, Vector<T>::width), MR)), depth(round_up(k * at.most_terms, 16) + 16),
          most_group_terms(at.most_group_terms) {}

    int64_t solution() const { return k * wide * Vector<T>::width; }                      // H[:, added] of one set of nodes, in lanes
    int64_t inverses() const { return round_up(nodes, Vector<T>::width) * size; }         // the same [k, wide] for every node
    int64_t groups() const { return most_group_terms * size; }                            // K_m A of one group
    int64_t mixed() const { return size; }                                                // K_n A of one function
    int64_t left() const { return row_blocks * MR * depth; }                              // rows of [K_1 A, K_2 A …]
    int64_t right() const { return PANELS * depth * NR<T>; }
    int64_t total() const { return solution() + inverses() + groups() + mixed() + left() + right() + PANELS * TILE<T>; }
};

template <class T>
int64_t workspace(int64_t removed, int64_t added, int64_t rank, const WeightPlan<T>& plan, bool gradient) {
    const Layout<T> at(removed + added, 0, rank, plan);
    return gradient ? at.total() + GradientLayout<T>(removed, added, plan, at).total() : at.total();
}

// Forward substitution for rows `first` … `first`+rows−1 and columns m … m+COLUMNS−1 of x [k][wide] lanes:
// x[i] −= Σ_{begin ≤ l < first} L[i, l] x[l], then the same within the block.
template <class T, int64_t rows>
void substitute_forward(const typename Vector<T>::type* lanes, int64_t begin, int64_t first, int64_t wide,
                        typename Vector<T>::type* x) {
    using V = typename Vector<T>::type;
    V sum[rows][COLUMNS] = {};
    for (int64_t l = begin; l < first; l++)
#pragma GCC unroll 4
        for (int64_t r = 0; r < rows; r++) {
            const V a = row_at(lanes, first + r)[l];
#pragma GCC unroll 4
            for (int64_t y = 0; y < COLUMNS; y++) sum[r][y] += a * x[l * wide + y];
        }
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t s = 0; s < r; s++)
            for (int64_t y = 0; y < COLUMNS; y++) sum[r][y] += row_at(lanes, first + r)[first + s] * x[(first + s) * wide + y];
        for (int64_t y = 0; y < COLUMNS; y++) x[(first + r) * wide + y] -= sum[r][y];
    }
}

// Back substitution: x[i] −= Σ_{l > i} L[l, i] x[l] for i = first+rows−1 … first.
template <class T, int64_t rows>
void substitute_back(const typename Vector<T>::type* lanes, int64_t k, int64_t first, int64_t wide, typename Vector<T>::type* x) {
    using V = typename Vector<T>::type;
    V sum[rows][COLUMNS] = {};
    for (int64_t l = first + rows; l < k; l++) {
        const V* row = row_at(lanes, l) + first;
#pragma GCC unroll 4
        for (int64_t r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int64_t y = 0; y < COLUMNS; y++) sum[r][y] += row[r] * x[l * wide + y];
    }
    for (int64_t r = rows - 1; r >= 0; r--) {
        for (int64_t s = r + 1; s < rows; s++)
            for (int64_t y = 0; y < COLUMNS; y++) sum[r][y] += row_at(lanes, first + s)[first + r] * x[(first + s) * wide + y];
        for (int64_t y = 0; y < COLUMNS; y++) x[(first + r) * wide + y] -= sum[r][y];
    }
}

// x [k][wide] lanes = ω·(L D Lᵀ)⁻¹ restricted to the columns of added rows: forward substitution, which starts at the first of
// them, division by D, back substitution; COLUMNS columns at a time.
template <class T>
void solve_added(const Layout<T>& at, int64_t removed, const GradientLayout<T>& grad, const T* lanes_, const T* inverses,
                 const T* omega, T* x_) {
    using V = typename Vector<T>::type;
    const V *lanes = (const V*)lanes_, weight = *(const V*)omega;
    memset(x_, 0, grad.solution() * sizeof(T));
    for (int64_t i = removed; i < at.k; i++) ((V*)x_)[i * grad.wide + i - removed] = weight;
    for (int64_t m = 0; m < grad.added; m += COLUMNS) {
        V* x = (V*)x_ + m;
        const int64_t begin = removed + m;  // zero above
        int64_t i = begin;
        for (; i + ROWS <= at.k; i += ROWS) substitute_forward<T, ROWS>(lanes, begin, i, grad.wide, x);
        for (; i < at.k; i++) substitute_forward<T, 1>(lanes, begin, i, grad.wide, x);
        for (i = begin; i < at.k; i++)
            for (int64_t y = 0; y < COLUMNS; y++) x[i * grad.wide + y] *= ((const V*)inverses)[i];
        for (i = at.k; i % ROWS; i--) substitute_back<T, 1>(lanes, at.k, i - 1, grad.wide, x);
        for (; i > 0; i -= ROWS) substitute_back<T, ROWS>(lanes, at.k, i - ROWS, grad.wide, x);
    }
}

// One [k, wide] matrix a node, `size` apart, from lanes [k][wide][W].
template <class T>
void separate_nodes(const GradientLayout<T>& grad, const T* x, T* inverses) {
    constexpr int64_t width = Vector<T>::width;
    for (int64_t entry = 0; entry < grad.k * grad.wide; entry += width)
        transpose(x + entry * width, width, inverses + entry, grad.size);
}

// K → K A for K [k, wide]: adds a sum over rows for each of the two means (gram_kernel.h).
template <class T>
void shift_columns(const ChangedRows<T>& rows, const GradientLayout<T>& grad, T* matrix) {
    using V = typename Vector<T>::type;
    const Shifts<T> by(rows);
    if (by.none()) return;
    const int64_t vectors = grad.wide / Vector<T>::width;
    for (int64_t v = 0; v < vectors; v++) {
        V *column = (V*)matrix + v, removed{}, added{};
        for (int64_t i = 0; i < grad.k; i++) (i < rows.removed ? removed : added) += column[i * vectors];
        const V to_removed = by.alpha * removed + by.gamma * added, to_added = by.beta * added;
        for (int64_t i = 0; i < grad.k; i++) column[i * vectors] += i < rows.removed ? to_removed : to_added;
    }
}

// Columns n·k … n·k+k−1 of left [added][depth] = 2·mixed [k, wide] transposed; entries written beyond them are overwritten by the next n.
template <class T>
void lay_left(const GradientLayout<T>& grad, int64_t n, T* mixed, T* left) {
    using V = typename Vector<T>::type;
    constexpr int64_t width = Vector<T>::width;
    for (int64_t v = 0; v < grad.size / width; v++) ((V*)mixed)[v] *= 2;
    for (int64_t m = 0; m < grad.added; m += width)
        for (int64_t i = 0; i < grad.k; i += width) transpose(mixed + i * grad.wide + m, grad.wide, left + m * grad.depth + n * grad.k + i, grad.depth);
}

// right [terms·k][NR]: columns p … p+NR−1 of the stacked w diag e_n; only `columns` of them exist.
template <class T>
void stack_columns(const Layout<T>& at, const T* left, const T* functions, int64_t length, int64_t terms, int64_t p, int64_t columns,
                   T* right) {
    for (int64_t n = 0; n < terms; n++) {
        alignas(64) T e[NR<T>] = {};
        for (int64_t x = 0; x < columns; x++) e[x] = functions[n * length + p + x];
        for (int64_t i = 0; i < at.k; i++, right += NR<T>)
            for (int64_t x = 0; x < NR<T>; x++) right[x] = e[x] * left[i * LEFT_STRIDE + p + x];
    }
}

// One slice of the gradient [added, rank] from left [added][depth] and the slice's rows.
template <class T>
void gradient_slice(const Layout<T>& at, const GradientLayout<T>& grad, const Workspace<T>& of, const T* functions, int64_t terms,
                    int64_t start, int64_t length, const T* left, T* right, T* tiles, T* gradient) {
    const int64_t panel = grad.depth * NR<T>;
    for (int64_t p = 0; p < length; p += PANELS * NR<T>) {
        int64_t columns[PANELS];
        for (int64_t x = 0; x < PANELS; x++) {
            const int64_t left_over = length - p - x * NR<T>;
            columns[x] = left_over < 0 ? 0 : left_over < NR<T> ? left_over : NR<T>;
            if (columns[x]) stack_columns(at, of.left, functions, length, terms, p + x * NR<T>, columns[x], right + x * panel);
        }
        for (int64_t b = 0; b * MR < grad.added; b++) {
            multiply_tiles<T, PANELS>(left + b * MR * grad.depth, grad.depth, right, panel, terms * at.k, tiles, TILE<T>);
            for (int64_t m = 0; m < MR && b * MR + m < grad.added; m++)
                for (int64_t x = 0; x < PANELS; x++)
                    memcpy(gradient + (b * MR + m) * at.rank + start + p + x * NR<T>, tiles + x * TILE<T> + m * NR<T>,
                           columns[x] * sizeof(T));
        }
    }
}

// gradient [added, rank] = 2 Σ_n K_n A w diag(e_n), slice by slice.
template <class T>
void apply_inverses(const ChangedRows<T>& rows, int64_t c, const Layout<T>& at, const GradientLayout<T>& grad,
                    const WeightPlan<T>& plan, const Workspace<T>& of, const T* inverses, T* memory, T* gradient) {
    T *groups = memory, *mixed = groups + grad.groups(), *left = mixed + grad.mixed(), *right = left + grad.left(),
      *tiles = right + grad.right();
    const T *functions = plan.functions, *mixes = plan.mixes, *coefficients = plan.coefficients;
    for (int64_t g = 0, s = 0; g < plan.groups; g++) {
        const int64_t group_terms = plan.group_terms[g];
        for (int64_t m = 0; m < group_terms; m++, coefficients += at.nodes) {
            combine(inverses, coefficients, 1, at.nodes, grad.size, false, groups + m * grad.size);
            shift_columns(rows, grad, groups + m * grad.size);
        }
        for (; s < plan.group_ends[g]; s++) {
            const int64_t terms = plan.terms[s], start = plan.bounds[s], length = plan.bounds[s + 1] - start;
            copy_positions(rows, c, start, length, of.left);
            for (int64_t n = 0; n < terms; n++) {
                combine(groups, mixes + n * group_terms, 1, group_terms, grad.size, false, mixed);
                lay_left(grad, n, mixed, left);
            }
            gradient_slice(at, grad, of, functions, terms, start, length, left, right, tiles, gradient);
            functions += terms * length;
            mixes += terms * group_terms;
        }
    }
}

template <class T>
void candidate_gradient(const ChangedRows<T>& rows, const WeightPlan<T>& plan, const double* node_weights, double slack, int64_t c,
                        const T* shared, T* memory, T* gradient, double* logdets, double* wrong, double* remaining) {
    constexpr int64_t width = Vector<T>::width;
    const Layout<T> at(rows.removed + rows.added, shared ? rows.removed : 0, rows.rank, plan);
    const GradientLayout<T> grad(rows.removed, rows.added, plan, at);
    const Workspace<T> of(at, memory);
    T *solution = of.rest, *inverses = solution + grad.solution();
    weighted_grams(rows, plan, c, at, of);
    for (int64_t set = 0; set < at.sets; set++) {
        store(decompose(rows, at, slack, shared, set, of), at, set, logdets, wrong);
        if (!set) *remaining = remaining_share_of(rows, of);
        alignas(64) T omega[width] = {};
        for (int64_t q = 0; q < width && set * width + q < at.nodes; q++) {
            if (logdets[set * width + q] != logdets[set * width + q]) return;
            omega[q] = T(node_weights[set * width + q]);
        }
        solve_added(at, rows.removed, grad, of.lanes + set * at.set(), of.inverses, omega, solution);
        separate_nodes(grad, solution, inverses + set * width * grad.size);
    }
    apply_inverses(rows, c, at, grad, plan, of, inverses, inverses + grad.inverses(), gradient);
}

}  // namespace FASTFID_ISA
}  // namespace fastfid
