// Memory of one thread that computes Gram matrices (gram_kernel.h), and the spans of positions that it works through.
//
// Legend: k rows of a candidate, row blocks of MR rows, column blocks of NR rows, positions along the rank.
#pragma once

#include "tiles.h"

namespace fastfid {
namespace FASTFID_ISA {

// Distance of the rows in a span's copy.  The 16 extra elements keep them from sharing a cache set.
constexpr int64_t LEFT_STRIDE = SPAN + 16;

// Entries combined at once: as many accumulators as cover a multiply-add's latency of 4 cycles on two units.
template <class T>
constexpr int64_t TOGETHER = NR<T> < 8 ? NR<T> : 8;

// Most bytes for the products of row blocks that are computed together, unless one block takes more.  It is a fifth of a
// second-level cache of 1 MiB; the sums of 16 nodes take 320 kB and the span's rows 220 kB (k = 100).  Twice as much is no faster.
constexpr int64_t PRODUCT_BYTES = 192 << 10;

// Groups of slices that are processed together: one, or several neighbours that fit into SPAN positions.
template <class T>
struct Span {
    int64_t first, last, first_group, last_group;  // slices, groups
    int64_t start, length;                         // positions
    int64_t functions, terms;                      // of all slices, of all groups
};

// The span that begins with a group and its first slice; its length is 0 after the last group.
template <class T>
Span<T> next_span(const WeightPlan<T>& plan, int64_t first, int64_t group) {
    Span<T> span{first, first, group, group, plan.bounds[first], 0, 0, 0};
    while (span.last_group < plan.groups) {
        const int64_t last = plan.group_ends[span.last_group], length = plan.bounds[last] - span.start;
        if (length > SPAN) break;
        for (; span.last < last; span.last++) span.functions += plan.terms[span.last];
        span.terms += plan.group_terms[span.last_group++];
        span.length = length;
    }
    return span;
}

// Layout of one thread's memory, in elements of T; every part starts on a 64-byte boundary.  The products among the first `known`
// rows are not computed, because shared_kernel.h has them.
template <class T>
struct Layout {
    int64_t k, known, rank, nodes, sets, row_blocks, column_blocks, most_terms, most_functions, most_span_terms, most_group_terms,
        all_group_terms;

    Layout(int64_t k_, int64_t known_, int64_t rank_, const WeightPlan<T>& plan)
        : k(k_), known(known_), rank(rank_), nodes(plan.nodes), sets(blocks(plan.nodes, Vector<T>::width)),
          row_blocks(blocks(k_, MR)), column_blocks(blocks(k_, NR<T>)), most_terms(0), most_functions(0), most_span_terms(0),
          most_group_terms(0), all_group_terms(0) {
        const auto larger = [](int64_t a, int64_t b) { return a > b ? a : b; };
        for (int64_t s = 0; s < plan.slices; s++) most_terms = larger(plan.terms[s], most_terms);
        for (int64_t g = 0; g < plan.groups; g++) {
            most_group_terms = larger(plan.group_terms[g], most_group_terms);
            all_group_terms += plan.group_terms[g];
        }
        for (Span<T> span = next_span(plan, 0, 0); span.length; span = next_span(plan, span.last, span.last_group)) {
            most_functions = larger(span.functions, most_functions);
            most_span_terms = larger(span.terms, most_span_terms);
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
    // Row blocks whose products are computed together if each takes `functions` tiles per panel.
    int64_t blocks_together(int64_t functions) const {
        const int64_t fit = PRODUCT_BYTES / (PANELS * functions * TILE<T> * int64_t(sizeof(T)));
        return fit < 1 ? 1 : fit < row_blocks ? fit : row_blocks;
    }
    int64_t entries() const { return k * (k + 1) / 2 + TOGETHER<T>; }  // reads may pass the last row's end
    int64_t left() const { return round_up(rows_padded() * LEFT_STRIDE, 16); }
    int64_t right() const { return PANELS * SPAN * NR<T>; }
    int64_t scaled() const { return PANELS * SLICE * NR<T>; }
    int64_t products() const {
        const int64_t one_block = PANELS * most_functions * TILE<T>, fit = PRODUCT_BYTES / int64_t(sizeof(T));
        return one_block > fit ? one_block : fit;
    }
    int64_t sums() const { return most_span_terms * TILE<T>; }
    int64_t coefficients() const { return all_group_terms * sets * Vector<T>::width; }
    int64_t set() const { return entries() * Vector<T>::width; }
    int64_t lanes() const { return sets * set(); }
    int64_t columns() const { return k * Vector<T>::width; }
    int64_t panel() const { return 4 * columns(); }
    int64_t total() const {
        return left() + right() + scaled() + products() + sums() + round_up(coefficients(), 16) + lanes() + 3 * columns() + panel();
    }
};

// The parts of that memory.
template <class T>
struct Workspace {
    T *left, *right, *scaled, *products, *sums, *coefficients, *lanes, *diagonal, *pivots, *inverses, *panel, *rest;

    Workspace(const Layout<T>& at, T* memory) {
        left = memory;
        right = left + at.left();
        scaled = right + at.right();
        products = scaled + at.scaled();
        sums = products + at.products();
        coefficients = sums + at.sums();
        lanes = coefficients + round_up(at.coefficients(), 16);
        diagonal = lanes + at.lanes();
        pivots = diagonal + at.columns();
        inverses = pivots + at.columns();
        panel = inverses + at.columns();
        rest = panel + at.panel();
    }
};

}  // namespace FASTFID_ISA
}  // namespace fastfid
