/* Convolutions k x k on maps in codes of 8 bits: products of VNNI on a map that is not unfolded.
 *
 * The map is copied once, four channels of a pixel side by side, with the code of zero around it. It is
 * cut into phases: phase (py, px) has the rows py, py + stride, ... and the columns px, px + stride, ...,
 * so that what a tap reads for neighbouring outputs are neighbours at any stride. Phases are as wide as
 * a row of outputs and the taps behind it; outputs are counted along that width, and those that are no
 * pixels are left out when sums are stored. The window moves by adding a tap's distance to the place.
 * ptr, off: kept groups of four inputs of each block of rows; val: (kept, taps, rows, 4) codes. A group
 * of a grouped convolution is what its blocks keep. */
#include "chw_codes.h"

/* Bytes of scratch that a k x k step on codes needs. */
INTARSIA_API int64_t intarsia_chw_conv_scratch(int64_t ci, int64_t ho, int64_t wo, int64_t k,
                                               int64_t stride) {
    const struct step s = {.ho = ho, .wo = wo, .k = k, .stride = stride};
    return (ci + 3) / 4 * copy_of(&s).each + SPARE;
}

#if VNNI
enum { WIDEST = 6 }; /* vectors of outputs */

struct job {
    const struct step *s;
    struct copy copy;
    int64_t parts, chunks, tiles, vectors;
};

