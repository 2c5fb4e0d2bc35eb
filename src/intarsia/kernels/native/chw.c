/* Convolutional nets at batch 1, channels first: sparse 1x1 convolutions and what stands between.
 *
 * A map is (channels, pitch) float32: each channel's pixels row by row, padded to a multiple of 16
 * floats. A program is a table of steps; intarsia_chw_run carries out some of them, so that a net of
 * a hundred layers pays for one call. The table is made and checked by chw/native.py: pointers and
 * offsets in it are trusted. Steps on codes are in chw_codes.c.
 * Source: Fast Sparse ConvNets (arXiv:1911.09723); row blocks of SparseByteNN (arXiv:2310.19509). */
#include "chw.h"

/* y = act2(act(y) + other) for so many vectors */
static void finish(float *y, const float *other, int64_t vectors, int64_t act, int64_t act2) {
    for (int64_t i = 0; i < vectors; i++, y += V) {
        vf x = activated(load(y), act);
        if (other) x = activated(x + load(other + i * V), act2);
        store(y, x);
    }
}

/* ------------------------------------------------------------- 1x1 convolutions: sparse x dense */
#define R 1
#define T 1
#include "chw_tile.h"
#define R 1
#define T 2
#include "chw_tile.h"
#define R 1
#define T 3
#include "chw_tile.h"
#define R 1
#define T 4
#include "chw_tile.h"
#define R 2
#define T 1
#include "chw_tile.h"
#define R 2
#define T 2
#include "chw_tile.h"
#define R 2
#define T 3
#include "chw_tile.h"
#define R 2
#define T 4
#include "chw_tile.h"
#define R 4
#define T 1
#include "chw_tile.h"
#define R 4
#define T 2
#include "chw_tile.h"
#define R 4
#define T 3
#include "chw_tile.h"
#define R 8
#define T 1
#include "chw_tile.h"
#if V == 16 /* 32 registers; half of a vector takes half as long, or no longer */
typedef float vh __attribute__((vector_size(32)));
ALWAYS vh load_half(const float *p) {
    vh x;
    memcpy(&x, p, sizeof x);
    return x;
}
ALWAYS vh splat_half(float x) { return x - (vh){}; }
ALWAYS vh low_half(vf x) { return (vh)_mm512_castps512_ps256((__m512)x); }
ALWAYS vf of_half(vh x) { return (vf)_mm512_castps256_ps512((__m256)x); }
#define R 1
#define T 5
#include "chw_tile.h"
#define R 1
#define T 6
#include "chw_tile.h"
#define R 1
#define T 7
#include "chw_tile.h"
#define R 1
#define T 8
#include "chw_tile.h"
#define R 1
#define T 2
#define HALF
#include "chw_tile.h"
#define R 1
#define T 3
#define HALF
#include "chw_tile.h"
#define R 1
#define T 4
#define HALF
#include "chw_tile.h"
#define R 1
#define T 5
#define HALF
#include "chw_tile.h"
#define R 1
#define T 6
#define HALF
#include "chw_tile.h"
#define R 1
#define T 7
#define HALF
#include "chw_tile.h"
#define R 1
#define T 8
#define HALF
#include "chw_tile.h"
#define R 2
#define T 5
#include "chw_tile.h"
#define R 2
#define T 6
#include "chw_tile.h"
#define R 2
#define T 7
#include "chw_tile.h"
#define R 2
#define T 8
#include "chw_tile.h"
#define R 2
#define T 2
#define HALF
#include "chw_tile.h"
#define R 2
#define T 3
#define HALF
#include "chw_tile.h"
#define R 2
#define T 4
#define HALF
#include "chw_tile.h"
#define R 2
#define T 5
#define HALF
#include "chw_tile.h"
#define R 2
#define T 6
#define HALF
#include "chw_tile.h"
#define R 2
#define T 7
#define HALF
#include "chw_tile.h"
#define R 2
#define T 8
#define HALF
#include "chw_tile.h"
#define R 4
#define T 4
#include "chw_tile.h"
#define R 4
#define T 5
#include "chw_tile.h"
#define R 4
#define T 6
#include "chw_tile.h"
#define R 4
#define T 2
#define HALF
#include "chw_tile.h"
#define R 4
#define T 3
#define HALF
#include "chw_tile.h"
#define R 4
#define T 4
#define HALF
#include "chw_tile.h"
#define R 4
#define T 5
#define HALF
#include "chw_tile.h"
#define R 4
#define T 6
#define HALF
#include "chw_tile.h"
#define R 8
#define T 2
#include "chw_tile.h"
#define R 8
#define T 3
#include "chw_tile.h"
#define R 8
#define T 2
#define HALF
#include "chw_tile.h"
#define R 8
#define T 3
#define HALF
#include "chw_tile.h"
#endif

