/* y = x W^T, W the kept weights of each row and a bit for each weight (formats.Bitmask).
 *
 * bits: (rows, ceil(cols / 8)), lowest first. values: (kept,) float32, bfloat16 or int8, row by row.
 * offsets: (rows,), where each row's values begin. scales: (rows,) of int8, or NULL.
 * x: (batch, cols) float32. y: (batch, rows).
 *
 * 64 columns at a time: one 64-bit mask, values expanded into its places, the place in the values
 * moved on by its bits. NaN and infinity in x reach y through kept weights alone: rows of x that
 * have some are multiplied number by number. With int8 values x is rounded to int8, 64 columns with a scale each:
 * y = scales[r] sum_g s_g sum_(j in g) q_j w_j, the inner sum exact.
 */
#include "products.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__) && \
    defined(__AVX512VBMI2__)
#define WIDE 1
#else
#define WIDE 0
#endif

enum { F32 = 0, BF16 = 1, I8 = 2, BLOCK = 64, MOST_BATCH = 4 };

typedef struct {
    const float *x; /* (batch, padded); of bfloat16 in the order of `turned` */
    const float *given; /* (batch, cols) */
    const uint8_t *finite; /* (batch,) */
    float *y;
    const uint8_t *bits;
    const char *values;
    const int64_t *offsets;
    const float *scales;
    int64_t kept, rows, cols, batch, padded, stride, parts;
    const int8_t *q;      /* (batch, padded): x in int8 */
    const float *steps;   /* (batch, padded / 64): its scales */
    const int32_t *shift; /* (batch, padded / 4): -128 times the sum of four of q */
    char *out;            /* of decoding, */
    int64_t first, count; /* these rows */
    int64_t fault;
} job;

static const int64_t SIZES[] = {4, 2, 1};
static const char nothing[BLOCK * 4]; /* in place of NULL, which means damaged here */

/* The mask of columns j ... j + 63 of a row; bits behind the last column count as 0. */
ALWAYS uint64_t mask_at(const job *w, int64_t row, int64_t j) {
    const uint8_t *from = w->bits + row * w->stride + j / 8;
    uint64_t mask = 0;
    if (j + BLOCK <= w->cols) {
        memcpy(&mask, from, 8);
        return mask;
    }
    memcpy(&mask, from, (size_t)(w->stride - j / 8));
    return mask & ((1ull << (w->cols - j)) - 1);
}

/* Where 64 values may be read: in the stored ones, or, near their end, in a copy. NULL: past it. */
ALWAYS const char *room(const job *w, const char *v, int64_t count, int64_t size, char *copy) {
    const int64_t left = (w->values + w->kept * size) - v;
    if (left >= BLOCK * size) return v;
    if (left < count * size) return NULL;
    memcpy(copy, v, (size_t)(count * size));
    return copy;
}

ALWAYS const char *start_of(const job *w, int64_t row, int64_t size) {
    const int64_t from = w->offsets[row];
    return from < 0 || from > w->kept ? NULL : w->values + from * size;
}

/* Whether a row ends where the next one begins. */
ALWAYS int ends_well(const job *w, int64_t row, const char *v, int64_t size) {
    const int64_t next = row + 1 < w->rows ? w->offsets[row + 1] : w->kept;
    return v - w->values == next * size;
}

/* ---- number by number: what is not finite in x, and machines without vectors that are known here */
ALWAYS float value_at(const char *v, int64_t i, const int kind) {
    return kind == F32 ? ((const float *)v)[i] : of_bf16(((const uint16_t *)v)[i]);
}

