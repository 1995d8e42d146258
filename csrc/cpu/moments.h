// The functions that bindings.cpp calls for fastfid/distances/moments.py; `threads`, `isa` and errors as in swap.h.
#pragma once

#include <string>

#include "problem.h"

namespace fastfid {

// Sums [dim] of `count` rows, `row_stride` apart, each column's in order.
template <class T>
void column_sums(const T* rows, int64_t row_stride, int64_t count, int64_t dim, int threads, const std::string& isa, double* sums);

// The upper triangle of the covariance; each entry is computed by one thread, in one order.
template <class T>
void add_scatter(const ScatterUpdate<T>& update, int threads, const std::string& isa);

}  // namespace fastfid
