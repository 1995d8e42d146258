// The kernels for x86-64-v3 (AVX2 and FMA), compiled with -march=x86-64-v3: 32-byte vectors.
#define FASTFID_ISA avx2
#define FASTFID_VECTOR_BYTES 32
#include "kernels.h"
