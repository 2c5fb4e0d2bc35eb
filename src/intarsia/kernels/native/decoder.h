/* A row of a decoder's program: kernels/decoder/native.py makes it, decoder.c carries it out. */
#ifndef INTARSIA_DECODER_H
#define INTARSIA_DECODER_H

#include "vectors.h"

/* Pointers are numbers, so that all rows are alike. Values are rows of float32: src, dst, other and
 * third are the first row's addresses, each with the floats from a row to the next. */
struct decoder_step {
    int64_t kind, dst, dst_pitch, src, src_pitch, other, other_pitch, third, third_pitch;
    int64_t width, size; /* of a row; of a head, of what is normed together; or how many are chosen */
    int64_t weight, bias, type; /* weight of attention: idle scores, see attention.h; type: of the weight's or the cache's numbers, as in dense.c */
    int64_t keys, values, length, sink, window, heads, groups;
    int64_t act, number; /* a float's bits: epsilon, limit or scale */
    int64_t experts, steps, stride, read; /* of a mixture: programs of `steps` rows; see mix */
    int64_t limit; /* of scores, a float's bits; 0 = none */
};

/* Each row that is computed: a token, whose cache it has, and its place in the text. */
struct decoder_row {
    int64_t token, slot, place;
};

struct decoder_job {
    const struct decoder_step *s;
    const struct decoder_row *rows;
    const struct run *runs; /* of attention.h: `count` of them */
    int64_t count, parts, fault;
};

ALWAYS float *row_at(int64_t values, int64_t pitch, int64_t row) {
    return (float *)(intptr_t)values + row * pitch;
}
ALWAYS float float_of(int64_t field) {
    const int32_t bits = (int32_t)field;
    float number;
    memcpy(&number, &bits, 4);
    return number;
}
ALWAYS float number_of(const struct decoder_step *s) { return float_of(s->number); }

/* limit tanh(x / limit), in place: tanh u = (1 - e) / (1 + e) with e = exp(-2 |u|) and the sign of u. */
static inline void squash(float *x, int64_t count, float limit) {
    for (int64_t i = 0; i < count; i += V) {
        vf some = splat(0);
        const int64_t n = count - i < V ? count - i : V;
        memcpy(&some, x + i, (size_t)n * sizeof(float));
        const vf size = pick(some < splat(0), -some, some);
        const vf e = exponential(size * splat(-2.0f / limit));
        const vf y = splat(limit) * (splat(1) - e) / (splat(1) + e);
        const vf signed_y = pick(some < splat(0), -y, y);
        memcpy(x + i, &signed_y, (size_t)n * sizeof(float));
    }
}

/* Carry out a program for `count` rows: decoder.c. */
INTARSIA_API int64_t intarsia_decoder_run(const int64_t *table, int64_t steps, const int64_t *rows,
                                          int64_t count, int64_t *at, int threads);

/* Write the keys and values of new rows into the cache, then attend: attention.c. */
int64_t decoder_attend(const struct decoder_step *s, const struct decoder_row *rows, int64_t count,
                       int threads);
#endif
