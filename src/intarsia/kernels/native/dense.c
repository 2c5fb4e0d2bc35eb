/* y = x W^T, W (rows, cols) whole in float32 or bfloat16: what sparse kernels are held against.
 *
 * x: (batch, cols) float32. y: (batch, rows).
 */
#include "products.h"
#include "vectors.h"

/* Rows of x that are computed at once, and of the weight with one row of x and with several: memory
 * is read faster in some streams than in one, and a load of x serves several rows of the weight.
 * TOGETHER * PAIR sums of two vectors each fill the registers. */
enum { F32, BF16, TOGETHER = V == 16 ? 6 : 4, SIDE_BY_SIDE = 4, PAIR = V == 16 ? 2 : 1 };
enum { NEAR = 1 << 18 }; /* bytes of the weight that stay in a core's cache while all of x passes */

typedef struct {
    const float *x;
    float *y;
    const void *w;
    int64_t rows, cols, batch, parts;
    int kind;
} job;

ALWAYS vf weights_at(const void *w, int64_t at, const int kind) {
    if (kind == F32) return load((const float *)w + at);
#if defined(__AVX512F__) && defined(__AVX512BW__)
    return (vf)of_bf16_x16((const uint16_t *)w + at);
#elif defined(__AVX2__)
    return (vf)of_bf16_x8((const uint16_t *)w + at);
#else
    vf some;
    for (int i = 0; i < V; i++) some[i] = of_bf16(((const uint16_t *)w)[at + i]);
    return some;
#endif
}

ALWAYS float weight_at(const void *w, int64_t at, const int kind) {
    return kind == F32 ? ((const float *)w)[at] : of_bf16(((const uint16_t *)w)[at]);
}

/* R rows of the weight with B rows of x; each sum in the same order for any R and B. */
ALWAYS void rows_with(const job *w, int64_t row, const int R, int64_t b0, const int B, const int kind) {
    const int64_t from = row * w->cols, size = kind == F32 ? 4 : 2;
    const float *x = w->x + b0 * w->cols;
    vf sums[SIDE_BY_SIDE][TOGETHER][2];
    int64_t j = 0;
    for (int r = 0; r < R; r++)
        for (int b = 0; b < B; b++) sums[r][b][0] = sums[r][b][1] = splat(0);
    for (; j + 2 * V <= w->cols; j += 2 * V) {
        for (int k = 0; k < 2; k++) {
            vf inputs[TOGETHER];
            for (int b = 0; b < B; b++) inputs[b] = load(x + b * w->cols + j + k * V);
            for (int r = 0; r < R; r++) {
                const vf some = weights_at(w->w, from + r * w->cols + j + k * V, kind);
                for (int b = 0; b < B; b++) sums[r][b][k] += some * inputs[b];
            }
        }
        for (int r = 0; r < R; r++)
            __builtin_prefetch((const char *)w->w + (from + r * w->cols + j) * size + 2048);
    }
    vf both[SIDE_BY_SIDE * TOGETHER];
    float results[SIDE_BY_SIDE * TOGETHER];
    for (int i = 0; i < R * B; i++) both[i] = sums[i / B][i % B][0] + sums[i / B][i % B][1];
    totals(both, R * B, results);
    for (int r = 0; r < R; r++)
        for (int b = 0; b < B; b++) {
            float sum = results[r * B + b];
            for (int64_t i = j; i < w->cols; i++)
                sum += weight_at(w->w, from + r * w->cols + i, kind) * x[b * w->cols + i];
            w->y[(b0 + b) * w->rows + row + r] = sum;
        }
}

/* Rows `row` to `to` of the weight with B rows of x, R at a time. */
ALWAYS void rows_by(const job *w, int64_t row, int64_t to, const int R, int64_t b, const int B,
                    const int kind) {
    for (; row + R <= to; row += R) rows_with(w, row, R, b, B, kind);
    for (; row < to; row++) rows_with(w, row, 1, b, B, kind);
}

