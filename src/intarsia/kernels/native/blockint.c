/* y = x W^T, W in blocks of 32 inputs with a scale each (formats.BlockInt): w = d (q - 2^(bits-1)).
 *
 * Sixteen rows are a bundle, whose codes stand side by side, so that a vector has all of them and
 * nothing is added up across its lanes. codes: (bundles, blocks, 4 bits, 16) times 4 bytes:
 * of 8 bits, word (k, r) of a block has columns 4 k ... 4 k + 3 of row r; of 4 bits, k < 4, these in
 * the low nibbles and columns 16 + 4 k ... in the high ones. scales: (bundles, blocks, 16) float16.
 * Columns and rows that are missing have scale 0 or code 2^(bits-1).
 *
 * x: (batch, cols) float32, rounded to int8 with a scale for each block; y: (batch, rows). The sum
 * of a block is exact. A block of x that is not finite makes its row of y NaN.
 */
#include "products.h"
#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif

enum { SIDE = 16, BLOCK = 32, MOST_BATCH = 8 };

typedef struct {
    const int8_t *x;      /* (batch, blocks, 32) */
    const float *steps;   /* (batch, blocks): the scales of x */
    const int32_t *shift; /* (batch, blocks): -2^(bits-1) times the sum of x */
    float *y;
    const uint8_t *codes;
    const uint16_t *scales;
    int64_t rows, batch, blocks, parts;
    int bits;
} job;

/* Four columns of a row of x, as they stand in a word. */
ALWAYS int32_t word_of(const int8_t *x, int k) {
    int32_t four;
    memcpy(&four, x + 4 * k, 4);
    return four;
}

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
/* The sums of a bundle for B rows of x; bits and B are constants of each call. */
ALWAYS void bundle_of(const job *w, int64_t bundle, int64_t b0, const int B, const int bits) {
    const uint8_t *codes = w->codes + bundle * w->blocks * (64 * bits);
    const uint16_t *scales = w->scales + bundle * w->blocks * SIDE;
    const __m512i low = _mm512_set1_epi8(15);
    __m512 sums[MOST_BATCH];
    for (int b = 0; b < B; b++) sums[b] = _mm512_setzero_ps();
    for (int64_t k = 0; k < w->blocks; k++, codes += 64 * bits, scales += SIDE) {
        const int64_t at = b0 * w->blocks + k;
        __m512i dots[MOST_BATCH], more[MOST_BATCH]; /* two chains: an instruction takes 5 cycles */
        for (int b = 0; b < B; b++) {
            dots[b] = _mm512_set1_epi32(w->shift[at + b * w->blocks]);
            more[b] = _mm512_setzero_si512();
        }
        for (int g = 0; g < 4; g++) {
            __m512i first = _mm512_loadu_si512(codes + 64 * g), second;
            if (bits == 4) {
                second = _mm512_and_si512(_mm512_srli_epi16(first, 4), low);
                first = _mm512_and_si512(first, low);
            } else {
                second = _mm512_loadu_si512(codes + 64 * (g + 4));
            }
            for (int b = 0; b < B; b++) {
                const int8_t *x = w->x + (at + b * w->blocks) * BLOCK;
                dots[b] = _mm512_dpbusd_epi32(dots[b], first, _mm512_set1_epi32(word_of(x, g)));
                more[b] = _mm512_dpbusd_epi32(more[b], second, _mm512_set1_epi32(word_of(x, g + 4)));
            }
        }
        for (int i = 0; i < bits; i++) _mm_prefetch((const char *)codes + 4096 + 64 * i, _MM_HINT_T0);
        const __m512 step = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)scales));
        for (int b = 0; b < B; b++) {
            const __m512 both = _mm512_mul_ps(step, _mm512_set1_ps(w->steps[at + b * w->blocks]));
            sums[b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(dots[b], more[b])), both, sums[b]);
        }
    }
    const int64_t left = w->rows - bundle * SIDE;
    const __mmask16 some = left >= SIDE ? 0xffff : (__mmask16)((1u << left) - 1);
    for (int b = 0; b < B; b++)
        _mm512_mask_storeu_ps(w->y + (b0 + b) * w->rows + bundle * SIDE, some, sums[b]);
}
#else

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
enum { LANES = 8 };
typedef __m256 floats;
typedef __m256i whole;
#define ZERO() _mm256_setzero_ps()
#define NONE() _mm256_setzero_si256()
#define STORE(p, v) _mm256_storeu_ps(p, v)
/* sums + dots times step times the scales of x */
#define SCALED(sums, dots, scales, step)                                                           \
    _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots),                                                      \
                    _mm256_mul_ps(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(scales))),     \
                                  _mm256_set1_ps(step)), sums)

