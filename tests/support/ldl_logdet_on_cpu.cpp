// The kernel of csrc/cuda/ldl_logdet.cuh behind a C interface, for tests/fastfid/test_cuda_source.py.
#include "cuda_block.h"

#include "../../csrc/cuda/ldl_logdet.cuh"

template <class T>
int run(const T* matrices, double* logdets, int* bad, double* remaining, int first, int count, int nodes, int k, int removed,
        double slack, int order) {
    using namespace fastfid;
    return cuda_block::launch(ldl_logdet<T>, first, count, LDL_THREADS, ldl_shared_bytes<T>(k), cuda_block::Order(order),
                              matrices, logdets, bad, remaining, nodes, k, removed, slack);
}

extern "C" int ldl_logdet_float(const float* m, double* l, int* b, double* left, int first, int n, int nodes, int k, int r,
                                double slack, int order) {
    return run(m, l, b, left, first, n, nodes, k, r, slack, order);
}

extern "C" int ldl_logdet_double(const double* m, double* l, int* b, double* left, int first, int n, int nodes, int k, int r,
                                 double slack, int order) {
    return run(m, l, b, left, first, n, nodes, k, r, slack, order);
}

extern "C" int64_t shared_bytes(int k, int is_double) {
    return is_double ? fastfid::ldl_shared_bytes<double>(k) : fastfid::ldl_shared_bytes<float>(k);
}