ALWAYS int one_by_one(const job *w, int64_t row, int64_t b0, const int B, const int kind) {
    const int64_t size = SIZES[kind];
    float sums[MOST_BATCH][4] = {{0}};
    const char *v = start_of(w, row, size);
    if (!v) return 1;
    for (int64_t j = 0; j < w->cols; j += BLOCK) {
        uint64_t mask = mask_at(w, row, j);
        const int64_t count = __builtin_popcountll(mask);
        if ((w->values + w->kept * size) - v < count * size) return 1;
        for (int64_t i = 0; i < count; i++, mask &= mask - 1) {
            const int64_t at = j + __builtin_ctzll(mask);
            const float value = value_at(v, i, kind);
            for (int b = 0; b < B; b++) sums[b][i & 3] += value * w->given[(b0 + b) * w->cols + at];
        }
        v += count * size;
    }
    for (int b = 0; b < B; b++)
        w->y[(b0 + b) * w->rows + row] = (sums[b][0] + sums[b][1]) + (sums[b][2] + sums[b][3]);
    return !ends_well(w, row, v, size);
}

/* ---- rows of float32 and bfloat16; B: rows of x at once, a constant of each call */
#if WIDE
/* 64 columns: the values behind p, at the places of a mask. */
ALWAYS void floats_x64(__m512 sums[][4], const int B, const job *w, const float *x, uint64_t mask,
                       const char *p, const int kind) {
    __m512 values[4];
    if (kind == F32) {
        const float *f = (const float *)p;
        for (int k = 0; k < 4; k++) {
            const int first = k ? __builtin_popcountll(mask << (64 - 16 * k)) : 0;
            values[k] = _mm512_maskz_expand_ps((__mmask16)(mask >> (16 * k)), _mm512_loadu_ps(f + first));
        }
    } else { /* of 32 numbers those of even columns, then those of odd ones: as x was turned */
        const uint16_t *h = (const uint16_t *)p;
        for (int k = 0; k < 2; k++) {
            const int first = k ? __builtin_popcount((uint32_t)mask) : 0;
            const __m512i some = _mm512_maskz_expand_epi16((__mmask32)(mask >> (32 * k)),
                                                           _mm512_loadu_si512(h + first));
            values[2 * k] = _mm512_castsi512_ps(_mm512_slli_epi32(some, 16));
            values[2 * k + 1] = _mm512_castsi512_ps(
                _mm512_and_si512(some, _mm512_set1_epi32((int32_t)0xffff0000)));
        }
    }
    for (int b = 0; b < B; b++)
        for (int k = 0; k < 4; k++)
            sums[b][k] = _mm512_fmadd_ps(values[k], _mm512_load_ps(x + b * w->padded + 16 * k), sums[b][k]);
}

ALWAYS int row_of_floats(const job *w, int64_t row, int64_t b0, const int B, const int kind) {
    const int64_t size = SIZES[kind], last = w->kept - BLOCK, whole = w->cols - BLOCK;
    const char *values = w->values;
    const float *x = w->x + b0 * w->padded;
    const uint8_t *bits = w->bits + row * w->stride;
    __m512 sums[MOST_BATCH][4];
    for (int b = 0; b < B; b++)
        for (int k = 0; k < 4; k++) sums[b][k] = _mm512_setzero_ps();
    int64_t at = w->offsets[row], j = 0;
    if (at < 0) return 1;
    for (; j <= whole && at <= last; j += BLOCK) {
        uint64_t mask;
        memcpy(&mask, bits + j / 8, 8);
        floats_x64(sums, B, w, x + j, mask, values + at * size, kind);
        at += __builtin_popcountll(mask);
        _mm_prefetch(values + at * size + 1024, _MM_HINT_T0);
    }
    for (; j < w->cols; j += BLOCK) { /* the last columns, and where 64 values are no more there */
        char copy[BLOCK * 4];
        const uint64_t mask = mask_at(w, row, j);
        const int64_t count = __builtin_popcountll(mask);
        if (at + count > w->kept) return 1;
        memcpy(copy, values + at * size, (size_t)(count * size));
        floats_x64(sums, B, w, x + j, mask, copy, kind);
        at += count;
    }
    for (int b = 0; b < B; b++)
        w->y[(b0 + b) * w->rows + row] = _mm512_reduce_add_ps(_mm512_add_ps(
            _mm512_add_ps(sums[b][0], sums[b][1]), _mm512_add_ps(sums[b][2], sums[b][3])));
    return at != (row + 1 < w->rows ? w->offsets[row + 1] : w->kept);
}
#elif defined(__AVX2__) && defined(__FMA__)
/* places[m][i]: which of the next values stands in lane i of a mask m; lanes[m]: all ones where set */
static int32_t places[256][8] __attribute__((aligned(32)));
static int32_t lanes[256][8] __attribute__((aligned(32)));