/* The codes of 16 pixels of four channels side by side, in order. */
ALWAYS __m512i interleaved(const uint8_t *src, const int64_t *next) {
    const __m128i a = _mm_loadu_si128((const __m128i *)src);
    const __m128i b = _mm_loadu_si128((const __m128i *)(src + next[0]));
    const __m128i c = _mm_loadu_si128((const __m128i *)(src + next[1]));
    const __m128i d = _mm_loadu_si128((const __m128i *)(src + next[2]));
    const __m128i ab = _mm_unpacklo_epi8(a, b), ab_high = _mm_unpackhi_epi8(a, b);
    const __m128i cd = _mm_unpacklo_epi8(c, d), cd_high = _mm_unpackhi_epi8(c, d);
    const __m256i low = _mm256_set_m128i(_mm_unpackhi_epi16(ab, cd), _mm_unpacklo_epi16(ab, cd));
    const __m256i high = _mm256_set_m128i(_mm_unpackhi_epi16(ab_high, cd_high),
                                          _mm_unpacklo_epi16(ab_high, cd_high));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

/* Of 16 columns those of one phase, and their place in its row. */
struct spot {
    __mmask16 mine, some;
    int64_t at;
};

static struct spot spot_of(const struct step *s, int64_t x, int64_t phase, int64_t wide) {
    const int64_t before = x + s->left; /* columns of the copy in front */
    const int64_t skip = ((phase - before) % s->stride + s->stride) % s->stride;
    const int64_t inside = s->w - x < 16 ? s->w - x : 16;
    struct spot spot = {.mine = 0, .at = (before + skip) / s->stride};
    int64_t count = inside > skip ? (inside - skip + s->stride - 1) / s->stride : 0;
    if (count > wide - spot.at) count = wide - spot.at;
    for (int64_t i = skip; i < 16; i += s->stride) spot.mine |= (__mmask16)(1u << i);
    spot.some = count > 0 ? first_of(count) : 0;
    return spot;
}

/* Sixteen columns, from x on, of all rows of four channels. */
static void copy_columns(const struct step *s, struct copy c, const uint8_t *src, const int64_t *next,
                         const struct spot *spots, uint32_t *out) {
    const int64_t phases = c.phases;
    int64_t phase = s->top % s->stride, high = s->top / s->stride * c.wide;
    for (int64_t y = 0; y < s->h && high < c.size; y++, src += s->w) {
        if (phase < phases) {
            const __m512i pixels = interleaved(src, next);
            for (int64_t px = 0; px < phases; px++) {
                uint32_t *to = out + (phase * phases + px) * c.size + high + spots[px].at;
                const __m512i mine = s->stride > 1 ? _mm512_maskz_compress_epi32(spots[px].mine, pixels) : pixels;
                if (spots[px].some) _mm512_mask_storeu_epi32(to, spots[px].some, mine);
            }
        }
        if (++phase == s->stride) phase = 0, high += c.wide;
    }
}

static void copy_part(void *context, int64_t part) {
    const struct job *j = context;
    const struct step *s = j->s;
    const struct copy c = j->copy;
    const int64_t fours = (s->ci + 3) / 4;
    const int64_t from = fours * part / j->parts, to = fours * (part + 1) / j->parts;
    uint8_t *out = (uint8_t *)(intptr_t)s->scratch;
    memset(out + from * c.each, (int)numbers(s->rule)[IN_ZERO], (to - from) * c.each);
    for (int64_t x = 0; x < s->w; x += 16) {
        struct spot spots[STRIDES];
        for (int64_t px = 0; px < c.phases; px++) spots[px] = spot_of(s, x, px, c.wide);
        for (int64_t n = from; n < to; n++) {
            int64_t next[3]; /* behind the last channel weights are 0: any codes do */
            for (int64_t i = 0; i < 3; i++) next[i] = 4 * n + i + 1 < s->ci ? (i + 1) * s->pitch_in : 0;
            copy_columns(s, c, bytes(s->src) + 4 * n * s->pitch_in + x, next, spots,
                         (uint32_t *)(out + n * c.each));
        }
    }
}

/* Where the outputs of a vector go: which lanes are pixels, and the first ones, as many; the number of
 * the first of them. */
struct lanes {
    __mmask16 some, first;
    int64_t at;
};

static struct lanes lanes_of(const struct step *s, int64_t wide, int64_t from) {
    struct lanes lanes = {.some = 0, .at = -1};
    for (int64_t i = 0; i < 16; i++) {
        const int64_t y = (from + i) / wide, x = (from + i) % wide;
        if (y >= s->ho || x >= s->wo) continue;
        lanes.some |= (__mmask16)(1u << i);
        if (lanes.at < 0) lanes.at = y * s->wo + x;
    }
    lanes.first = first_of(__builtin_popcount(lanes.some));
    return lanes;
}

/* Sums of sixteen outputs of a row, to codes or numbers. */
ALWAYS void keep(const struct step *s, __m512i sums, int64_t row, struct lanes lanes) {
    const float *rule = numbers(s->rule);
    __m512 y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), _mm512_set1_ps(numbers(s->mul)[row]),
                               _mm512_set1_ps(numbers(s->bias)[row]));
    if (lanes.some != lanes.first) y = _mm512_maskz_compress_ps(lanes.some, y);
    if (!(s->codes & FOLDED)) {
        finish_sums(s, y, row, lanes.at, lanes.first);
        return;
    }
    const int64_t place = row * s->pitch_out + lanes.at;
    if (s->other) {
        const __m512 z = as_numbers(_mm_loadu_si128((const __m128i *)(bytes(s->other) + place)));
        y = _mm512_fmadd_ps(z, _mm512_set1_ps(rule[OTHER_SCALE]), y);
    }
    if (s->codes & LIMITED)
        y = _mm512_min_ps(_mm512_max_ps(y, _mm512_set1_ps(rule[LOW])), _mm512_set1_ps(rule[HIGH]));
    const __m512i codes = _mm512_max_epi32(_mm512_cvtps_epi32(y), _mm512_setzero_si512());
    _mm_mask_storeu_epi8((uint8_t *)(intptr_t)s->dst + place, lanes.first,
                         _mm512_cvtusepi32_epi8(codes));
}

/* Blocks from ... to - 1 of `rows` outputs, of `vectors` vectors from the place `at` on.
 * taps: distance of each tap, in bytes. */
