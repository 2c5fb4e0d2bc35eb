/* y = x W^T over the columns with |x| above a limit, W in 4 bits, 32 inputs with a scale each.
 *
 * Rows stand in tiles of 512, filled up to a multiple of 64 in the last one. In a tile the codes of a
 * column stand together, so that a column that is left out is not read: codes: (tiles, blocks, 32,
 * 256) uint8, of the last tile fewer; scales: (tiles, blocks, 512) float16. A column has lines of 64
 * bytes for 128 rows, and one of 32 for the last 64 of an odd number. Of a line with L = 4 or 2 lanes
 * of 16 bytes, byte 16 l + 4 t + e has row 4 L t + 4 l + e in the low nibble, and row 16 L + ... in
 * the high one: four columns that are interleaved then give neighbouring rows.
 *
 * x: (batch, cols) float32; y: (batch, out). The rest is as in blockint.c: what is left of a block of
 * x is rounded to int8 with a scale, and a block that is not finite makes y NaN.
 */
#include "products.h"

enum { BLOCK = 32, TILE = 512, LINE = 128, HALF = 64, OFFSET = 8, AHEAD = 32 };

/* A block of which something is kept: its columns end before number `end` of all that are kept. */
typedef struct {
    int64_t block, end;
    int32_t shift; /* -8 times the sum of q */
    float step;
} piece;

/* What is kept of a row of x, by fours in each block; a column that fills up a four has code 0. */
typedef struct {
    piece *pieces;
    int8_t *q;
    int32_t *at; /* columns, and AHEAD more of the next tile, which is fetched early */
    int64_t count;
} kept;

typedef struct {
    const kept *x;
    float *y;
    const uint8_t *codes;
    const uint16_t *scales;
    int64_t out, batch, blocks, parts;
} job;

/* The columns of a block that are kept; returns how many. first: of the block. */
static int64_t some_of(const float *x, int64_t count, float limit, int64_t first, int8_t *q,
                       int32_t *at, piece *to) {
    float most = 0, wrong = 0;
    int32_t sum = 0;
    int64_t n = 0;
    for (int64_t i = 0; i < count; i++) {
        if (fabsf(x[i]) <= limit) continue; /* NaN stays */
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
        wrong += x[i] * 0.0f;
        at[n++] = (int32_t)(first + i);
    }
    const float inverse = most > 0 && wrong == 0 ? 127.0f / most : 0.0f;
    const int usable = inverse > 0 && inverse < 3e38f;
    for (int64_t i = 0; i < n; i++) {
        q[i] = usable ? (int8_t)__builtin_rintf(x[at[i] - first] * inverse) : 0;
        sum += q[i];
    }
    to->step = wrong == 0 ? most / 127.0f : NAN;
    to->shift = -OFFSET * sum;
    return n;
}

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
/* The same of a whole block; writes up to 16 numbers behind the last that is kept. */
static int64_t all_of(const float *x, float limit, int64_t first, int8_t *q, int32_t *at, piece *to) {
    const __m512 all = _mm512_set1_ps(limit), none = _mm512_setzero_ps();
    const __m512i places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512 values[2], most = none;
    __mmask16 keep[2], wrong = 0;
    for (int i = 0; i < 2; i++) {
        values[i] = _mm512_loadu_ps(x + 16 * i);
        const __m512 size = _mm512_abs_ps(values[i]);
        keep[i] = _mm512_cmp_ps_mask(size, all, _CMP_NLE_UQ);
        wrong |= _mm512_mask_cmp_ps_mask(keep[i], size, _mm512_set1_ps(INFINITY), _CMP_NLT_UQ);
        most = _mm512_mask_max_ps(most, keep[i], most, size);
    }
    const float largest = wrong ? 0 : _mm512_reduce_max_ps(most);
    float inverse = largest > 0 ? 127.0f / largest : 0.0f;
    if (!(inverse < 3e38f)) inverse = 0;
    int64_t n = 0;
    __m512i sum = _mm512_setzero_si512();
    for (int i = 0; i < 2; i++) {
        const __m512 scaled = _mm512_mul_ps(values[i], _mm512_set1_ps(inverse));
        const __m512i codes = _mm512_maskz_cvtps_epi32(wrong ? 0 : keep[i], scaled);
        const __m512i columns = _mm512_add_epi32(places, _mm512_set1_epi32((int32_t)first + 16 * i));
        const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_maskz_compress_epi32(keep[i], codes));
        _mm_storeu_si128((__m128i *)(q + n), bytes);
        _mm512_storeu_si512(at + n, _mm512_maskz_compress_epi32(keep[i], columns));
        sum = _mm512_add_epi32(sum, codes);
        n += __builtin_popcount(keep[i]);
    }
    to->step = wrong ? NAN : largest / 127.0f;
    to->shift = -OFFSET * _mm512_reduce_add_epi32(sum);
    return n;
}
#else
static int64_t all_of(const float *x, float limit, int64_t first, int8_t *q, int32_t *at, piece *to) {
    return some_of(x, BLOCK, limit, first, q, at, to);
}
#endif

