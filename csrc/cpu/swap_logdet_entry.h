// What swap_logdet.cpp sees of one instruction set: two templates, instantiated for float and double where FASTFID_ISA is
// defined, and only declared elsewhere.
#pragma once

#include <stdint.h>

#define FASTFID_KERNEL(isa)                                                                                          \
    namespace fastfid {                                                                                              \
    namespace isa {                                                                                                  \
    template <class T>                                                                                               \
    int64_t workspace(int64_t k, int64_t rank); /* elements of T one thread needs, zeroed and 64-byte aligned */     \
    template <class T>                                                                                               \
    void candidate_logdets(const T* removed_rows, int64_t removed, const T* added_rows, int64_t added, int64_t rank, \
                           const T* weights, double slack, int64_t first, int64_t last, T* memory, double* logdets,  \
                           double* wrong);                                                                           \
    }                                                                                                                \
    }

#ifdef FASTFID_ISA
FASTFID_KERNEL(FASTFID_ISA)
#include "swap_logdet_kernel.h"

namespace fastfid {
namespace FASTFID_ISA {
#define FASTFID_INSTANTIATE(T)                                                                                     \
    template int64_t workspace<T>(int64_t, int64_t);                                                               \
    template void candidate_logdets<T>(const T*, int64_t, const T*, int64_t, int64_t, const T*, double, int64_t,   \
                                       int64_t, T*, double*, double*);
FASTFID_INSTANTIATE(float)
FASTFID_INSTANTIATE(double)
}  // namespace FASTFID_ISA
}  // namespace fastfid
#endif
