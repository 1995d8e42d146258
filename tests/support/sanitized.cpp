// The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer: odd sizes, every instruction set, threads.
// tests/fastfid/test_csrc.py compiles and runs it; it prints a checksum, and a sanitizer ends it with an error.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "../../csrc/cpu/band.h"
#include "../../csrc/cpu/dispatch.h"
#include "../../csrc/cpu/moments.h"
#include "../../csrc/cpu/swap.h"

using namespace fastfid;

// A plan with `group_terms` functions a group and `terms` a slice, made of positive numbers: the kernels do not ask what it means.
template <class T>
struct Plan {
    std::vector<int64_t> bounds, terms, ends, group_terms;
    std::vector<T> functions, mixes, coefficients;
    int64_t nodes;

    Plan(int64_t rank, int64_t nodes_, int64_t slice) : bounds{0}, nodes(nodes_) {
        for (int64_t start = 0; start < rank; start += slice) {
            const int64_t length = std::min(slice, rank - start), n = 1 + start % 5, m = 2 + start % 3;
            bounds.push_back(start + length);
            terms.push_back(n);
            ends.push_back(int64_t(terms.size()));
            group_terms.push_back(m);
            functions.insert(functions.end(), n * length, T(0.01));
            mixes.insert(mixes.end(), n * m, T(0.5));
            coefficients.insert(coefficients.end(), m * nodes, T(0.1));
        }
    }
    WeightPlan<T> get() const {
        return {nodes, int64_t(terms.size()), int64_t(ends.size()), bounds.data(), terms.data(), functions.data(),
                ends.data(), group_terms.data(), mixes.data(), coefficients.data()};
    }
};

// Exactly as many rows as the problem has, so that any read past them is seen.
std::vector<double> rows_of(int64_t rows, int64_t length) {
    std::vector<double> made(rows * length);
    for (size_t i = 0; i < made.size(); i++) made[i] = std::sin(double(i));
    return made;
}

template <class T>
double run(const std::string& isa, int64_t removed, int64_t added, int64_t rank, int64_t nodes, int threads) {
    const int64_t candidates = 3, count = 2 * removed + 1;
    const Plan<T> plan(rank, nodes, 37);
    const auto reference_ = rows_of(count, rank), added_ = rows_of(candidates * added, rank);
    const std::vector<T> reference(reference_.begin(), reference_.end()), added_rows(added_.begin(), added_.end());
    std::vector<int64_t> index(candidates * removed);
    for (size_t i = 0; i < index.size(); i++) index[i] = int64_t(i) % count;
    const ChangedRows<T> rows{reference.data(), index.data(), added_rows.data(), candidates, removed, added, rank, 0.01, -0.02, 0.03};
    std::vector<double> logdets(candidates * nodes), remaining(candidates), weights(nodes, 0.5), sums(candidates * 3 * nodes);
    std::vector<T> gradient(candidates * added * rank);
    swap_logdet(rows, plan.get(), 1e9, threads, isa, logdets.data(), remaining.data());
    swap_gradient(rows, plan.get(), weights.data(), 1e9, threads, isa, logdets.data(), remaining.data(), gradient.data());
    std::copy_n(index.begin(), removed, index.begin() + removed);  // the first two candidates remove the same rows
    swap_gradient(rows, plan.get(), weights.data(), 1e9, threads, isa, logdets.data(), remaining.data(), gradient.data());
    if (removed <= 1 && added <= 1) swap_singles(rows, plan.get(), threads, isa, sums.data());

    const auto mean = rows_of(1, rank);
    std::vector<T> centred(candidates * added * rank);
    std::vector<double> norms(candidates * added), three(candidates * 3), totals(candidates * rank);
    const bool wide = sizeof(T) == 8;
    const FeatureRows features{reference.data(), index.data(), added_rows.data(), added * rank, rank, candidates, removed, added, rank,
                               wide, wide, wide, mean.data(), mean.data()};
    centre_rows(features, threads, isa, {centred.data(), norms.data(), three.data(), totals.data()});
    double checksum = three[0];
    for (double value : logdets) checksum += value == value ? value : 0;
    return checksum;
}

double run_band(const std::string& isa, int64_t dim, int64_t width, int64_t count, int threads) {
    const auto band = rows_of(dim, width + 1);
    const std::vector<double> shifts(count, 4.0 * double(width + 1));
    std::vector<double> logdets(count);
    band_logdets({band.data(), dim, width, shifts.data(), count, 1.0}, threads, isa, logdets.data());
    return logdets[count - 1];
}

// A covariance of `count` rows that lie `gap` entries apart.
template <class T>
double run_moments(const std::string& isa, int64_t count, int64_t dim, int64_t gap, double beta) {
    const auto rows_ = rows_of(count, dim + gap);
    const std::vector<T> rows(rows_.begin(), rows_.end() - gap);
    std::vector<double> sums(dim), extra(dim, 0.1), cov(dim * dim, 0.5);
    column_sums(rows.data(), dim + gap, count, dim, 2, isa, sums.data());
    add_scatter<T>({rows.data(), dim + gap, count, dim, sums.data(), extra.data(), -0.3, beta, cov.data()}, 2, isa);
    return cov[dim - 1] + sums[0];
}

int main() {
    double checksum = 0;
    const int64_t bands[][3] = {{1, 0, 1}, {1, 5, 3}, {2, 1, 8}, {7, 3, 9}, {30, 4, 17}, {41, 64, 5}, {131, 21, 33}};
    for (const std::string& isa : instruction_sets())
        for (const auto& band : bands) checksum += run_band(isa, band[0], band[1], band[2], 2);
    for (const std::string& isa : instruction_sets())
        for (int64_t count : {1, 4, 86, 91})
            for (int64_t dim : {1, 2, 17, 100}) {
                checksum += run_moments<float>(isa, count, dim, 3, 0);
                checksum += run_moments<double>(isa, count, dim, 0, 0.9);
            }
    const int64_t shapes[][3] = {{1, 1, 1}, {1, 0, 40}, {0, 1, 40}, {2, 3, 7}, {5, 9, 75}, {16, 17, 131}, {33, 0, 50}, {0, 35, 300}, {2, 3, 1100}};
    for (const std::string& isa : instruction_sets())
        for (const auto& shape : shapes)
            for (int64_t nodes : {1, 5, 17}) {
                checksum += run<float>(isa, shape[0], shape[1], shape[2], nodes, 2);
                checksum += run<double>(isa, shape[0], shape[1], shape[2], nodes, 2);
            }
    std::printf("%s %.6g\n", std::isfinite(checksum) ? "finite" : "not finite", checksum);
}