static void kept_of(const float *x, int64_t cols, float limit, kept *to) {
    int64_t n = 0, pieces = 0;
    for (int64_t first = 0; first < cols; first += BLOCK) {
        piece *own = to->pieces + pieces;
        const int64_t left = cols - first;
        const int64_t some = left >= BLOCK ? all_of(x + first, limit, first, to->q + n, to->at + n, own)
                                           : some_of(x + first, left, limit, first, to->q + n, to->at + n, own);
        if (!some) continue;
        for (n += some; n % 4; n++) to->q[n] = 0, to->at[n] = to->at[n - 1];
        own->block = first / BLOCK, own->end = n;
        pieces++;
    }
    const int64_t tile = (cols + BLOCK - 1) / BLOCK * BLOCK;
    for (int64_t i = 0; n && i < AHEAD; i++) to->at[n + i] = (int32_t)(tile + to->at[i % n]);
    to->count = pieces;
}

ALWAYS int32_t four_of(const int8_t *q) {
    int32_t four;
    memcpy(&four, q, 4);
    return four;
}

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
/* The rows of a line for a block: y + their sums. apart: bytes from a column to the next. */
ALWAYS void full(const kept *x, const piece *p, int64_t j, float *y, const uint8_t *codes,
                 const uint16_t *scales, int64_t apart) {
    const __m512i low = _mm512_set1_epi8(15);
    __m512i dots[8];
    for (int v = 0; v < 8; v++) dots[v] = _mm512_set1_epi32(p->shift);
    for (; j < p->end; j += 4) {
        const __m512i given = _mm512_set1_epi32(four_of(x->q + j));
        __m512i c[4];
        for (int i = 0; i < 4; i++) {
            c[i] = _mm512_loadu_si512(codes + apart * x->at[j + i]);
            _mm_prefetch((const char *)codes + apart * x->at[j + i + AHEAD], _MM_HINT_T0);
        }
        const __m512i a = _mm512_unpacklo_epi8(c[0], c[1]), b = _mm512_unpackhi_epi8(c[0], c[1]);
        const __m512i d = _mm512_unpacklo_epi8(c[2], c[3]), e = _mm512_unpackhi_epi8(c[2], c[3]);
        const __m512i rows[4] = {_mm512_unpacklo_epi16(a, d), _mm512_unpackhi_epi16(a, d),
                                 _mm512_unpacklo_epi16(b, e), _mm512_unpackhi_epi16(b, e)};
        for (int t = 0; t < 4; t++) {
            const __m512i high = _mm512_and_si512(_mm512_srli_epi16(rows[t], 4), low);
            dots[t] = _mm512_dpbusd_epi32(dots[t], _mm512_and_si512(rows[t], low), given);
            dots[t + 4] = _mm512_dpbusd_epi32(dots[t + 4], high, given);
        }
    }
    const __m512 step = _mm512_set1_ps(p->step);
    for (int v = 0; v < 8; v++) {
        const __m256i halves = _mm256_loadu_si256((const __m256i *)(scales + 16 * v));
        const __m512 both = _mm512_mul_ps(step, _mm512_cvtph_ps(halves));
        const __m512 before = _mm512_loadu_ps(y + 16 * v);
        _mm512_storeu_ps(y + 16 * v, _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[v]), both, before));
    }
}
#endif

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
ALWAYS __m256i dot_x8(__m256i sum, __m256i codes, __m256i x) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return _mm256_dpbusd_epi32(sum, codes, x);
#else /* two products of at most 15 * 127 fit 16 bits */
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1)));
#endif
}