typedef void (*tile)(const struct step *, int64_t, int64_t, int64_t);
#if V == 16
static const tile one[] = {spmm_1_1, spmm_1_2, spmm_1_3, spmm_1_4,
                           spmm_1_5, spmm_1_6, spmm_1_7, spmm_1_8};
static const tile two[] = {spmm_2_1, spmm_2_2, spmm_2_3, spmm_2_4,
                           spmm_2_5, spmm_2_6, spmm_2_7, spmm_2_8};
static const tile four[] = {spmm_4_1, spmm_4_2, spmm_4_3, spmm_4_4, spmm_4_5, spmm_4_6};
static const tile eight[] = {spmm_8_1, spmm_8_2, spmm_8_3};
static const tile one_half[] = {spmm_1_1, half_1_2, half_1_3, half_1_4,
                                half_1_5, half_1_6, half_1_7, half_1_8};
static const tile two_half[] = {spmm_2_1, half_2_2, half_2_3, half_2_4,
                                half_2_5, half_2_6, half_2_7, half_2_8};
static const tile four_half[] = {spmm_4_1, half_4_2, half_4_3, half_4_4, half_4_5, half_4_6};
static const tile eight_half[] = {spmm_8_1, half_8_2, half_8_3};
#else
static const tile one[] = {spmm_1_1, spmm_1_2, spmm_1_3, spmm_1_4};
static const tile two[] = {spmm_2_1, spmm_2_2, spmm_2_3, spmm_2_4};
static const tile four[] = {spmm_4_1, spmm_4_2, spmm_4_3};
static const tile eight[] = {spmm_8_1};
#endif
enum { FOURS = V == 16 ? 6 : V == 8 ? 2 : 3 }; /* 4 x 3 sums do not fit into the 16 registers of AVX2 */

/* ------------------------------------------------------ work, cut so that threads do not change it */
struct job {
    const struct step *s;
    int64_t parts, chunks, vectors, tiles, room;
};

ALWAYS int64_t widest(int64_t rows) {
    return rows == 1   ? (int64_t)(sizeof(one) / sizeof(*one))
           : rows == 2 ? (int64_t)(sizeof(two) / sizeof(*two))
           : rows == 4 ? FOURS
                       : (int64_t)(sizeof(eight) / sizeof(*eight));
}

static void spmm_part(void *context, int64_t part) {
    const struct job *j = context;
    const struct step *s = j->s;
    const tile *of = s->rows == 1 ? one : s->rows == 2 ? two : s->rows == 4 ? four : eight;
    const int64_t i = part / j->chunks, chunk = part % j->chunks;
    const int64_t blocks = (s->co + s->rows - 1) / s->rows;
    const int64_t least = j->vectors / j->tiles, more = j->vectors % j->tiles;
    const int64_t first = i * least + (i < more ? i : more); /* tiles of one size, or one less */
#if V == 16
    const int64_t pixels = s->h * s->w;
    if (i == j->tiles - 1 && (pixels - 1) % V < V / 2)
        of = s->rows == 1   ? one_half
             : s->rows == 2 ? two_half
             : s->rows == 4 ? four_half
                            : eight_half;
#endif
    of[least + (i < more) - 1](s, first * V, blocks * chunk / j->chunks,
                               blocks * (chunk + 1) / j->chunks);
}

