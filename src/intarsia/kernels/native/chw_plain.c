/* Steps on maps in codes of 8 bits on processors without AVX-512 and VNNI: chw_codes.c says what codes are.
 *
 * Convolutions multiply the codes as numbers of 16 bits, and sum them exactly in 32; SSE2 and AVX2 have an
 * instruction for two such products. The map is copied as chw_conv.c says, also for a kernel of 1 x 1.
 * Depthwise steps compute with float32, which holds sums of codes below 2^24 exactly. */
#include "chw_codes.h"

#if !VNNI
struct job {
    const struct step *s;
    struct copy copy;
    int64_t parts, chunks, tiles, room;
};

/* ------------------------------------------------------------- four products of codes, lane by lane */
#if defined(__SSE2__)
#if defined(__AVX2__)
typedef __m256i whole;
#define DO(name) _mm256_##name
#define LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define STORE(p, x) _mm256_storeu_si256((__m256i *)(p), x)
#else
typedef __m128i whole;
#define DO(name) _mm_##name
#define LOAD(p) _mm_loadu_si128((const __m128i *)(p))
#define STORE(p, x) _mm_storeu_si128((__m128i *)(p), x)
#endif
struct fours { /* the first and third, the second and fourth of each lane, in 16 bits */
    whole even, odd;
};
ALWAYS struct fours codes_at(const uint8_t *p) {
    const whole x = LOAD(p);
    return (struct fours){DO(srli_epi16)(DO(slli_epi16)(x, 8), 8), DO(srli_epi16)(x, 8)};
}
ALWAYS struct fours weights_at(const int8_t *p) { /* the same four in each lane */
    int32_t w;
    memcpy(&w, p, 4);
    const whole x = DO(set1_epi32)(w);
    return (struct fours){DO(srai_epi16)(DO(slli_epi16)(x, 8), 8), DO(srai_epi16)(x, 8)};
}
ALWAYS whole products_of(struct fours x, struct fours w) {
    return DO(add_epi32)(DO(madd_epi16)(x.even, w.even), DO(madd_epi16)(x.odd, w.odd));
}
ALWAYS whole sum_of(whole a, whole b) { return DO(add_epi32)(a, b); }
#else
typedef int32_t whole __attribute__((vector_size(16)));
struct fours {
    whole of[4];
};
#define STORE(p, x) memcpy(p, &(x), sizeof(x))
ALWAYS struct fours codes_at(const uint8_t *p) {
    struct fours x;
    for (int t = 0; t < 4; t++) x.of[t] = (whole){p[t], p[4 + t], p[8 + t], p[12 + t]};
    return x;
}
ALWAYS struct fours weights_at(const int8_t *p) {
    struct fours w;
    for (int t = 0; t < 4; t++) w.of[t] = (whole){p[t], p[t], p[t], p[t]};
    return w;
}
ALWAYS whole products_of(struct fours x, struct fours w) {
    return (x.of[0] * w.of[0] + x.of[1] * w.of[1]) + (x.of[2] * w.of[2] + x.of[3] * w.of[3]);
}
ALWAYS whole sum_of(whole a, whole b) { return a + b; }
#endif
enum { LANES = sizeof(whole) / 4, MOST = 4 * LANES }; /* outputs of a vector, of a tile */

/* ------------------------------------------------------------------------------- what sums become */
/* n <= TILE sums of the output channel `row`, from the pixel `at` on, to codes or numbers. `sums` has
 * room for a vector more. */