__attribute__((constructor)) static void fill_tables(void) {
    for (int m = 0; m < 256; m++)
        for (int i = 0, k = 0; i < 8; i++) {
            lanes[m][i] = -(m >> i & 1);
            places[m][i] = k;
            k += m >> i & 1;
        }
}

ALWAYS __m256 load_x8(const char *v, int64_t i, const int kind) {
    return kind == F32 ? _mm256_loadu_ps((const float *)v + i) : of_bf16_x8((const uint16_t *)v + i);
}

ALWAYS int row_of_floats(const job *w, int64_t row, int64_t b0, const int B, const int kind) {
    const int64_t size = SIZES[kind];
    __m256 sums[MOST_BATCH][2];
    char copy[BLOCK * 4];
    for (int b = 0; b < B; b++) sums[b][0] = sums[b][1] = _mm256_setzero_ps();
    const char *v = start_of(w, row, size);
    if (!v) return 1;
    for (int64_t j = 0; j < w->cols; j += BLOCK) {
        const uint64_t mask = mask_at(w, row, j);
        const int64_t count = __builtin_popcountll(mask);
        const char *p = room(w, v, count, size, copy);
        if (!p) return 1;
        int64_t first = 0;
        for (int k = 0; k < 8; k++) {
            const int m = mask >> (8 * k) & 255;
            const __m256 on = _mm256_load_ps((const float *)lanes[m]);
            const __m256i order = _mm256_load_si256((const __m256i *)places[m]);
            const __m256 values =
                _mm256_and_ps(on, _mm256_permutevar8x32_ps(load_x8(p, first, kind), order));
            first += __builtin_popcount((unsigned)m);
            for (int b = 0; b < B; b++) {
                const float *x = w->x + (b0 + b) * w->padded + j + 8 * k;
                sums[b][k & 1] = _mm256_fmadd_ps(values, _mm256_load_ps(x), sums[b][k & 1]);
            }
        }
        v += count * size;
        _mm_prefetch(v + 1024, _MM_HINT_T0);
    }
    for (int b = 0; b < B; b++)
        w->y[(b0 + b) * w->rows + row] = sum_x8(_mm256_add_ps(sums[b][0], sums[b][1]));
    return !ends_well(w, row, v, size);
}
#else
#define row_of_floats one_by_one
#endif

/* ---- rows of int8 */
#if WIDE
ALWAYS void bytes_x64(__m512 *sums, const int B, const job *w, uint64_t at, uint64_t mask,
                      const char *p) {
    /* vpdpbusd wants one factor without sign: w + 128, and `shift` takes 128 q back */
    const __m512i values = _mm512_xor_si512(_mm512_maskz_expand_epi8(mask, _mm512_loadu_si512(p)),
                                            _mm512_set1_epi8((char)0x80));
    for (int b = 0; b < B; b++, at += (uint64_t)w->padded) {
        const __m512i dots = _mm512_dpbusd_epi32(_mm512_load_si512(w->shift + at / 4), values,
                                                 _mm512_load_si512(w->q + at));
        sums[b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), _mm512_set1_ps(w->steps[at / BLOCK]), sums[b]);
    }
}

