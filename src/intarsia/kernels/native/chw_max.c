/* The largest number, or code, of each window of a map. */
#include "chw.h"

struct job {
    const struct step *s;
    int64_t parts, room;
};

#define LARGER(a, b) ((b) > (a) || (b) != (b) ? (b) : (a)) /* NaN stays */

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
            if (s->k == 3 && s->stride == 2) NAME##_line(line, dst, s->wo, 3, 2);                  \
            else if (s->k == 2 && s->stride == 2) NAME##_line(line, dst, s->wo, 2, 2);             \
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
    if (s->codes & SRC8) of_codes(s, (uint8_t *)line, from, to, 0);
    else of_numbers(s, line, from, to, -INFINITY);
}

void intarsia_chw_max(const struct step *s, int threads) {
    struct job j = {.s = s, .parts = s->co < threads ? 1 : threads};
    j.room = (s->wo - 1) * s->stride + s->k + s->left + 16;
    intarsia_parallel(max_part, &j, j.parts, threads);
}
