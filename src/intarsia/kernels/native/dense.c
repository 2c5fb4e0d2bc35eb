/* y = x W^T, W (rows, cols) whole in bfloat16 (formats.Dense): what sparse kernels are held against.
 *
 * x: (batch, cols) float32. y: (batch, rows).
 */
#include "common.h"

typedef struct {
    const float *x;
    float *y;
    const uint16_t *w;
    int64_t rows, cols, batch, parts;
} job;

#if defined(__AVX512F__) && defined(__AVX512BW__)
enum { LANES = 16 };
typedef __m512 lanes;
#define LOAD(p) _mm512_loadu_ps(p)
#define LOAD_BF16(p) of_bf16_x16(p)
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define ZERO() _mm512_setzero_ps()
#define ADD(a, b) _mm512_add_ps(a, b)
#define SUM(v) _mm512_reduce_add_ps(v)
#elif defined(__AVX2__) && defined(__FMA__)
enum { LANES = 8 };
typedef __m256 lanes;
#define LOAD(p) _mm256_loadu_ps(p)
#define LOAD_BF16(p) of_bf16_x8(p)
#define FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define ZERO() _mm256_setzero_ps()
#define ADD(a, b) _mm256_add_ps(a, b)
#define SUM(v) sum_x8(v)
#else
enum { LANES = 1 };
typedef float lanes;
#define LOAD(p) (*(p))
#define LOAD_BF16(p) of_bf16(*(p))
#define FMA(a, b, c) ((a) * (b) + (c))
#define ZERO() 0.0f
#define ADD(a, b) ((a) + (b))
#define SUM(v) (v)
#endif

static void rows_of(void *context, int64_t part) {
    const job *w = context;
    const int64_t to = w->rows * (part + 1) / w->parts;
    for (int64_t row = w->rows * part / w->parts; row < to; row++) {
        const uint16_t *v = w->w + row * w->cols;
        for (int64_t b = 0; b < w->batch; b++) {
            const float *x = w->x + b * w->cols;
            lanes sums[4] = {ZERO(), ZERO(), ZERO(), ZERO()};
            int64_t j = 0;
            for (; j + 4 * LANES <= w->cols; j += 4 * LANES) {
                for (int k = 0; k < 4; k++)
                    sums[k] = FMA(LOAD_BF16(v + j + k * LANES), LOAD(x + j + k * LANES), sums[k]);
#if defined(__x86_64__)
                _mm_prefetch((const char *)(v + j) + 2048, _MM_HINT_T0);
#endif
            }
            float sum = SUM(ADD(ADD(sums[0], sums[1]), ADD(sums[2], sums[3])));
            for (; j < w->cols; j++) sum += of_bf16(v[j]) * x[j];
            w->y[b * w->rows + row] = sum;
        }
    }
}

INTARSIA_API int64_t dense_linear(const float *x, float *y, const uint16_t *weight, int64_t rows,
                                  int64_t cols, int64_t batch, int threads) {
    job w = {.x = x, .y = y, .w = weight, .rows = rows, .cols = cols, .batch = batch};
    w.parts = parts_of(rows * cols * 2, threads);
    intarsia_parallel(rows_of, &w, w.parts, threads);
    return 0;
}