ALWAYS int row_of_bytes(const job *given, int64_t row, int64_t b0, const int B) {
    const job here = *given, *w = &here; /* in registers: y may not overlap it */
    const int64_t last = w->kept - BLOCK, whole = w->cols - 2 * BLOCK;
    const uint64_t x = (uint64_t)(b0 * w->padded);
    const char *values = w->values;
    const uint8_t *bits = w->bits + row * w->stride;
    __m512 even[MOST_BATCH], odd[MOST_BATCH]; /* blocks: wherever the row stands in the file */
    for (int b = 0; b < B; b++) even[b] = odd[b] = _mm512_setzero_ps();
    int64_t at = w->offsets[row], j = 0;
    if (at < 0) return 1;
    for (; j <= whole && at <= last - BLOCK; j += 2 * BLOCK) {
        uint64_t mask[2];
        memcpy(mask, bits + j / 8, 16);
        bytes_x64(even, B, w, x + j, mask[0], values + at);
        at += __builtin_popcountll(mask[0]);
        bytes_x64(odd, B, w, x + j + BLOCK, mask[1], values + at);
        at += __builtin_popcountll(mask[1]);
        _mm_prefetch(values + at + 1024, _MM_HINT_T0);
    }
    for (; j < w->cols; j += BLOCK) {
        char copy[BLOCK];
        const uint64_t mask = mask_at(w, row, j);
        const int64_t count = __builtin_popcountll(mask);
        if (at + count > w->kept) return 1;
        memcpy(copy, values + at, (size_t)count);
        if (j / BLOCK & 1) bytes_x64(odd, B, w, x + j, mask, copy);
        else bytes_x64(even, B, w, x + j, mask, copy);
        at += count;
    }
    for (int b = 0; b < B; b++)
        w->y[(b0 + b) * w->rows + row] =
            w->scales[row] * _mm512_reduce_add_ps(_mm512_add_ps(even[b], odd[b]));
    return at != (row + 1 < w->rows ? w->offsets[row + 1] : w->kept);
}
#elif defined(__AVX2__) && defined(__FMA__)
static uint64_t bytes[256]; /* for pshufb: which of the next bytes stands in each; 128 = 0 */

__attribute__((constructor)) static void fill_bytes(void) {
    for (int m = 0; m < 256; m++) {
        bytes[m] = 0;
        for (int i = 0, k = 0; i < 8; i++) {
            bytes[m] |= (uint64_t)(m >> i & 1 ? k : 0x80) << (8 * i);
            k += m >> i & 1;
        }
    }
}

ALWAYS int row_of_bytes(const job *w, int64_t row, int64_t b0, const int B) {
    __m256 sums[MOST_BATCH];
    char copy[BLOCK];
    for (int b = 0; b < B; b++) sums[b] = _mm256_setzero_ps();
    const char *v = start_of(w, row, 1);
    if (!v) return 1;
    for (int64_t j = 0; j < w->cols; j += BLOCK) {
        const uint64_t mask = mask_at(w, row, j);
        const int64_t count = __builtin_popcountll(mask);
        const char *p = room(w, v, count, 1, copy);
        if (!p) return 1;
        __m256i dots[MOST_BATCH];
        for (int b = 0; b < B; b++) dots[b] = _mm256_setzero_si256();
        for (int half = 0; half < 2; half++) {
            uint64_t eight[4] __attribute__((aligned(32)));
            for (int k = 0; k < 4; k++) {
                const int m = mask >> (32 * half + 8 * k) & 255;
                const __m128i some = _mm_loadl_epi64((const __m128i *)p);
                eight[k] = (uint64_t)_mm_cvtsi128_si64(
                    _mm_shuffle_epi8(some, _mm_cvtsi64_si128((int64_t)bytes[m])));
                p += __builtin_popcount((unsigned)m);
            }
            const __m256i values = _mm256_load_si256((const __m256i *)eight);
            for (int b = 0; b < B; b++) {
                const __m256i x = _mm256_loadu_si256(
                    (const __m256i *)(w->q + (b0 + b) * w->padded + j + 32 * half));
                /* |x| sign(x) w: two products of at most 127 * 127 fit 16 bits */
                const __m256i pairs =
                    _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(values, x));
                dots[b] =
                    _mm256_add_epi32(dots[b], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
            }
        }
        for (int b = 0; b < B; b++) {
            const __m256 step = _mm256_set1_ps(w->steps[((b0 + b) * w->padded + j) / BLOCK]);
            sums[b] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[b]), step, sums[b]);
        }
        v += count;
        _mm_prefetch(v + 1024, _MM_HINT_T0);
    }
    for (int b = 0; b < B; b++)
        w->y[(b0 + b) * w->rows + row] = w->scales[row] * sum_x8(sums[b]);
    return !ends_well(w, row, v, 1);
}
#else
ALWAYS int row_of_bytes(const job *w, int64_t row, int64_t b0, const int B) {
    float sums[MOST_BATCH] = {0};
    const char *v = start_of(w, row, 1);
    if (!v) return 1;
    for (int64_t j = 0; j < w->cols; j += BLOCK) {
        uint64_t mask = mask_at(w, row, j);
        const int64_t count = __builtin_popcountll(mask);
        if ((w->values + w->kept) - v < count) return 1;
        int32_t dots[MOST_BATCH] = {0};
        for (int64_t i = 0; i < count; i++, mask &= mask - 1) {
            const int64_t at = j + __builtin_ctzll(mask);
            const int32_t value = ((const int8_t *)v)[i];
            for (int b = 0; b < B; b++) dots[b] += value * w->q[(b0 + b) * w->padded + at];
        }
        for (int b = 0; b < B; b++)
            sums[b] += (float)dots[b] * w->steps[((b0 + b) * w->padded + j) / BLOCK];
        v += count;
    }
    for (int b = 0; b < B; b++) w->y[(b0 + b) * w->rows + row] = w->scales[row] * sums[b];
    return !ends_well(w, row, v, 1);
}
#endif

