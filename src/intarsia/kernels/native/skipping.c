/* y = x W^T over the columns with |x| above a limit, W in 4 bits, 32 inputs with a scale each.
 *
 * The codes of a column stand together, so that a column that is left out is not read. codes:
 * (blocks, 32, rows / 2) uint8, rows being a multiple of 64: lines of 64 bytes for 128 rows, and one
 * of 32 for the last 64 of an odd number. Of a line with L = 4 or 2 lanes of 16 bytes, byte
 * 16 l + 4 t + e has row 4 L t + 4 l + e in the low nibble, and row 16 L + ... in the high one: four
 * columns that are interleaved then give neighbouring rows. scales: (blocks, rows) float16.
 *
 * x: (batch, cols) float32; y: (batch, out), out <= rows. The rest is as in blockint.c: what is left
 * of a block of x is rounded to int8 with a scale, and a block that is not finite makes y NaN.
 */
#include "products.h"

enum { BLOCK = 32, LINE = 128, HALF = 64, OFFSET = 8 };

/* Columns of a block of x that are kept, in fours; a column that fills up the last four has code 0. */
typedef struct {
    int8_t q[BLOCK];
    uint8_t at[BLOCK];
    int32_t shift; /* -8 times the sum of q */
    int count;
    float step;
} kept;

typedef struct {
    const kept *x; /* (batch, blocks) */
    float *y;
    const uint8_t *codes;
    const uint16_t *scales;
    int64_t out, rows, batch, blocks, parts;
} job;

ALWAYS void kept_of(const float *x, int64_t count, float limit, kept *to) {
    float most = 0, wrong = 0;
    int32_t sum = 0;
    int n = 0;
    for (int i = 0; i < count; i++) {
        if (fabsf(x[i]) <= limit) continue; /* NaN stays */
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
        wrong += x[i] * 0.0f;
        to->at[n++] = (uint8_t)i;
    }
    const float inverse = most > 0 && wrong == 0 ? 127.0f / most : 0.0f;
    const int usable = inverse > 0 && inverse < 3e38f;
    for (int i = 0; i < n; i++) {
        to->q[i] = usable ? (int8_t)__builtin_rintf(x[to->at[i]] * inverse) : 0;
        sum += to->q[i];
    }
    for (; n % 4; n++) to->q[n] = 0, to->at[n] = to->at[n - 1];
    to->count = n;
    to->step = wrong == 0 ? most / 127.0f : NAN;
    to->shift = -OFFSET * sum;
}

ALWAYS int32_t four_of(const int8_t *q) {
    int32_t four;
    memcpy(&four, q, 4);
    return four;
}

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
ALWAYS __m256i dot_x8(__m256i sum, __m256i codes, __m256i x) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return _mm256_dpbusd_epi32(sum, codes, x);
#else /* two products of at most 15 * 127 fit 16 bits */
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1)));
#endif
}

/* y + the sums of 8 rows, by their scales. */
ALWAYS void add_x8(float *y, __m256i sums, const uint16_t *scales, __m256 step) {
    const __m256 both = _mm256_mul_ps(step, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)scales)));
    _mm256_storeu_ps(y, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), both, _mm256_loadu_ps(y)));
}

