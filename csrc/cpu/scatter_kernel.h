// Update of one block of a covariance, compiled once per instruction set (kernels.h):
//
//   cov ← β·cov + α·S,      S = Σ_p (x_p − m)(x_p − m)ᵀ + e eᵀ        upper triangle
//
// The product follows Goto & van de Geijn (Anatomy of High-Performance Matrix Multiplication, 2008) with one difference: a thread
// keeps a whole block of S, not of an operand, in its second-level cache while it reads all rows p, DEPTH at a time.  So cov is
// read and written once, and its rows, which are a power of two apart, do not compete for cache sets.  The block's columns of each
// DEPTH rows are converted to double, centred and copied to panels: left operands, LEFT columns wide, whose entries are broadcast
// one at a time, and right operands, RIGHT columns wide.  No centred copy of all rows is made.
//
//   left, right   [panel][p][LEFT or RIGHT]     x_p − m of these columns, zeros behind the last
//   sums          [panel of right][panel of left][LEFT·RIGHT]
//
// An entry is a sum over stretches of DEPTH rows of the sums over their rows, both in order, in every block.  So the division into
// blocks and threads changes no bit.
//
// Legend: p row of x, i column of x that is a row of the block, j column of x that is one of its columns.
#pragma once

#include "tiles.h"

