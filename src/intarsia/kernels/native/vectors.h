/* Vectors of floats by GCC's vector types: any instruction set, WebAssembly too. */
#ifndef INTARSIA_VECTORS_H
#define INTARSIA_VECTORS_H

#include "common.h"

#if defined(__AVX512F__)
#define V 16
#elif defined(__AVX__)
#define V 8
#else
#define V 4
#endif

typedef float vf __attribute__((vector_size(V * 4)));
typedef int32_t vi __attribute__((vector_size(V * 4)));

/* In memory vectors are aligned as a float is; memcpy says so to every compiler. */
ALWAYS vf load(const float *p) {
    vf x;
    memcpy(&x, p, sizeof x);
    return x;
}
ALWAYS void store(float *p, vf x) { memcpy(p, &x, sizeof x); }
ALWAYS vf splat(float x) { return x - (vf){}; } /* minus 0 is nothing, plus 0 an addition: of -0 it is 0 */
ALWAYS vf pick(vi where, vf a, vf b) { return (vf)((where & (vi)a) | (~where & (vi)b)); }
ALWAYS vf limited(vf x, vf low, vf high) { /* NaN stays: of an unordered pair it is the second */
#if defined(__AVX512F__)
    return (vf)_mm512_min_ps((__m512)high, _mm512_max_ps((__m512)low, (__m512)x));
#elif defined(__AVX__)
    return (vf)_mm256_min_ps((__m256)high, _mm256_max_ps((__m256)low, (__m256)x));
#else
    x = pick(x < low, low, x);
    return pick(x > high, high, x);
#endif
}

ALWAYS vf exponential(vf x) { /* to 3e-7 of it */
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number */
    x = limited(x, splat(-87), splat(88));
    const vf t = x * 1.44269504f + magic;
    const vi n = (vi)t - (vi)splat(magic);
    const vf whole = t - magic, r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return (vf)((vi)p + (n << 23));
}

/* The sum of a vector's numbers, always in this order. */
ALWAYS float total(vf x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#elif defined(__AVX2__)
    return sum_x8((__m256)x);
#else
    float sum = 0;
    for (int i = 0; i < V; i++) sum += x[i];
    return sum;
#endif
}

/* total() of each of n <= 16 vectors, to the last bit, with a third of the additions. */
ALWAYS void totals(const vf *x, const int n, float *sums) {
#if defined(__AVX512F__)
    __m512 half[8], quarter[4], pair[2];
    float all[16];
    for (int i = 0; i < (n + 1) / 2; i++) {
        const __m512 a = (__m512)x[2 * i], b = (__m512)x[2 * i + 1 < n ? 2 * i + 1 : 2 * i];
        half[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    }
    for (int i = 0; i < (n + 3) / 4; i++) {
        const __m512 a = half[2 * i], b = half[4 * i + 2 < n ? 2 * i + 1 : 2 * i];
        quarter[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }
    for (int i = 0; i < (n + 7) / 8; i++) {
        const __m512d a = _mm512_castps_pd(quarter[2 * i]);
        const __m512d b = _mm512_castps_pd(quarter[8 * i + 4 < n ? 2 * i + 1 : 2 * i]);
        pair[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                                _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    const __m512 a = pair[0], b = pair[n > 8];
    _mm512_storeu_ps(all, _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd)));
    for (int i = 0; i < n; i++) sums[i] = all[i % 4 * 4 + i / 4];
#else
    for (int i = 0; i < n; i++) sums[i] = total(x[i]);
#endif
}
#endif
