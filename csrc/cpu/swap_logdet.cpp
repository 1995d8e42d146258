// Chooses the instruction set, shares candidates and nodes among threads, gathers the log-determinants.
#include "swap_logdet.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "swap_logdet_entry.h"

FASTFID_KERNEL(baseline)
#ifdef FASTFID_HAVE_AVX2
FASTFID_KERNEL(avx2)
#endif

namespace fastfid {
namespace {

bool use_avx2() {
#ifdef FASTFID_HAVE_AVX2
    static const bool offered = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return offered;
#else
    return false;
#endif
}

template <class T>
struct Kernel {
    decltype(&baseline::workspace<T>) workspace;
    decltype(&baseline::candidate_logdets<T>) logdets;
};

template <class T>
Kernel<T> choose_kernel() {
#ifdef FASTFID_HAVE_AVX2
    if (use_avx2()) return {avx2::workspace<T>, avx2::candidate_logdets<T>};
#endif
    return {baseline::workspace<T>, baseline::candidate_logdets<T>};
}

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};
template <class T>
using Buffer = std::unique_ptr<T[], Free>;

template <class T>
Buffer<T> zeroed(int64_t elements) {
    size_t bytes = (elements * sizeof(T) + 63) / 64 * 64;
    void* memory = std::aligned_alloc(64, bytes);
    if (!memory) throw std::bad_alloc();
    std::memset(memory, 0, bytes);
    return Buffer<T>(static_cast<T*>(memory));
}

// 1 / (λ_p + τ_q²) for every node q: [nodes, rank].
template <class T>
std::vector<T> node_weights(const SwapLogdet<T>& problem) {
    std::vector<T> weights(problem.nodes * problem.rank);
    for (int64_t q = 0; q < problem.nodes; q++)
        for (int64_t p = 0; p < problem.rank; p++)
            weights[q * problem.rank + p] = T(1 / (problem.spectrum[p] + problem.tau_squares[q]));
    return weights;
}

// Calls work(task, thread) for every task, in any order, on at most `threads` threads, the caller's included.
template <class Work>
void share(int64_t tasks, int threads, const Work& work) {
    std::atomic<int64_t> next{0};
    auto drain = [&](int thread) {
        for (int64_t task; (task = next.fetch_add(1)) < tasks;) work(task, thread);
    };
    std::vector<std::thread> helpers;
    for (int thread = 1; thread < threads; thread++) {
        try {
            helpers.emplace_back(drain, thread);
        } catch (const std::system_error&) {  // the system grants no more threads: the others do the work
            break;
        }
    }
    drain(0);
    for (auto& helper : helpers) helper.join();
}

// One task is a candidate, or, with fewer candidates than threads, a node of one.  Every node's result is stored on its own,
// so neither the number of threads nor the division into tasks can change a bit.
template <class T>
WrongPivot run(const SwapLogdet<T>& problem, const Kernel<T>& kernel, double* logdets) {
    const int64_t candidates = problem.candidates, nodes = problem.nodes;
    if (candidates == 0 || nodes == 0) return {};
    const int64_t parts = candidates >= problem.threads ? 1 : nodes, share_of_nodes = nodes / parts;
    const int threads = int(std::max<int64_t>(1, std::min<int64_t>(problem.threads, candidates * parts)));
    const int64_t elements = kernel.workspace(problem.removed + problem.added, problem.rank);
    const std::vector<T> weights = node_weights(problem);
    std::vector<double> wrong(candidates * nodes, 0.0);
    std::vector<Buffer<T>> memory;
    for (int thread = 0; thread < threads; thread++) memory.push_back(zeroed<T>(elements));
    share(candidates * parts, threads, [&](int64_t task, int thread) {
        const int64_t c = task / parts, first = task % parts * share_of_nodes;
        kernel.logdets(problem.removed_rows + c * problem.removed * problem.rank, problem.removed,
                       problem.added_rows + c * problem.added * problem.rank, problem.added, problem.rank, weights.data(),
                       problem.slack, first, first + share_of_nodes, memory[thread].get(), logdets + c * nodes,
                       wrong.data() + c * nodes);
    });
    for (int64_t i = 0; i < candidates * nodes; i++)
        if (logdets[i] != logdets[i]) return {i / nodes, wrong[i]};
    return {};
}

}  // namespace

template <class T>
WrongPivot swap_logdet(const SwapLogdet<T>& problem, double* logdets) {
    return run(problem, choose_kernel<T>(), logdets);
}

template <class T>
WrongPivot swap_logdet_baseline(const SwapLogdet<T>& problem, double* logdets) {
    return run(problem, Kernel<T>{baseline::workspace<T>, baseline::candidate_logdets<T>}, logdets);
}

const char* cpu_kernel_name() { return use_avx2() ? "avx2" : "baseline"; }

template WrongPivot swap_logdet(const SwapLogdet<float>&, double*);
template WrongPivot swap_logdet(const SwapLogdet<double>&, double*);
template WrongPivot swap_logdet_baseline(const SwapLogdet<float>&, double*);
template WrongPivot swap_logdet_baseline(const SwapLogdet<double>&, double*);

}  // namespace fastfid
