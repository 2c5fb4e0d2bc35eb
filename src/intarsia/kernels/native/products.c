/* One signature for the products of all formats: a weight is a few numbers (bound.py makes them). */
#include "products.h"

enum product { DENSE, BITMASK, GQSA, TERNARY, BLOCKINT };
enum { BEHIND = 32, GROUP = 16 }; /* of ternary.c and gqsa.h */

/* Rows of x with zeros behind; NULL without memory. */
static float *padded(const float *x, int64_t batch, int64_t cols, int64_t wide) {
    float *rows = calloc((size_t)(batch * wide) + 1, sizeof(float));
    for (int64_t b = 0; rows && b < batch; b++)
        memcpy(rows + b * wide, x + b * cols, (size_t)cols * sizeof(float));
    return rows;
}

#define AT(i) ((const void *)(intptr_t)w[i])

static int64_t gqsa(const int64_t *w, const float *x, float *y, int64_t batch, int threads) {
    const int64_t cols = w[2], across = (cols + GROUP - 1) / GROUP;
    float *copy = cols % GROUP ? padded(x, batch, cols, across * GROUP) : NULL;
    if (cols % GROUP && !copy) return OUT_OF_MEMORY;
    const int64_t fault =
        intarsia_gqsa(copy ? copy : x, y, batch, across, AT(6), AT(7), AT(8), AT(9), AT(10), w[1],
                      w[3], (int)w[5], (int)w[4], threads);
    free(copy);
    return fault;
}

static int64_t ternary(const int64_t *w, const float *x, float *y, int64_t batch, int threads) {
    const int64_t cols = w[2], across = cols + cols % 2;
    float *copy = padded(x, batch, cols, across + BEHIND);
    if (!copy) return OUT_OF_MEMORY;
    const int64_t fault =
        intarsia_ternary(copy, y, batch, across, AT(4), AT(5), AT(6), AT(7), w[1], w[3], threads);
    free(copy);
    return fault;
}

INTARSIA_API int64_t intarsia_product(const int64_t *w, const float *x, float *y, int64_t batch,
                                      int threads) {
    const int64_t rows = w[1], cols = w[2];
    const int kind = (int)w[3]; /* of the numbers that are stored; of gqsa and ternary, how many */
    switch (w[0]) {
    case DENSE: return dense_linear(kind, x, y, AT(4), rows, cols, batch, threads);
    case BITMASK:
        return bitmask_linear(kind, x, y, AT(5), AT(6), AT(7), AT(8), w[4], rows, cols, batch, threads);
    case GQSA: return gqsa(w, x, y, batch, threads);
    case TERNARY: return ternary(w, x, y, batch, threads);
    case BLOCKINT: return intarsia_blockint(x, y, batch, AT(4), AT(5), rows, cols, kind, threads);
    default: return 1;
    }
}
