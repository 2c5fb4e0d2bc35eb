/* The largest number, or code, of each window of a map. */
#include "chw.h"

struct job {
    const struct step *s;
    int64_t parts, room;
};

#define LARGER(a, b) ((b) > (a) || (b) != (b) ? (b) : (a)) /* NaN stays */

#if VNNI
/* The largest of k codes at every second place. */
static void second_codes(const uint8_t *line, uint8_t *to, int64_t n, int64_t k) {
    for (int64_t x = 0; x < n; x += 32) {
        __m512i most = _mm512_loadu_si512(line + 2 * x);
        for (int64_t dx = 1; dx < k; dx++)
            most = _mm512_max_epu8(most, _mm512_loadu_si512(line + 2 * x + dx));
        const __mmask32 some = n - x < 32 ? (1u << (n - x)) - 1 : ~0u;
        _mm256_mask_storeu_epi8(to + x, some, _mm512_cvtepi16_epi8(most));
    }
}
#else
static void second_codes(const uint8_t *line, uint8_t *to, int64_t n, int64_t k) {
    for (int64_t x = 0; x < n; x++) {
        to[x] = line[2 * x];
        for (int64_t dx = 1; dx < k; dx++)
            if (line[2 * x + dx] > to[x]) to[x] = line[2 * x + dx];
    }
}
#endif

/* The rows of a window are joined to one line with margins, of which each output takes its columns.
 * least: what stands around the map, no larger than anything in it. */
#define MAXIMA(NAME, TYPE)                                                                         \
    ALWAYS void NAME##_line(const TYPE *line, TYPE *to, int64_t n, int64_t k, int64_t stride) {    \
        for (int64_t x = 0; x < n; x++) {                                                          \
            TYPE most = line[x * stride];                                                          \
            for (int64_t dx = 1; dx < k; dx++) most = LARGER(most, line[x * stride + dx]);         \
            to[x] = most;                                                                          \
        }                                                                                          \
    }                                                                                              \
    static void NAME(const struct step *s, TYPE *line, int64_t from, int64_t to, TYPE least) {     \
        const int64_t all = (s->wo - 1) * s->stride + s->k;                                        \
        const int64_t last = s->w < all - s->left ? s->w : all - s->left;                          \
        for (int64_t i = from * s->ho; i < to * s->ho; i++) {                                      \
            const int64_t c = i / s->ho, y = i % s->ho;                                            \
            const TYPE *src = (const TYPE *)(intptr_t)s->src + c * s->pitch_in;                    \
            TYPE *dst = (TYPE *)(intptr_t)s->dst + c * s->pitch_out + y * s->wo;                   \
            for (int64_t x = 0; x < all; x++) line[x] = least;                                     \
            for (int64_t dy = 0; dy < s->k; dy++) {                                                \
                const int64_t row = y * s->stride - s->top + dy;                                   \
                if (row < 0 || row >= s->h) continue;                                              \
                const TYPE *in = src + row * s->w;                                                 \
                TYPE *inside = line + s->left;                                                     \
                for (int64_t x = 0; x < last; x++) inside[x] = LARGER(inside[x], in[x]);           \
            }                                                                                      \
            if (s->stride == 2 && sizeof(TYPE) == 1)                                               \
                second_codes((const uint8_t *)line, (uint8_t *)dst, s->wo, s->k);                  \
            else if (s->k == 3 && s->stride == 2) NAME##_line(line, dst, s->wo, 3, 2);             \
            else NAME##_line(line, dst, s->wo, s->k, s->stride);                                   \
        }                                                                                          \
    }
MAXIMA(of_numbers, float)
MAXIMA(of_codes, uint8_t)

static void max_part(void *context, int64_t part) {
    const struct job *j = context;
    const struct step *s = j->s;
    const int64_t from = s->co * part / j->parts, to = s->co * (part + 1) / j->parts;
    float *line = (float *)(intptr_t)s->scratch + part * j->room;
    if (s->codes & SRC8) {
        of_codes(s, (uint8_t *)line, from, to, 0);
        return;
    }
    of_numbers(s, line, from, to, -INFINITY);
}

void intarsia_chw_max(const struct step *s, int threads) {
    struct job j = {.s = s, .parts = s->co < threads ? 1 : threads};
    j.room = (s->wo - 1) * s->stride + s->k + s->left + 16;
    intarsia_parallel(max_part, &j, j.parts, threads);
}
