// The fused kernel: weighted Gram, LDLᵀ and log-determinant of one candidate, compiled once per instruction set.
//
// The including file defines FASTFID_ISA (a namespace) and FASTFID_VECTOR_BYTES.  Only functions of that namespace and of the
// C library are used: a standard template instantiated here would carry this file's instructions, and the linker might keep
// that copy for everybody.
//
// One node costs k²r/2 multiply-adds for the lower half of G and k³/6 for its factor.  G, 102×112 floats or 46 kB at k = 100, is made in
// cache and consumed there.  W is packed twice, once per candidate: as left panels of MR rows, scaled by 1/(λ+τ²) a slice at
// a time on the way into the product, and as right panels of NR rows.
//
//   slice s of the rank:   left  [s][row block][SLICE][MR]      right [s][column block][SLICE][NR]
//   G tile (i, j)      +=  Σ_p left[i][p][:] ⊗ right[j][p][:]   only tiles that touch the lower triangle
//
// Legend: k rows of W, r rank, p position along the rank, i j row and column of G, ld row stride of G.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

namespace fastfid {
namespace FASTFID_ISA {

// Register tile: MR×NR accumulators in 6·2 vector registers leave room, out of 16, for two loads and a broadcast.
constexpr int64_t MR = 6;
template <class T>
constexpr int64_t NR = 2 * FASTFID_VECTOR_BYTES / sizeof(T);

// Positions per slice: all left panels of a slice (k = 100: 256·102·4 B = 104 kB) stay in a 512 kB second-level cache, one
// right panel (16 kB) in the first.
constexpr int64_t SLICE = 256;

template <class T>
struct Vector {
    typedef T type __attribute__((vector_size(FASTFID_VECTOR_BYTES), may_alias));
    static constexpr int64_t width = FASTFID_VECTOR_BYTES / sizeof(T);
};

inline int64_t blocks(int64_t n, int64_t size) { return (n + size - 1) / size; }

// How one thread's memory is laid out, in elements of T; every part starts on a 64-byte boundary.
template <class T>
struct Layout {
    int64_t k, rank, slices, row_blocks, column_blocks, ld;

    Layout(int64_t k_, int64_t rank_)
        : k(k_), rank(rank_), slices(blocks(rank_, SLICE)), row_blocks(blocks(k_, MR)),
          column_blocks(blocks(k_, NR<T>)), ld(column_blocks * NR<T>) {}

    int64_t left() const { return slices * row_blocks * SLICE * MR; }
    int64_t right() const { return slices * column_blocks * SLICE * NR<T>; }
    int64_t scaled() const { return row_blocks * SLICE * MR; }
    int64_t gram() const { return blocks(row_blocks * MR * ld, 16) * 16; }
    int64_t column() const { return blocks(ld, 16) * 16; }
    int64_t total() const { return left() + right() + scaled() + gram() + 2 * column(); }
};

// Rows of one candidate, removed ones first.
template <class T>
struct Rows {
    const T* removed_rows;
    int64_t removed;
    const T* added_rows;
    int64_t added, rank;

