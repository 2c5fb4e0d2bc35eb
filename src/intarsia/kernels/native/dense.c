/* y = x W^T, W (rows, cols) whole in float32 or bfloat16: what sparse kernels are held against.
 *
 * x: (batch, cols) float32. y: (batch, rows).
 */
#include "products.h"
#include "vectors.h"

enum { F32, BF16, TOGETHER = 4 };

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

/* One row of the weight with B rows of x; each sum in the same order for any B. */
ALWAYS void row_of(const job *w, int64_t row, int64_t b0, const int B, const int kind) {
    const int64_t from = row * w->cols, size = kind == F32 ? 4 : 2;
    const float *x = w->x + b0 * w->cols;
    vf sums[TOGETHER][4];
    int64_t j = 0;
    for (int b = 0; b < B; b++)
        for (int k = 0; k < 4; k++) sums[b][k] = splat(0);
    for (; j + 4 * V <= w->cols; j += 4 * V) {
        for (int k = 0; k < 4; k++) {
            const vf some = weights_at(w->w, from + j + k * V, kind);
            for (int b = 0; b < B; b++) sums[b][k] += some * load(x + b * w->cols + j + k * V);
        }
        __builtin_prefetch((const char *)w->w + (from + j) * size + 2048);
    }
    for (int b = 0; b < B; b++) {
        float sum = total((sums[b][0] + sums[b][1]) + (sums[b][2] + sums[b][3]));
        for (int64_t i = j; i < w->cols; i++)
            sum += weight_at(w->w, from + i, kind) * x[b * w->cols + i];
        w->y[(b0 + b) * w->rows + row] = sum;
    }
}

ALWAYS void rows_of_kind(const job *w, int64_t part, const int kind) {
    const int64_t to = w->rows * (part + 1) / w->parts;
    for (int64_t row = w->rows * part / w->parts; row < to; row++) {
        int64_t b = 0;
        for (; b + TOGETHER <= w->batch; b += TOGETHER) row_of(w, row, b, TOGETHER, kind);
        for (; b < w->batch; b++) row_of(w, row, b, 1, kind);
    }
}

static void rows_of(void *context, int64_t part) {
    const job *w = context;
    if (w->kind == F32) rows_of_kind(w, part, F32);
    else rows_of_kind(w, part, BF16);
}

/* kind: 0 float32, 1 bfloat16. */
INTARSIA_API int64_t dense_linear(int kind, const float *x, float *y, const void *weight,
                                  int64_t rows, int64_t cols, int64_t batch, int threads) {
    job w = {.x = x, .y = y, .w = weight, .rows = rows, .cols = cols, .batch = batch, .kind = kind};
    w.parts = parts_of(rows * cols * (kind == F32 ? 4 : 2), threads);
    intarsia_parallel(rows_of, &w, w.parts, threads);
    return 0;
}
