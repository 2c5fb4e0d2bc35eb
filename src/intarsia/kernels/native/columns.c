/* y = x W^T, W the kept weights of each row and the column of each (formats.Columns).
 *
 * values: (kept,) float32 or bfloat16. columns: (kept,) uint16. offsets: (rows + 1,) int32.
 * x: (batch, cols) float32. y: (batch, rows). A column outside x adds nothing, and is a fault.
 */
#include "products.h"

enum { F32 = 0, BF16 = 1 };

typedef struct {
    const float *x;
    float *y;
    const void *values;
    const uint16_t *columns;
    const int32_t *offsets;
    int64_t kept, rows, cols, batch, parts, fault;
} job;

ALWAYS float one(const job *w, int64_t i, const int kind) {
    return kind == F32 ? ((const float *)w->values)[i] : of_bf16(((const uint16_t *)w->values)[i]);
}

/* The sum over i in [i, end) of what is left of a row. */
ALWAYS float rest(const job *w, const float *x, int64_t i, int64_t end, int *bad, const int kind) {
    float sum = 0;
    for (; i < end; i++) {
        if (w->columns[i] >= w->cols) *bad = 1;
        else sum += one(w, i, kind) * x[w->columns[i]];
    }
    return sum;
}

#if defined(__AVX512F__) && defined(__AVX512BW__)
ALWAYS __m512 step_x16(const job *w, const float *x, int64_t i, __mmask16 *inside, __m512 sum,
                       const int kind) {
    const __m512i at = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(w->columns + i)));
    const __mmask16 in = _mm512_cmplt_epi32_mask(at, _mm512_set1_epi32((int32_t)w->cols));
    const __m512 from = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), in, at, x, 4);
    const __m512 values = kind == F32 ? _mm512_loadu_ps((const float *)w->values + i)
                                      : of_bf16_x16((const uint16_t *)w->values + i);
    *inside &= in;
    return _mm512_mask3_fmadd_ps(values, from, sum, in);
}

ALWAYS float row_of(const job *w, const float *x, int64_t i, int64_t end, int *bad, const int kind) {
    __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                      _mm512_setzero_ps()};
    __mmask16 inside = 0xffff;
    for (; i + 64 <= end; i += 64)
        for (int k = 0; k < 4; k++) sums[k] = step_x16(w, x, i + 16 * k, &inside, sums[k], kind);
    for (; i + 16 <= end; i += 16) sums[0] = step_x16(w, x, i, &inside, sums[0], kind);
    *bad |= inside != 0xffff;
    const float last = rest(w, x, i, end, bad, kind);
    return last + _mm512_reduce_add_ps(
                      _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
}
#elif defined(__AVX2__) && defined(__FMA__)
ALWAYS __m256 step_x8(const job *w, const float *x, int64_t i, int *outside, __m256 sum,
                      const int kind) {
    const __m256i at = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(w->columns + i)));
    const __m256 in = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32((int32_t)w->cols), at));
    const __m256 from = _mm256_mask_i32gather_ps(_mm256_setzero_ps(), x, at, in, 4);
    const __m256 values = kind == F32 ? _mm256_loadu_ps((const float *)w->values + i)
                                      : of_bf16_x8((const uint16_t *)w->values + i);
    *outside |= _mm256_movemask_ps(in) != 255;
    return _mm256_fmadd_ps(_mm256_and_ps(values, in), from, sum);
}

ALWAYS float row_of(const job *w, const float *x, int64_t i, int64_t end, int *bad, const int kind) {
    __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (; i + 16 <= end; i += 16)
        for (int k = 0; k < 2; k++) sums[k] = step_x8(w, x, i + 8 * k, bad, sums[k], kind);
    for (; i + 8 <= end; i += 8) sums[0] = step_x8(w, x, i, bad, sums[0], kind);
    return rest(w, x, i, end, bad, kind) + sum_x8(_mm256_add_ps(sums[0], sums[1]));
}
#else
ALWAYS float row_of(const job *w, const float *x, int64_t i, int64_t end, int *bad, const int kind) {
    float sums[4] = {0};
    for (; i + 4 <= end; i += 4)
        for (int k = 0; k < 4; k++) {
            if (w->columns[i + k] >= w->cols) *bad = 1;
            else sums[k] += one(w, i + k, kind) * x[w->columns[i + k]];
        }
    return rest(w, x, i, end, bad, kind) + ((sums[0] + sums[1]) + (sums[2] + sums[3]));
}
#endif

/* The first row of a part: rows are cut by their values, and four for each row. */
static int64_t edge(const job *w, int64_t part) {
    int64_t most = 0; /* offsets of a damaged file need not rise */
    for (int64_t p = 1; p <= part; p++) {
        const double wanted = ((double)w->kept + 4.0 * w->rows) * p / w->parts;
        int64_t low = 0, high = w->rows;
        while (low < high && p < w->parts) {
            const int64_t middle = low + (high - low) / 2;
            if (w->offsets[middle] + 4.0 * middle < wanted) low = middle + 1;
            else high = middle;
        }
        const int64_t at = p < w->parts ? low : w->rows;
        if (at > most) most = at;
    }
    return most;
}

#define ROWS_OF(name, kind)                                                                        \
    static void name(void *context, int64_t part) {                                                \
        job *w = context;                                                                          \
        const int64_t to = edge(w, part + 1);                                                      \
        for (int64_t row = edge(w, part); row < to; row++) {                                       \
            const int64_t i = w->offsets[row], end = w->offsets[row + 1];                          \
            int bad = i < 0 || end < i || end > w->kept || (!row && i);                            \
            bad |= row + 1 == w->rows && end != w->kept;                                           \
            for (int64_t b = 0; b < w->batch && !bad; b++)                                         \
                w->y[b * w->rows + row] = row_of(w, w->x + b * w->cols, i, end, &bad, kind);       \
            if (bad) note_fault(&w->fault, row);                                                   \
        }                                                                                          \
    }
ROWS_OF(rows_f32, F32)
ROWS_OF(rows_bf16, BF16)

INTARSIA_API int64_t columns_linear(int kind, const float *x, float *y, const void *values,
                                    const uint16_t *columns, const int32_t *offsets, int64_t kept,
                                    int64_t rows, int64_t cols, int64_t batch, int threads) {
    job w = {.x = x, .y = y, .values = values, .columns = columns, .offsets = offsets, .kept = kept,
             .rows = rows, .cols = cols, .batch = batch};
    w.parts = parts_of(kept * 4 + rows * 8, threads);
    intarsia_parallel(kind == F32 ? rows_f32 : rows_bf16, &w, w.parts, threads);
    return w.fault;
}
