// fastfid._C: the only file that knows Python.  Checks types and shapes, releases the interpreter, raises ValueError.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cpu/swap_logdet.h"
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

template <class T>
bool is_dense(const py::array& a) {
    return py::isinstance<py::array_t<T>>(a) && (a.flags() & py::array::c_style);
}

using Doubles = py::array_t<double, py::array::c_style>;

template <class T>
py::tuple swap_logdet_of(const py::array& removed_rows, const py::array& added_rows, const Doubles& spectrum,
                         const Doubles& tau_squares, double slack, int threads, bool baseline) {
    require(is_dense<T>(removed_rows), "removed_rows must be contiguous and of the dtype of added_rows");
    const int64_t nodes = tau_squares.shape(0);
    fastfid::SwapLogdet<T> problem{
        static_cast<const T*>(removed_rows.data()), static_cast<const T*>(added_rows.data()), added_rows.shape(0),
        removed_rows.shape(1), added_rows.shape(1), added_rows.shape(2), spectrum.data(), tau_squares.data(), nodes, slack,
        threads};
    py::array_t<double> logdets({problem.candidates, nodes});
    double* out = logdets.mutable_data();
    fastfid::WrongPivot wrong;
    {
        py::gil_scoped_release release;
        wrong = baseline ? fastfid::swap_logdet_baseline(problem, out) : fastfid::swap_logdet(problem, out);
    }
    return py::make_tuple(logdets, wrong.candidate, wrong.value);
}

py::tuple swap_logdet(const py::array& removed_rows, const py::array& added_rows, const Doubles& spectrum,
                      const Doubles& tau_squares, double slack, int threads, bool baseline) {
    require(removed_rows.ndim() == 3 && added_rows.ndim() == 3 && removed_rows.shape(0) == added_rows.shape(0) &&
                removed_rows.shape(2) == added_rows.shape(2),
            "removed_rows must be [B, m_r, r] and added_rows [B, m_a, r], got " + shape_of(removed_rows) + " and " +
                shape_of(added_rows));
    require(spectrum.ndim() == 1 && spectrum.shape(0) == added_rows.shape(2) && tau_squares.ndim() == 1,
            "spectrum must be [r] and tau_squares [Q], got " + shape_of(spectrum) + " and " + shape_of(tau_squares));
    require(threads >= 1, "threads must be at least 1, got " + std::to_string(threads));
    if (is_dense<float>(added_rows))
        return swap_logdet_of<float>(removed_rows, added_rows, spectrum, tau_squares, slack, threads, baseline);
    require(is_dense<double>(added_rows), "added_rows must be contiguous float32 or float64");
    return swap_logdet_of<double>(removed_rows, added_rows, spectrum, tau_squares, slack, threads, baseline);
}

#ifdef FASTFID_CUDA
int ldl_logdet_cuda(uintptr_t matrices, uintptr_t logdets, uintptr_t bad, int64_t count, int k, int removed, double slack,
                    bool is_double, uintptr_t stream) {
    require(count >= 0 && k >= 1 && k <= fastfid::LDL_MAX_K && removed >= 0 && removed <= k,
            "need count >= 0, 1 <= k <= " + std::to_string(fastfid::LDL_MAX_K) + " and 0 <= removed <= k, got count " +
                std::to_string(count) + ", k " + std::to_string(k) + ", removed " + std::to_string(removed));
    auto out = reinterpret_cast<double*>(logdets);
    auto status = reinterpret_cast<int*>(bad);
    auto on = reinterpret_cast<void*>(stream);
    if (is_double)
        return fastfid::launch_ldl_logdet(reinterpret_cast<const double*>(matrices), out, status, count, k, removed, slack, on);
    return fastfid::launch_ldl_logdet(reinterpret_cast<const float*>(matrices), out, status, count, k, removed, slack, on);
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "Compiled kernels of fastfid; see fastfid.backend for who calls them.";
    m.def("cpu_kernel_name", &fastfid::cpu_kernel_name, "Instruction set chosen on this machine: 'avx2' or 'baseline'.");
    m.def("swap_logdet", &swap_logdet, py::arg("removed_rows"), py::arg("added_rows"), py::arg("spectrum"),
          py::arg("tau_squares"), py::arg("slack"), py::arg("threads"), py::arg("baseline") = false,
          "log|det(J + G)| of B candidates at Q nodes.\n\n"
          "removed_rows [B, m_r, r] and added_rows [B, m_a, r] float32 or float64; spectrum [r] and tau_squares [Q] float64.\n"
          "Returns (logdets [B, Q] float64, first candidate with a wrong-signed pivot or -1, that pivot).");
#ifdef FASTFID_CUDA
    m.attr("has_cuda") = true;
    m.def("ldl_logdet_cuda", &ldl_logdet_cuda, py::arg("matrices"), py::arg("logdets"), py::arg("bad"), py::arg("count"),
          py::arg("k"), py::arg("removed"), py::arg("slack"), py::arg("is_double"), py::arg("stream") = 0,
          "log|det(J + G)| of `count` matrices G [k, k] by device addresses; logdets [count] float64, bad [count] int32\n"
          "(first wrong pivot or -1). Returns a CUDA error code: 0 launched, 35 or 100 no usable device, 1 k too large for\n"
          "the device's shared memory.");
    m.def("cuda_device_status", &fastfid::cuda_device_status, "0 if a CUDA device can be used; 35 or 100 if there is none.");
#else
    m.attr("has_cuda") = false;
#endif
}