/* Rows `row` to `to` of the weight with all of x, TOGETHER rows at a time: these stay in the nearest
 * cache while the weight passes, which comes from memory for the first of them only. */
ALWAYS void rows_with_all(const job *w, int64_t row, int64_t to, const int kind) {
    int64_t b = 0;
    for (; b + TOGETHER <= w->batch; b += TOGETHER) rows_by(w, row, to, PAIR, b, TOGETHER, kind);
    switch (w->batch - b) {
#if V == 16
    case 5: rows_by(w, row, to, 2, b, 5, kind); break;
    case 4: rows_by(w, row, to, 2, b, 4, kind); break;
#endif
    case 3: rows_by(w, row, to, PAIR, b, 3, kind); break;
    case 2: rows_by(w, row, to, 2 * PAIR, b, 2, kind); break;
    case 1: rows_by(w, row, to, SIDE_BY_SIDE, b, 1, kind); break;
    }
}

ALWAYS void rows_between(const job *w, int64_t row, int64_t to, const int kind) {
    const int64_t each = SIDE_BY_SIDE * (w->cols * (kind == F32 ? 4 : 2) + 1);
    const int64_t near = SIDE_BY_SIDE * (1 + NEAR / each);
    for (; row < to; row += near) rows_with_all(w, row, row + near < to ? row + near : to, kind);
}

static void rows_of(void *context, int64_t part) {
    const job here = *(const job *)context, *w = &here; /* in registers: y may not overlap it */
    const int64_t row = w->rows * part / w->parts, to = w->rows * (part + 1) / w->parts;
    if (w->kind == F32) rows_between(w, row, to, F32);
    else rows_between(w, row, to, BF16);
}

void intarsia_dense_rows(int kind, const float *x, float *y, const void *weight, int64_t rows,
                         int64_t cols, int64_t batch, int64_t row, int64_t to) {
    const job here = {.x = x, .y = y, .w = weight, .rows = rows, .cols = cols, .batch = batch};
    if (kind == F32) rows_between(&here, row, to, F32);
    else rows_between(&here, row, to, BF16);
}

/* kind: 0 float32, 1 bfloat16. */
INTARSIA_API int64_t dense_linear(int kind, const float *x, float *y, const void *weight,
                                  int64_t rows, int64_t cols, int64_t batch, int threads) {
    job w = {.x = x, .y = y, .w = weight, .rows = rows, .cols = cols, .batch = batch, .kind = kind};
    w.parts = parts_of(rows * cols * (kind == F32 ? 4 : 2), threads);
    intarsia_parallel(rows_of, &w, w.parts, threads);
    return 0;
}

typedef struct {
    job expert; /* of which x, y, w and batch are those of the first */
    const int64_t *load;
} group;

/* Each part is a part of an expert's rows, so that threads meet once and not for each expert. */
static void rows_of_expert(void *context, int64_t part) {
    const group *all = context;
    job here = all->expert;
    const int64_t expert = part / here.parts;
    int64_t before = 0;
    for (int64_t e = 0; e < expert; e++) before += all->load[e];
    here.x += before * here.cols;
    here.y += before * here.rows;
    here.w = (const float *)here.w + expert * here.rows * here.cols;
    here.batch = all->load[expert];
    if (here.batch) rows_of(&here, part % here.parts);
}

/* Experts with rows of x of their own, one after the other: y_n = W_e x_n.  weight: (experts, rows,
 * cols) float32; load: (experts), the rows of x of each. */
INTARSIA_API int64_t dense_grouped(const float *x, float *y, const float *weight, const int64_t *load,
                                   int64_t experts, int64_t rows, int64_t cols, int threads) {
    group all = {.expert = {.x = x, .y = y, .w = weight, .rows = rows, .cols = cols, .kind = F32}};
    const int64_t parts = parts_of(experts * rows * cols * 4, threads);
    all.load = load;
    all.expert.parts = experts ? (parts + experts - 1) / experts : 1;
    intarsia_parallel(rows_of_expert, &all, experts * all.expert.parts, threads);
    return 0;
}