/* 32 bytes of each column, part `h` of a line of L lanes. */
ALWAYS void bytes_32(const kept *x, const piece *p, int64_t j, float *y, const uint8_t *codes,
                     const uint16_t *scales, int64_t apart, const int L, const int h) {
    const __m256i low = _mm256_set1_epi8(15);
    __m256i dots[8];
    for (int v = 0; v < 8; v++) dots[v] = _mm256_set1_epi32(p->shift);
    for (codes += 32 * h; j < p->end; j += 4) {
        const __m256i given = _mm256_set1_epi32(four_of(x->q + j));
        __m256i c[4];
        for (int i = 0; i < 4; i++) {
            c[i] = _mm256_loadu_si256((const __m256i *)(codes + apart * x->at[j + i]));
            _mm_prefetch((const char *)codes + apart * x->at[j + i + AHEAD], _MM_HINT_T0);
        }
        const __m256i a = _mm256_unpacklo_epi8(c[0], c[1]), b = _mm256_unpackhi_epi8(c[0], c[1]);
        const __m256i d = _mm256_unpacklo_epi8(c[2], c[3]), e = _mm256_unpackhi_epi8(c[2], c[3]);
        const __m256i rows[4] = {_mm256_unpacklo_epi16(a, d), _mm256_unpackhi_epi16(a, d),
                                 _mm256_unpacklo_epi16(b, e), _mm256_unpackhi_epi16(b, e)};
        for (int t = 0; t < 4; t++) {
            const __m256i high = _mm256_and_si256(_mm256_srli_epi16(rows[t], 4), low);
            dots[t] = dot_x8(dots[t], _mm256_and_si256(rows[t], low), given);
            dots[t + 4] = dot_x8(dots[t + 4], high, given);
        }
    }
    const __m256 step = _mm256_set1_ps(p->step);
    for (int v = 0; v < 8; v++) {
        const int at = 4 * L * v + 8 * h;
        const __m128i halves = _mm_loadu_si128((const __m128i *)(scales + at));
        const __m256 both = _mm256_mul_ps(step, _mm256_cvtph_ps(halves)), before = _mm256_loadu_ps(y + at);
        _mm256_storeu_ps(y + at, _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[v]), both, before));
    }
}