ALWAYS void product(const struct job *j, const int32_t *taps, int64_t at, int64_t from, int64_t to,
                    const int rows, const int vectors) {
    const struct step *s = j->s;
    const int32_t *ptr = (const int32_t *)(intptr_t)s->ptr, *off = (const int32_t *)(intptr_t)s->off;
    const int64_t count = s->k * s->k;
    const int8_t *w = (const int8_t *)(intptr_t)s->val + ptr[from] * count * rows * DEEP;
    const uint8_t *map = bytes(s->scratch) + 4 * at;
    struct lanes lanes[WIDEST];
    UNROLL for (int t = 0; t < vectors; t++) lanes[t] = lanes_of(s, j->copy.wide, at + 16 * t);
    for (int64_t b = from; b < to; b++) {
        __m512i sums[4][WIDEST];
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int t = 0; t < vectors; t++) sums[r][t] = _mm512_setzero_si512();
        for (int32_t n = ptr[b]; n < ptr[b + 1]; n++) {
            const uint8_t *x = map + off[n] * j->copy.each;
            for (int64_t tap = 0; tap < count; tap++, w += rows * DEEP) {
                __m512i in[WIDEST];
                UNROLL for (int t = 0; t < vectors; t++)
                    in[t] = _mm512_loadu_si512(x + taps[tap] + 64 * t);
                UNROLL for (int r = 0; r < rows; r++) {
                    const __m512i weight = four(w + r * DEEP);
                    UNROLL for (int t = 0; t < vectors; t++)
                        sums[r][t] = _mm512_dpbusd_epi32(sums[r][t], in[t], weight);
                }
            }
        }
        UNROLL for (int r = 0; r < rows; r++)
            if (b * rows + r < s->co)
                UNROLL for (int t = 0; t < vectors; t++)
                    if (lanes[t].some) keep(s, sums[r][t], b * rows + r, lanes[t]);
    }
}

typedef void (*tile)(const struct job *, const int32_t *, int64_t, int64_t, int64_t);
#define PRODUCT(R_, T_)                                                                            \
    static void product_##R_##_##T_(const struct job *j, const int32_t *taps, int64_t at,          \
                                    int64_t from, int64_t to) {                                    \
        product(j, taps, at, from, to, R_, T_);                                                    \
    }
#define PRODUCTS(R_) PRODUCT(R_, 1) PRODUCT(R_, 2) PRODUCT(R_, 3) PRODUCT(R_, 4) PRODUCT(R_, 5) PRODUCT(R_, 6)
PRODUCTS(1) PRODUCTS(2) PRODUCTS(4)
#define EACH(R_) {product_##R_##_1, product_##R_##_2, product_##R_##_3, product_##R_##_4, product_##R_##_5, product_##R_##_6}
static const tile products[3][WIDEST] = {EACH(1), EACH(2), EACH(4)};

static void conv_part(void *context, int64_t part) {
    const struct job *j = context;
    const struct step *s = j->s;
    const int64_t blocks = (s->co + s->rows - 1) / s->rows;
    const int64_t chunk = part % j->chunks, i = part / j->chunks;
    const int64_t least = j->vectors / j->tiles, more = j->vectors % j->tiles;
    const int64_t first = i * least + (i < more ? i : more); /* tiles of one size, or one less */
    int32_t taps[TAPS];
    find_taps(s, &j->copy, taps);
    products[s->rows / 2][least + (i < more) - 1](j, taps, 16 * first, blocks * chunk / j->chunks,
                                                  blocks * (chunk + 1) / j->chunks);
}

void intarsia_chw_codes_conv(const struct step *s, int threads) {
    struct job j = {.s = s, .copy = copy_of(s), .parts = threads};
    intarsia_parallel(copy_part, &j, j.parts, threads);
    j.vectors = ((s->ho - 1) * j.copy.wide + s->wo + 15) / 16;
    j.tiles = (j.vectors + WIDEST - 1) / WIDEST;
    j.chunks = threads > 1 && j.tiles < 4 * threads ? threads : 1;
    intarsia_parallel(conv_part, &j, j.tiles * j.chunks, threads);
}
#endif
