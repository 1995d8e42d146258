// LDLᵀ and log-determinants of J + G for W nodes at once, one in each lane of a vector; compiled once per instruction set.
//
//   lanes [entry (i, j ≤ i)][W], rows of the lower triangle one after the other
//
// All nodes of a candidate are factored by the same steps, so every operation works on a full vector of nodes; nothing is
// transposed or padded.  The algorithm is left-looking with COLUMNS columns at a time.  The contribution of the earlier columns to
// a block of rows is a product in registers,
//   G[i, j] − Σ_{l < j} L[i, l] d_l L[j, l],
// where the d_l L[j, l] of these columns are copied to a panel once.
//
// J is never added to the matrix.  At the larger nodes G is small beside 1: 1 + g would lose most digits of g, and the weight of
// the node is large.  Kept apart, g has all its digits for log1p, so float32 is enough.
#pragma once

#include "gram_kernel.h"

namespace fastfid {
namespace FASTFID_ISA {

// Accumulators of a register block and the operands of a step fit the registers: 4·4 + 4 + 1 of 32, or 2·4 + 4 + 1 of 16.
constexpr int64_t COLUMNS = 4, ROWS = FASTFID_VECTOR_BYTES == 64 ? 4 : 2;

// Pivots multiplied before a logarithm is taken.  Eight cannot leave the range of a double: a pivot lies between 4 ε (below) and
// leverages of new rows, which the smallest shift of a spectrum bounds by some 1e15·k.
constexpr int64_t PIVOTS_A_LOGARITHM = 8;

// |d_j| − 1 for the pivot d_j = J_j + g, clamped to the range of exact arithmetic: 1 − g > 0 for a removed row, g ≥ 0 for an
// added one.  NaN if g is outside by more than rounding explains: by more than slack, for an added row slack times the diagonal
// that it started from.
template <class T>
double pivot_excess(T g, bool removed, T diagonal, double slack) {
    const double least = sizeof(T) == 4 ? 4.8e-7 : 8.9e-16;  // 4 ε, the smallest 1 − leverage above rounding
    if (removed) {
        if (!(g <= 1 + slack)) return NAN;
        return g <= 1 - least ? -(double)g : least - 1;
    }
    if (!(g >= -slack * (1 + diagonal))) return NAN;
    return g >= 0 ? (double)g : 0;
}

// Σ log|d_j| of W nodes.  A node with a pivot of the wrong sign gets NaN; `wrong` holds the first such pivot.
template <class T>
struct LogDeterminants {
    static constexpr int64_t width = Vector<T>::width;
    double sum[width] = {}, wrong[width] = {};
    double product[width], excess[width];  // Π|d| since the last logarithm, and that less 1 with the digits of small g

    LogDeterminants() { clear(); }
    void clear() {
        for (int64_t q = 0; q < width; q++) product[q] = 1, excess[q] = 0;
    }

