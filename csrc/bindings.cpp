// fastfid._C: the only file that knows Python.  Checks types and shapes, releases the interpreter, raises ValueError.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cpu/band.h"
#include "cpu/dispatch.h"
#include "cpu/moments.h"
#include "cpu/swap.h"
#ifdef FASTFID_CUDA
#include "cuda/ldl_logdet.h"
#endif

namespace py = pybind11;

namespace {

std::string shape_of(const py::array& a) {
    std::string text = "[";
    for (py::ssize_t i = 0; i < a.ndim(); i++) text += (i ? ", " : "") + std::to_string(a.shape(i));
    return text + "]";
}

void require(bool holds, const std::string& message) {
    if (!holds) throw py::value_error(message);
}

// Contiguous and of this type: pybind11 would otherwise convert, that is copy, without a word.
template <class T>
bool is_dense(const py::array& a) {
    return py::isinstance<py::array_t<T>>(a) && (a.flags() & py::array::c_style);
}

template <class T>
const T* dense(const py::array& a, const char* name, py::ssize_t ndim) {
    require(is_dense<T>(a) && a.ndim() == ndim, std::string(name) + " must be contiguous, of " + std::to_string(ndim) +
                                                    " axes and of the expected dtype, got " + shape_of(a));
    return static_cast<const T*>(a.data());
}

// An axis of a size that something is divided by, or that nothing bounds where it is absent.
void require_axis(py::ssize_t size, const char* name) {
    require(size >= 1, std::string(name) + " is 0; at least 1 is needed");
}

// Whether rows along this axis start a whole number of elements apart; the stride of a single row is used for nothing.
bool is_whole_stride(const py::array& a, py::ssize_t axis) { return a.shape(axis) <= 1 || a.strides(axis) % a.itemsize() == 0; }

// Takes first·second from what is left of a size, by division: a product of sizes that a caller made up could overflow.
void take(int64_t& left, int64_t first, int64_t second) {
    require(first <= left / second, "plan functions, mixes and coefficients are fewer than its terms ask for");
    left -= first * second;
}

void check_places(const py::array& index, const int64_t* rows, py::ssize_t count) {
    for (py::ssize_t i = 0; i < index.size(); i++)
        require(rows[i] >= 0 && rows[i] < count,
                "index holds " + std::to_string(rows[i]) + ", outside the " + std::to_string(count) + " reference rows");
}

using Doubles = py::array_t<double, py::array::c_style>;
using Shifts = std::array<double, 3>;

// reference [N, r], index [B, m_r], added_rows [B, m_a, r] and the three coefficients of ChangedRows.
template <class T>
fastfid::ChangedRows<T> changed_rows(const py::array& reference, const py::array& index, const py::array& added,
                                     const Shifts& shifts) {
    const T* reference_rows = dense<T>(reference, "reference", 2);
    const int64_t* rows = dense<int64_t>(index, "index", 2);
    const T* added_rows = dense<T>(added, "added_rows", 3);
    require(index.shape(0) == added.shape(0) && reference.shape(1) == added.shape(2),
            "reference must be [N, r], index [B, m_r] and added_rows [B, m_a, r], got " + shape_of(reference) + ", " +
                shape_of(index) + " and " + shape_of(added));
    require_axis(reference.shape(1), "the rank r of reference and added_rows");
    check_places(index, rows, reference.shape(0));
    return {reference_rows, rows, added_rows, added.shape(0), index.shape(1), added.shape(1), added.shape(2),
            shifts[0], shifts[1], shifts[2]};
}

// WeightPlan's arrays in the order of fastfid/linalg/weight_plan.py.
template <class T>
fastfid::WeightPlan<T> weight_plan(const py::tuple& plan, int64_t rank) {
    require(plan.size() == 7, "plan must be (bounds, terms, functions, group_ends, group_terms, mixes, coefficients)");
    const py::array bounds = plan[0], terms = plan[1], functions = plan[2], ends = plan[3], group_terms = plan[4], mixes = plan[5],
                    coefficients = plan[6];
    const int64_t *edges = dense<int64_t>(bounds, "plan bounds", 1), *counts = dense<int64_t>(terms, "plan terms", 1);
    const int64_t *last = dense<int64_t>(ends, "plan group_ends", 1), *totals = dense<int64_t>(group_terms, "plan group_terms", 1);
    const T* values = dense<T>(coefficients, "plan coefficients", 2);
    fastfid::WeightPlan<T> found{coefficients.shape(1), terms.size(), ends.size(), edges, counts, dense<T>(functions, "plan functions", 1),
                                 last, totals, dense<T>(mixes, "plan mixes", 1), values};
    require(bounds.size() == found.slices + 1 && edges[0] == 0 && edges[found.slices] == rank,
            "plan bounds must run from 0 to the rank, one more than terms, got " + shape_of(bounds) + " and " + shape_of(terms));
    require(group_terms.size() == found.groups && (found.groups ? last[found.groups - 1] : 0) == found.slices,
            "plan groups must end with the last slice, got " + shape_of(ends) + " and " + shape_of(group_terms));
    for (int64_t s = 0; s < found.slices; s++)
        require(edges[s] < edges[s + 1] && edges[s + 1] <= rank && edges[s + 1] - edges[s] <= fastfid::SLICE && counts[s] > 0,
                "a slice of the plan must have 1 to 256 positions");
    int64_t entries = functions.size(), mixed = mixes.size(), nodes_mixed = coefficients.shape(0);
    for (int64_t g = 0, s = 0; g < found.groups; g++) {
        require(totals[g] > 0 && last[g] > s, "a group of the plan must have slices and functions");
        require(last[g] <= found.slices && edges[last[g]] - edges[s] <= fastfid::SPAN, "a group of the plan may have 512 positions at most");
        take(nodes_mixed, totals[g], 1);
        for (; s < last[g]; s++) {
            take(entries, counts[s], edges[s + 1] - edges[s]);
            take(mixed, counts[s], totals[g]);
        }
    }
    require(entries == 0 && mixed == 0 && nodes_mixed == 0,
            "plan functions, mixes and coefficients do not fit its terms, got " + shape_of(functions) + ", " + shape_of(mixes) + " and " +
                shape_of(coefficients));
    return found;
}

template <class T>
py::tuple swap_logdet_of(const py::array& reference, const py::array& index, const py::array& added, const Shifts& shifts,
                         const py::tuple& plan, double slack, int threads, const std::string& isa) {
    const auto rows = changed_rows<T>(reference, index, added, shifts);
    const auto weights = weight_plan<T>(plan, rows.rank);
    py::array_t<double> logdets({rows.candidates, weights.nodes}), remaining(rows.candidates);
    double *out = logdets.mutable_data(), *left = remaining.mutable_data();
    fastfid::WrongPivot wrong;
    if (rows.candidates) {
        py::gil_scoped_release release;
        wrong = fastfid::swap_logdet(rows, weights, slack, threads, isa, out, left);
    }
    return py::make_tuple(logdets, remaining, wrong.candidate, wrong.value);
}

template <class T>
py::tuple swap_gradient_of(const py::array& reference, const py::array& index, const py::array& added, const Shifts& shifts,
                           const py::tuple& plan, const Doubles& node_weights, double slack, int threads, const std::string& isa) {
    const auto rows = changed_rows<T>(reference, index, added, shifts);
    const auto weights = weight_plan<T>(plan, rows.rank);
    require(node_weights.ndim() == 1 && node_weights.shape(0) == weights.nodes,
            "node_weights must be [nodes], got " + shape_of(node_weights));
    py::array_t<double> logdets({rows.candidates, weights.nodes}), remaining(rows.candidates);
    py::array_t<T> gradient({rows.candidates, rows.added, rows.rank});
    double *out = logdets.mutable_data(), *left = remaining.mutable_data();
    T* slope = gradient.mutable_data();
    const double* omega = node_weights.data();
    fastfid::WrongPivot wrong;
    if (rows.candidates) {  // else its other sizes, which nothing bounds, are those of no work
        py::gil_scoped_release release;
        wrong = fastfid::swap_gradient(rows, weights, omega, slack, threads, isa, out, left, slope);
    }
    return py::make_tuple(logdets, remaining, gradient, wrong.candidate, wrong.value);
}

template <class T>
py::array_t<double> swap_singles_of(const py::array& reference, const py::array& index, const py::array& added,
                                    const py::tuple& plan, int threads, const std::string& isa) {
    const auto rows = changed_rows<T>(reference, index, added, {0, 0, 0});
    const auto weights = weight_plan<T>(plan, rows.rank);
    require(rows.removed <= 1 && rows.added <= 1 && rows.removed + rows.added >= 1,
            "a single swap has one row at most each way, got " + shape_of(index) + " and " + shape_of(added));
    py::array_t<double> sums({rows.candidates, int64_t(3), weights.nodes});
    double* out = sums.mutable_data();
    if (rows.candidates) {
        py::gil_scoped_release release;
        fastfid::swap_singles(rows, weights, threads, isa, out);
    }
    return sums;
}

// More than any machine has; OpenMP ends the process where the system grants fewer than asked for.
constexpr int MOST_THREADS = 1024;

void check_threads(int threads) {
    require(threads >= 1 && threads <= MOST_THREADS,
            "threads must be at least 1 and at most " + std::to_string(MOST_THREADS) + ", got " + std::to_string(threads));
}

py::tuple swap_logdet(const py::array& reference, const py::array& index, const py::array& added_rows, const Shifts& shifts,
                      const py::tuple& plan, double slack, int threads, const std::string& isa) {
    check_threads(threads);
    auto compute = is_dense<float>(added_rows) ? swap_logdet_of<float> : swap_logdet_of<double>;
    return compute(reference, index, added_rows, shifts, plan, slack, threads, isa);
}

py::tuple swap_gradient(const py::array& reference, const py::array& index, const py::array& added_rows, const Shifts& shifts,
                        const py::tuple& plan, const Doubles& node_weights, double slack, int threads, const std::string& isa) {
    check_threads(threads);
    auto compute = is_dense<float>(added_rows) ? swap_gradient_of<float> : swap_gradient_of<double>;
    return compute(reference, index, added_rows, shifts, plan, node_weights, slack, threads, isa);
}

py::array_t<double> swap_singles(const py::array& reference, const py::array& index, const py::array& added_rows,
                                 const py::tuple& plan, int threads, const std::string& isa) {
    check_threads(threads);
    auto compute = is_dense<float>(added_rows) ? swap_singles_of<float> : swap_singles_of<double>;
    return compute(reference, index, added_rows, plan, threads, isa);
}

bool is_double(const py::array& a, const char* name) {
    const bool of_double = py::isinstance<py::array_t<double>>(a);
    require(of_double || py::isinstance<py::array_t<float>>(a), std::string(name) + " must be float32 or float64");
    return of_double;
}

py::tuple centre_rows(const py::array& reference, const py::array& index, const py::array& added, const Doubles& mean,
                      const Doubles& gap, py::array& centred, bool with_totals, int threads, const std::string& isa) {
    check_threads(threads);
    const int64_t* rows = dense<int64_t>(index, "index", 2);
    require(reference.ndim() == 2 && added.ndim() == 3 && centred.ndim() == 3 && reference.shape(1) == added.shape(2) &&
                index.shape(0) == added.shape(0) && mean.size() == added.shape(2) && gap.size() == added.shape(2) &&
                (reference.flags() & py::array::c_style) && (centred.flags() & py::array::c_style) &&
                centred.size() == added.size(),
            "reference must be [N, d], index [B, m_r], added and centred [B, m_a, d], mean and gap [d], got " +
                shape_of(reference) + ", " + shape_of(index) + ", " + shape_of(added) + " and " + shape_of(centred));
    require_axis(added.shape(2), "d of added");
    check_places(index, rows, reference.shape(0));
    const py::ssize_t size = added.itemsize();
    require(added.size() == 0 || added.shape(2) == 1 || added.strides(2) == size, "rows of added must be contiguous");
    require(is_whole_stride(added, 0) && is_whole_stride(added, 1), "rows of added must lie whole elements apart");
    fastfid::FeatureRows problem{reference.data(), rows, added.data(), added.strides(0) / size, added.strides(1) / size,
                                 added.shape(0), index.shape(1), added.shape(1), added.shape(2), is_double(reference, "reference"),
                                 is_double(added, "added"), is_double(centred, "centred"), mean.data(), gap.data()};
    py::array_t<double> norms({problem.candidates, problem.added_count}), sums({problem.candidates, int64_t(3)});
    py::array_t<double> totals({with_totals ? problem.candidates : int64_t(0), problem.dim});
    fastfid::CentredRows out{centred.mutable_data(), norms.mutable_data(), sums.mutable_data(),
                             with_totals ? totals.mutable_data() : nullptr};
    {
        py::gil_scoped_release release;
        fastfid::centre_rows(problem, threads, isa, out);
    }
    return py::make_tuple(norms, sums, totals);
}

// A band of this width takes 17 MB of memory on each thread, however small the matrix is.
constexpr py::ssize_t WIDEST_NARROW_BAND = 512;

py::array_t<double> band_logdets(const py::array& band, const Doubles& shifts, double origin, int threads, const std::string& isa) {
    check_threads(threads);
    const double* entries = dense<double>(band, "band", 2);
    require(band.shape(1) >= 1 && shifts.ndim() == 1,
            "band must be [d, width + 1] and shifts [n], got " + shape_of(band) + " and " + shape_of(shifts));
    require_axis(band.shape(0), "d of band");
    require(band.shape(1) <= std::max<py::ssize_t>(band.shape(0), WIDEST_NARROW_BAND),
            "band is wider than its matrix, got " + shape_of(band) + ": memory grows with the square of the width");
    const fastfid::BandMatrix matrix{entries, band.shape(0), band.shape(1) - 1, shifts.data(), shifts.size(), origin};
    py::array_t<double> logdets(matrix.count);
    double* out = logdets.mutable_data();
    {
        py::gil_scoped_release release;
        fastfid::band_logdets(matrix, threads, isa, out);
    }
    return logdets;
}

// Rows [n, d] of float or double, which may lie apart, given to compute(pointer, stride between rows).
template <class Compute>
void with_rows(const py::array& rows, const Compute& compute) {
    const bool of_double = is_double(rows, "rows");
    const py::ssize_t size = rows.itemsize();
    require(rows.ndim() == 2 && (rows.shape(1) == 1 || rows.size() == 0 || rows.strides(1) == size) && is_whole_stride(rows, 0),
            "rows must be [n, d], each contiguous, got " + shape_of(rows));
    require_axis(rows.shape(1), "d of rows");
    const int64_t stride = rows.strides(0) / size;
    if (of_double)
        compute(static_cast<const double*>(rows.data()), stride);
    else
        compute(static_cast<const float*>(rows.data()), stride);
}

py::array_t<double> column_sums(const py::array& rows, int threads, const std::string& isa) {
    check_threads(threads);
    py::array_t<double> sums;
    with_rows(rows, [&](auto* first, int64_t stride) {
        sums = py::array_t<double>(rows.shape(1));
        double* out = sums.mutable_data();
        const int64_t count = rows.shape(0), dim = rows.shape(1);
        py::gil_scoped_release release;
        fastfid::column_sums(first, stride, count, dim, threads, isa, out);
    });
    return sums;
}

void add_scatter(py::array& cov, const py::array& rows, const Doubles& mean, const Doubles& extra, double alpha, double beta,
                 int threads, const std::string& isa) {
    check_threads(threads);
    dense<double>(cov, "cov", 2);
    require(rows.ndim() == 2 && mean.ndim() == 1 && extra.ndim() == 1 && cov.shape(0) == rows.shape(1) &&
                cov.shape(1) == rows.shape(1) && mean.size() == rows.shape(1) && extra.size() == rows.shape(1),
            "cov must be [d, d], rows [n, d], mean and extra [d], got " + shape_of(cov) + ", " + shape_of(rows) + ", " +
                shape_of(mean) + " and " + shape_of(extra));
    double* out = static_cast<double*>(cov.mutable_data());
    with_rows(rows, [&](auto* first, int64_t stride) {
        using T = std::remove_const_t<std::remove_pointer_t<decltype(first)>>;
        const fastfid::ScatterUpdate<T> update{first, stride, rows.shape(0), rows.shape(1), mean.data(), extra.data(), alpha, beta, out};
        py::gil_scoped_release release;
        fastfid::add_scatter(update, threads, isa);
    });
}

#ifdef FASTFID_CUDA
int ldl_logdet_cuda(uintptr_t matrices, uintptr_t logdets, uintptr_t bad, uintptr_t remaining, int64_t count, int nodes, int k,
                    int removed, double slack, bool is_double, uintptr_t stream) {
    require(count >= 0 && nodes >= 1 && count % nodes == 0 && k >= 1 && k <= fastfid::LDL_MAX_K && removed >= 0 &&
                removed <= k && count <= INT64_MAX / 8 / (int64_t(k) * k),
            "need count >= 0 and a multiple of nodes >= 1, 1 <= k <= " + std::to_string(fastfid::LDL_MAX_K) +
                " and 0 <= removed <= k, got count " + std::to_string(count) + ", nodes " + std::to_string(nodes) + ", k " +
                std::to_string(k) + ", removed " + std::to_string(removed));
    auto out = reinterpret_cast<double*>(logdets), left = reinterpret_cast<double*>(remaining);
    auto status = reinterpret_cast<int*>(bad);
    auto on = reinterpret_cast<void*>(stream);
    if (is_double)
        return fastfid::launch_ldl_logdet(reinterpret_cast<const double*>(matrices), out, status, left, count, nodes, k, removed,
                                          slack, on);
    return fastfid::launch_ldl_logdet(reinterpret_cast<const float*>(matrices), out, status, left, count, nodes, k, removed,
                                      slack, on);
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "Compiled kernels of fastfid; see fastfid.backend for who calls them.";
    m.attr("SLICE") = fastfid::SLICE;
    m.attr("SPAN") = fastfid::SPAN;
    m.def("instruction_sets", &fastfid::instruction_sets,
          "Instruction sets of the CPU kernels usable on this machine, best first; 'wide' is a test's.");
    m.def("swap_logdet", &swap_logdet, py::arg("reference"), py::arg("index"), py::arg("added_rows"), py::arg("shifts"),
          py::arg("plan"), py::arg("slack"), py::arg("threads"), py::arg("isa") = "",
          "log|det(J + G)| of B candidates at Q nodes.\n\n"
          "reference [N, r] and added_rows [B, m_a, r] float32 or float64; index [B, m_r] int64; shifts (α, β, γ) of equation 2;\n"
          "plan as fastfid.linalg.weight_plan.weight_plan makes it.\n"
          "Returns (logdets [B, Q] float64, the smallest eigenvalue of I − G_rr at the first node [B] estimated from above, first\n"
          "candidate with a wrong-signed pivot or -1, that pivot).");
    m.def("swap_gradient", &swap_gradient, py::arg("reference"), py::arg("index"), py::arg("added_rows"), py::arg("shifts"),
          py::arg("plan"), py::arg("node_weights"), py::arg("slack"), py::arg("threads"), py::arg("isa") = "",
          "As swap_logdet, with the gradient [B, m_a, r] of the logdets weighted by node_weights [Q] in the shifted added rows.\n"
          "Returns (logdets, smallest eigenvalues, gradient, first wrong candidate or -1, that pivot).");
    m.def("swap_singles", &swap_singles, py::arg("reference"), py::arg("index"), py::arg("added_rows"), py::arg("plan"),
          py::arg("threads"), py::arg("isa") = "",
          "Sums [B, 3, Q] float64 of w_r·w_r·f, w_r·w_a·f and w_a·w_a·f, f the node weights, one row at most each way.");
    m.def("centre_rows", &centre_rows, py::arg("reference"), py::arg("index"), py::arg("added"), py::arg("mean"), py::arg("gap"),
          py::arg("centred"), py::arg("with_totals"), py::arg("threads"), py::arg("isa") = "",
          "Fills centred [B, m_a, d] with added − mean.  With s the sum of added less that of removed centred rows, returns\n"
          "(square norms of the added rows [B, m_a], [B, 3] of |s|², s·gap, sum of |y_a|² less sum of |y_r|², s [B, d] where\n"
          "asked for), float64.");
    m.def("band_logdets", &band_logdets, py::arg("band"), py::arg("shifts"), py::arg("origin"), py::arg("threads"), py::arg("isa") = "",
          "log det(B + s) − d·log(origin + s) of a symmetric band matrix at every shift s [n], float64; NaN where B + s is not\n"
          "positive definite.  band [d, width + 1] float64, row i from B[i, i − width] to B[i, i].");
    m.def("column_sums", &column_sums, py::arg("rows"), py::arg("threads"), py::arg("isa") = "",
          "Sums [d] float64 of rows [n, d] float32 or float64, each column's in order.");
    m.def("add_scatter", &add_scatter, py::arg("cov"), py::arg("rows"), py::arg("mean"), py::arg("extra"), py::arg("alpha"),
          py::arg("beta"), py::arg("threads"), py::arg("isa") = "",
          "Upper triangle of cov [d, d] float64 ← beta·cov + alpha·(Σ (x − mean)(x − mean)ᵀ + extra·extraᵀ) over rows x [n, d]\n"
          "float32 or float64; below it nothing is read or written, nor is cov read where beta is 0.");
#ifdef FASTFID_CUDA
    m.attr("has_cuda") = true;
    m.def("ldl_logdet_cuda", &ldl_logdet_cuda, py::arg("matrices"), py::arg("logdets"), py::arg("bad"), py::arg("remaining"),
          py::arg("count"), py::arg("nodes"), py::arg("k"), py::arg("removed"), py::arg("slack"), py::arg("is_double"),
          py::arg("stream") = 0,
          "log|det(J + G)| of `count` matrices G [k, k] by device addresses: logdets [count] float64, bad [count] int32 (first\n"
          "wrong pivot or -1), and of every `nodes`th matrix the smallest eigenvalue of I − G_rr, remaining [count / nodes]\n"
          "float64, unchanged where no row is removed. Returns a CUDA error code: 0 launched, 35 or 100 no usable device, 1 k\n"
          "too large for the device's shared memory.");
    m.def("cuda_device_status", &fastfid::cuda_device_status, "0 if a CUDA device can be used; 35 or 100 if there is none.");
#else
    m.attr("has_cuda") = false;
#endif
}