static void spmm(const struct step *s, int threads) {
    const int64_t most = widest(s->rows), vectors = s->pitch_out / V;
    struct job j = {.s = s, .vectors = vectors, .tiles = (vectors + most - 1) / most};
    j.chunks = threads > 1 && j.tiles < 4 * threads ? threads : 1;
    intarsia_parallel(spmm_part, &j, j.tiles * j.chunks, threads);
}

/* ------------------------------------------------------------------ k x k: on planes with margins */
/* A plane has (ho - 1) stride + k rows. Each row is split by column modulo stride into parts of
 * `part` floats, so that a tap reads neighbours at any stride. */
/* SLACK: vectors may read beyond the last row of a plane. SMALL: floats of small planes together. */
enum { SLACK = 128, SMALL = 4096, BATCH = 8, STRIDES = 4 };
struct plane {
    int64_t high, part, size, gap;
    int64_t first[STRIDES], start[STRIDES], count[STRIDES]; /* of the columns of each part */
};

static struct plane plane_of(const struct step *s) {
    const int64_t wide = (s->wo - 1) * s->stride + s->k;
    struct plane p = {.high = (s->ho - 1) * s->stride + s->k};
    p.part = (wide + s->stride - 1) / s->stride;
    p.gap = s->stride * s->stride * p.part; /* from an output row to the next */
    p.size = p.high * s->stride * p.part;
    for (int64_t i = 0; i < s->stride; i++) { /* column first + stride n of the picture is start + n */
        p.first[i] = ((i - s->left) % s->stride + s->stride) % s->stride;
        p.start[i] = (p.first[i] + s->left) / s->stride;
        p.count[i] = (s->w - p.first[i] + s->stride - 1) / s->stride;
        if (p.count[i] > p.part - p.start[i]) p.count[i] = p.part - p.start[i];
        if (p.count[i] < 0) p.count[i] = 0;
    }
    return p;
}

/* to[i] = in[stride i] for i < n; nothing beyond is read or written. */
ALWAYS void gather(float *to, const float *in, const int64_t stride, int64_t n) {
    int64_t i = 0;
#if defined(__AVX512F__)
    if (stride == 1) {
        for (; i + 16 <= n; i += 16) _mm512_storeu_ps(to + i, _mm512_loadu_ps(in + i));
        const __mmask16 some = first_of(n - i);
        _mm512_mask_storeu_ps(to + i, some, _mm512_maskz_loadu_ps(some, in + i));
        return;
    }
    if (stride == 2) {
        const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
        for (; i + 16 < n; i += 16)
            _mm512_storeu_ps(to + i, _mm512_permutex2var_ps(_mm512_loadu_ps(in + 2 * i), even,
                                                            _mm512_loadu_ps(in + 2 * i + 16)));
        const int64_t left = 2 * (n - i) - 1; /* floats to the last one wanted */
        if (left < 0) return;
        const __m512 a = _mm512_maskz_loadu_ps(first_of(left), in + 2 * i);
        const __m512 b = _mm512_maskz_loadu_ps(left > 16 ? first_of(left - 16) : 0, in + 2 * i + 16);
        _mm512_mask_storeu_ps(to + i, first_of(n - i), _mm512_permutex2var_ps(a, even, b));
        return;
    }
#endif
    for (; i < n; i++) to[i] = in[stride * i];
}

/* Rows from ... of the picture with its zeros, into `rows` lines whose margins are 0 already. */
static void spread(const struct step *s, const struct plane *p, const float *src, float *lines,
                   int64_t from, int64_t rows) {
    const int64_t stride = s->stride, h = s->h, w = s->w, part = p->part;
    int64_t row = from - s->top;
    float *line = lines;
    for (int64_t j = 0; j < rows; j++, row++, line += stride * part) {
        const float *in = src + row * w;
        if (row < 0 || row >= h)
            memset(line, 0, 4 * stride * part);
        else if (stride == 1)
            gather(line + p->start[0], in, 1, p->count[0]);
        else if (stride == 2)
            for (int64_t i = 0; i < 2; i++)
                gather(line + i * part + p->start[i], in + p->first[i], 2, p->count[i]);
        else
            for (int64_t i = 0; i < stride; i++)
                gather(line + i * part + p->start[i], in + p->first[i], stride, p->count[i]);
    }
}

