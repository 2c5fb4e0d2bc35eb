/* What chw.c and the steps on codes share: a step of a program on maps, activations, and the steps in int8. */
#ifndef INTARSIA_CHW_H
#define INTARSIA_CHW_H

#include "vectors.h"

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 24")
#endif

struct step { /* a row of the table; pointers as numbers, so that 32-bit machines read it too */
    int64_t kind, act, act2, src, dst, other, ptr, off, val, bias;
    int64_t ci, co, h, w, ho, wo, pitch_in, pitch_out, k, stride, top, left, rows, scratch;
    int64_t codes, mul, rule; /* of values in codes of 8 bits: see chw_codes.c */
};
enum kind { SPMM, DEPTHWISE, CONV, LINEAR, ADD, SCALE, POOL, ACT, BIAS, ENCODE, MAX };
enum act { NONE, RELU, RELU6, HARDSWISH, SILU, SIGMOID, HARDSIGMOID };

/* codes: which values are stored in 8 bits, a number x being scale (code - zero).
 * FOLDED: mul and bias of a product give its result in the units of the result's codes. */
enum codes { SRC8 = 1, DST8 = 2, OTHER8 = 4, FOLDED = 8, LIMITED = 16 };
/* rule: numbers of a step with codes */
enum rule { PER_UNIT, ZERO, OTHER_SCALE, OTHER_ZERO, LOW, HIGH, IN_SCALE, IN_ZERO };

ALWAYS float lowest(int64_t act) { return act == RELU || act == RELU6 ? 0 : -INFINITY; }
ALWAYS float highest(int64_t act) { return act == RELU6 ? 6 : INFINITY; }

static vf activated(vf x, int64_t act) {
    const vf third = limited(x + 3.0f, splat(0), splat(6)) * (1.0f / 6.0f);
    switch (act) {
    case HARDSWISH: return x * third;
    case HARDSIGMOID: return third;
    case SILU: return x / (exponential(-x) + 1.0f);
    case SIGMOID: return 1.0f / (exponential(-x) + 1.0f);
    default: return limited(x, splat(lowest(act)), splat(highest(act)));
    }
}

#if defined(__AVX512F__)
ALWAYS __mmask16 first_of(int64_t n) { return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1); }
#endif

ALWAYS uint8_t code_of(float x, const float *rule) { /* the nearest: 0 to 255 */
    x = x * rule[PER_UNIT] + rule[ZERO];
    x = x > 0 ? x < 255 ? x : 255 : 0;
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number */
    return (uint8_t)(int32_t)(x + magic - magic);
}

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__) &&                         \
    defined(__AVX512VBMI__) && defined(__AVX512VL__)
#define VNNI 1 /* chw_codes.c and chw_conv.c compute on codes; else chw_plain.c */
/* Sixteen codes of numbers, to the nearest: 0 to 255. */
ALWAYS __m128i coded(__m512 x, const float *rule) {
    x = _mm512_fmadd_ps(x, _mm512_set1_ps(rule[PER_UNIT]), _mm512_set1_ps(rule[ZERO]));
    return _mm512_cvtusepi32_epi8(_mm512_max_epi32(_mm512_cvtps_epi32(x), _mm512_setzero_si512()));
}
#else
#define VNNI 0
#endif

/* Carry out a step that reads codes, or makes them of numbers. 0, or 1 for an unknown kind. */
int intarsia_chw_codes_step(const struct step *s, int threads);

/* The largest number, or code, of each window of a map. */
void intarsia_chw_max(const struct step *s, int threads);

/* Activate and store a number of a vector, or its code. */
ALWAYS void keep_number(const struct step *s, int64_t c, float y) {
    const vf made = activated(splat(y), s->act);
    if (s->codes & DST8) {
        ((uint8_t *)(intptr_t)s->dst)[c] = code_of(made[0], (const float *)(intptr_t)s->rule);
        return;
    }
    ((float *)(intptr_t)s->dst)[c] = made[0];
}
#endif
