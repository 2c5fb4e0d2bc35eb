/* What the steps on codes share: chw_codes.c and chw_conv.c for AVX-512 with VNNI, chw_plain.c. */
#ifndef INTARSIA_CHW_CODES_H
#define INTARSIA_CHW_CODES_H

#include "chw.h"

enum { TILE = 64, FEW = 16, DEEP = 4 }; /* pixels of a tile, of a last one; inputs of a product */
/* largest kernel and stride; bytes behind a copied map */
enum { TAPS = 121, STRIDES = 4, SPARE = 1024 };

ALWAYS const float *numbers(int64_t at) { return (const float *)(intptr_t)at; }
ALWAYS const uint8_t *bytes(int64_t at) { return (const uint8_t *)(intptr_t)at; }
ALWAYS int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* The copied map of a k x k step, four channels of a pixel side by side: see chw_conv.c. */
struct copy {
    int64_t wide, phases, size, each; /* pixels of a phase's row; of a phase; bytes of four channels */
};

ALWAYS struct copy copy_of(const struct step *s) {
    const int64_t more = (s->k - 1) / s->stride, phases = s->k < s->stride ? s->k : s->stride;
    struct copy c = {.wide = s->wo + more, .phases = phases};
    c.size = (s->ho + more) * c.wide;
    c.each = 4 * c.size * phases * phases;
    return c;
}

/* The distance of each tap in the copied map, in bytes. */
ALWAYS void find_taps(const struct step *s, const struct copy *c, int32_t *taps) {
    for (int64_t dy = 0; dy < s->k; dy++)
        for (int64_t dx = 0; dx < s->k; dx++)
            taps[dy * s->k + dx] = (int32_t)(4 * ((dy % s->stride * c->phases + dx % s->stride) * c->size +
                                                  dy / s->stride * c->wide + dx / s->stride));
}

#if VNNI
ALWAYS __m512 as_numbers(__m128i codes) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes)); }
ALWAYS __m512i four(const int8_t *weights) { /* the same four in each lane */
    int32_t w;
    memcpy(&w, weights, 4);
    return _mm512_set1_epi32(w);
}

/* Up to sixteen sums as numbers behind activation, `other` and its activation, stored from the pixel
 * `at` on.  some: lanes that are pixels. */
static inline void finish_sums(const struct step *s, __m512 sums, int64_t row, int64_t at, __mmask16 some) {
    const float *rule = numbers(s->rule);
    const int64_t pixels = s->ho * s->wo;
    vf y = activated((vf)sums, s->act);
    if (s->other && s->codes & OTHER8) {
        const uint8_t *z = bytes(s->other) + row * padded(pixels, TILE) + at;
        const __m512 codes = as_numbers(_mm_loadu_si128((const __m128i *)z));
        y += (vf)_mm512_mul_ps(_mm512_sub_ps(codes, _mm512_set1_ps(rule[OTHER_ZERO])),
                               _mm512_set1_ps(rule[OTHER_SCALE]));
    } else if (s->other) y += load(numbers(s->other) + row * padded(pixels, FEW) + at);
    if (s->other) y = activated(y, s->act2);
    if (s->codes & DST8)
        _mm_mask_storeu_epi8((uint8_t *)(intptr_t)s->dst + row * s->pitch_out + at, some,
                             coded((__m512)y, rule));
    else
        _mm512_mask_storeu_ps((float *)(intptr_t)s->dst + row * s->pitch_out + at, some, (__m512)y);
}

/* Carry out a k x k convolution of codes. */
void intarsia_chw_codes_conv(const struct step *s, int threads);
#endif
#endif