/* Vectors are stored whole; what goes beyond a row is written again by the next one, since rows come
 * in order and the vectors of a row from right to left. room: floats left in the channel. */
static __attribute__((noinline)) void put_some(float *to, vf y, int64_t room) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(to, first_of(room), (__m512)y);
#else
    memcpy(to, &y, 4 * room);
#endif
}
ALWAYS void put(float *to, vf y, int64_t room) { /* short, so that loops around it are unrolled */
    if (room < V) put_some(to, y, room);
    else store(to, y);
}

/* Numbers of a row, or their codes, of the output channel c from the pixel `at` on. */
ALWAYS void emit(const struct step *s, int64_t c, int64_t at, vf y, int64_t room) {
    if (s->codes & DST8) {
        const float *rule = (const float *)(intptr_t)s->rule;
        uint8_t *to = (uint8_t *)(intptr_t)s->dst + c * s->pitch_out + at;
#if VNNI
        const __m128i codes = coded((__m512)y, rule);
        if (room < V) _mm_mask_storeu_epi8(to, first_of(room), codes);
        else _mm_storeu_si128((__m128i *)to, codes);
#else
        for (int64_t i = 0; i < V && i < room; i++) to[i] = code_of(y[i], rule);
#endif
        return;
    }
    put((float *)(intptr_t)s->dst + c * s->pitch_out + at, y, room);
}

enum { ROWS = 7, FEWER = 4 }; /* output rows that are computed together */
#if defined(__AVX512F__) && defined(__AVX512VL__)
#define STRAIGHT 1 /* 3 x 3 and 5 x 5 by chw_depth.h, without planes */
#else
#define STRAIGHT 0
#endif

#if !STRAIGHT
/* `rows` output rows from y on of channel c. A row of the picture is read once for all of them: it
 * is row j of the lines, and a tap dy of the output row (j - dy) / stride. */
ALWAYS void depthwise_rows(const struct step *s, const struct plane *p, const float *lines, int64_t c,
                           int64_t y, const int rows, const int k, const int stride) {
    const float *w = (const float *)(intptr_t)s->val + c * k * k;
    const float bias = ((const float *)(intptr_t)s->bias)[c];
    float *dst = (float *)(intptr_t)s->dst + c * s->pitch_out;
    const vf low = splat(lowest(s->act)), high = splat(highest(s->act));
    const int64_t step = stride * p->part;
    for (int64_t i = (s->wo - 1) / V; i >= 0; i--) {
        vf sum[ROWS];
        UNROLL for (int r = 0; r < rows; r++) sum[r] = splat(bias);
        for (int x = 0; x < k; x++) {
            const float *in = lines + x % stride * p->part + x / stride + i * V;
            UNROLL for (int j = 0; j < (rows - 1) * stride + k; j++) {
                const vf one = load(in + j * step);
                UNROLL for (int dy = 0; dy < k; dy++)
                    if (j >= dy && (j - dy) % stride == 0 && (j - dy) / stride < rows)
                        sum[(j - dy) / stride] += one * w[dy * k + x];
            }
        }
        UNROLL for (int r = 0; r < rows; r++) {
            const int64_t at = (y + r) * s->wo + i * V;
            put(dst + at, s->act > RELU6 ? activated(sum[r], s->act) : limited(sum[r], low, high),
                s->ho * s->wo - at);
        }
    }
}

#define GROUP(ROWS_, K, S)                                                                         \
    static void depthwise_##ROWS_##_##K##_##S(const struct step *s, const struct plane *p,         \
                                              const float *lines, int64_t c, int64_t y) {          \
        depthwise_rows(s, p, lines, c, y, ROWS_, K, S);                                            \
    }