/* dots + the products of 8 words of codes without their offset with one word of x. */
ALWAYS whole dot(whole dots, whole codes, int32_t x) {
    const whole given = _mm256_set1_epi32(x);
    /* |w| sign(w) x: two products of at most 128 * 127 fit 16 bits */
    const whole pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(given, codes));
    return _mm256_add_epi32(dots, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
ALWAYS whole load(const uint8_t *p) { return _mm256_loadu_si256((const whole *)p); }
ALWAYS whole bytes(whole codes) { return _mm256_xor_si256(codes, _mm256_set1_epi8((char)0x80)); }
ALWAYS whole nibbles(whole codes, const int high) {
    const whole four = high ? _mm256_srli_epi16(codes, 4) : codes;
    return _mm256_sub_epi8(_mm256_and_si256(four, _mm256_set1_epi8(15)), _mm256_set1_epi8(8));
}

#elif defined(__ARM_NEON) && defined(__aarch64__)
enum { LANES = 4 };
typedef float32x4_t floats;
typedef int32x4_t whole;
#define ZERO() vdupq_n_f32(0)
#define NONE() vdupq_n_s32(0)
#define STORE(p, v) vst1q_f32(p, v)
#define SCALED(sums, dots, scales, step)                                                           \
    vfmaq_f32(sums, vcvtq_f32_s32(dots),                                                           \
              vmulq_n_f32(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(scales))), step))

ALWAYS whole dot(whole dots, whole codes, int32_t x) {
    const int8x16_t w = vreinterpretq_s8_s32(codes), given = vreinterpretq_s8_s32(vdupq_n_s32(x));
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(dots, w, given);
#else
    const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(given));
    const int16x8_t high = vmull_high_s8(w, given);
    return vaddq_s32(dots, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
}
ALWAYS whole load(const uint8_t *p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }
ALWAYS whole bytes(whole codes) {
    return vreinterpretq_s32_u8(veorq_u8(vreinterpretq_u8_s32(codes), vdupq_n_u8(0x80)));
}
ALWAYS whole nibbles(whole codes, const int high) {
    const uint8x16_t c = vreinterpretq_u8_s32(codes);
    const uint8x16_t four = high ? vshrq_n_u8(c, 4) : vandq_u8(c, vdupq_n_u8(15));
    return vreinterpretq_s32_s8(vsubq_s8(vreinterpretq_s8_u8(four), vdupq_n_s8(8)));
}

#else
enum { LANES = 1 };
typedef float floats;
typedef int32_t whole; /* a word: four codes, or a sum */
#define ZERO() 0.0f
#define NONE() 0
#define STORE(p, v) (*(p) = (v))
#define SCALED(sums, dots, scales, step) ((sums) + (float)(dots) * (of_f16(*(scales)) * (step)))

ALWAYS whole dot(whole dots, whole codes, int32_t x) {
    for (int i = 0; i < 32; i += 8) dots += (int8_t)(codes >> i) * (int8_t)(x >> i);
    return dots;
}
ALWAYS whole load(const uint8_t *p) { return word_of((const int8_t *)p, 0); }
ALWAYS whole bytes(whole codes) { return (whole)((uint32_t)codes ^ 0x80808080u); }
ALWAYS whole nibbles(whole codes, const int high) {
    const uint32_t four = ((uint32_t)codes >> (high ? 4 : 0)) & 0x0f0f0f0fu;
    return (whole)(((four | 0x80808080u) - 0x08080808u) ^ 0x80808080u); /* byte by byte */
}
#endif

