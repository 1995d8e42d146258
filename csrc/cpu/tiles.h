// Vectors and register tiles: what the kernels of one instruction set are made of.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "problem.h"

namespace fastfid {
namespace FASTFID_ISA {

// Register tile of MR rows and WIDE vectors, PANELS of which are multiplied at once.  Of 16 registers, 6·2 accumulators leave
// room for two loads and a broadcast.  With 64-byte vectors there are 32: tiles one vector wide keep the waste along the
// diagonal small (k = 100: 8×16 computes 6,272 entries, 6×32 7,104, of 5,050 wanted), and two of them side by side share each
// broadcast, which would otherwise be a load for every multiply-add.
#if FASTFID_VECTOR_BYTES == 64
constexpr int64_t MR = 8, WIDE = 1, PANELS = 2;
#else
constexpr int64_t MR = 6, WIDE = 2, PANELS = 1;
#endif
template <class T>
constexpr int64_t NR = WIDE * FASTFID_VECTOR_BYTES / sizeof(T);
template <class T>
constexpr int64_t TILE = MR * NR<T>;

template <class T>
struct Vector {
    typedef T type __attribute__((vector_size(FASTFID_VECTOR_BYTES), may_alias));
    typedef T loose __attribute__((vector_size(FASTFID_VECTOR_BYTES), may_alias, aligned(sizeof(T))));  // any address
    static constexpr int64_t width = FASTFID_VECTOR_BYTES / sizeof(T);
};

// Integers as wide as a T, for shuffles.
template <int bytes>
struct Integers {
    typedef int32_t type __attribute__((vector_size(FASTFID_VECTOR_BYTES)));
};
template <>
struct Integers<8> {
    typedef int64_t type __attribute__((vector_size(FASTFID_VECTOR_BYTES)));
};

// As many floats or doubles, at any address, as a vector has doubles, and one read into doubles or written from them.
template <class X>
struct Doubles {
    typedef X loose __attribute__((vector_size(Vector<double>::width * sizeof(X)), may_alias, aligned(sizeof(X))));
};
template <class X>
void load_doubles(const X* from, Vector<double>::type& to) {
    to = __builtin_convertvector(*(const typename Doubles<X>::loose*)from, Vector<double>::type);
}
template <class X>
void store_doubles(const Vector<double>::type& from, X* to) {
    *(typename Doubles<X>::loose*)to = __builtin_convertvector(from, typename Doubles<X>::loose);
}

inline int64_t blocks(int64_t n, int64_t size) { return (n + size - 1) / size; }
inline int64_t round_up(int64_t n, int64_t size) { return blocks(n, size) * size; }

// W rows of W entries, `stride` apart → W columns, `out_stride` apart; by log₂ W perfect shuffles of register pairs.
template <class T>
void transpose(const T* in, int64_t stride, T* out, int64_t out_stride) {
    constexpr int64_t width = Vector<T>::width;
#if defined(__clang__)
    for (int64_t x = 0; x < width; x++)
        for (int64_t m = 0; m < width; m++) out[x * out_stride + m] = in[m * stride + x];
#else
    using V = typename Vector<T>::type;
    using Loose = typename Vector<T>::loose;
    using I = typename Integers<sizeof(T)>::type;
    I low, high;
    for (int64_t x = 0; x < width; x++) {
        low[x] = x / 2 + x % 2 * width;
        high[x] = low[x] + width / 2;
    }
    V a[width], b[width];
#pragma GCC unroll 16
    for (int64_t m = 0; m < width; m++) a[m] = *(const Loose*)(in + m * stride);
#pragma GCC unroll 4
    for (int64_t half = 1; half < width; half *= 2) {
#pragma GCC unroll 8
        for (int64_t m = 0; m < width / 2; m++) {
            b[2 * m] = __builtin_shuffle(a[m], a[m + width / 2], low);
            b[2 * m + 1] = __builtin_shuffle(a[m], a[m + width / 2], high);
        }
#pragma GCC unroll 16
        for (int64_t m = 0; m < width; m++) a[m] = b[m];
    }
#pragma GCC unroll 16
    for (int64_t m = 0; m < width; m++) *(Loose*)(out + m * out_stride) = a[m];
#endif
}

// tile [MR][NR] = Σ_p left[:][p] ⊗ right[p][:] for `panels` right panels, `panel_stride` apart, and their tiles, `tile_stride`
// apart; rows of `left` `stride` apart.
template <class T, int64_t panels>
void multiply_tiles(const T* left, int64_t stride, const T* right, int64_t panel_stride, int64_t length, T* tile,
                    int64_t tile_stride) {
    using V = typename Vector<T>::type;
    constexpr int64_t vectors = panels * WIDE;
    V sum[MR][vectors];
#pragma GCC unroll 8
    for (int64_t m = 0; m < MR; m++)
#pragma GCC unroll 2
        for (int64_t v = 0; v < vectors; v++) sum[m][v] = V{};
    for (int64_t p = 0; p < length; p++) {
        V b[vectors];
#pragma GCC unroll 2
        for (int64_t v = 0; v < vectors; v++) b[v] = ((const V*)(right + v / WIDE * panel_stride))[p * WIDE + v % WIDE];
#pragma GCC unroll 8
        for (int64_t m = 0; m < MR; m++)
#pragma GCC unroll 2
            for (int64_t v = 0; v < vectors; v++) sum[m][v] += left[m * stride + p] * b[v];
    }
#pragma GCC unroll 8
    for (int64_t m = 0; m < MR; m++)
#pragma GCC unroll 2
        for (int64_t v = 0; v < vectors; v++) ((V*)(tile + v / WIDE * tile_stride))[m * WIDE + v % WIDE] = sum[m][v];
}

// out[:] (+)= Σ_n coefficients[n]·parts[n][:] over `size` entries, a multiple of a tile's; parts `size` apart.
template <class T>
void combine(const T* parts, const T* coefficients, int64_t coefficient_stride, int64_t terms, int64_t size, bool accumulate, T* out) {
    using V = typename Vector<T>::type;
    constexpr int64_t vectors = WIDE * MR;
    for (int64_t start = 0; start < size; start += TILE<T>) {
        V sum[vectors];
        V* to = (V*)(out + start);
#pragma GCC unroll 12
        for (int64_t v = 0; v < vectors; v++) sum[v] = accumulate ? to[v] : V{};
        for (int64_t n = 0; n < terms; n++) {
            const T c = coefficients[n * coefficient_stride];
            const V* part = (const V*)(parts + n * size + start);
#pragma GCC unroll 12
            for (int64_t v = 0; v < vectors; v++) sum[v] += c * part[v];
        }
#pragma GCC unroll 12
        for (int64_t v = 0; v < vectors; v++) to[v] = sum[v];
    }
}

}  // namespace FASTFID_ISA
}  // namespace fastfid
