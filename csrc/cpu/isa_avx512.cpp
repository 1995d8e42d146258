// The kernels for x86-64-v4 (AVX-512), compiled with -march=x86-64-v4: 64-byte vectors.
#define FASTFID_ISA avx512
#define FASTFID_VECTOR_BYTES 64
#include "kernels.h"