GROUP(7, 3, 1) GROUP(4, 3, 1) GROUP(1, 3, 1) GROUP(7, 3, 2) GROUP(4, 3, 2) GROUP(1, 3, 2)
GROUP(7, 5, 1) GROUP(4, 5, 1) GROUP(1, 5, 1) GROUP(7, 5, 2) GROUP(4, 5, 2) GROUP(1, 5, 2)
#endif

/* Of any kernel and stride: a row at a time. */
static void depthwise_any(const struct step *s, const struct plane *p, const float *lines, int64_t c,
                          int64_t y) {
    const float *w = (const float *)(intptr_t)s->val + c * s->k * s->k;
    float *dst = (float *)(intptr_t)s->dst + c * s->pitch_out;
    for (int64_t i = (s->wo - 1) / V; i >= 0; i--) {
        vf sum = splat(((const float *)(intptr_t)s->bias)[c]);
        for (int64_t x = 0; x < s->k; x++)
            for (int64_t dy = 0; dy < s->k; dy++) {
                const int64_t at = (dy * s->stride + x % s->stride) * p->part + x / s->stride;
                sum += load(lines + at + i * V) * w[dy * s->k + x];
            }
        const int64_t at = y * s->wo + i * V;
        put(dst + at, activated(sum, s->act), s->ho * s->wo - at);
    }
}

#if !STRAIGHT
typedef void (*group)(const struct step *, const struct plane *, const float *, int64_t, int64_t);
static const group groups[2][2][3] = {
    {{depthwise_7_3_1, depthwise_4_3_1, depthwise_1_3_1},
     {depthwise_7_3_2, depthwise_4_3_2, depthwise_1_3_2}},
    {{depthwise_7_5_1, depthwise_4_5_1, depthwise_1_5_1},
     {depthwise_7_5_2, depthwise_4_5_2, depthwise_1_5_2}},
};
#endif

/* Small planes are filled, a few at a time, before the first is read: a vector cannot be read from
 * stores that are still on their way. Of large ones only the lines of a group of rows are. */
static int64_t together(const struct plane *p) {
    const int64_t many = SMALL / (p->size + SLACK);
    return many < BATCH ? many : BATCH; /* 0 = line by line */
}

static int64_t room_of(const struct step *s, const struct plane *p) { /* of a thread, in floats */
    if (s->kind == CONV) return s->ci * (p->size + SLACK);
    return p->size + SLACK < SMALL ? SMALL : p->size + SLACK;
}

/* Floats of scratch that a k x k step needs for a thread. */
INTARSIA_API int64_t intarsia_chw_scratch(int64_t kind, int64_t ci, int64_t ho, int64_t wo, int64_t k,
                                          int64_t stride) {
    const struct step s = {.kind = kind, .ci = ci, .ho = ho, .wo = wo, .k = k, .stride = stride};
    const struct plane p = plane_of(&s);
    return room_of(&s, &p);
}

ALWAYS const float *source(const struct step *s, int64_t c) {
    return (const float *)(intptr_t)s->src + c * s->pitch_in;
}

ALWAYS int fast(const struct step *s) { return (s->k == 3 || s->k == 5) && s->stride < 3; }

#if STRAIGHT
ALWAYS void keep_16(float *to, vf y) { _mm512_storeu_ps(to, (__m512)y); }
ALWAYS void keep_8(float *to, vf y) { _mm256_storeu_ps(to, _mm512_castps512_ps256((__m512)y)); }
typedef void (*direct)(const struct step *, const uint16_t *, int64_t, int64_t, int64_t);
#define LANES 16
#include "chw_depth.h"
#define LANES 8
#include "chw_depth.h"

enum { MASKS = 6 }; /* of 16 columns */

/* Which lanes are inside the picture: of stride 1 for each tap dx; of stride 2 for the two vectors
 * from which taps dx and dx + 1 come, for even dx. */
