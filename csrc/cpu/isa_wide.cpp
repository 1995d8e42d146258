// The source of the AVX-512 kernels, 64-byte vectors, in the instructions every machine has: the tests run it where AVX-512
// is missing.
#define FASTFID_ISA wide
#define FASTFID_VECTOR_BYTES 64
#include "kernels.h"
