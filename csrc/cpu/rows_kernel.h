// One pass over rows: centring with the sums that equation 4 needs, and the products of single swaps; compiled once per
// instruction set (kernels.h).  Sums are float64.
#pragma once

#include "gram_kernel.h"

namespace fastfid {
namespace FASTFID_ISA {

// Sum of a vector's lanes in float64, from the first to the last: the order is fixed, as bitwise repeatable results need.
template <class T>
double sum_lanes(const typename Vector<T>::type& v) {
    alignas(64) T lanes[Vector<T>::width];
    memcpy(lanes, &v, sizeof v);
    double total = 0;
    for (T lane : lanes) total += lane;
    return total;
}

// Rows centred at once: they share each read of μ and each update of the sum.
constexpr int64_t ABREAST = 4;

// For each row y = x − μ, stored if `out` is not null: squares[i] = |y_i|², sum += sign·Σ y.  One pass, in float64.
template <class X, class Y, int64_t count>
void centre_together(const X* const* rows, const double* mean, double sign, int64_t dim, Y* const* out, double* sum,
                     double* squares) {
    using V = Vector<double>::type;
    using Loose = Vector<double>::loose;
    constexpr int64_t width = Vector<double>::width;
    V lanes[count] = {};
    double ends[count] = {};
    int64_t p = 0;
    for (; p + width <= dim; p += width) {
        const V at = *(const Loose*)(mean + p);
        V total{};
#pragma GCC unroll 4
        for (int64_t i = 0; i < count; i++) {
            V y;
            load_doubles(rows[i] + p, y);
            y -= at;
            if (out) store_doubles(y, out[i] + p);
            total += y;
            lanes[i] += y * y;
        }
        *(Loose*)(sum + p) += sign * total;
    }
    for (; p < dim; p++)
        for (int64_t i = 0; i < count; i++) {
            const double y = double(rows[i][p]) - mean[p];
            if (out) out[i][p] = Y(y);
            sum[p] += sign * y;
            ends[i] += y * y;
        }
    for (int64_t i = 0; i < count; i++) squares[i] = sum_lanes<double>(lanes[i]) + ends[i];
}

// Σ |y_i|² of `count` rows, ABREAST at a time: row(i) and out(i) are where the i-th is and goes; each square norm also where
// `squares` is not null.
template <class X, class Y, class Row, class Out>
double centre_all(int64_t count, const Row& row, const Out& out, const double* mean, double sign, int64_t dim, double* sum,
                  double* squares) {
    const X* rows[ABREAST];
    Y* outs[ABREAST];
    double of_rows[ABREAST], total = 0;
    for (int64_t i = 0; i < count;) {
        const int64_t together = count - i < ABREAST ? 1 : ABREAST;
        for (int64_t x = 0; x < together; x++) rows[x] = row(i + x), outs[x] = out(i + x);
        const auto centre = together == 1 ? centre_together<X, Y, 1> : centre_together<X, Y, ABREAST>;
        centre(rows, mean, sign, dim, outs[0] ? outs : nullptr, sum, of_rows);
        for (int64_t x = 0; x < together; x++, i++) {
            if (squares) squares[i] = of_rows[x];
            total += of_rows[x];
        }
    }
    return total;
}

// Σ |y_r|², and −Σ y_r in sum.
template <class X>
double centre_removed(const FeatureRows& rows, int64_t c, double* sum) {
    const int64_t* index = rows.index + c * rows.removed;
    const auto row = [&](int64_t i) { return static_cast<const X*>(rows.reference) + index[i] * rows.dim; };
    return centre_all<X, X>(rows.removed, row, [](int64_t) { return (X*)nullptr; }, rows.mean, -1, rows.dim, sum, nullptr);
}

// Σ |y_a|², and Σ y_a added to sum.
template <class X, class Y>
double centre_added(const FeatureRows& rows, int64_t c, double* sum, const CentredRows& out) {
    const auto row = [&](int64_t i) { return static_cast<const X*>(rows.added) + c * rows.candidate_stride + i * rows.row_stride; };
    const auto centred = [&](int64_t i) { return static_cast<Y*>(out.added) + (c * rows.added_count + i) * rows.dim; };
    double* squares = out.square_norms + c * rows.added_count;
    return centre_all<X, Y>(rows.added_count, row, centred, rows.mean, 1, rows.dim, sum, squares);
}

// A candidate that swaps one row, or only adds one: everything in one pass, without a sum in memory.
template <class X, class A, class Y>
void centre_pair(const FeatureRows& rows, int64_t c, const CentredRows& out) {
    using V = Vector<double>::type;
    using Loose = Vector<double>::loose;
    constexpr int64_t width = Vector<double>::width;
    const A* added = static_cast<const A*>(rows.added) + c * rows.candidate_stride;
    const X* removed = rows.removed ? static_cast<const X*>(rows.reference) + rows.index[c] * rows.dim : nullptr;
    Y* centred = static_cast<Y*>(out.added) + c * rows.dim;
    double* totals = out.totals ? out.totals + c * rows.dim : nullptr;
    V lanes[4] = {};  // |y_a|², |y_r|², |s|², s·gap
    int64_t p = 0;
    for (; p + width <= rows.dim; p += width) {
        const V mean = *(const Loose*)(rows.mean + p);
        V y_a, y_r{};
        load_doubles(added + p, y_a);
        y_a -= mean;
        if (removed) load_doubles(removed + p, y_r), y_r -= mean;
        const V s = y_a - y_r;
        store_doubles(y_a, centred + p);
        if (totals) store_doubles(s, totals + p);
        lanes[0] += y_a * y_a;
        lanes[1] += y_r * y_r;
        lanes[2] += s * s;
        lanes[3] += s * *(const Loose*)(rows.gap + p);
    }
    double sums[4];
    for (int64_t i = 0; i < 4; i++) sums[i] = sum_lanes<double>(lanes[i]);
    for (; p < rows.dim; p++) {
        const double y_a = double(added[p]) - rows.mean[p], y_r = removed ? double(removed[p]) - rows.mean[p] : 0, s = y_a - y_r;
        centred[p] = Y(y_a);
        if (totals) totals[p] = s;
        sums[0] += y_a * y_a;
        sums[1] += y_r * y_r;
        sums[2] += s * s;
        sums[3] += s * rows.gap[p];
    }
    out.square_norms[c] = sums[0];
    out.sums[c * 3] = sums[2];
    out.sums[c * 3 + 1] = sums[3];
    out.sums[c * 3 + 2] = sums[0] - sums[1];
}

template <class X>
void centre_pair_of(const FeatureRows& rows, int64_t c, const CentredRows& out) {
    if (rows.added_is_double)
        return rows.centred_is_double ? centre_pair<X, double, double>(rows, c, out) : centre_pair<X, double, float>(rows, c, out);
    rows.centred_is_double ? centre_pair<X, float, double>(rows, c, out) : centre_pair<X, float, float>(rows, c, out);
}

// memory: [d] doubles for Σ y_a − Σ y_r.
inline void centre_candidate(const FeatureRows& rows, int64_t c, double* sum, const CentredRows& out) {
    if (rows.added_count == 1 && rows.removed <= 1)
        return rows.reference_is_double ? centre_pair_of<double>(rows, c, out) : centre_pair_of<float>(rows, c, out);
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

// A vector of the first `count` entries, zeros behind.
template <class T>
void load_part(const T* from, int64_t count, typename Vector<T>::type& to) {
    to = typename Vector<T>::type{};
    memcpy(&to, from, count * sizeof(T));
}

// Σ a_p b_p e_n[p] over a slice for the three products of two rows and `terms` functions at once, lane by lane, and added with
// their mixes to sums [m][3], vectors.
template <class T, int64_t terms>
void add_products(const T* removed, const T* added, const T* functions, int64_t length, const T* mix, int64_t group_terms,
                  typename Vector<T>::type* sums) {
    using V = typename Vector<T>::type;
    using Loose = typename Vector<T>::loose;
    constexpr int64_t width = Vector<T>::width;
    V rr[terms] = {}, ra[terms] = {}, aa[terms] = {};
    int64_t p = 0;
    for (; p + width <= length; p += width) {
        const V r = *(const Loose*)(removed + p), a = *(const Loose*)(added + p), r_r = r * r, r_a = r * a, a_a = a * a;
#pragma GCC unroll 4
        for (int64_t n = 0; n < terms; n++) {
            const V e = *(const Loose*)(functions + n * length + p);
            rr[n] += r_r * e;
            ra[n] += r_a * e;
            aa[n] += a_a * e;
        }
    }
    if (p < length) {
        V r, a, e;
        load_part(removed + p, length - p, r);
        load_part(added + p, length - p, a);
#pragma GCC unroll 4
        for (int64_t n = 0; n < terms; n++) {
            load_part(functions + n * length + p, length - p, e);
            rr[n] += r * r * e;
            ra[n] += r * a * e;
            aa[n] += a * a * e;
        }
    }
    for (int64_t m = 0; m < group_terms; m++, sums += 3) {
        V sum_rr = sums[0], sum_ra = sums[1], sum_aa = sums[2];
#pragma GCC unroll 4
        for (int64_t n = 0; n < terms; n++) {
            const T x = mix[n * group_terms + m];
            sum_rr += rr[n] * x;
            sum_ra += ra[n] * x;
            sum_aa += aa[n] * x;
        }
        sums[0] = sum_rr, sums[1] = sum_ra, sums[2] = sum_aa;
    }
}

// sums [m][3], vectors, += those of one slice.
template <class T>
void add_slice_products(const T* removed, const T* added, const T* functions, int64_t terms, int64_t length, const T* mix,
                        int64_t group_terms, typename Vector<T>::type* sums) {
    for (int64_t n = 0; n < terms;) {
        const int64_t left = terms - n, together = left >= 4 ? 4 : left;
        const auto add = together == 4   ? add_products<T, 4>
                         : together == 3 ? add_products<T, 3>
                         : together == 2 ? add_products<T, 2>
                                         : add_products<T, 1>;
        add(removed, added, functions + n * length, length, mix + n * group_terms, group_terms, sums);
        n += together;
    }
}

// sums [3, nodes] of Σ w_r w_r f, Σ w_r w_a f, Σ w_a w_a f, f the node weights of the plan, for a candidate of at most one row
// each way; a missing row reads as the other one, and its sums are ignored.  A lane's partial sums of T run over one group of
// slices; lanes and groups are added up in float64.  memory: three vectors for each of a group's functions.
template <class T>
void candidate_singles(const ChangedRows<T>& rows, const WeightPlan<T>& plan, int64_t c, T* memory, double* sums) {
    using V = typename Vector<T>::type;
    const T* removed = rows.removed ? row_of(rows, c, 0) : row_of(rows, c, rows.removed);
    const T* added = rows.added ? row_of(rows, c, rows.removed) : removed;
    const T *functions = plan.functions, *mixes = plan.mixes, *coefficients = plan.coefficients;
    for (int64_t q = 0; q < plan.nodes * 3; q++) sums[q] = 0;
    for (int64_t g = 0, s = 0; g < plan.groups; g++) {
        const int64_t group_terms = plan.group_terms[g];
        memset(memory, 0, 3 * group_terms * sizeof(V));
        for (; s < plan.group_ends[g]; s++) {
            const int64_t terms = plan.terms[s], start = plan.bounds[s], length = plan.bounds[s + 1] - start;
            add_slice_products(removed + start, added + start, functions, terms, length, mixes, group_terms, (V*)memory);
            functions += terms * length;
            mixes += terms * group_terms;
        }
        for (int64_t m = 0; m < group_terms; m++, coefficients += plan.nodes)
            for (int64_t y = 0; y < 3; y++) {
                const double total = sum_lanes<T>(((const V*)memory)[m * 3 + y]);
                for (int64_t q = 0; q < plan.nodes; q++) sums[y * plan.nodes + q] += total * coefficients[q];
            }
    }
}

}  // namespace FASTFID_ISA
}  // namespace fastfid