static void keep(const struct step *s, float *sums, int64_t row, int64_t at, int64_t n) {
    const float *rule = numbers(s->rule), mul = numbers(s->mul)[row], bias = numbers(s->bias)[row];
    const int folded = s->codes & FOLDED;
    float y[TILE + V];
    for (int64_t i = 0; i < n; i++) y[i] = mul * sums[i] + bias;
    if (!folded && s->act)
        for (int64_t i = 0; i < n; i += V) store(y + i, activated(load(y + i), s->act));
    if (s->other && s->codes & OTHER8) { /* folded: `bias` holds what the zero adds */
        const uint8_t *z = bytes(s->other) + row * padded(s->ho * s->wo, TILE) + at;
        const float zero = folded ? 0 : rule[OTHER_ZERO], scale = rule[OTHER_SCALE];
        for (int64_t i = 0; i < n; i++) y[i] += scale * ((float)z[i] - zero);
    } else if (s->other) {
        const float *z = numbers(s->other) + row * padded(s->ho * s->wo, FEW) + at;
        for (int64_t i = 0; i < n; i++) y[i] += z[i];
    }
    if (!folded && s->other && s->act2)
        for (int64_t i = 0; i < n; i += V) store(y + i, activated(load(y + i), s->act2));
    if (!(s->codes & DST8)) {
        memcpy((float *)(intptr_t)s->dst + row * s->pitch_out + at, y, 4 * n);
        return;
    }
    const float whole_rule[] = {[PER_UNIT] = folded ? 1 : rule[PER_UNIT], [ZERO] = folded ? 0 : rule[ZERO]};
    uint8_t *dst = (uint8_t *)(intptr_t)s->dst + row * s->pitch_out + at;
    if (s->codes & LIMITED)
        for (int64_t i = 0; i < n; i++) {
            y[i] = y[i] > rule[LOW] ? y[i] : rule[LOW];
            y[i] = y[i] < rule[HIGH] ? y[i] : rule[HIGH];
        }
    for (int64_t i = 0; i < n; i++) dst[i] = code_of(y[i], whole_rule);
}

/* ------------------------------------------------------------------------- convolutions, also 1 x 1 */
/* A row of four channels into the columns of the copy that are in phase px. */
ALWAYS void copy_row(const struct step *s, const uint8_t *src, const int64_t *next, int64_t px,
                     int64_t wide, const int64_t stride, uint8_t *to) {
    const int64_t first = (s->left - px + stride - 1) / stride; /* column 0 of the picture, or behind it */
    int64_t last = (s->w - 1 + s->left - px) / stride + 1;
    last = last < wide ? last : wide;
    const uint8_t *a = src - s->left + px;
    const uint8_t *b = a + next[0], *c = a + next[1], *d = a + next[2];
    for (int64_t x = first > 0 ? first : 0; x < last; x++) {
        to[4 * x] = a[stride * x];
        to[4 * x + 1] = b[stride * x];
        to[4 * x + 2] = c[stride * x];
        to[4 * x + 3] = d[stride * x];
    }
}

static void copy_part(void *context, int64_t part) {
    const struct job *j = context;
    const struct step *s = j->s;
    const struct copy c = j->copy;
    const int64_t fours = (s->ci + 3) / 4;
    for (int64_t n = fours * part / j->parts; n < fours * (part + 1) / j->parts; n++) {
        uint8_t *out = (uint8_t *)(intptr_t)s->scratch + n * c.each;
        int64_t next[3]; /* behind the last channel weights are 0: any codes do */
        for (int64_t i = 0; i < 3; i++) next[i] = 4 * n + i + 1 < s->ci ? (i + 1) * s->pitch_in : 0;
        memset(out, (int)numbers(s->rule)[IN_ZERO], c.each);
        for (int64_t y = 0; y < s->h; y++) {
            const int64_t py = (y + s->top) % s->stride, high = (y + s->top) / s->stride * c.wide;
            if (py >= c.phases || high >= c.size) continue;
            const uint8_t *src = bytes(s->src) + 4 * n * s->pitch_in + y * s->w;
            for (int64_t px = 0; px < c.phases; px++) {
                uint8_t *to = out + 4 * ((py * c.phases + px) * c.size + high);
                if (s->stride == 1) copy_row(s, src, next, px, c.wide, 1, to);
                else copy_row(s, src, next, px, c.wide, s->stride, to);
            }
        }
    }
}

/* Sums of `count` places of a row, from the place `from` on: those that are pixels are kept. */
static void keep_places(const struct job *j, const int32_t *sums, int64_t row, int64_t from, int64_t count) {
    const struct step *s = j->s;
    float line[MOST + V];
    for (int64_t i = 0; i < count; i++) line[i] = (float)sums[i];
    for (int64_t at = from; at < from + count;) {
        const int64_t y = at / j->copy.wide, x = at % j->copy.wide, rest = from + count - at;
        if (y >= s->ho) return;
        if (x < s->wo)
            keep(s, line + at - from, row, y * s->wo + x, s->wo - x < rest ? s->wo - x : rest);
        at += j->copy.wide - x;
    }
}