    // Takes column j's g of every node; d and 1/d out.
    void take(const T* g, const T* diagonal, bool removed, int64_t j, double slack, T* pivot, T* inverse) {
        const double sign = removed ? -1 : 1;
        for (int64_t q = 0; q < width; q++) {
            const double e = pivot_excess(g[q], removed, diagonal[q], slack), size = 1 + e;
            if (e != e && product[q] == product[q] && sum[q] == sum[q]) wrong[q] = sign + g[q];
            product[q] *= size;
            excess[q] += e + excess[q] * e;
            pivot[q] = T(sign * size);
            inverse[q] = T(sign / size);
        }
        if (j % PIVOTS_A_LOGARITHM == PIVOTS_A_LOGARITHM - 1) fold();
    }
    // Near 1 the excess has more digits than the product, unless a pivot near 0 has cancelled them; then the two differ.
    void fold() {
        for (int64_t q = 0; q < width; q++) {
            const bool near = product[q] > 0.5 && product[q] < 2 && fabs(product[q] - 1 - excess[q]) < 1e-14;
            sum[q] += near ? log1p(excess[q]) : log(product[q]);
        }
        clear();
    }
};

// panel [l][COLUMNS] = d_l L[start + x, l] for l < start.
template <class T>
void gather_panel(const typename Vector<T>::type* lanes, const typename Vector<T>::type* pivots, int64_t start, int64_t columns,
                  typename Vector<T>::type* panel) {
    for (int64_t x = 0; x < columns; x++) {
        const auto* row = row_at(lanes, start + x);
        for (int64_t l = 0; l < start; l++) panel[l * COLUMNS + x] = pivots[l] * row[l];
    }
}

// Columns start … start+columns−1 of rows i … i+rows−1, all below the block on the diagonal: L there.
template <class T, int64_t rows>
void eliminate_rows(typename Vector<T>::type* lanes, int64_t i, int64_t start, const typename Vector<T>::type* panel,
                    const typename Vector<T>::type* inverses) {
    using V = typename Vector<T>::type;
    V *row[rows], sum[rows][COLUMNS];
#pragma GCC unroll 4
    for (int64_t r = 0; r < rows; r++) {
        row[r] = row_at(lanes, i + r);
#pragma GCC unroll 4
        for (int64_t x = 0; x < COLUMNS; x++) sum[r][x] = row[r][start + x];
    }
    for (int64_t l = 0; l < start; l++) {
#pragma GCC unroll 4
        for (int64_t r = 0; r < rows; r++) {
            const V a = row[r][l];
#pragma GCC unroll 4
            for (int64_t x = 0; x < COLUMNS; x++) sum[r][x] -= a * panel[l * COLUMNS + x];
        }
    }
#pragma GCC unroll 4
    for (int64_t x = 0; x < COLUMNS; x++) {
#pragma GCC unroll 4
        for (int64_t r = 0; r < rows; r++) {
            row[r][start + x] = sum[r][x] * inverses[start + x];
#pragma GCC unroll 4
            for (int64_t y = x + 1; y < COLUMNS; y++) sum[r][y] -= sum[r][x] * row_at(lanes, start + y)[start + x];
        }
    }
}

// The block on the diagonal, column after column, with its pivots.
template <class T>
void eliminate_diagonal(int64_t removed, double slack, int64_t start, int64_t columns, T* lanes,
                        const Workspace<T>& of, LogDeterminants<T>& logs) {
    using V = typename Vector<T>::type;
    constexpr int64_t width = Vector<T>::width;
    const V* panel = (const V*)of.panel;
    for (int64_t y = 0; y < columns; y++) {
        V *row = row_at((V*)lanes, start + y), sum[COLUMNS] = {};
        for (int64_t l = 0; l < start; l++)
#pragma GCC unroll 4
            for (int64_t x = 0; x < COLUMNS; x++) sum[x] += row[l] * panel[l * COLUMNS + x];
        for (int64_t x = 0; x <= y; x++) row[start + x] -= sum[x];
    }
    for (int64_t x = 0; x < columns; x++) {
        const int64_t j = start + x;
        logs.take((const T*)(row_at((V*)lanes, j) + j), of.diagonal + j * width, j < removed, j, slack, of.pivots + j * width,
                  of.inverses + j * width);
        for (int64_t y = x + 1; y < columns; y++) {
            V* row = row_at((V*)lanes, start + y) + start;
            const V factor = row[x] * ((const V*)of.inverses)[j];
            for (int64_t z = x + 1; z <= y; z++) row[z] -= factor * row_at((V*)lanes, start + z)[j];
        }
        for (int64_t y = x + 1; y < columns; y++) row_at((V*)lanes, start + y)[j] *= ((const V*)of.inverses)[j];
    }
}

// Columns 0 … end−1 of J + G = L D Lᵀ for one set of nodes: L in the strict lower triangle of G, d_j and 1/d_j in of.pivots and
// of.inverses, Σ log|d_j| in `logs`.  Whole blocks of columns of the known rows are already done.
template <class T>
void factor(const Layout<T>& at, int64_t removed, int64_t end, double slack, T* lanes, const Workspace<T>& of,
            LogDeterminants<T>& logs) {
    using V = typename Vector<T>::type;
    for (int64_t i = at.known; i < at.k; i++) ((V*)of.diagonal)[i] = row_at((V*)lanes, i)[i];
    for (int64_t start = 0; start < end; start += COLUMNS) {
        const int64_t columns = at.k - start < COLUMNS ? at.k - start : COLUMNS;
        const bool done = start + COLUMNS <= at.known;
        gather_panel<T>((V*)lanes, (V*)of.pivots, start, columns, (V*)of.panel);
        if (!done) eliminate_diagonal(removed, slack, start, columns, lanes, of, logs);
        int64_t i = done ? at.known : start + COLUMNS;
        for (; i + ROWS <= at.k; i += ROWS) eliminate_rows<T, ROWS>((V*)lanes, i, start, (V*)of.panel, (V*)of.inverses);
        for (; i < at.k; i++) eliminate_rows<T, 1>((V*)lanes, i, start, (V*)of.panel, (V*)of.inverses);
    }
}

// Steps of inverse iteration.  Three find an eigenvalue of a fifth of the others' size to a few per cent.
constexpr int REMAINING_STEPS = 3;

// Upper estimate of the smallest eigenvalue of I − G_rr at the first node: the share that remains of the direction that a
// removal reduces most.  It uses inverse iteration on the lane of that node, from a fixed irregular vector of positive entries,
// because the eigenvector has one sign if a rare feature of one sign is removed.  `memory` holds k doubles.

template <class T>
double remaining_share(int64_t removed, const T* lanes, const T* pivots, double* memory) {
    constexpr int64_t width = Vector<T>::width;
    const auto row = [&](int64_t i) { return lanes + i * (i + 1) / 2 * width; };
    double *x = memory, square = 0;
    for (int64_t i = 0; i < removed; i++) x[i] = fmod(0.6180339887498949 * (i + 1) * (i + 1), 1.0);
    for (int step = 0; step <= REMAINING_STEPS; step++) {
        square = 0;
        for (int64_t i = 0; i < removed; i++) square += x[i] * x[i];
        if (step == REMAINING_STEPS || !(square > 0)) break;
        for (int64_t i = 0; i < removed; i++) x[i] /= sqrt(square);
        for (int64_t i = 0; i < removed; i++)
            for (int64_t l = 0; l < i; l++) x[i] -= row(i)[l * width] * x[l];
        for (int64_t i = 0; i < removed; i++) x[i] /= fabs(double(pivots[i * width]));
        for (int64_t i = removed - 1; i > 0; i--)
            for (int64_t l = 0; l < i; l++) x[l] -= row(i)[l * width] * x[i];
    }
    return removed ? 1 / sqrt(square) : 1;
}

// The results of set `set` where the caller wants them.
template <class T>
void store(const LogDeterminants<T>& logs, const Layout<T>& at, int64_t set, double* logdets, double* wrong) {
    const int64_t first = set * Vector<T>::width, count = at.nodes - first;
    for (int64_t q = 0; q < Vector<T>::width && q < count; q++) {
        logdets[first + q] = logs.sum[q];
        wrong[first + q] = logs.wrong[q];
    }
}

}  // namespace FASTFID_ISA
}  // namespace fastfid