#if !(defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__))
ALWAYS void full(const kept *x, const piece *p, int64_t j, float *y, const uint8_t *codes,
                 const uint16_t *scales, int64_t apart) {
    for (int h = 0; h < 2; h++) bytes_32(x, p, j, y, codes, scales, apart, 4, h);
}
#endif
ALWAYS void half(const kept *x, const piece *p, int64_t j, float *y, const uint8_t *codes,
                 const uint16_t *scales, int64_t apart) {
    bytes_32(x, p, j, y, codes, scales, apart, 2, 0);
}
#else
ALWAYS void line_of(const kept *x, const piece *p, int64_t j, float *y, const uint8_t *codes,
                    const uint16_t *scales, int64_t apart, const int L) {
    int32_t low[HALF], high[HALF];
    for (int i = 0; i < 16 * L; i++) low[i] = high[i] = p->shift;
    for (; j < p->end; j++) {
        const uint8_t *column = codes + apart * x->at[j];
        const int32_t q = x->q[j];
        for (int i = 0; i < 16 * L; i++) {
            low[i] += q * (column[i] & 15);
            high[i] += q * (column[i] >> 4);
        }
    }
    for (int i = 0; i < 16 * L; i++) {
        const int l = i / 16, t = i % 16 / 4, r = 4 * L * t + 4 * l + i % 4, up = r + 16 * L;
        y[r] += (float)low[i] * (of_f16(scales[r]) * p->step);
        y[up] += (float)high[i] * (of_f16(scales[up]) * p->step);
    }
}
ALWAYS void full(const kept *x, const piece *p, int64_t j, float *y, const uint8_t *codes,
                 const uint16_t *scales, int64_t apart) {
    line_of(x, p, j, y, codes, scales, apart, 4);
}
ALWAYS void half(const kept *x, const piece *p, int64_t j, float *y, const uint8_t *codes,
                 const uint16_t *scales, int64_t apart) {
    line_of(x, p, j, y, codes, scales, apart, 2);
}
#endif

/* y: zeros for the rows of a tile. */
ALWAYS void tile_of(const kept *x, float *y, const uint8_t *codes, const uint16_t *scales, const int64_t rows) {
    int64_t first = 0;
    for (const piece *p = x->pieces; p < x->pieces + x->count; first = p->end, p++) {
        const uint16_t *own = scales + rows * p->block;
        int64_t r = 0;
        for (; r + LINE <= rows; r += LINE) full(x, p, first, y + r, codes + r / 2, own + r, rows / 2);
        if (r < rows) half(x, p, first, y + r, codes + r / 2, own + r, rows / 2);
    }
}

static void tiles(void *context, int64_t part) {
    const job here = *(const job *)context, *w = &here;
    const int64_t all = (w->out + TILE - 1) / TILE, to = all * (part + 1) / w->parts;
    for (int64_t tile = all * part / w->parts; tile < to; tile++) {
        const uint8_t *codes = w->codes + tile * w->blocks * (BLOCK * TILE / 2);
        const uint16_t *scales = w->scales + tile * w->blocks * TILE;
        const int64_t left = w->out - tile * TILE, rows = left < TILE ? left : TILE;
        for (int64_t b = 0; b < w->batch; b++) {
            float y[TILE] = {0};
            if (rows == TILE) tile_of(w->x + b, y, codes, scales, TILE);
            else tile_of(w->x + b, y, codes, scales, (rows + HALF - 1) / HALF * HALF);
            memcpy(w->y + b * w->out + tile * TILE, y, (size_t)rows * sizeof(float));
        }
    }
}

/* limit: one number. codes, scales: see above. */
INTARSIA_API int64_t intarsia_skipping(const float *x, float *y, int64_t batch, const uint8_t *codes,
                                       const uint16_t *scales, const float *limit, int64_t out,
                                       int64_t cols, int threads) {
    const int64_t blocks = (cols + BLOCK - 1) / BLOCK, room = (blocks + 1) * BLOCK + AHEAD;
    const size_t each = (size_t)(blocks * (int64_t)sizeof(piece) + room * 5);
    if (!batch || !out) return 0;
    kept *rows = malloc((size_t)batch * (sizeof(kept) + each));
    if (!rows) return OUT_OF_MEMORY;
    piece *pieces = (piece *)(rows + batch);
    int32_t *at = (int32_t *)(pieces + batch * blocks);
    int8_t *q = (int8_t *)(at + batch * room);
    for (int64_t b = 0; b < batch; b++) {
        rows[b] = (kept){pieces + b * blocks, q + b * room, at + b * room, 0};
        kept_of(x + b * cols, cols, *limit, rows + b);
    }
    job w = {rows, y, codes, scales, out, batch, blocks, 1};
    w.parts = parts_of(out * cols / 2, threads);
    intarsia_parallel(tiles, &w, w.parts, threads);
    free(rows);
    return 0;
}