/* All of x for one row of W: the row stays in the first-level cache. */
ALWAYS int whole_row(const job *w, int64_t row, const int kind) {
    int bad = 0;
    for (int64_t b = 0; b < w->batch;) {
        int64_t n = 0;
        while (n < MOST_BATCH && b + n < w->batch && (kind == I8 || w->finite[b + n])) n++;
        if (!n) bad |= one_by_one(w, row, b++, 1, kind == I8 ? F32 : kind);
        else if (n == 4) bad |= kind == I8 ? row_of_bytes(w, row, b, 4) : row_of_floats(w, row, b, 4, kind);
        else if (n > 1) n = 2, bad |= kind == I8 ? row_of_bytes(w, row, b, 2) : row_of_floats(w, row, b, 2, kind);
        else bad |= kind == I8 ? row_of_bytes(w, row, b, 1) : row_of_floats(w, row, b, 1, kind);
        b += n;
    }
    return bad;
}

static int64_t edge(const job *w, int64_t part, int64_t size) {
    int64_t most = 0; /* offsets of a damaged file need not rise */
    for (int64_t p = 1; p <= part; p++) {
        const int64_t at = first_row(w->offsets, w->kept, w->rows, size, w->stride + 8, p, w->parts);
        if (at > most) most = at;
    }
    return most;
}

#define ROWS_OF(name, kind)                                                                        \
    static void name(void *context, int64_t part) {                                                \
        job *w = context;                                                                          \
        const int64_t to = edge(w, part + 1, SIZES[kind]);                                         \
        for (int64_t row = edge(w, part, SIZES[kind]); row < to; row++)                            \
            if (whole_row(w, row, kind)) note_fault(&w->fault, row);                               \
    }
ROWS_OF(rows_f32, F32)
ROWS_OF(rows_bf16, BF16)
ROWS_OF(rows_i8, I8)

/* x in int8: the largest of 64 columns becomes 127. Not finite: the scale is NaN, and so is y. */
static void round_inputs(const float *x, int8_t *q, float *steps, int32_t *shift, int64_t n) {
    for (int64_t j = 0; j < n; j += BLOCK) {
        uint32_t bits[BLOCK], largest = 0; /* sizes are in the order of their bits */
        memcpy(bits, x + j, sizeof bits);
        for (int i = 0; i < BLOCK; i++) {
            const uint32_t size = bits[i] & 0x7fffffffu;
            largest = size > largest ? size : largest;
        }
        float step;
        memcpy(&step, &largest, 4);
        step /= 127.0f;
        const int finite = largest < 0x7f800000u;
        steps[j / BLOCK] = finite ? step : NAN;
        if (!finite || !(step > 0)) {
            memset(q + j, 0, BLOCK);
            memset(shift + j / 4, 0, BLOCK);
            continue;
        }
        for (int i = 0; i < BLOCK; i++) q[j + i] = (int8_t)(int32_t)nearbyintf(x[j + i] / step);
        for (int i = 0; i < BLOCK; i += 4)
            shift[(j + i) / 4] = -128 * (q[j + i] + q[j + i + 1] + q[j + i + 2] + q[j + i + 3]);
    }
}

