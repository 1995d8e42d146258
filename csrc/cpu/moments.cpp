// Shares columns and blocks of a covariance among threads.
#include "moments.h"

#include "dispatch.h"

namespace fastfid {

namespace {

// Largest side of a block: its sums and two operands take 460 and 2·165 kB of a second-level cache of 1 MiB.  Measured at d = 2048,
// two threads: 144 and 192 are 15 and 7% slower, as each column is copied and centred 2048/side times; 264 and 288 4%.
constexpr int64_t LARGEST_SIDE = 240;

// A side is a multiple of this many columns: of every instruction set's tiles.
constexpr int64_t SIDE_STEP = 24;

// Blocks a thread should find, unless they became smaller than SIDE_STEP, so that none waits long for the last.
constexpr int64_t BLOCKS_A_THREAD = 3;

// Blocks along a side: rows of equal length.
int64_t blocks_along(int64_t dim, int threads) {
    int64_t along = (dim + LARGEST_SIDE - 1) / LARGEST_SIDE;
    while (along * (along + 1) / 2 < BLOCKS_A_THREAD * threads && along * SIDE_STEP < dim) along++;
    return along;
}

// Block number `task`: those off the diagonal first, row by row, since the others take half as long.
struct Place {
    int64_t row, column;
};
Place place_of(int64_t task, int64_t along) {
    const int64_t off_diagonal = along * (along - 1) / 2;
    if (task >= off_diagonal) return {task - off_diagonal, task - off_diagonal};
    int64_t row = 0;
    for (; task >= along - 1 - row; row++) task -= along - 1 - row;
    return {row, row + 1 + task};
}

}  // namespace

template <class T>
void column_sums(const T* rows, int64_t row_stride, int64_t count, int64_t dim, int threads, const std::string& isa, double* sums) {
    const Kernels<T> kernels = kernels_of<T>(isa);
    const int64_t together = kernels.summed_columns();
    share<T>((dim + together - 1) / together, threads, 0,
             [&](int64_t task, T*) { kernels.sum_columns(rows, row_stride, count, dim, task * together, sums); });
}

template <class T>
void add_scatter(const ScatterUpdate<T>& update, int threads, const std::string& isa) {
    const Kernels<T> kernels = kernels_of<T>(isa);
    const int64_t split = blocks_along(update.dim, threads), length = (update.dim + split - 1) / split;
    const int64_t side = (length + SIDE_STEP - 1) / SIDE_STEP * SIDE_STEP, along = (update.dim + side - 1) / side;
    share<double>(along * (along + 1) / 2, threads, kernels.scatter_workspace(side), [&](int64_t task, double* memory) {
        const Place at = place_of(task, along);
        kernels.add_scatter_block(update, side, at.row * side, at.column * side, memory);
    });
}

#define FASTFID_INSTANTIATE(T)                                                                                  \
    template void column_sums(const T*, int64_t, int64_t, int64_t, int, const std::string&, double*);           \
    template void add_scatter(const ScatterUpdate<T>&, int, const std::string&);
FASTFID_INSTANTIATE(float)
FASTFID_INSTANTIATE(double)

}  // namespace fastfid
