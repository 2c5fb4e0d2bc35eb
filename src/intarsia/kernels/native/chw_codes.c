/* Steps on maps in codes of 8 bits, with products of VNNI: four neighbouring inputs at once.
 *
 * A map of codes is (channels, pitch) uint8, padded to a multiple of 64; a number x is
 * scale (code - zero). A product sums codes of weights times codes of inputs exactly, in int32, and
 * makes numbers of the sums: mul[co] sum + bias[co], where bias holds what the zero adds. With FOLDED
 * these are in units of the result's codes already, and only have to be rounded. Weights are symmetric.
 * For AVX-512 with VNNI and VBMI alone; chw_plain.c has the same for all others. */
#include "chw_codes.h"

#if VNNI
/* --------------------------------------------------------------------------- 1x1 convolutions */
/* The codes of one pixel of four channels side by side: 64 pixels are four vectors, of which vector j
 * has the pixels 4 j ... 4 j + 3 of each sixteen; 16 pixels are one vector, in order. */
static void pack(const struct step *s, int64_t at, int wide, uint8_t *to) {
    const uint8_t *src = bytes(s->src) + at;
    const int64_t pitch = s->pitch_in;
    for (int64_t c = 0; c < s->ci; c += DEEP, src += DEEP * pitch, to += DEEP * (wide ? TILE : FEW)) {
        /* behind the last channel weights are 0: any codes do */
        const int64_t last = s->ci - c - 1, p1 = last > 0 ? pitch : 0;
        const int64_t p2 = last > 1 ? 2 * pitch : 0, p3 = last > 2 ? 3 * pitch : 0;
        if (wide) {
            const __m512i a = _mm512_loadu_si512(src), b = _mm512_loadu_si512(src + p1);
            const __m512i c2 = _mm512_loadu_si512(src + p2), d = _mm512_loadu_si512(src + p3);
            const __m512i ab = _mm512_unpacklo_epi8(a, b), ab_high = _mm512_unpackhi_epi8(a, b);
            const __m512i cd = _mm512_unpacklo_epi8(c2, d), cd_high = _mm512_unpackhi_epi8(c2, d);
            _mm512_storeu_si512(to, _mm512_unpacklo_epi16(ab, cd));
            _mm512_storeu_si512(to + 64, _mm512_unpackhi_epi16(ab, cd));
            _mm512_storeu_si512(to + 128, _mm512_unpacklo_epi16(ab_high, cd_high));
            _mm512_storeu_si512(to + 192, _mm512_unpackhi_epi16(ab_high, cd_high));
        } else {
            const __m128i a = _mm_loadu_si128((const __m128i *)src);
            const __m128i b = _mm_loadu_si128((const __m128i *)(src + p1));
            const __m128i c2 = _mm_loadu_si128((const __m128i *)(src + p2));
            const __m128i d = _mm_loadu_si128((const __m128i *)(src + p3));
            const __m128i ab = _mm_unpacklo_epi8(a, b), ab_high = _mm_unpackhi_epi8(a, b);
            const __m128i cd = _mm_unpacklo_epi8(c2, d), cd_high = _mm_unpackhi_epi8(c2, d);
            __m128i *out = (__m128i *)to;
            _mm_storeu_si128(out, _mm_unpacklo_epi16(ab, cd));
            _mm_storeu_si128(out + 1, _mm_unpackhi_epi16(ab, cd));
            _mm_storeu_si128(out + 2, _mm_unpacklo_epi16(ab_high, cd_high));
            _mm_storeu_si128(out + 3, _mm_unpackhi_epi16(ab_high, cd_high));
        }
    }
}

