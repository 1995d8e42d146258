// The kernels in the instructions every machine of the architecture has: 16-byte vectors.
#define FASTFID_ISA baseline
#define FASTFID_VECTOR_BYTES 16
#include "kernels.h"
