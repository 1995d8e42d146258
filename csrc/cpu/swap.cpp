// Shares candidates among threads.
#include "swap.h"

#include <algorithm>
#include <vector>

#include "dispatch.h"

namespace fastfid {

namespace {

// Removed rows' parts kept at once, unless each thread's first takes more; 50 rows and 16 nodes take 0.1 MB.
constexpr int64_t SHARED_BYTES = 16 << 20;

// The first candidate with a NaN among its log-determinants.
WrongPivot first_wrong(const double* logdets, const std::vector<double>& wrong, int64_t nodes) {
    for (int64_t i = 0; i < int64_t(wrong.size()); i++)
        if (logdets[i] != logdets[i]) return {i / nodes, wrong[i]};
    return {};
}

}  // namespace

// Candidates first … last−1, and of each the part it shares with its neighbours that remove the same rows in the same order; null
// where there are none.
template <class T>
class SharedParts {
public:
    // As many candidates from `first` on as take SHARED_BYTES together.
    SharedParts(const ChangedRows<T>& rows, const WeightPlan<T>& plan, const Kernels<T>& kernels, double slack, int threads, int64_t first)
        : first_(first), part_of_(1, nullptr) {
        const int64_t size = kernels.shared_size(rows.removed, plan), most = std::max<int64_t>(threads, SHARED_BYTES / std::max<int64_t>(1, size * sizeof(T)));
        std::vector<int64_t> firsts, run_of(1, -1);
        int64_t c = first + 1;
        for (; c < rows.candidates; c++) {
            const bool same = same_removed(rows, c - 1, c);
            if (same && run_of.back() < 0) {
                run_of.back() = int64_t(firsts.size());
                firsts.push_back(c - 1);
            }
            if (!same && int64_t(firsts.size()) == most) break;
            run_of.push_back(same ? run_of.back() : -1);
        }
        part_of_.resize(c - first, nullptr);
        if (firsts.empty()) return;
        memory_ = zeroed<T>(int64_t(firsts.size()) * size);
        for (int64_t i = 0; i < c - first; i++)
            if (run_of[i] >= 0) part_of_[i] = memory_.get() + run_of[i] * size;
        share<T>(int64_t(firsts.size()), threads, kernels.workspace(rows.removed, 0, rows.rank, plan, false),
                 [&](int64_t run, T* memory) {
                     kernels.share_removed(rows, plan, slack, firsts[run], memory, memory_.get() + run * size);
                 });
    }
    int64_t count() const { return int64_t(part_of_.size()); }
    const T* operator[](int64_t c) const { return part_of_[c - first_]; }

private:
    static bool same_removed(const ChangedRows<T>& rows, int64_t a, int64_t b) {
        const int64_t *first = rows.index + a * rows.removed, *second = rows.index + b * rows.removed;
        return rows.removed > 0 && rows.added > 0 && std::equal(first, first + rows.removed, second);
    }
    int64_t first_;
    Buffer<T> memory_;
    std::vector<T*> part_of_;
};

// Calls work(candidate, shared part or null, memory) for every candidate.
template <class T, class Work>
void share_candidates(const ChangedRows<T>& rows, const WeightPlan<T>& plan, const Kernels<T>& kernels, double slack, int threads,
                      bool gradient, const Work& work) {
    const int64_t elements = kernels.workspace(rows.removed, rows.added, rows.rank, plan, gradient);
    for (int64_t first = 0; first < rows.candidates;) {
        const SharedParts<T> shared(rows, plan, kernels, slack, threads, first);
        share<T>(shared.count(), threads, elements, [&](int64_t i, T* memory) { work(first + i, shared[first + i], memory); });
        first += shared.count();
    }
}

template <class T>
WrongPivot swap_logdet(const ChangedRows<T>& rows, const WeightPlan<T>& plan, double slack, int threads, const std::string& isa,
                       double* logdets, double* remaining) {
    const Kernels<T> kernels = kernels_of<T>(isa);
    std::vector<double> wrong(rows.candidates * plan.nodes, 0.0);
    std::fill_n(remaining, rows.candidates, 1.0);  // without nodes nothing is factored
    share_candidates(rows, plan, kernels, slack, threads, false, [&](int64_t c, const T* shared, T* memory) {
        kernels.logdets(rows, plan, slack, c, shared, memory, logdets + c * plan.nodes, wrong.data() + c * plan.nodes, remaining + c);
    });
    return first_wrong(logdets, wrong, plan.nodes);
}

template <class T>
WrongPivot swap_gradient(const ChangedRows<T>& rows, const WeightPlan<T>& plan, const double* node_weights, double slack,
                         int threads, const std::string& isa, double* logdets, double* remaining, T* gradient) {
    const Kernels<T> kernels = kernels_of<T>(isa);
    std::vector<double> wrong(rows.candidates * plan.nodes, 0.0);
    std::fill_n(remaining, rows.candidates, 1.0);  // without nodes nothing is factored
    share_candidates(rows, plan, kernels, slack, threads, true, [&](int64_t c, const T* shared, T* memory) {
        kernels.gradient(rows, plan, node_weights, slack, c, shared, memory, gradient + c * rows.added * rows.rank,
                         logdets + c * plan.nodes, wrong.data() + c * plan.nodes, remaining + c);
    });
    return first_wrong(logdets, wrong, plan.nodes);
}

// Single swaps are short: a task takes several.
constexpr int64_t SINGLES_A_TASK = 16;

template <class T>
void swap_singles(const ChangedRows<T>& rows, const WeightPlan<T>& plan, int threads, const std::string& isa, double* sums) {
    const Kernels<T> kernels = kernels_of<T>(isa);
    const int64_t tasks = (rows.candidates + SINGLES_A_TASK - 1) / SINGLES_A_TASK;
    const int64_t most_functions = plan.groups ? *std::max_element(plan.group_terms, plan.group_terms + plan.groups) : 0;
    share<T>(tasks, threads, 3 * most_functions * int64_t(64 / sizeof(T)), [&](int64_t task, T* memory) {
        const int64_t last = std::min(rows.candidates, (task + 1) * SINGLES_A_TASK);
        for (int64_t c = task * SINGLES_A_TASK; c < last; c++) kernels.singles(rows, plan, c, memory, sums + c * plan.nodes * 3);
    });
}

void centre_rows(const FeatureRows& rows, int threads, const std::string& isa, const CentredRows& out) {
    const auto centre = kernels_of<double>(isa).centre;
    const int64_t together = std::max<int64_t>(1, 2 * SINGLES_A_TASK / (rows.removed + rows.added_count + 1));
    share<double>((rows.candidates + together - 1) / together, threads, rows.dim, [&](int64_t task, double* memory) {
        const int64_t last = std::min(rows.candidates, (task + 1) * together);
        for (int64_t c = task * together; c < last; c++) centre(rows, c, memory, out);
    });
}

#define FASTFID_INSTANTIATE(T)                                                                                               \
    template WrongPivot swap_logdet(const ChangedRows<T>&, const WeightPlan<T>&, double, int, const std::string&, double*,   \
                                    double*);                                                                                \
    template WrongPivot swap_gradient(const ChangedRows<T>&, const WeightPlan<T>&, const double*, double, int,               \
                                      const std::string&, double*, double*, T*);                                             \
    template void swap_singles(const ChangedRows<T>&, const WeightPlan<T>&, int, const std::string&, double*);
FASTFID_INSTANTIATE(float)
FASTFID_INSTANTIATE(double)

}  // namespace fastfid