/* One row's sums of a tile, to codes or numbers. sums: as `pack` orders their pixels. */
ALWAYS void keep(const struct step *s, const __m512i *sums, int64_t row, int64_t at, const int wide) {
    const float *rule = numbers(s->rule);
    const __m512 mul = _mm512_set1_ps(numbers(s->mul)[row]);
    const __m512 bias = _mm512_set1_ps(numbers(s->bias)[row]);
    const int vectors = wide ? 4 : 1;
    __m512 y[4];
    UNROLL for (int t = 0; t < vectors; t++) y[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[t]), mul, bias);
    if (!(s->codes & FOLDED)) {
        float line[TILE];
        UNROLL for (int t = 0; t < vectors; t++) {
            if (wide) {
                _mm_storeu_ps(line + 4 * t, _mm512_extractf32x4_ps(y[t], 0));
                _mm_storeu_ps(line + 4 * t + 16, _mm512_extractf32x4_ps(y[t], 1));
                _mm_storeu_ps(line + 4 * t + 32, _mm512_extractf32x4_ps(y[t], 2));
                _mm_storeu_ps(line + 4 * t + 48, _mm512_extractf32x4_ps(y[t], 3));
            } else _mm512_storeu_ps(line, y[0]);
        }
        for (int64_t i = 0; i < (wide ? TILE : FEW) && at + i < s->h * s->w; i += FEW)
            finish_sums(s, _mm512_loadu_ps(line + i), row, at + i, 0xffff);
        return;
    }
    const __m512i none = _mm512_setzero_si512();
    if (s->other) {
        const uint8_t *z = bytes(s->other) + row * s->pitch_out + at;
        const __m512 scale = _mm512_set1_ps(rule[OTHER_SCALE]);
        if (wide) {
            const __m512i all = _mm512_loadu_si512(z);
            const __m512i low = _mm512_unpacklo_epi8(all, none), high = _mm512_unpackhi_epi8(all, none);
            y[0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_unpacklo_epi16(low, none)), scale, y[0]);
            y[1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_unpackhi_epi16(low, none)), scale, y[1]);
            y[2] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_unpacklo_epi16(high, none)), scale, y[2]);
            y[3] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_unpackhi_epi16(high, none)), scale, y[3]);
        } else y[0] = _mm512_fmadd_ps(as_numbers(_mm_loadu_si128((const __m128i *)z)), scale, y[0]);
    }
    if (s->codes & LIMITED)
        UNROLL for (int t = 0; t < vectors; t++)
            y[t] = _mm512_min_ps(_mm512_max_ps(y[t], _mm512_set1_ps(rule[LOW])), _mm512_set1_ps(rule[HIGH]));
    uint8_t *dst = (uint8_t *)(intptr_t)s->dst + row * s->pitch_out + at;
    __m512i q[4];
    UNROLL for (int t = 0; t < vectors; t++) q[t] = _mm512_cvtps_epi32(y[t]);
    if (wide) /* packing limits to 0 ... 255, and puts the pixels back in order */
        _mm512_storeu_si512(dst, _mm512_packus_epi16(_mm512_packs_epi32(q[0], q[1]),
                                                     _mm512_packs_epi32(q[2], q[3])));
    else _mm_storeu_si128((__m128i *)dst, _mm512_cvtusepi32_epi8(_mm512_max_epi32(q[0], none)));
}

/* Blocks from ... to - 1 of `rows` outputs, of the pixels from `at` on: 64 if wide, else 16.
 * off: kept groups of four inputs; val: (kept, rows, 4) codes. */
ALWAYS void product(const struct step *s, const uint8_t *packed, int64_t at, int64_t from, int64_t to,
                    const int rows, const int wide) {
    const int32_t *ptr = (const int32_t *)(intptr_t)s->ptr, *off = (const int32_t *)(intptr_t)s->off;
    const int8_t *w = (const int8_t *)(intptr_t)s->val + (int64_t)ptr[from] * rows * DEEP;
    const int vectors = wide ? 4 : 1, size = DEEP * (wide ? TILE : FEW);
    for (int64_t b = from; b < to; b++) {
        __m512i sums[4][4], odd[2][4];
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int t = 0; t < vectors; t++) sums[r][t] = _mm512_setzero_si512();
        UNROLL for (int r = 0; r < 2; r++)
            UNROLL for (int t = 0; t < vectors; t++) odd[r][t] = _mm512_setzero_si512();
        int32_t k = ptr[b];
        const int32_t end = ptr[b + 1];
        if (rows < 4) /* few chains of sums would wait for themselves */
            for (; k + 1 < end; k += 2, w += 2 * rows * DEEP) {
                const uint8_t *x = packed + (int64_t)off[k] * size;
                const uint8_t *z = packed + (int64_t)off[k + 1] * size;
                UNROLL for (int r = 0; r < rows; r++) {
                    const __m512i first = four(w + r * DEEP), second = four(w + (rows + r) * DEEP);
                    UNROLL for (int t = 0; t < vectors; t++) {
                        sums[r][t] = _mm512_dpbusd_epi32(sums[r][t], _mm512_loadu_si512(x + 64 * t), first);
                        odd[r][t] = _mm512_dpbusd_epi32(odd[r][t], _mm512_loadu_si512(z + 64 * t), second);
                    }
                }
            }
        for (; k < end; k++, w += rows * DEEP) {
            const uint8_t *x = packed + (int64_t)off[k] * size;
            __m512i in[4];
            UNROLL for (int t = 0; t < vectors; t++) in[t] = _mm512_loadu_si512(x + 64 * t);
            UNROLL for (int r = 0; r < rows; r++) {
                const __m512i weight = four(w + r * DEEP);
                UNROLL for (int t = 0; t < vectors; t++)
                    sums[r][t] = _mm512_dpbusd_epi32(sums[r][t], in[t], weight);
            }
        }
        UNROLL for (int r = 0; r < rows; r++) {
            if (rows < 4)
                UNROLL for (int t = 0; t < vectors; t++)
                    sums[r][t] = _mm512_add_epi32(sums[r][t], odd[r][t]);
            if (b * rows + r < s->co) keep(s, sums[r], b * rows + r, at, wide);
        }
    }
}

