/* What both kernels of group-sparse int4 share: gqsa.c, where each row has its own kept groups, and
   gqsa_shared.c, where the rows of a block have the same. */
#ifndef INTARSIA_GQSA_H
#define INTARSIA_GQSA_H

#include "products.h"

#define GROUP 16

/* Whether a run of groups reads x inside its bounds. */
ALWAYS int gqsa_inside(const uint16_t *col, int64_t count, int64_t across) {
  uint16_t most = 0;
  for (int64_t g = 0; g < count; g++) most = col[g] > most ? col[g] : most;
  return most < across;
}

/* x as int8, a scale for each group; one that is not finite makes its group NaN */
ALWAYS void gqsa_rounded(const float *x, int64_t groups, int8_t *x8, float *xscale, int32_t *xless) {
  for (int64_t c = 0; c < groups; c++, x += GROUP, x8 += GROUP) {
    float most = 0, finite = 0;
    for (int i = 0; i < GROUP; i++) {
      float a = x[i] < 0 ? -x[i] : x[i];
      most = a > most ? a : most;
      finite += x[i] * 0.0f;
    }
    float inverse = most > 0 ? 127.0f / most : 0.0f;
    xscale[c] = most / 127.0f + finite;
    if (finite != 0 || inverse > 3e38f) inverse = 0; /* NaN, or too small to divide by */
    xless[c] = 0;
    for (int i = 0; i < GROUP; i++) {
      x8[i] = (int8_t)__builtin_rintf(x[i] * inverse * (finite == 0));
      xless[c] -= x8[i];
    }
  }
}

/* Where rows do not rise from 0 to `groups`: 1 + the row, or 0. */
ALWAYS int64_t gqsa_disorder(const int32_t *ptr, int64_t rows, int64_t groups) {
  int wrong = ptr[0] != 0 || ptr[rows] != groups;
  for (int64_t r = 0; r < rows; r++) wrong |= ptr[r + 1] < ptr[r];
  if (!wrong) return 0;
  for (int64_t r = 0; r < rows; r++)
    if (ptr[r + 1] < ptr[r]) return r + 1;
  return rows ? rows : 1;
}

/* As `intarsia_gqsa`, for blocks of 4 or 8 rows that share their groups. */
int64_t gqsa_shared(const float *x, float *y, int64_t batch, int64_t across, const int32_t *ptr,
                    const uint16_t *col, const uint8_t *code, const uint16_t *scale,
                    const uint8_t *zero, int64_t rows, int64_t groups, int block, int rounded,
                    int threads);
#endif