/* The same with vectors of LANES rows; B is 1, 2 or 4 here, for want of registers. */
ALWAYS void bundle_of(const job *w, int64_t bundle, int64_t b0, const int B, const int bits) {
    for (int r = 0; r < SIDE; r += LANES) {
        const uint8_t *codes = w->codes + bundle * w->blocks * (64 * bits) + 4 * r;
        const uint16_t *scales = w->scales + bundle * w->blocks * SIDE + r;
        floats sums[MOST_BATCH];
        for (int b = 0; b < B; b++) sums[b] = ZERO();
        for (int64_t k = 0; k < w->blocks; k++, codes += 64 * bits, scales += SIDE) {
            const int64_t at = b0 * w->blocks + k;
            whole dots[MOST_BATCH];
            for (int b = 0; b < B; b++) dots[b] = NONE();
            for (int g = 0; g < 4; g++) {
                const whole some = load(codes + 64 * g);
                const whole first = bits == 4 ? nibbles(some, 0) : bytes(some);
                const whole second = bits == 4 ? nibbles(some, 1) : bytes(load(codes + 64 * (g + 4)));
                for (int b = 0; b < B; b++) {
                    const int8_t *x = w->x + (at + b * w->blocks) * BLOCK;
                    dots[b] = dot(dot(dots[b], first, word_of(x, g)), second, word_of(x, g + 4));
                }
            }
            for (int b = 0; b < B; b++)
                sums[b] = SCALED(sums[b], dots[b], scales, w->steps[at + b * w->blocks]);
        }
        for (int b = 0; b < B; b++) {
            float lanes[LANES], *y = w->y + (b0 + b) * w->rows + bundle * SIDE + r;
            const int64_t left = w->rows - bundle * SIDE - r;
            STORE(lanes, sums[b]);
            for (int i = 0; i < LANES && i < left; i++) y[i] = lanes[i];
        }
    }
}
#endif

/* Rows of x by 8, 4, 2 and 1: what a bundle has stays in the nearest cache meanwhile. */
ALWAYS void bundle_for_all(const job *w, int64_t bundle, const int bits) {
    int64_t b = 0;
#if defined(__AVX512VNNI__)
    for (; b + 8 <= w->batch; b += 8) bundle_of(w, bundle, b, 8, bits);
#endif
    for (; b + 4 <= w->batch; b += 4) bundle_of(w, bundle, b, 4, bits);
    if (b + 2 <= w->batch) bundle_of(w, bundle, b, 2, bits), b += 2;
    if (b < w->batch) bundle_of(w, bundle, b, 1, bits);
}

static void bundles(void *context, int64_t part) {
    const job here = *(const job *)context, *w = &here; /* in registers: y may not overlap it */
    const int64_t all = (w->rows + SIDE - 1) / SIDE, to = all * (part + 1) / w->parts;
    for (int64_t bundle = all * part / w->parts; bundle < to; bundle++) {
        if (w->bits == 4) bundle_for_all(w, bundle, 4);
        else bundle_for_all(w, bundle, 8);
    }
}

/* A block of x in int8, by its largest number; of less than 32 columns it ends in zeros. */
static void rounded(const float *x, int64_t count, int offset, int8_t *q, float *step, int32_t *shift) {
    float most = 0, wrong = 0;
    int32_t sum = 0;
    for (int i = 0; i < count; i++) {
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
        wrong += x[i] * 0.0f;
    }
    const float inverse = most > 0 && wrong == 0 ? 127.0f / most : 0.0f;
    const int usable = inverse > 0 && inverse < 3e38f; /* a number too small to divide by is 0 */
    for (int i = 0; i < BLOCK; i++) {
        q[i] = usable && i < count ? (int8_t)__builtin_rintf(x[i] * inverse) : 0;
        sum += q[i];
    }
    *step = wrong == 0 ? most / 127.0f : NAN;
    *shift = -offset * sum;
}

/* codes, scales: see above; bits: 4 or 8. */
INTARSIA_API int64_t intarsia_blockint(const float *x, float *y, int64_t batch, const uint8_t *codes,
                                       const uint16_t *scales, int64_t rows, int64_t cols, int bits,
                                       int threads) {
    const int64_t blocks = (cols + BLOCK - 1) / BLOCK, all = batch * blocks;
    if (!batch || !rows) return 0;
    int8_t *q = malloc((size_t)(all * (BLOCK + 8)) + 1);
    if (!q) return OUT_OF_MEMORY;
    float *steps = (float *)(q + all * BLOCK);
    int32_t *shift = (int32_t *)(steps + all);
    for (int64_t b = 0; b < batch; b++)
        for (int64_t k = 0; k < blocks; k++) {
            const int64_t at = b * blocks + k, left = cols - k * BLOCK;
            rounded(x + b * cols + k * BLOCK, left < BLOCK ? left : BLOCK, 1 << (bits - 1),
                    q + at * BLOCK, steps + at, shift + at);
        }
    job w = {q, steps, shift, y, codes, scales, rows, batch, blocks, 1, bits};
    w.parts = parts_of(rows * cols * bits / 8, threads);
    intarsia_parallel(bundles, &w, w.parts, threads);
    free(q);
    return 0;
}
