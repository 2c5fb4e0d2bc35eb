/* The products of all formats: y = x W^T, x (batch, cols) float32, y (batch, rows). Each is described
 * where it is defined. They return 0, 1 + a row that does not fit together, or OUT_OF_MEMORY. */
#ifndef INTARSIA_PRODUCTS_H
#define INTARSIA_PRODUCTS_H

#include "common.h"

INTARSIA_API int64_t dense_linear(int kind, const float *x, float *y, const void *weight,
                                  int64_t rows, int64_t cols, int64_t batch, int threads);
/* Rows `row` to `to` of the weight of dense_linear, on this thread: their columns of y. */
void intarsia_dense_rows(int kind, const float *x, float *y, const void *weight, int64_t rows,
                         int64_t cols, int64_t batch, int64_t row, int64_t to);
INTARSIA_API int64_t dense_grouped(const float *x, float *y, const float *weight, const int64_t *load,
                                   int64_t experts, int64_t rows, int64_t cols, int threads);
INTARSIA_API int64_t bitmask_linear(int kind, const float *x, float *y, const uint8_t *bits,
                                    const void *values, const int64_t *offsets,
                                    const float *scales, int64_t kept, int64_t rows, int64_t cols,
                                    int64_t batch, int threads);
INTARSIA_API int64_t intarsia_gqsa(const float *x, float *y, int64_t batch, int64_t across,
                                   const int32_t *ptr, const uint16_t *col, const uint8_t *code,
                                   const uint16_t *scale, const uint8_t *zero, int64_t rows,
                                   int64_t groups, int block, int rounded, int threads);
INTARSIA_API int64_t intarsia_ternary(const float *x, float *y, int64_t batch, int64_t across,
                                      const uint16_t *code, const int64_t *ptr,
                                      const uint32_t *table, const uint16_t *levels, int64_t rows,
                                      int64_t codes, int threads);
INTARSIA_API int64_t intarsia_blockint(const float *x, float *y, int64_t batch,
                                       const uint8_t *codes, const uint16_t *scales, int64_t rows,
                                       int64_t cols, int bits, int threads);

/* A product by the numbers that describe its weight: a kind of PRODUCTS in bound.py, rows, columns,
 * then what the kernel wants, tensors by their addresses. */
INTARSIA_API int64_t intarsia_product(const int64_t *weight, const float *x, float *y,
                                      int64_t batch, int threads);
#endif
