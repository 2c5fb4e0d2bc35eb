/* What every kernel shares. Plain C11 with GCC's extensions; no header but the C library's.
 *
 * A kernel is a function with INTARSIA_API that returns 0, or 1 + the row at which what is stored
 * does not fit together. It reads nothing outside the tensors whose sizes it is given, whatever
 * they hold, since a file may be damaged. Each number of y is computed by one thread in one order,
 * so that the bits do not depend on the number of threads.
 */
#ifndef INTARSIA_COMMON_H
#define INTARSIA_COMMON_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INTARSIA_ABI 8 /* of loading.py: changes with any signature */
#define INTARSIA_API __attribute__((visibility("default")))
#define ALWAYS static inline __attribute__((always_inline))
#define OUT_OF_MEMORY INT64_MAX

/* run(context, part) for part = 0 ... parts - 1, on up to `threads` threads; returns when all are done. */
typedef void (*intarsia_part)(void *context, int64_t part);
void intarsia_parallel(intarsia_part run, void *context, int64_t parts, int threads);

enum { MOST_PARTS = 256 };

/* How many parts work is cut into: a few a thread, since threads are not equally fast. */
ALWAYS int64_t parts_of(int64_t work, int threads) {
    const int64_t least = 1 << 16; /* bytes: below it, waking a thread takes longer than the work */
    int64_t parts = threads > 1 ? 4 * (int64_t)threads : 1;
    if (parts > work / least) parts = work / least;
    return parts < 1 ? 1 : parts > MOST_PARTS ? MOST_PARTS : parts;
}

/* The first row of a part, rows being cut by their bytes: offsets[r] size + r each.
 * offsets: (rows,), where each row's values begin. Any numbers give rows in order from part to part
 * only if they rise: the caller takes the largest so far. */
ALWAYS int64_t first_row(const int64_t *offsets, int64_t kept, int64_t rows, int64_t size,
                         int64_t each, int64_t part, int64_t parts) {
    if (part <= 0) return 0;
    if (part >= parts) return rows;
    const double wanted = ((double)kept * size + (double)rows * each) * part / parts;
    int64_t low = 0, high = rows;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if ((double)offsets[middle] * size + (double)middle * each < wanted) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* Keep the first row that does not fit: the least of all threads. */
ALWAYS void note_fault(int64_t *fault, int64_t row) {
    int64_t before = __atomic_load_n(fault, __ATOMIC_RELAXED);
    while ((before == 0 || row + 1 < before) &&
           !__atomic_compare_exchange_n(fault, &before, row + 1, 0, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED)) {
    }
}

ALWAYS float of_bf16(uint16_t half) {
    const uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* To the nearest, to even where two are; NaN stays NaN. */
ALWAYS uint16_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (value != value) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* float16, subnormal numbers too */
ALWAYS float of_f16(uint16_t half) {
    const uint32_t rest = (uint32_t)(half & 0x7fff) << 13, sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t bits = rest + (rest < 0x0f800000u ? 0x38000000u : 0x70000000u); /* NaN, infinity */
    float value;
    if (rest < 0x00800000u) {
        value = (float)rest * 0x1p-37f; /* 2^-24 for each of 2^13 */
        memcpy(&bits, &value, 4);
    }
    bits |= sign;
    memcpy(&value, &bits, 4);
    return value;
}

#if defined(__AVX512F__) && defined(__AVX512BW__)
ALWAYS __m512 of_bf16_x16(const uint16_t *p) {
    const __m256i halves = _mm256_loadu_si256((const __m256i *)p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
#endif
#if defined(__AVX2__)
ALWAYS __m256 of_bf16_x8(const uint16_t *p) {
    const __m128i halves = _mm_loadu_si128((const __m128i *)p);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

/* The sum of eight numbers, always in this order. */
ALWAYS float sum_x8(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
#endif
#endif
