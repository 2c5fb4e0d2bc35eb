/* A product of W (rows, cols) with many rows of x at once, for experts.c: y^T = W x^T in tiles.
 *
 * x and y lie across: groups of up to MOST_WIDE vectors of rows; in a group, one column of x after
 * the other. W lies as it is stored: each of its numbers meets a whole group.
 */
#ifndef INTARSIA_EXPERTS_H
#define INTARSIA_EXPERTS_H

#include "products.h"
#include "vectors.h"

/* Rows of the weight in a tile, and vectors of rows of x: HIGH * MOST_WIDE sums, the inputs of one
 * column and a weight fill the registers. */
enum { F32, BF16, HIGH = V == 16 ? 8 : 4, MOST_WIDE = 3, MOST_VECTORS = V == 16 ? 6 : 12 };

/* The sums of `high` rows of a weight, `cols` apart, with a group of x of `wide` vectors. */
ALWAYS void tile(const float *w, int64_t cols, const float *x, const int high, const int wide,
                 vf out[HIGH][MOST_WIDE]) {
    vf sums[HIGH][MOST_WIDE];
    for (int r = 0; r < high; r++)
        for (int n = 0; n < wide; n++) sums[r][n] = splat(0);
    for (int64_t j = 0; j < cols; j++) {
        vf inputs[MOST_WIDE];
        for (int n = 0; n < wide; n++) inputs[n] = load(x + (j * wide + n) * V);
        for (int r = 0; r < high; r++) {
            const vf weight = splat(w[r * cols + j]);
            for (int n = 0; n < wide; n++) sums[r][n] += weight * inputs[n];
        }
    }
    for (int r = 0; r < high; r++)
        for (int n = 0; n < wide; n++) out[r][n] = sums[r][n];
}

/* Four numbers of each of four rows, turned: out[i * apart + r] = rows[r][i]. */
ALWAYS void turned(const float *const rows[4], int64_t at, float *out, int64_t apart) {
#if defined(__SSE__)
    __m128 a = _mm_loadu_ps(rows[0] + at), b = _mm_loadu_ps(rows[1] + at);
    __m128 c = _mm_loadu_ps(rows[2] + at), d = _mm_loadu_ps(rows[3] + at);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(out, a);
    _mm_storeu_ps(out + apart, b);
    _mm_storeu_ps(out + 2 * apart, c);
    _mm_storeu_ps(out + 3 * apart, d);
#else
    for (int i = 0; i < 4; i++)
        for (int r = 0; r < 4; r++) out[i * apart + r] = rows[r][at + i];
#endif
}

/* erf to 1.5e-7 (Abramowitz and Stegun, 7.1.26). */
ALWAYS vf error_function(vf x) {
    const vf size = limited(pick(x < splat(0), -x, x), splat(0), splat(9));
    const vf t = 1.0f / (1.0f + 0.3275911f * size);
    vf p = splat(1.061405429f);
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const vf y = 1.0f - p * t * exponential(-size * size);
    return pick(x < splat(0), -y, y);
}

enum act { SILU, RELU, GELU, GELU_TANH };

ALWAYS vf activated(vf z, int act) {
    switch (act) {
    case SILU: return z / (1.0f + exponential(-z));
    case RELU: return pick(z < splat(0), splat(0), z); /* NaN stays */
    case GELU: return 0.5f * z * (1.0f + error_function(z * 0.70710678f));
    default: /* tanh(u) = 1 - 2 / (1 + e^2u), by which z (1 + tanh(u)) / 2 = z / (1 + e^-2u) */
        return z / (1.0f + exponential(-1.59576912f * (z + 0.044715f * z * z * z)));
    }
}
#endif