/* Blocks from ... to - 1 of `rows` outputs, of `vectors` vectors from the place `at` on. */
ALWAYS void product(const struct job *j, const int32_t *taps, int64_t at, int64_t from, int64_t to,
                    const int rows, const int vectors) {
    const struct step *s = j->s;
    const int32_t *ptr = (const int32_t *)(intptr_t)s->ptr, *off = (const int32_t *)(intptr_t)s->off;
    const int64_t count = s->k * s->k;
    const int8_t *w = (const int8_t *)(intptr_t)s->val + ptr[from] * count * rows * DEEP;
    const uint8_t *map = bytes(s->scratch) + 4 * at;
    for (int64_t b = from; b < to; b++) {
        whole sums[4][4];
        memset(sums, 0, sizeof sums);
        for (int32_t n = ptr[b]; n < ptr[b + 1]; n++)
            for (int64_t tap = 0; tap < count; tap++, w += rows * DEEP) {
                const uint8_t *x = map + off[n] * j->copy.each + taps[tap];
                struct fours in[4];
                UNROLL for (int t = 0; t < vectors; t++) in[t] = codes_at(x + 4 * LANES * t);
                UNROLL for (int r = 0; r < rows; r++) {
                    const struct fours weight = weights_at(w + r * DEEP);
                    UNROLL for (int t = 0; t < vectors; t++)
                        sums[r][t] = sum_of(sums[r][t], products_of(in[t], weight));
                }
            }
        UNROLL for (int r = 0; r < rows; r++) {
            int32_t line[MOST];
            UNROLL for (int t = 0; t < vectors; t++) STORE(line + LANES * t, sums[r][t]);
            if (b * rows + r < s->co) keep_places(j, line, b * rows + r, at, vectors * LANES);
        }
    }
}

/* Vectors of a tile: with the rows they are what registers hold. */
ALWAYS int64_t vectors_of(int64_t rows) { return rows == 4 ? 2 : 4; }

static void conv_part(void *context, int64_t part) {
    const struct job *j = context;
    const struct step *s = j->s;
    const int64_t blocks = (s->co + s->rows - 1) / s->rows, chunk = part % j->chunks;
    const int64_t at = part / j->chunks * vectors_of(s->rows) * LANES;
    const int64_t from = blocks * chunk / j->chunks, to = blocks * (chunk + 1) / j->chunks;
    int32_t taps[TAPS];
    find_taps(s, &j->copy, taps);
    if (s->rows == 4) product(j, taps, at, from, to, 4, 2);
    else if (s->rows == 2) product(j, taps, at, from, to, 2, 4);
    else product(j, taps, at, from, to, 1, 4);
}

static void convolve(const struct step *s, int threads) {
    struct job j = {.s = s, .copy = copy_of(s), .parts = threads};
    const int64_t of_tile = vectors_of(s->rows) * LANES;
    intarsia_parallel(copy_part, &j, j.parts, threads);
    j.tiles = ((s->ho - 1) * j.copy.wide + s->wo + of_tile - 1) / of_tile;
    j.chunks = threads > 1 && j.tiles < 4 * threads ? threads : 1;
    intarsia_parallel(conv_part, &j, j.tiles * j.chunks, threads);
}

/* A map is one long row to a kernel of 1 x 1. */
static void spmm(const struct step *s, int threads) {
    struct step row = *s;
    row.w = row.wo = s->h * s->w;
    row.h = row.ho = row.k = row.stride = 1;
    row.top = row.left = 0;
    convolve(&row, threads);
}

/* Bytes of scratch that a 1x1 step on codes needs, for all threads. */
INTARSIA_API int64_t intarsia_chw_codes_scratch(int64_t ci, int64_t h, int64_t w, int64_t threads) {
    (void)threads;
    return (ci + 3) / 4 * 4 * h * w + SPARE;
}

/* ------------------------------------------------------------------------------- depthwise, k x k */
/* A channel's codes as numbers, with the zero around them: rows are split by column modulo stride. */
static void fill(const struct step *s, const uint8_t *src, float *plane, int64_t part) {
    const int64_t high = (s->ho - 1) * s->stride + s->k, stride = s->stride;
    for (int64_t y = 0; y < s->h && y + s->top < high; y++, src += s->w)
        for (int64_t p = 0; p < stride; p++) {
            float *to = plane + ((y + s->top) * stride + p) * part;
            const int64_t first = s->left > p ? (s->left - p + stride - 1) / stride : 0;
            int64_t last = (s->w - 1 + s->left - p) / stride + 1;
            last = s->w - 1 + s->left < p ? 0 : last < part ? last : part;
            if (stride == 1)
                for (int64_t x = first; x < last; x++) to[x] = src[x - s->left];
            else
                for (int64_t x = first; x < last; x++) to[x] = src[x * stride + p - s->left];
        }
}

