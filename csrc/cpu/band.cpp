// Shares the shifts of a band matrix among threads, as many at a time as stand side by side in a vector.
#include "band.h"

#include "dispatch.h"

namespace fastfid {

void band_logdets(const BandMatrix& matrix, int threads, const std::string& isa, double* logdets) {
    const Kernels<double> kernels = kernels_of<double>(isa);
    const int64_t lanes = kernels.band_lanes();
    share<double>((matrix.count + lanes - 1) / lanes, threads, kernels.band_workspace(matrix.width),
                  [&](int64_t set, double* memory) { kernels.band_logdets(matrix, set * lanes, memory, logdets); });
}

}  // namespace fastfid