struct job {
    const struct step *s;
    int64_t parts, chunks, tiles, room;
};

/* Tiles of pixels, one after the other in a piece of memory that stays near; or rows of them. */
static void spmm_part(void *context, int64_t part) {
    const struct job *j = context;
    const struct step *s = j->s;
    const int64_t pixels = s->h * s->w, blocks = (s->co + s->rows - 1) / s->rows;
    const int64_t chunk = part % j->chunks, group = part / j->chunks, groups = j->parts / j->chunks;
    const int64_t from = blocks * chunk / j->chunks, to = blocks * (chunk + 1) / j->chunks;
    uint8_t *packed = (uint8_t *)(intptr_t)s->scratch + part * j->room;
    for (int64_t i = j->tiles * group / groups; i < j->tiles * (group + 1) / groups; i++) {
        const int64_t at = i * TILE;
        const int wide = pixels - at > FEW;
        pack(s, at, wide, packed);
        if (wide && s->rows == 4) product(s, packed, at, from, to, 4, 1);
        else if (wide && s->rows == 2) product(s, packed, at, from, to, 2, 1);
        else if (wide) product(s, packed, at, from, to, 1, 1);
        else if (s->rows == 4) product(s, packed, at, from, to, 4, 0);
        else if (s->rows == 2) product(s, packed, at, from, to, 2, 0);
        else product(s, packed, at, from, to, 1, 0);
    }
}

/* Parts of a 1x1 step, whose packed inputs stand side by side: groups of tiles, times chunks of rows. */
static struct job cut(const struct step *s, int threads) {
    struct job j = {.s = s, .chunks = 1, .tiles = padded(s->h * s->w, TILE) / TILE};
    const int64_t most = threads > 1 ? 4 * threads : 1;
    if (threads > 1 && j.tiles < most) j.chunks = threads;
    j.parts = (j.tiles < most ? j.tiles : most) * j.chunks;
    j.room = padded(s->ci, DEEP) * TILE;
    return j;
}

/* Bytes of scratch that a 1x1 step on codes needs, for all threads. */
INTARSIA_API int64_t intarsia_chw_codes_scratch(int64_t ci, int64_t h, int64_t w, int64_t threads) {
    const struct step s = {.ci = ci, .h = h, .w = w};
    const struct job j = cut(&s, (int)threads);
    return j.parts * j.room;
}

/* ------------------------------------------------------------------------------ depthwise, k x k */
enum { ROWS = 7, FEWER = 4, DEPTHS = 2 }; /* output rows together; fours of taps in a kernel's row */

/* For 16 outputs of a row: which of 64 bytes are the taps of each, and which are in the picture. */
struct taps {
    __m512i where[DEPTHS];
    __mmask64 inside[DEPTHS];
    __mmask16 outputs;
};