/* x with zeros up to whole blocks, each 32 of bfloat16's even columns first; what is finite in it. */
static void lay_out(const job *w, float *x, uint8_t *finite, int turned) {
    for (int64_t b = 0; b < w->batch; b++) {
        const float *from = w->given + b * w->cols;
        float *to = x + b * w->padded;
        uint32_t strange = 0;
        memcpy(to, from, (size_t)w->cols * 4);
        memset(to + w->cols, 0, (size_t)(w->padded - w->cols) * 4);
        for (int64_t j = 0; j < w->cols; j++) {
            uint32_t bits;
            memcpy(&bits, from + j, 4);
            strange |= (bits & 0x7f800000u) == 0x7f800000u; /* NaN and infinity */
        }
        finite[b] = !strange;
        for (int64_t j = 0; turned && j < w->padded; j += 32) {
            float order[32];
            for (int i = 0; i < 32; i++) order[(i & 1) * 16 + i / 2] = to[j + i];
            memcpy(to + j, order, sizeof order);
        }
    }
}

static int64_t multiply(job *w, int kind, int threads) {
    w->stride = (w->cols + 7) / 8;
    w->padded = (w->cols + BLOCK - 1) / BLOCK * BLOCK;
    const int64_t numbers = w->batch * w->padded;
    char *room = NULL;
    /* x 4, or shift 1, q 1, steps 1/16 bytes a number, and a flag a row; aligned to 64 */
    const int64_t bytes = (numbers * 4 + w->batch + 127) / 64 * 64;
    if (posix_memalign((void **)&room, 64, (size_t)bytes)) return OUT_OF_MEMORY;
    float *x = (float *)room;
    uint8_t *finite = (uint8_t *)(room + numbers * 4);
    lay_out(w, x, finite, WIDE && kind == BF16);
    w->x = x, w->finite = finite;
    char *rounded = NULL;
    if (kind == I8) {
        if (posix_memalign((void **)&rounded, 64, (size_t)(numbers * 2 + numbers / 16 + 64))) {
            free(room);
            return OUT_OF_MEMORY;
        }
        int32_t *shift = (int32_t *)rounded;
        int8_t *q = (int8_t *)(rounded + numbers);
        float *steps = (float *)(rounded + 2 * numbers);
        round_inputs(x, q, steps, shift, numbers);
        w->q = q, w->steps = steps, w->shift = shift;
    }
    w->parts = parts_of(w->kept * SIZES[kind] + w->rows * (w->stride + 8), threads);
    static const intarsia_part runs[] = {rows_f32, rows_bf16, rows_i8};
    intarsia_parallel(runs[kind], w, w->parts, threads);
    free(room);
    free(rounded);
    return w->fault;
}

INTARSIA_API int64_t bitmask_linear(int kind, const float *x, float *y, const uint8_t *bits,
                                    const void *values, const int64_t *offsets,
                                    const float *scales, int64_t kept, int64_t rows, int64_t cols,
                                    int64_t batch, int threads) {
    job w = {.given = x, .y = y, .bits = bits, .values = kept ? values : nothing, .offsets = offsets, .scales = scales,
             .kept = kept, .rows = rows, .cols = cols, .batch = batch};
    return multiply(&w, kind, threads);
}

