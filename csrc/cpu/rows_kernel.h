// One pass over rows: centring with the sums that equation 4 needs, and the products of single swaps; compiled once per
// instruction set (kernels.h).  Sums are float64.
#pragma once

#include "gram_kernel.h"

namespace fastfid {
namespace FASTFID_ISA {

// Lanes summed apart and added in the end, so that the compiler may use vectors: the order is fixed, as bitwise repeatable
// results need.  8 float64 are two or four registers.
constexpr int64_t LANES = 8;

// One row: y = x − μ stored where `out` is not null, |y|² returned, sum += sign·y.  One pass, in float64.
template <class X, class Y>
double centre_row(const X* row, const double* mean, double sign, int64_t dim, Y* out, double* sum) {
    double lanes[LANES] = {};
    int64_t p = 0;
    for (; p + LANES <= dim; p += LANES)
        for (int64_t x = 0; x < LANES; x++) {
            const double y = double(row[p + x]) - mean[p + x];
            if (out) out[p + x] = Y(y);
            sum[p + x] += sign * y;
            lanes[x] += y * y;
        }
    for (; p < dim; p++) {
        const double y = double(row[p]) - mean[p];
        if (out) out[p] = Y(y);
        sum[p] += sign * y;
        lanes[0] += y * y;
    }
    double total = 0;
    for (double lane : lanes) total += lane;
    return total;
}

template <class X>
double centre_removed(const FeatureRows& rows, int64_t c, double* sum) {
    double squares = 0;
    for (int64_t i = 0; i < rows.removed; i++) {
        const X* row = static_cast<const X*>(rows.reference) + rows.index[c * rows.removed + i] * rows.dim;
        squares += centre_row<X, X>(row, rows.mean, -1, rows.dim, nullptr, sum);
    }
    return squares;
}

template <class X, class Y>
double centre_added(const FeatureRows& rows, int64_t c, double* sum, const CentredRows& out) {
    double squares = 0;
    for (int64_t i = 0; i < rows.added_count; i++) {
        const X* row = static_cast<const X*>(rows.added) + c * rows.candidate_stride + i * rows.row_stride;
        Y* centred = static_cast<Y*>(out.added) + (c * rows.added_count + i) * rows.dim;
        const double square = centre_row<X, Y>(row, rows.mean, 1, rows.dim, centred, sum);
        out.square_norms[c * rows.added_count + i] = square;
        squares += square;
    }
    return squares;
}

// memory: [d] doubles for Σ y_a − Σ y_r.
inline void centre_candidate(const FeatureRows& rows, int64_t c, double* sum, const CentredRows& out) {
    memset(sum, 0, rows.dim * sizeof(double));
    const double removed = rows.reference_is_double ? centre_removed<double>(rows, c, sum) : centre_removed<float>(rows, c, sum);
    double added;
    if (rows.added_is_double)
        added = rows.centred_is_double ? centre_added<double, double>(rows, c, sum, out) : centre_added<double, float>(rows, c, sum, out);
    else
        added = rows.centred_is_double ? centre_added<float, double>(rows, c, sum, out) : centre_added<float, float>(rows, c, sum, out);
    double square = 0, gap = 0;
    for (int64_t p = 0; p < rows.dim; p++) {
        square += sum[p] * sum[p];
        gap += sum[p] * rows.gap[p];
    }
    if (out.totals) memcpy(out.totals + c * rows.dim, sum, rows.dim * sizeof(double));
    out.sums[c * 3] = square;
    out.sums[c * 3 + 1] = gap;
    out.sums[c * 3 + 2] = added - removed;
}

// Sum of a vector's lanes, by halves.
template <class T>
T sum_lanes(typename Vector<T>::loose v) {
    constexpr int64_t width = Vector<T>::width;
    alignas(64) T lanes[width];
    *(typename Vector<T>::type*)lanes = v;
#pragma GCC unroll 4
    for (int64_t half = width / 2; half; half /= 2)
        for (int64_t x = 0; x < half; x++) lanes[x] += lanes[x + half];
    return lanes[0];
}

// Σ_p a_p b_p e_n[p] over a slice for the three products of two rows and `terms` functions at once: sums [terms, 3].
template <class T, int64_t terms>
void weighted_products(const T* removed, const T* added, const T* functions, int64_t length, T* sums) {
    using V = typename Vector<T>::loose;
    constexpr int64_t width = Vector<T>::width;
    V rr[terms] = {}, ra[terms] = {}, aa[terms] = {};
    int64_t p = 0;
    for (; p + width <= length; p += width) {
        const V r = *(const V*)(removed + p), a = *(const V*)(added + p);
        const V r_r = r * r, r_a = r * a, a_a = a * a;
#pragma GCC unroll 4
        for (int64_t n = 0; n < terms; n++) {
            const V e = *(const V*)(functions + n * length + p);
            rr[n] += r_r * e;
            ra[n] += r_a * e;
            aa[n] += a_a * e;
        }
    }
    for (int64_t n = 0; n < terms; n++) {
        T total[3] = {sum_lanes<T>(rr[n]), sum_lanes<T>(ra[n]), sum_lanes<T>(aa[n])};
        for (int64_t x = p; x < length; x++) {
            const T e = functions[n * length + x];
            total[0] += removed[x] * removed[x] * e;
            total[1] += removed[x] * added[x] * e;
            total[2] += added[x] * added[x] * e;
        }
        for (int64_t x = 0; x < 3; x++) sums[n * 3 + x] = total[x];
    }
}

// sums [3, nodes] of Σ w_r w_r f, Σ w_r w_a f, Σ w_a w_a f, f the node weights of the plan, for a candidate of at most one row
// each way; a missing row reads as the other one, and its sums are ignored.  Slices are short enough for partial sums of T to
// keep their digits; they are added up in float64.
template <class T>
void candidate_singles(const ChangedRows<T>& rows, const WeightPlan<T>& plan, int64_t c, double* sums) {
    const T* removed = rows.removed ? row_of(rows, c, 0) : row_of(rows, c, rows.removed);
    const T* added = rows.added ? row_of(rows, c, rows.removed) : removed;
    const T *functions = plan.functions, *coefficients = plan.coefficients;
    for (int64_t q = 0; q < plan.nodes * 3; q++) sums[q] = 0;
    for (int64_t s = 0; s < plan.slices; s++) {
        const int64_t start = plan.bounds[s], length = plan.bounds[s + 1] - start;
        for (int64_t n = 0; n < plan.terms[s];) {
            T parts[4 * 3];
            const int64_t left = plan.terms[s] - n, together = left >= 4 ? 4 : left >= 2 ? 2 : 1;
            const auto multiply = together == 4   ? weighted_products<T, 4>
                                  : together == 2 ? weighted_products<T, 2>
                                                  : weighted_products<T, 1>;
            multiply(removed + start, added + start, functions, length, parts);
            for (int64_t m = 0; m < together; m++, coefficients += plan.nodes)
                for (int64_t x = 0; x < 3; x++)
                    for (int64_t q = 0; q < plan.nodes; q++) sums[x * plan.nodes + q] += parts[m * 3 + x] * coefficients[q];
            functions += together * length;
            n += together;
        }
    }
}

}  // namespace FASTFID_ISA
}  // namespace fastfid