/* narrow: lanes 8 ... 15 are the output row `FEWER` below that of the first eight. */
static struct taps taps_of(const struct step *s, int64_t x, int narrow) {
    struct taps taps = {.outputs = 0};
    for (int d = 0; d < DEPTHS; d++) {
        uint8_t where[64];
        taps.inside[d] = 0;
        for (int i = 0; i < 16; i++)
            for (int t = 0; t < DEEP; t++) {
                const int64_t lane = narrow ? i % 8 : i, tap = DEEP * d + t;
                const int64_t column = (x + lane) * s->stride - s->left + tap;
                const int64_t below = narrow && i > 7 ? FEWER * s->stride * s->w : 0;
                where[DEEP * i + t] = (uint8_t)((lane * s->stride + tap + below) & 63);
                if (tap < s->k && column >= 0 && column < s->w)
                    taps.inside[d] |= (__mmask64)1 << (DEEP * i + t);
                if (!d && !t && x + lane < s->wo) taps.outputs |= (__mmask16)(1u << i);
            }
        taps.where[d] = _mm512_loadu_si512(where);
    }
    return taps;
}

/* Sums of 16 outputs to codes or numbers of channel c: of row y from x on, or of the rows y and
 * y + FEWER if narrow. */
ALWAYS void keep_row(const struct step *s, __m512i sums, int64_t c, int64_t y, int64_t x,
                     __mmask16 outputs, const int narrow) {
    const float *rule = numbers(s->rule);
    __m512 made = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), _mm512_set1_ps(numbers(s->mul)[c]),
                                  _mm512_set1_ps(numbers(s->bias)[c]));
    const int64_t at = c * s->pitch_out + y * s->wo + x, below = FEWER * s->wo;
    const __mmask16 low = narrow ? outputs & 0xff : outputs;
    const __mmask16 high = narrow && y + FEWER < s->ho ? outputs >> 8 : 0;
    if (!(s->codes & FOLDED)) made = (__m512)activated((vf)made, s->act);
    if (!(s->codes & DST8)) {
        float *dst = (float *)(intptr_t)s->dst + at;
        _mm512_mask_storeu_ps(dst, low, made);
        if (high)
            _mm256_mask_storeu_ps(dst + below, (__mmask8)high, _mm512_extractf32x8_ps(made, 1));
        return;
    }
    uint8_t *dst = (uint8_t *)(intptr_t)s->dst + at;
    __m128i codes;
    if (s->codes & FOLDED) {
        if (s->codes & LIMITED)
            made = _mm512_min_ps(_mm512_max_ps(made, _mm512_set1_ps(rule[LOW])), _mm512_set1_ps(rule[HIGH]));
        codes = _mm512_cvtusepi32_epi8(_mm512_max_epi32(_mm512_cvtps_epi32(made), _mm512_setzero_si512()));
    } else codes = coded(made, rule);
    _mm_mask_storeu_epi8(dst, low, codes);
    if (high) _mm_mask_storeu_epi8(dst + below, high, _mm_unpackhi_epi64(codes, codes));
}

/* Output rows y ... y + rows - 1 (and those FEWER below, if narrow) of channel c, columns from x on.
 * A row of the map is read once for all of them: its row j is tap dy of the output row
 * (j - dy) / stride. Outside the picture codes are the zero, which `bias` takes off again. */