static void masks_of(const struct step *s, uint16_t *masks, int64_t x, int lanes) {
    for (int64_t n = 0; n < MASKS; n++) {
        const int64_t behind = s->stride == 2 ? n / 2 * 2 + n % 2 * lanes : n;
        const int64_t from = x * s->stride - s->left + behind; /* column of the first lane */
        const int64_t low = from < 0 ? -from : 0, high = s->w - from < 16 ? s->w - from : 16;
        masks[n] = (uint16_t)(low < high ? (1u << high) - (1u << low) : 0);
    }
}

/* Vectors are stored whole: what goes beyond a row is written again by the next one. */
static void direct_part(void *context, int64_t part) {
    const struct job *j = context;
    const struct step *s = j->s;
    const int64_t vectors = (s->wo + 15) / 16, most = s->ho % ROWS ? FEWER : ROWS;
    const int narrow = s->wo - 16 * (vectors - 1) <= 8; /* the last one */
    uint16_t *masks = (uint16_t *)((float *)(intptr_t)s->scratch + part * j->room);
    for (int64_t i = 0; i < vectors; i++)
        masks_of(s, masks + MASKS * i, 16 * i, narrow && i == vectors - 1 ? 8 : 16);
    for (int64_t c = s->co * part / j->parts; c < s->co * (part + 1) / j->parts; c++)
        for (int64_t y = 0, rows; y < s->ho; y += rows) {
            rows = y + most <= s->ho ? most : 1;
            const int kind = rows == ROWS ? 0 : rows == FEWER ? 1 : 2;
            for (int64_t i = vectors - 1; i >= 0; i--)
                (narrow && i == vectors - 1 ? directs_8 : directs_16)[s->k == 5][s->stride == 2][kind](
                    s, masks + MASKS * i, c, y, 16 * i);
        }
}
#endif

static void depthwise_part(void *context, int64_t part) {
    const struct job *j = context;
    const struct step *s = j->s;
    const struct plane p = plane_of(s);
    const int64_t size = p.size + SLACK, end = s->co * (part + 1) / j->parts;
    const int64_t many = together(&p);
    float *planes = (float *)(intptr_t)s->scratch + part * room_of(s, &p);
#if STRAIGHT
    const int known = 0;
#else
    const int known = fast(s);
    const group *of = groups[s->k == 5][s->stride == 2];
#endif
    const int64_t most = s->ho % ROWS ? FEWER : ROWS;
    const int64_t inside = s->h < p.high - s->top ? s->h : p.high - s->top;
    const int64_t rise = most < s->ho ? most : s->ho; /* output rows whose lines are there at once */
    memset(planes, 0, 4 * (many ? many * size
                                : ((rise - 1) * s->stride + s->k) * s->stride * p.part + SLACK));
    for (int64_t c = s->co * part / j->parts; c < end; c += many ? many : 1) {
        const int64_t last = !many ? c + 1 : c + many < end ? c + many : end;
        for (int64_t i = c; many && i < last; i++)
            spread(s, &p, source(s, i), planes + (i - c) * size + s->top * s->stride * p.part, s->top,
                   inside);
        for (int64_t i = c; i < last; i++)
            for (int64_t y = 0, rows; y < s->ho; y += rows) {
                rows = known && y + most <= s->ho ? most : 1;
                const float *lines = many ? planes + (i - c) * size + y * p.gap : planes;
                if (!many)
                    spread(s, &p, source(s, i), planes, y * s->stride, (rows - 1) * s->stride + s->k);
#if !STRAIGHT
                if (known) of[rows == ROWS ? 0 : rows == FEWER ? 1 : 2](s, &p, lines, i, y);
                else
#endif
                    depthwise_any(s, &p, lines, i, y);
            }
    }
}

/* Rows from ... to - 1 of a block of `rows` outputs that keeps whole kernels of some inputs: ptr, off
 * (input channels), val (kept, taps, rows). A stem keeps all. lines: of each input, from row `from`
 * stride on; those of the next input begin `size` floats behind. */