/* 32 bytes of each column, part `h` of a line of L lanes; y, scales: of the line's rows. */
ALWAYS void bytes_32(const kept *x, float *y, const uint8_t *codes, const uint16_t *scales,
                     int64_t apart, const int L, const int h) {
    const __m256i low = _mm256_set1_epi8(15);
    __m256i sums[8];
    for (int v = 0; v < 8; v++) sums[v] = _mm256_set1_epi32(x->shift);
    for (int j = 0; j < x->count; j += 4) {
        const __m256i given = _mm256_set1_epi32(four_of(x->q + j));
        __m256i c[4];
        for (int i = 0; i < 4; i++)
            c[i] = _mm256_loadu_si256((const __m256i *)(codes + x->at[j + i] * apart + 32 * h));
        const __m256i p = _mm256_unpacklo_epi8(c[0], c[1]), q = _mm256_unpackhi_epi8(c[0], c[1]);
        const __m256i r = _mm256_unpacklo_epi8(c[2], c[3]), s = _mm256_unpackhi_epi8(c[2], c[3]);
        const __m256i rows[4] = {_mm256_unpacklo_epi16(p, r), _mm256_unpackhi_epi16(p, r),
                                 _mm256_unpacklo_epi16(q, s), _mm256_unpackhi_epi16(q, s)};
        for (int t = 0; t < 4; t++) {
            sums[t] = dot_x8(sums[t], _mm256_and_si256(rows[t], low), given);
            sums[t + 4] = dot_x8(sums[t + 4], _mm256_and_si256(_mm256_srli_epi16(rows[t], 4), low), given);
        }
    }
    for (int v = 0; v < 8; v++) {
        const int at = 4 * L * v + 8 * h;
        add_x8(y + at, sums[v], scales + at, _mm256_set1_ps(x->step));
    }
}
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
ALWAYS void full(const kept *x, float *y, const uint8_t *codes, const uint16_t *scales, int64_t apart) {
    const __m512i low = _mm512_set1_epi8(15);
    __m512i sums[8];
    for (int v = 0; v < 8; v++) sums[v] = _mm512_set1_epi32(x->shift);
    for (int j = 0; j < x->count; j += 4) {
        const __m512i given = _mm512_set1_epi32(four_of(x->q + j));
        __m512i c[4];
        for (int i = 0; i < 4; i++) c[i] = _mm512_loadu_si512(codes + x->at[j + i] * apart);
        const __m512i p = _mm512_unpacklo_epi8(c[0], c[1]), q = _mm512_unpackhi_epi8(c[0], c[1]);
        const __m512i r = _mm512_unpacklo_epi8(c[2], c[3]), s = _mm512_unpackhi_epi8(c[2], c[3]);
        const __m512i rows[4] = {_mm512_unpacklo_epi16(p, r), _mm512_unpackhi_epi16(p, r),
                                 _mm512_unpacklo_epi16(q, s), _mm512_unpackhi_epi16(q, s)};
        for (int t = 0; t < 4; t++) {
            sums[t] = _mm512_dpbusd_epi32(sums[t], _mm512_and_si512(rows[t], low), given);
            const __m512i high = _mm512_and_si512(_mm512_srli_epi16(rows[t], 4), low);
            sums[t + 4] = _mm512_dpbusd_epi32(sums[t + 4], high, given);
        }
    }
    const __m512 step = _mm512_set1_ps(x->step);
    for (int v = 0; v < 8; v++) {
        const __m256i halves = _mm256_loadu_si256((const __m256i *)(scales + 16 * v));
        const __m512 both = _mm512_mul_ps(step, _mm512_cvtph_ps(halves));
        const __m512 before = _mm512_loadu_ps(y + 16 * v);
        _mm512_storeu_ps(y + 16 * v, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[v]), both, before));
    }
}
ALWAYS void half(const kept *x, float *y, const uint8_t *codes, const uint16_t *scales, int64_t apart) {
    bytes_32(x, y, codes, scales, apart, 2, 0);
}
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
ALWAYS void full(const kept *x, float *y, const uint8_t *codes, const uint16_t *scales, int64_t apart) {
    for (int h = 0; h < 2; h++) bytes_32(x, y, codes, scales, apart, 4, h);
}
ALWAYS void half(const kept *x, float *y, const uint8_t *codes, const uint16_t *scales, int64_t apart) {
    bytes_32(x, y, codes, scales, apart, 2, 0);
}
#else
ALWAYS void line_of(const kept *x, float *y, const uint8_t *codes, const uint16_t *scales,
                    int64_t apart, const int L) {
    int32_t low[HALF], high[HALF];
    for (int i = 0; i < 16 * L; i++) low[i] = high[i] = x->shift;
    for (int j = 0; j < x->count; j++) {
        const uint8_t *column = codes + x->at[j] * apart;
        const int32_t q = x->q[j];
        for (int i = 0; i < 16 * L; i++) {
            low[i] += q * (column[i] & 15);
            high[i] += q * (column[i] >> 4);
        }
    }
    for (int l = 0; l < L; l++)
        for (int t = 0; t < 4; t++)
            for (int e = 0; e < 4; e++) {
                const int i = 16 * l + 4 * t + e, r = 4 * L * t + 4 * l + e, up = r + 16 * L;
                y[r] += (float)low[i] * (of_f16(scales[r]) * x->step);
                y[up] += (float)high[i] * (of_f16(scales[up]) * x->step);
            }
}
ALWAYS void full(const kept *x, float *y, const uint8_t *codes, const uint16_t *scales, int64_t apart) {
    line_of(x, y, codes, scales, apart, 4);
}
ALWAYS void half(const kept *x, float *y, const uint8_t *codes, const uint16_t *scales, int64_t apart) {
    line_of(x, y, codes, scales, apart, 2);
}
#endif

/* Some lines of rows: block after block, so that a column's rows are read in order. */
static void lines(void *context, int64_t part) {
    const job here = *(const job *)context, *w = &here;
    const int64_t all = (w->rows + LINE - 1) / LINE, apart = w->rows / 2;
    const int64_t from = all * part / w->parts * LINE, end = all * (part + 1) / w->parts * LINE;
    const int64_t to = end < w->rows ? end : w->rows;
    for (int64_t b = 0; b < w->batch; b++) {
        float *y = w->y + b * w->rows;
        memset(y + from, 0, (size_t)(to - from) * sizeof(float));
        for (int64_t k = 0; k < w->blocks; k++) {
            const kept *x = w->x + b * w->blocks + k;
            if (!x->count) continue;
            const uint8_t *codes = w->codes + k * BLOCK * apart;
            const uint16_t *scales = w->scales + k * w->rows;
            int64_t r = from;
            for (; r + LINE <= to; r += LINE) full(x, y + r, codes + r / 2, scales + r, apart);
            if (r < to) half(x, y + r, codes + r / 2, scales + r, apart);
        }
    }
}

/* limit: one number. codes, scales: see above. */
INTARSIA_API int64_t intarsia_skipping(const float *x, float *y, int64_t batch, const uint8_t *codes,
                                       const uint16_t *scales, const float *limit, int64_t out,
                                       int64_t cols, int threads) {
    const int64_t blocks = (cols + BLOCK - 1) / BLOCK, rows = (out + HALF - 1) / HALF * HALF;
    if (!batch || !out) return 0;
    kept *some = malloc((size_t)(batch * blocks) * sizeof(kept) + 1);
    float *sums = malloc((size_t)(batch * rows) * sizeof(float));
    if (!some || !sums) {
        free(some), free(sums);
        return OUT_OF_MEMORY;
    }
    for (int64_t b = 0; b < batch; b++)
        for (int64_t k = 0; k < blocks; k++) {
            const int64_t left = cols - k * BLOCK;
            kept_of(x + b * cols + k * BLOCK, left < BLOCK ? left : BLOCK, *limit, some + b * blocks + k);
        }
    job w = {some, sums, codes, scales, out, rows, batch, blocks, 1};
    w.parts = parts_of(out * cols / 2, threads);
    intarsia_parallel(lines, &w, w.parts, threads);
    for (int64_t b = 0; b < batch; b++)
        memcpy(y + b * out, sums + b * rows, (size_t)out * sizeof(float));
    free(some), free(sums);
    return 0;
}