ALWAYS void depth_rows(const struct step *s, const struct taps *taps, int64_t c, int64_t y, int64_t x,
                       const int rows, const int k, const int stride, const int narrow) {
    const int depths = (k + DEEP - 1) / DEEP;
    const int8_t *w = (const int8_t *)(intptr_t)s->val + c * k * depths * DEEP;
    const int64_t top = y * stride - s->top, h = s->h;
    const uint8_t *src = bytes(s->src) + c * s->pitch_in + top * s->w + x * stride - s->left;
    const __m512i zero = _mm512_set1_epi8((char)(int)numbers(s->rule)[IN_ZERO]);
    __m512i sums[ROWS];
    UNROLL for (int r = 0; r < rows; r++) sums[r] = _mm512_setzero_si512();
    UNROLL for (int j = 0; j < (rows - 1) * stride + k; j++, src += s->w) {
        const int64_t row = top + j;
        __mmask64 there = row >= 0 && row < h ? ~(__mmask64)0 : 0;
        if (narrow) {
            const int64_t lower = row + FEWER * stride;
            there = (there & 0xffffffffu) | (lower >= 0 && lower < h ? (__mmask64)0xffffffffu << 32 : 0);
        }
        const __m512i line = there ? _mm512_loadu_si512(src) : zero;
        UNROLL for (int d = 0; d < depths; d++) {
            const __m512i in = _mm512_mask_permutexvar_epi8(zero, taps->inside[d] & there, taps->where[d], line);
            UNROLL for (int dy = 0; dy < k; dy++)
                if (j >= dy && (j - dy) % stride == 0 && (j - dy) / stride < rows)
                    sums[(j - dy) / stride] = _mm512_dpbusd_epi32(
                        sums[(j - dy) / stride], in, four(w + (dy * depths + d) * DEEP));
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        keep_row(s, sums[r], c, y + r, x, taps->outputs, narrow);
}

typedef void (*depth)(const struct step *, const struct taps *, int64_t, int64_t, int64_t);
#define DEPTH(R_, K, S, NARROW)                                                                    \
    static void depth_##R_##_##K##_##S##_##NARROW(const struct step *s, const struct taps *taps,   \
                                                  int64_t c, int64_t y, int64_t x) {               \
        depth_rows(s, taps, c, y, x, R_, K, S, NARROW);                                            \
    }
DEPTH(7, 3, 1, 0) DEPTH(4, 3, 1, 0) DEPTH(1, 3, 1, 0) DEPTH(7, 3, 2, 0) DEPTH(4, 3, 2, 0)
DEPTH(1, 3, 2, 0) DEPTH(7, 5, 1, 0) DEPTH(4, 5, 1, 0) DEPTH(1, 5, 1, 0) DEPTH(7, 5, 2, 0)
DEPTH(4, 5, 2, 0) DEPTH(1, 5, 2, 0) DEPTH(4, 3, 1, 1) DEPTH(4, 5, 1, 1)
static const depth depths[2][2][3] = {{{depth_7_3_1_0, depth_4_3_1_0, depth_1_3_1_0},
                                       {depth_7_3_2_0, depth_4_3_2_0, depth_1_3_2_0}},
                                      {{depth_7_5_1_0, depth_4_5_1_0, depth_1_5_1_0},
                                       {depth_7_5_2_0, depth_4_5_2_0, depth_1_5_2_0}}};
static void depth_any(const struct step *s, const struct taps *taps, int64_t c, int64_t y, int64_t x) {
    const int8_t *w = (const int8_t *)(intptr_t)s->val;
    const int64_t of_row = (s->k + DEEP - 1) / DEEP;
    const __m512i zero = _mm512_set1_epi8((char)(int)numbers(s->rule)[IN_ZERO]);
    __m512i sums = _mm512_setzero_si512();
    for (int64_t dy = 0; dy < s->k; dy++) {
        const int64_t row = y * s->stride - s->top + dy;
        const int there = row >= 0 && row < s->h;
        const uint8_t *src = bytes(s->src) + c * s->pitch_in + row * s->w + x * s->stride - s->left;
        const __m512i line = there ? _mm512_loadu_si512(src) : zero;
        for (int64_t d = 0; d < of_row; d++) {
            const __m512i in = _mm512_mask_permutexvar_epi8(zero, there ? taps->inside[d] : 0,
                                                            taps->where[d], line);
            sums = _mm512_dpbusd_epi32(sums, in, four(w + ((c * s->k + dy) * of_row + d) * DEEP));
        }
    }
    keep_row(s, sums, c, y, x, taps->outputs, 0);
}

enum { VECTORS = 32 }; /* of a row, whose taps are found once for all channels */

static void depth_part(void *context, int64_t part) {
    const struct job *j = context;
    const struct step *s = j->s;
    const int64_t from = s->co * part / j->parts, to = s->co * (part + 1) / j->parts;
    const int known = (s->k == 3 || s->k == 5) && s->stride < 3;
    const int narrow = known && s->stride == 1 && s->wo <= 8 && FEWER * s->w + 8 + 2 * DEEP <= 64;
    const int64_t vectors = narrow ? 1 : (s->wo + 15) / 16;
    struct taps taps[VECTORS];
    for (int64_t first = 0; first < vectors; first += VECTORS) {
        const int64_t some = vectors - first < VECTORS ? vectors - first : VECTORS;
        for (int64_t i = 0; i < some; i++) taps[i] = taps_of(s, 16 * (first + i), narrow);
        for (int64_t c = from; c < to; c++)
            for (int64_t y = 0, rows; y < s->ho; y += rows) {
                const int64_t most = s->ho % ROWS ? FEWER : ROWS;
                rows = narrow ? 2 * FEWER : known && y + most <= s->ho ? most : 1;
                const depth run = narrow ? (s->k == 3 ? depth_4_3_1_1 : depth_4_5_1_1)
                                  : known ? depths[s->k == 5][s->stride == 2][rows == ROWS    ? 0
                                                                              : rows == FEWER ? 1
                                                                                              : 2]
                                          : depth_any;
                for (int64_t i = 0; i < some; i++) run(s, taps + i, c, y, 16 * (first + i));
            }
    }
}

/* ------------------------------------------------------------------- vectors, means, and encoding */
/* y = act(bias + mul sum), val: (co, ci padded to 64) codes */
static void linear_part(void *context, int64_t part) {
    const struct job *j = context;
    const struct step *s = j->s;
    const int64_t width = padded(s->ci, TILE);
    for (int64_t o = s->co * part / j->parts; o < s->co * (part + 1) / j->parts; o++) {
        const uint8_t *w = bytes(s->val) + o * width, *x = bytes(s->src);
        __m512i sum = _mm512_setzero_si512(), odd = sum;
        int64_t i = 0;
        for (; i + 2 * TILE <= width; i += 2 * TILE) {
            sum = _mm512_dpbusd_epi32(sum, _mm512_loadu_si512(x + i), _mm512_loadu_si512(w + i));
            odd = _mm512_dpbusd_epi32(odd, _mm512_loadu_si512(x + i + TILE), _mm512_loadu_si512(w + i + TILE));
        }
        if (i < width)
            sum = _mm512_dpbusd_epi32(sum, _mm512_loadu_si512(x + i), _mm512_loadu_si512(w + i));
        const int32_t all = _mm512_reduce_add_epi32(_mm512_add_epi32(sum, odd));
        keep_number(s, o, numbers(s->mul)[o] * (float)all + numbers(s->bias)[o]);
    }
}

static void pool(const struct step *s) { /* the mean of each channel */
    const float *rule = numbers(s->rule);
    const int64_t n = s->h * s->w;
    for (int64_t c = 0; c < s->co; c++) {
        const uint8_t *x = bytes(s->src) + c * s->pitch_in;
        __m512i sum = _mm512_setzero_si512();
        for (int64_t i = 0; i < n; i += TILE) {
            const __mmask64 some = n - i < TILE ? ((__mmask64)1 << (n - i)) - 1 : ~(__mmask64)0;
            sum = _mm512_add_epi64(sum, _mm512_sad_epu8(_mm512_maskz_loadu_epi8(some, x + i),
                                                        _mm512_setzero_si512()));
        }
        const float mean = (float)_mm512_reduce_add_epi64(sum) / (float)n;
        keep_number(s, c, (mean - rule[IN_ZERO]) * rule[IN_SCALE]);
    }
}

static void encode(const struct step *s) {
    for (int64_t c = 0; c < s->co; c++)
        for (int64_t i = 0; i < s->h * s->w; i += FEW) {
            const vf x = load(numbers(s->src) + c * s->pitch_in + i);
            _mm_storeu_si128((__m128i *)(bytes(s->dst) + c * s->pitch_out + i),
                             coded((__m512)x, numbers(s->rule)));
        }
}

int intarsia_chw_codes_step(const struct step *s, int threads) {
    struct job j = {.s = s, .parts = s->co < threads ? 1 : threads};
    switch (s->kind) {
    case SPMM:
        j = cut(s, threads);
        intarsia_parallel(spmm_part, &j, j.parts, threads);
        break;
    case CONV: intarsia_chw_codes_conv(s, threads); break;
    case DEPTHWISE: intarsia_parallel(depth_part, &j, j.parts, threads); break;
    case LINEAR: intarsia_parallel(linear_part, &j, j.parts, threads); break;
    case POOL: pool(s); break;
    case ENCODE: encode(s); break;
    default: return 1;
    }
    return 0;
}
#endif