ALWAYS void conv_block(const struct step *s, const struct plane *p, const float *lines, int64_t size,
                       int64_t from, int64_t to, int64_t b, const int rows) {
    const int32_t *ptr = (const int32_t *)(intptr_t)s->ptr, *off = (const int32_t *)(intptr_t)s->off;
    const float *bias = (const float *)(intptr_t)s->bias + b * rows;
    const vf low = splat(lowest(s->act)), high = splat(highest(s->act));
    for (int64_t y = from; y < to; y++)
        for (int64_t i = (s->wo - 1) / V; i >= 0; i -= 2) { /* the vectors i and i - 1 */
            const int64_t before = i ? V : 0, at = y * s->wo + i * V;
            const float *w = (const float *)(intptr_t)s->val + (int64_t)ptr[b] * s->k * s->k * rows;
            vf sum[8], more[8];
            UNROLL for (int r = 0; r < rows; r++) sum[r] = more[r] = splat(bias[r]);
            for (int32_t n = ptr[b]; n < ptr[b + 1]; n++)
                for (int64_t dy = 0; dy < s->k; dy++) {
                    const float *line = lines + off[n] * size + (y - from) * p->gap +
                                        dy * s->stride * p->part + i * V;
                    for (int64_t dx = 0; dx < s->k; dx++, w += rows) {
                        const float *x = line + dx % s->stride * p->part + dx / s->stride;
                        const vf right = load(x), left = load(x - before);
                        UNROLL for (int r = 0; r < rows; r++) {
                            sum[r] += right * w[r];
                            more[r] += left * w[r];
                        }
                    }
                }
            UNROLL for (int r = 0; r < rows; r++) {
                if (b * rows + r >= s->co) continue;
                const int64_t c = b * rows + r;
                const int bent = s->act > RELU6;
                /* not into row `to`: another thread may have written it */
                emit(s, c, at, bent ? activated(sum[r], s->act) : limited(sum[r], low, high),
                     to * s->wo - at);
                if (i)
                    emit(s, c, at - V, bent ? activated(more[r], s->act) : limited(more[r], low, high),
                         V);
            }
        }
}

enum { STRIP = 12288 }; /* floats of all inputs' lines that are read again for each block */

static void conv_part(void *context, int64_t part) {
    const struct job *j = context;
    const struct step *s = j->s;
    const struct plane p = plane_of(s);
    float *lines = (float *)(intptr_t)s->scratch + part * room_of(s, &p);
    const int64_t begin = s->ho * part / j->parts, end = s->ho * (part + 1) / j->parts;
    int64_t high = STRIP / (s->ci * p.gap);
    high = high < 1 ? 1 : high > end - begin ? end - begin : high;
    const int64_t need = ((high - 1) * s->stride + s->k) * s->stride * p.part, size = need + SLACK;
    if (end <= begin) return;
    memset(lines, 0, 4 * s->ci * size);
    for (int64_t y = begin; y < end; y += high) {
        const int64_t to = y + high < end ? y + high : end;
        for (int64_t c = 0; c < s->ci; c++)
            spread(s, &p, source(s, c), lines + c * size, y * s->stride,
                   (to - y - 1) * s->stride + s->k);
        for (int64_t b = 0; b * s->rows < s->co; b++) switch (s->rows) {
            case 1: conv_block(s, &p, lines, size, y, to, b, 1); break;
            case 2: conv_block(s, &p, lines, size, y, to, b, 2); break;
            case 4: conv_block(s, &p, lines, size, y, to, b, 4); break;
            default: conv_block(s, &p, lines, size, y, to, b, 8); break;
            }
    }
}

static void convolve(const struct step *s, int threads) {
    struct job j = {.s = s, .parts = threads};
    intarsia_part run = s->kind == CONV ? conv_part : depthwise_part;
#if STRAIGHT
    const struct plane p = plane_of(s);
    j.room = room_of(s, &p);
    if (s->kind == DEPTHWISE && fast(s)) run = direct_part;
#endif
    intarsia_parallel(run, &j, j.parts, threads);
    if (s->kind == CONV && s->other) /* its own activation is behind it already */
        finish((float *)(intptr_t)s->dst, (const float *)(intptr_t)s->other, s->co * s->pitch_out / V, NONE,
               s->act2);
}