/* ---- the weight itself: (rows, cols), bfloat16 of bfloat16 and float32 of the others */
ALWAYS void decode_x64(char *out, uint64_t mask, const char *p, float scale, const int kind) {
#if WIDE
    if (kind == BF16) {
        const uint16_t *h = (const uint16_t *)p;
        for (int k = 0; k < 2; k++, mask >>= 32, out += 64) {
            _mm512_storeu_si512(out, _mm512_maskz_expand_epi16((__mmask32)mask, _mm512_loadu_si512(h)));
            h += __builtin_popcount((uint32_t)mask);
        }
    } else if (kind == F32) {
        const float *f = (const float *)p;
        for (int k = 0; k < 4; k++, mask >>= 16, out += 64) {
            _mm512_storeu_ps(out, _mm512_maskz_expand_ps((__mmask16)mask, _mm512_loadu_ps(f)));
            f += __builtin_popcount((uint16_t)mask);
        }
    } else {
        int8_t bytes[BLOCK] __attribute__((aligned(64)));
        _mm512_store_si512(bytes, _mm512_maskz_expand_epi8(mask, _mm512_loadu_si512(p)));
        for (int k = 0; k < 4; k++, out += 64) {
            const __m512i wide = _mm512_cvtepi8_epi32(_mm_load_si128((const __m128i *)bytes + k));
            _mm512_storeu_ps(out, _mm512_mul_ps(_mm512_cvtepi32_ps(wide), _mm512_set1_ps(scale)));
        }
    }
#else
    memset(out, 0, BLOCK * (kind == BF16 ? 2 : 4));
    for (int64_t i = 0; mask; i++, mask &= mask - 1) {
        const int at = __builtin_ctzll(mask);
        if (kind == BF16) ((uint16_t *)out)[at] = ((const uint16_t *)p)[i];
        else if (kind == F32) ((float *)out)[at] = ((const float *)p)[i];
        else ((float *)out)[at] = scale * (float)((const int8_t *)p)[i];
    }
#endif
}

ALWAYS int decode_row(const job *w, int64_t row, const int kind) {
    const int64_t size = SIZES[kind], wide = kind == BF16 ? 2 : 4;
    const float scale = kind == I8 ? w->scales[row] : 1;
    char *out = w->out + (row - w->first) * w->cols * wide;
    const char *v = start_of(w, row, size);
    if (!v) return 1;
    for (int64_t j = 0; j < w->cols; j += BLOCK) {
        char copy[BLOCK * 4], made[BLOCK * 4];
        const uint64_t mask = mask_at(w, row, j);
        const int64_t count = __builtin_popcountll(mask), left = w->cols - j;
        const char *p = room(w, v, count, size, copy);
        if (!p) return 1;
        if (left >= BLOCK) {
            decode_x64(out + j * wide, mask, p, scale, kind);
        } else {
            decode_x64(made, mask, p, scale, kind);
            memcpy(out + j * wide, made, (size_t)(left * wide));
        }
        v += count * size;
    }
    return !ends_well(w, row, v, size);
}

#define DECODE_OF(name, kind)                                                                      \
    static void name(void *context, int64_t part) {                                                \
        job *w = context;                                                                          \
        const int64_t to = w->first + w->count * (part + 1) / w->parts;                            \
        for (int64_t row = w->first + w->count * part / w->parts; row < to; row++)                 \
            if (decode_row(w, row, kind)) note_fault(&w->fault, row);                              \
    }
DECODE_OF(decode_f32, F32)
DECODE_OF(decode_bf16, BF16)
DECODE_OF(decode_i8, I8)

/* out: (count, cols), of rows first ... first + count - 1. */
INTARSIA_API int64_t bitmask_decode(int kind, void *out, const uint8_t *bits, const void *values,
                                    const int64_t *offsets, const float *scales, int64_t kept,
                                    int64_t rows, int64_t cols, int64_t first, int64_t count,
                                    int threads) {
    job w = {.bits = bits, .values = kept ? values : nothing, .offsets = offsets, .scales = scales,
             .kept = kept, .rows = rows, .cols = cols, .out = out, .stride = (cols + 7) / 8,
             .first = first, .count = count};
    w.parts = parts_of(count * cols * 2, threads);
    static const intarsia_part runs[] = {decode_f32, decode_bf16, decode_i8};
    intarsia_parallel(runs[kind], &w, w.parts, threads);
    return w.fault;
}