    const T* operator[](int64_t i) const {
        return i < removed ? removed_rows + i * rank : added_rows + (i - removed) * rank;
    }
};

// Packs W into panels [slice][block][SLICE][width]; what lies past the last row or position is zero already.
template <class T, int64_t width>
void pack(const Rows<T>& rows, int64_t block_count, T* panels) {
    const int64_t k = rows.removed + rows.added;
    for (int64_t block = 0; block < block_count; block++) {
        const int64_t height = k - block * width < width ? k - block * width : width;
        const T* row[width];
        for (int64_t m = 0; m < height; m++) row[m] = rows[block * width + m];
        for (int64_t p = 0; p < rows.rank; p++) {
            T* out = panels + ((p / SLICE * block_count + block) * SLICE + p % SLICE) * width;
            for (int64_t m = 0; m < height; m++) out[m] = row[m][p];
        }
    }
}

// left slice → scaled slice: row p of each panel times weights[p].
template <class T>
void scale_slice(const T* left, const T* weights, int64_t length, int64_t row_blocks, T* scaled) {
    for (int64_t i = 0; i < row_blocks; i++)
        for (int64_t p = 0; p < length; p++)
            for (int64_t m = 0; m < MR; m++)
                scaled[(i * SLICE + p) * MR + m] = left[(i * SLICE + p) * MR + m] * weights[p];
}

// tile [MR, NR] (+)= Σ_p left[p][:] ⊗ right[p][:]
template <class T>
void multiply_tile(const T* left, const T* right, int64_t length, T* tile, int64_t ld, bool accumulate) {
    using V = typename Vector<T>::type;
    constexpr int64_t width = Vector<T>::width;
    V sum[MR][2];
#pragma GCC unroll 6
    for (int64_t m = 0; m < MR; m++) sum[m][0] = sum[m][1] = V{};
    for (int64_t p = 0; p < length; p++) {
        V b0 = *(const V*)(right + p * 2 * width), b1 = *(const V*)(right + p * 2 * width + width);
#pragma GCC unroll 6
        for (int64_t m = 0; m < MR; m++) {
            T a = left[p * MR + m];
            sum[m][0] += a * b0;
            sum[m][1] += a * b1;
        }
    }
#pragma GCC unroll 6
    for (int64_t m = 0; m < MR; m++) {
        V* out = (V*)(tile + m * ld);
        out[0] = accumulate ? out[0] + sum[m][0] : sum[m][0];
        out[1] = accumulate ? out[1] + sum[m][1] : sum[m][1];
    }
}

// G = W diag(weights) Wᵀ, tiles touching the lower triangle.
template <class T>
void weighted_gram(const Layout<T>& at, const T* left, const T* right, const T* weights, T* scaled, T* gram) {
    for (int64_t s = 0; s < at.slices; s++) {
        int64_t start = s * SLICE, length = at.rank - start < SLICE ? at.rank - start : SLICE;
        scale_slice(left + s * at.row_blocks * SLICE * MR, weights + start, length, at.row_blocks, scaled);
        for (int64_t j = 0; j < at.column_blocks; j++) {
            const T* panel = right + (s * at.column_blocks + j) * SLICE * NR<T>;
            for (int64_t i = j * NR<T> / MR; i < at.row_blocks; i++)
                multiply_tile(scaled + i * SLICE * MR, panel, length, gram + i * MR * at.ld + j * NR<T>, at.ld, s > 0);
        }
    }
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

// Column j eliminated from the rows below it: G[i, x] −= G[i, j] G[x, j] / d_j for j < x ≤ i.  Whole vectors: what they
// touch beyond that, finished entries on the left and the upper triangle on the right, is never read again.
template <class T>
void eliminate(const Layout<T>& at, int64_t j, T inverse_pivot, T* gram, T* column) {
    using V = typename Vector<T>::type;
    constexpr int64_t width = Vector<T>::width;
    for (int64_t i = j + 1; i < at.k; i++) column[i] = gram[i * at.ld + j];
    const int64_t first = (j + 1) / width * width;
    for (int64_t i = j + 1; i < at.k; i++) {
        T* row = gram + i * at.ld;
        T factor = column[i] * inverse_pivot;
        for (int64_t x = first; x <= i; x += width) *(V*)(row + x) -= factor * *(const V*)(column + x);
    }
}

// Σ log|d_j| of J + G = L D Lᵀ, G overwritten; NaN, with the pivot in *wrong, when one has the wrong sign.
//
// J never enters the matrix.  At the larger nodes G is small beside 1, and 1 + g would keep few of its digits while the
// weight of the node is large; kept apart, g has all of them for log1p, and float32 is enough.
template <class T>
double factor_logdet(const Layout<T>& at, int64_t removed, double slack, T* gram, T* column, double* wrong) {
    T* diagonal = column + at.column();
    for (int64_t i = 0; i < at.k; i++) diagonal[i] = gram[i * at.ld + i];
    double logdet = 0;
    for (int64_t j = 0; j < at.k; j++) {
        const double sign = j < removed ? -1 : 1;
        const T g = gram[j * at.ld + j];
        const double excess = pivot_excess(g, j < removed, diagonal[j], slack);
        if (excess != excess) {
            *wrong = sign + g;
            return NAN;
        }
        logdet += log1p(excess);
        eliminate(at, j, T(sign / (1 + excess)), gram, column);
    }
    return logdet;
}

template <class T>
int64_t workspace(int64_t k, int64_t rank) {
    return Layout<T>(k, rank).total();
}

// One candidate, nodes first … last−1; `memory` holds workspace() elements, zeroed once, logdets and wrong are [nodes].
template <class T>
void candidate_logdets(const T* removed_rows, int64_t removed, const T* added_rows, int64_t added, int64_t rank,
                       const T* weights, double slack, int64_t first, int64_t last, T* memory, double* logdets,
                       double* wrong) {
    const Layout<T> at(removed + added, rank);
    T* left = memory;
    T* right = left + at.left();
    T* scaled = right + at.right();
    T* gram = scaled + at.scaled();
    T* column = gram + at.gram();
    const Rows<T> rows{removed_rows, removed, added_rows, added, rank};
    pack<T, MR>(rows, at.row_blocks, left);
    pack<T, NR<T>>(rows, at.column_blocks, right);
    for (int64_t q = first; q < last; q++) {
        weighted_gram(at, left, right, weights + q * rank, scaled, gram);
        logdets[q] = factor_logdet(at, removed, slack, gram, column, wrong + q);
    }
}

}  // namespace FASTFID_ISA
}  // namespace fastfid