namespace fastfid {
namespace FASTFID_ISA {

// Register tile: accumulators for LEFT rows of three vectors, three vectors of the right operand and a broadcast: 28 of 32 registers
// of 64 bytes, all 16 of the others.
constexpr int64_t LEFT = FASTFID_VECTOR_BYTES == 64 ? 8 : 4, RIGHT_VECTORS = 3;
constexpr int64_t DOUBLES = Vector<double>::width, RIGHT = RIGHT_VECTORS * DOUBLES, SCATTER_TILE = LEFT * RIGHT;

// Rows in a stretch: a right panel of 24 columns, 16 kB, leaves half of a 32 kB first-level cache, and 2,048 rows and one more
// fill 24 stretches.  Measured at d = 2048, AVX-512, two threads: 69, 103 and 129 are 4 to 6% slower.
constexpr int64_t DEPTH = 86;

// Rows copied side by side: a panel's lines are then written 4 at a time, and a panel's stride need not suit the cache.
constexpr int64_t PACKED_TOGETHER = 4;

// Vectors of columns summed in one pass over the rows, in registers where there are 32; a stretch the prefetcher can follow.
constexpr int64_t SUMMED_VECTORS = 16;

// `count` rows of `columns` columns, less `mean`, to panels of `width` columns, `stride` apart.
template <int64_t width, int64_t count, class T>
void pack_rows(const T* x, int64_t row_stride, const double* mean, int64_t columns, int64_t stride, double* panel) {
    using V = Vector<double>::type;
    constexpr int64_t vectors = width / DOUBLES;
    int64_t start = 0;
    for (; start + width <= columns; start += width, panel += stride)
#pragma GCC unroll 4
        for (int64_t p = 0; p < count; p++)
#pragma GCC unroll 3
            for (int64_t v = 0; v < vectors; v++) {
                const int64_t at = start + v * DOUBLES;
                V entries, centre;
                load_doubles(x + p * row_stride + at, entries);
                load_doubles(mean + at, centre);
                ((V*)(panel + p * width))[v] = entries - centre;
            }
    if (start == columns) return;
    for (int64_t p = 0; p < count; p++)
        for (int64_t c = 0; c < width; c++)
            panel[p * width + c] = start + c < columns ? double(x[p * row_stride + start + c]) - mean[start + c] : 0;
}

// Rows first … first+length−1 of a stretch, of which the one behind the last row of x is e; `columns` of them from `column` on.
template <int64_t width, class T>
void pack_stretch(const ScatterUpdate<T>& of, int64_t first, int64_t length, int64_t column, int64_t columns, double* panels) {
    const int64_t stride = length * width, of_x = length < of.count - first ? length : of.count - first;
    const T* x = of.rows + first * of.row_stride + column;
    int64_t p = 0;
    for (; p + PACKED_TOGETHER <= of_x; p += PACKED_TOGETHER)
        pack_rows<width, PACKED_TOGETHER>(x + p * of.row_stride, of.row_stride, of.mean + column, columns, stride, panels + p * width);
    for (; p < of_x; p++) pack_rows<width, 1>(x + p * of.row_stride, 0, of.mean + column, columns, stride, panels + p * width);
    if (p == length) return;
    for (int64_t c = 0; c < round_up(columns, width); c++)
        panels[c / width * stride + p * width + c % width] = c < columns ? of.extra[column + c] : 0;
}

// sums [LEFT][RIGHT] (+)= Σ_p left[p][:] ⊗ right[p][:].
inline void multiply_panels(const double* left, const double* right, int64_t length, bool accumulate, double* sums) {
    using V = Vector<double>::type;
    V sum[LEFT][RIGHT_VECTORS];
#pragma GCC unroll 24
    for (int64_t line = 0; line < SCATTER_TILE / 8; line++) __builtin_prefetch(sums + line * 8, 1);
#pragma GCC unroll 8
    for (int64_t i = 0; i < LEFT; i++)
#pragma GCC unroll 3
        for (int64_t v = 0; v < RIGHT_VECTORS; v++) sum[i][v] = V{};
#pragma GCC unroll 2
    for (int64_t p = 0; p < length; p++) {
        V b[RIGHT_VECTORS];
#pragma GCC unroll 3
        for (int64_t v = 0; v < RIGHT_VECTORS; v++) b[v] = ((const V*)right)[p * RIGHT_VECTORS + v];
#pragma GCC unroll 8
        for (int64_t i = 0; i < LEFT; i++)
#pragma GCC unroll 3
            for (int64_t v = 0; v < RIGHT_VECTORS; v++) sum[i][v] += left[p * LEFT + i] * b[v];
    }
#pragma GCC unroll 8
    for (int64_t i = 0; i < LEFT; i++)
#pragma GCC unroll 3
        for (int64_t v = 0; v < RIGHT_VECTORS; v++) {
            V& out = ((V*)sums)[i * RIGHT_VECTORS + v];
            out = accumulate ? out + sum[i][v] : sum[i][v];
        }
}

// Panels of a block of `rows` rows and `columns` columns, and the memory it takes.
struct ScatterBlock {
    int64_t rows, columns, left_panels, right_panels;
    ScatterBlock(int64_t rows_, int64_t columns_)
        : rows(rows_), columns(columns_), left_panels(blocks(rows_, LEFT)), right_panels(blocks(columns_, RIGHT)) {}
    int64_t left() const { return left_panels * LEFT * DEPTH; }
    int64_t right() const { return right_panels * RIGHT * DEPTH; }
    int64_t sums() const { return left_panels * right_panels * SCATTER_TILE; }
};

inline int64_t scatter_workspace(int64_t side) {
    const ScatterBlock largest(side, side);
    return round_up(largest.left(), 8) + largest.right() + largest.sums();
}

// `count` entries of a row of cov, at most RIGHT, from their sums.  Fewer go through a copy: every entry is rounded by the same
// instructions.
inline void merge_sums(const double* sums, double alpha, double beta, int64_t count, double* cov) {
    using V = Vector<double>::type;
    using Loose = Vector<double>::loose;
    if (count < RIGHT) {
        alignas(64) double all[2 * RIGHT] = {};
        memcpy(all, sums, count * sizeof(double));
        memcpy(all + RIGHT, cov, count * sizeof(double));
        merge_sums(all, alpha, beta, RIGHT, all + RIGHT);
        memcpy(cov, all + RIGHT, count * sizeof(double));
        return;
    }
#pragma GCC unroll 3
    for (int64_t v = 0; v < RIGHT_VECTORS; v++) {
        const V sum = alpha * ((const Loose*)sums)[v];
        ((Loose*)cov)[v] = beta == 0 ? sum : beta * ((Loose*)cov)[v] + sum;
    }
}

// Block of `side` rows from `row` and as many columns from `column` ≥ row on, or what is left of them.
template <class T>
void add_scatter_block(const ScatterUpdate<T>& of, int64_t side, int64_t row, int64_t column, double* memory) {
    const auto length_from = [&](int64_t start) { return side < of.dim - start ? side : of.dim - start; };
    const ScatterBlock at(length_from(row), length_from(column));
    double *left = memory, *right = left + round_up(at.left(), 8), *sums = right + at.right();
    const int64_t offset = column - row;  // of the diagonal
    for (int64_t first = 0; first < of.count + 1; first += DEPTH) {
        const int64_t length = DEPTH < of.count + 1 - first ? DEPTH : of.count + 1 - first;
        pack_stretch<LEFT>(of, first, length, row, at.rows, left);
        pack_stretch<RIGHT>(of, first, length, column, at.columns, right);
        for (int64_t j = 0; j < at.right_panels; j++)
            for (int64_t i = 0; i < at.left_panels && i * LEFT < offset + (j + 1) * RIGHT; i++)
                multiply_panels(left + i * length * LEFT, right + j * length * RIGHT, length, first > 0,
                                sums + (j * at.left_panels + i) * SCATTER_TILE);
    }
    for (int64_t i = 0; i < at.rows; i++) {
        double* cov = of.cov + (row + i) * of.dim + column;
        for (int64_t j = 0; j < at.right_panels; j++) {
            const int64_t start = j * RIGHT, below = i - offset - start, skip = below > 0 ? below : 0;
            const int64_t wanted = (at.columns - start < RIGHT ? at.columns - start : RIGHT) - skip;
            const double* entries = sums + (j * at.left_panels + i / LEFT) * SCATTER_TILE + i % LEFT * RIGHT;
            if (wanted > 0) merge_sums(entries + skip, of.alpha, of.beta, wanted, cov + start + skip);
        }
    }
}

inline int64_t summed_columns() { return SUMMED_VECTORS * DOUBLES; }

// sums[first … first + summed_columns() − 1], or what is left of them: Σ_p x_p, in order.
template <class T>
void sum_columns(const T* rows, int64_t row_stride, int64_t count, int64_t dim, int64_t first, double* sums) {
    using V = Vector<double>::type;
    const T* x = rows + first;
    V sum[SUMMED_VECTORS] = {};
    const int64_t columns = dim - first < summed_columns() ? dim - first : summed_columns();
    if (columns == summed_columns())
        for (int64_t p = 0; p < count; p++, x += row_stride)
#pragma GCC unroll 16
            for (int64_t v = 0; v < SUMMED_VECTORS; v++) {
                V entries;
                load_doubles(x + v * DOUBLES, entries);
                sum[v] += entries;
            }
    else
        for (int64_t p = 0; p < count; p++, x += row_stride)
            for (int64_t c = 0; c < columns; c++) ((double*)sum)[c] += x[c];
    memcpy(sums + first, sum, columns * sizeof(double));
}

}  // namespace FASTFID_ISA
}  // namespace fastfid