static void depth_part(void *context, int64_t number) {
    const struct job *j = context;
    const struct step *s = j->s;
    const int64_t width = (s->wo - 1) * s->stride + s->k, part = (width + s->stride - 1) / s->stride;
    const int64_t of_row = padded(s->k, DEEP);
    float *plane = (float *)(intptr_t)s->scratch + number * j->room;
    for (int64_t i = 0; i < j->room; i++) plane[i] = numbers(s->rule)[IN_ZERO];
    for (int64_t c = s->co * number / j->parts; c < s->co * (number + 1) / j->parts; c++) {
        const int8_t *w = (const int8_t *)(intptr_t)s->val + c * s->k * of_row;
        fill(s, bytes(s->src) + c * s->pitch_in, plane, part);
        for (int64_t y = 0; y < s->ho; y++)
            for (int64_t from = 0; from < s->wo; from += TILE) {
                const int64_t n = s->wo - from < TILE ? s->wo - from : TILE;
                float line[TILE + V];
                for (int64_t x = 0; x < n; x += V) {
                    vf sum = splat(0);
                    for (int64_t dy = 0; dy < s->k; dy++)
                        for (int64_t dx = 0; dx < s->k; dx++)
                            sum += (float)w[dy * of_row + dx] *
                                   load(plane + ((y * s->stride + dy) * s->stride + dx % s->stride) * part +
                                        dx / s->stride + from + x);
                    store(line + x, sum);
                }
                keep(s, line, c, y * s->wo + from, n);
            }
    }
}

/* ------------------------------------------------------------------- vectors, means, and encoding */
static void linear_part(void *context, int64_t part) {
    const struct job *j = context;
    const struct step *s = j->s;
    for (int64_t o = s->co * part / j->parts; o < s->co * (part + 1) / j->parts; o++) {
        const int8_t *w = (const int8_t *)(intptr_t)s->val + o * padded(s->ci, TILE);
        const uint8_t *x = bytes(s->src);
        int32_t sum = 0;
        for (int64_t i = 0; i < s->ci; i++) sum += (int32_t)x[i] * w[i];
        keep_number(s, o, numbers(s->mul)[o] * (float)sum + numbers(s->bias)[o]);
    }
}

static void pool(const struct step *s) { /* the mean of each channel */
    const float *rule = numbers(s->rule);
    const int64_t n = s->h * s->w;
    for (int64_t c = 0; c < s->co; c++) {
        const uint8_t *x = bytes(s->src) + c * s->pitch_in;
        int64_t sum = 0;
        for (int64_t i = 0; i < n; i++) sum += x[i];
        keep_number(s, c, ((float)sum / (float)n - rule[IN_ZERO]) * rule[IN_SCALE]);
    }
}

static void encode(const struct step *s) {
    const float *rule = numbers(s->rule);
    for (int64_t c = 0; c < s->co; c++) {
        const float *x = numbers(s->src) + c * s->pitch_in;
        uint8_t *to = (uint8_t *)(intptr_t)s->dst + c * s->pitch_out;
        for (int64_t i = 0; i < s->h * s->w; i++) to[i] = code_of(x[i], rule);
    }
}

INTARSIA_API int64_t intarsia_chw_scratch(int64_t kind, int64_t ci, int64_t ho, int64_t wo, int64_t k,
                                          int64_t stride);

int intarsia_chw_codes_step(const struct step *s, int threads) {
    struct job j = {.s = s, .parts = s->co < threads ? 1 : threads};
    switch (s->kind) {
    case SPMM: spmm(s, threads); break;
    case CONV: convolve(s, threads); break;
    case DEPTHWISE:
        j.room = intarsia_chw_scratch(DEPTHWISE, s->ci, s->ho, s->wo, s->k, s->stride);
        intarsia_parallel(depth_part, &j, j.parts, threads);
        break;
    case LINEAR: intarsia_parallel(linear_part, &j, j.parts, threads); break;
    case POOL: pool(s); break;
    case ENCODE: encode(s); break;
    default: return 1;
    }
    return 0;
}
#endif
