// Log-determinants of a positive definite band matrix plus multiples of the identity, compiled once per instruction set.
//
//   B [d, d] symmetric, B_ij = 0 for i − j > b;      logdet_q = log det(B + s_q) − d log(a + s_q)
//
// Row i of the Cholesky factor L of B + s needs the b rows before it:
//
//   L_ij = (B_ij − Σ_k L_ik L_jk) / L_jj,    r_i = B_ii − Σ_k L_ik²,    L_ii = √(r_i + s)
//
// W shifts s are computed side by side, one in each lane, so one product of entries is one multiply-add of vectors; a set of W
// shifts takes d b²/2 of them.  log det is the sum of log((r_i + s)/(a + s)) = log1p((r_i − a)/(a + s)), which keeps its digits
// if s is far above B.
//
// BLOCK rows are computed together, PAIR columns at a time.  An entry of an earlier row comes from the second-level cache
// (b = 64: 300 kB) and is used for BLOCK multiply-adds.
//
//   window [c/BLOCK + 1][BLOCK][c + BLOCK][W]  the last blocks of rows of L in a ring, c = b rounded up to whole blocks; in the
//          block that begins with row i, column j stands at j − i + c, and 1/L_ii on the diagonal
#pragma once

#include "tiles.h"

namespace fastfid {
namespace FASTFID_ISA {

// Their 8 sums cover a multiply-add's latency of 4 cycles on two units.
constexpr int64_t BLOCK = 4, PAIR = 2;

// W shifts and their running results.
struct ShiftedBand {
    const BandMatrix& of;
    int64_t reach, stride;  // c, c + BLOCK
    Vector<double>::type shift;
    double sums[Vector<double>::width];
};

// Shifts computed side by side.
inline int64_t band_lanes() { return Vector<double>::width; }

// Doubles of memory for one set of shifts, zeroed and 64-byte aligned.
inline int64_t band_workspace(int64_t width) {
    const int64_t row = round_up(width, BLOCK) + BLOCK;
    return row * row * Vector<double>::width;
}

// Rows i … i + BLOCK − 1 of B in every lane, zeros outside the band and below the last row.
inline void load_rows(const ShiftedBand& at, int64_t i, Vector<double>::type* rows) {
    using V = Vector<double>::type;
    for (int64_t m = 0; m < BLOCK; m++, rows += at.stride) {
        const int64_t row = i + m, first = at.reach + m - at.of.width;  // where column row − b stands
        memset((void*)rows, 0, at.stride * sizeof(V));
        if (row >= at.of.dim) continue;
        const double* entries = at.of.band + row * (at.of.width + 1);
        for (int64_t t = row < at.of.width ? at.of.width - row : 0; t <= at.of.width; t++) rows[first + t] = V{} + entries[t];
    }
}

// columns[m][x] −= Σ_k left[m][k]·right[x][k] for a pair of columns; rows of all three `stride` apart.
inline void subtract_products(const Vector<double>::type* left, const Vector<double>::type* right, int64_t length, int64_t stride,
                              Vector<double>::type* columns) {
    using V = Vector<double>::type;
    V sums[BLOCK][PAIR];
#pragma GCC unroll 4
    for (int64_t m = 0; m < BLOCK; m++)
#pragma GCC unroll 2
        for (int64_t x = 0; x < PAIR; x++) sums[m][x] = columns[m * stride + x];
    for (int64_t k = 0; k < length; k++) {
        V other[PAIR];
#pragma GCC unroll 2
        for (int64_t x = 0; x < PAIR; x++) other[x] = right[x * stride + k];
#pragma GCC unroll 4
        for (int64_t m = 0; m < BLOCK; m++) {
            const V own = left[m * stride + k];
#pragma GCC unroll 2
            for (int64_t x = 0; x < PAIR; x++) sums[m][x] -= own * other[x];
        }
    }
#pragma GCC unroll 4
    for (int64_t m = 0; m < BLOCK; m++)
#pragma GCC unroll 2
        for (int64_t x = 0; x < PAIR; x++) columns[m * stride + x] = sums[m][x];
}

// A pair of columns [BLOCK][PAIR] times the inverse of their transposed corner of L; rows of both `stride` apart.
inline void divide_by_corner(const Vector<double>::type* corner, int64_t stride, Vector<double>::type* columns) {
    const Vector<double>::type first = corner[0], below = corner[stride], second = corner[stride + 1];
#pragma GCC unroll 4
    for (int64_t m = 0; m < BLOCK; m++) {
        columns[m * stride] *= first;
        columns[m * stride + 1] = (columns[m * stride + 1] - columns[m * stride] * below) * second;
    }
}

// Subtracts the product with the block of rows `others`: its columns start at `place` in `rows`; those before `begin` are zero.
inline void make_columns(const ShiftedBand& at, const Vector<double>::type* others, int64_t begin, int64_t place,
                         Vector<double>::type* rows) {
    const int64_t behind = at.reach - place;  // a column stands this much further right in `others`
    for (int64_t x = 0; x < BLOCK; x += PAIR) {
        const Vector<double>::type* pair = others + x * at.stride;
        subtract_products(rows + begin, pair + begin + behind, place + x - begin, at.stride, rows + place + x);
        divide_by_corner(pair + at.reach + x, at.stride, rows + place + x);
    }
}

// The corner [BLOCK][BLOCK] of L that holds the diagonal from row i on, inverses on its diagonal, and its part of the sums.
inline void factor_corner(ShiftedBand& at, int64_t i, Vector<double>::type* corner) {
    using V = Vector<double>::type;
    for (int64_t j = 0; j < BLOCK; j++) {
        V *row = corner + j * at.stride, remaining = row[j];
        for (int64_t k = 0; k < j; k++) remaining -= row[k] * row[k];
        const V pivot = remaining + at.shift;
        for (int64_t w = 0; w < Vector<double>::width; w++) {
            row[j][w] = 1 / sqrt(pivot[w]);
            const double beyond = (remaining[w] - at.of.origin) / (at.of.origin + at.shift[w]);
            if (i + j < at.of.dim) at.sums[w] += pivot[w] > 0 ? log1p(beyond) : NAN;
        }
        for (int64_t m = j + 1; m < BLOCK; m++) {
            V* below = corner + m * at.stride;
            for (int64_t k = 0; k < j; k++) below[j] -= below[k] * row[k];
            below[j] *= row[j];
        }
    }
}

// Shifts first … first + W − 1 of the problem: logdets [shifts], NaN where B + s is not positive definite.
inline void band_logdets(const BandMatrix& of, int64_t first, double* memory, double* logdets) {
    using V = Vector<double>::type;
    const int64_t reach = round_up(of.width, BLOCK), stride = reach + BLOCK, left = of.count - first;
    ShiftedBand at{of, reach, stride, V{}, {}};
    for (int64_t w = 0; w < Vector<double>::width; w++) at.shift[w] = of.shifts[first + (w < left ? w : left - 1)];
    for (int64_t i = 0, slot = 0; i < of.dim; i += BLOCK, slot = (slot + BLOCK) % stride) {
        V *rows = (V*)memory + slot * stride, *corner = rows + reach;
        load_rows(at, i, rows);
        const int64_t begin = i < reach ? reach - i : 0;  // where column 0 stands, or the first of the band
        for (int64_t place = begin, other = (slot + begin + BLOCK) % stride; place < reach; place += BLOCK) {
            make_columns(at, (const V*)memory + other * stride, begin, place, rows);
            other = other + BLOCK < stride ? other + BLOCK : 0;
        }
        for (int64_t x = 0; x < BLOCK; x += PAIR) subtract_products(rows + begin, rows + x * stride + begin, reach - begin, stride, corner + x);
        factor_corner(at, i, corner);
    }
    for (int64_t w = 0; w < Vector<double>::width && w < left; w++) logdets[first + w] = at.sums[w];
}

}  // namespace FASTFID_ISA
}  // namespace fastfid
