// The function that bindings.cpp calls for fastfid/linalg/banded_trace.py; `threads`, `isa` and errors as in swap.h.
#pragma once

#include <string>

#include "problem.h"

namespace fastfid {

// log det(B + s) − dim·log(origin + s) at every shift s: logdets [count], NaN where B + s is not positive definite.
void band_logdets(const BandMatrix& matrix, int threads, const std::string& isa, double* logdets);

}  // namespace fastfid