/* ------------------------------------------------------------------------ vectors, and elementwise */
static void linear_part(void *context, int64_t part) { /* y = act(b + W x), W (co, ci) */
    const struct job *j = context;
    const struct step *s = j->s;
    const float *x = (const float *)(intptr_t)s->src, *bias = (const float *)(intptr_t)s->bias;
    for (int64_t o = s->co * part / j->parts; o < s->co * (part + 1) / j->parts; o++) {
        const float *w = (const float *)(intptr_t)s->val + o * s->ci;
        vf a = splat(0), b = a, c = a, d = a;
        int64_t i = 0;
        for (; i + 4 * V <= s->ci; i += 4 * V) {
            a += load(w + i) * load(x + i);
            b += load(w + i + V) * load(x + i + V);
            c += load(w + i + 2 * V) * load(x + i + 2 * V);
            d += load(w + i + 3 * V) * load(x + i + 3 * V);
        }
        for (; i + V <= s->ci; i += V) a += load(w + i) * load(x + i);
        float sum = total((a + b) + (c + d));
        for (; i < s->ci; i++) sum += w[i] * x[i];
        keep_number(s, o, bias[o] + sum);
    }
}

static void pool(const struct step *s) { /* the mean of each channel */
    const int64_t n = s->h * s->w;
    for (int64_t c = 0; c < s->co; c++) {
        const float *x = (const float *)(intptr_t)s->src + c * s->pitch_in;
        vf a = splat(0), b = a;
        int64_t i = 0;
        for (; i + 2 * V <= n; i += 2 * V) a += load(x + i), b += load(x + i + V);
        for (; i + V <= n; i += V) a += load(x + i);
        float sum = total(a + b);
        for (; i < n; i++) sum += x[i];
        keep_number(s, c, sum / (float)n);
    }
}

static void elementwise(const struct step *s) {
    const float *x = (const float *)(intptr_t)s->src, *z = (const float *)(intptr_t)s->other;
    float *y = (float *)(intptr_t)s->dst;
    for (int64_t c = 0; c < s->co; c++)
        for (int64_t i = c * s->pitch_out; i < (c + 1) * s->pitch_out; i += V) {
            vf v = load(x + i);
            if (s->kind == ADD) v += load(z + i);
            if (s->kind == SCALE) v *= splat(z[c]);
            if (s->kind == BIAS) v += splat(((const float *)(intptr_t)s->bias)[c]);
            store(y + i, v);
        }
    const float *other = s->kind == BIAS ? z : 0;
    if (s->act || other) finish(y, other, s->co * s->pitch_out / V, s->act, s->act2);
}

/* Carry out steps first ... last - 1.  0, or 1 + the number of a step of an unknown kind. */
INTARSIA_API int64_t intarsia_chw_run(const int64_t *table, int64_t first, int64_t last,
                                      int64_t threads) {
    for (int64_t i = first; i < last; i++) {
        const struct step *s = (const struct step *)table + i;
        if (s->kind == MAX) {
            intarsia_chw_max(s, (int)threads);
            continue;
        }
        if (s->kind == ENCODE || s->codes & SRC8) {
            if (intarsia_chw_codes_step(s, (int)threads)) return i + 1;
            continue;
        }
        struct job rows = {.s = s, .parts = s->co < threads ? 1 : threads};
        switch (s->kind) {
        case SPMM: spmm(s, (int)threads); break;
        case DEPTHWISE: case CONV: convolve(s, (int)threads); break;
        case LINEAR: intarsia_parallel(linear_part, &rows, rows.parts, (int)threads); break;
        case ADD: case SCALE: case ACT: case BIAS: elementwise(s); break;
        case POOL: pool(s); break;
        default: return i + 1;
        }
    }
    return 0;
}
