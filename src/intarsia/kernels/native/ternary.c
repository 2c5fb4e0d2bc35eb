/* Ternary rows as words of a dictionary, decoded in registers (QMoE, arXiv:2310.16795).

   y_r = sum_j w_rj x_j, w_rj in {0, min_r, max_r}; a code of 16 bits is a word of at most 28
   digits. A word, 8 bytes of a table: digits 0 ... 15, 2 bits each | digits 16 ... 27, and in the
   top byte how many there are. A row is computed by one thread, in the order of its codes. */
#include "products.h"

#define DIGITS 28
#define AHEAD 32 /* codes */
#define BEHIND 32 /* numbers behind x that may be read, and are multiplied by 0 */

typedef struct {
  const float *x; /* (across + BEHIND) */
  float *y;
  const uint16_t *code;
  const int64_t *ptr;
  const uint32_t *table; /* (65536, 2) */
  const uint16_t *levels; /* (rows, 2) bfloat16: min, max */
  int64_t rows, codes, across, parts;
  int64_t *fault;
} ternary_job;

/* The table is 512 KiB, every word as likely as the next: fetch it before it is needed. */
ALWAYS void ternary_ahead(const ternary_job *j, int64_t c) {
  if (c < j->codes) __builtin_prefetch(j->table + 2 * (int64_t)j->code[c]);
}

/* Digits of a row's words are looked up in four numbers. Returns how many digits there were. */
#if defined(__AVX512F__)

static int64_t ternary_row(const ternary_job *j, int64_t r, int64_t c, int64_t e) {
  const __m512i first = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i then = _mm512_set_epi32(32, 32, 32, 32, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const float lo = of_bf16(j->levels[2 * r]), hi = of_bf16(j->levels[2 * r + 1]);
  const __m512 w = _mm512_set_ps(0, hi, lo, 0, 0, hi, lo, 0, 0, hi, lo, 0, 0, hi, lo, 0);
  __m512 a0 = _mm512_setzero_ps(), a1 = a0, b0 = a0, b1 = a0;
  int64_t at = 0;
  for (; c < e; c += 2) {
    ternary_ahead(j, c + AHEAD);
    ternary_ahead(j, c + AHEAD + 1);
    const uint32_t *t = j->table + 2 * (int64_t)j->code[c];
    const int64_t next = at + (t[1] >> 24);
    if (next > j->across) return next;
    a0 = _mm512_fmadd_ps(_mm512_permutexvar_ps(_mm512_srlv_epi32(_mm512_set1_epi32((int)t[0]), first), w),
                         _mm512_loadu_ps(j->x + at), a0);
    a1 = _mm512_fmadd_ps(_mm512_permutexvar_ps(_mm512_srlv_epi32(_mm512_set1_epi32((int)t[1]), then), w),
                         _mm512_loadu_ps(j->x + at + 16), a1);
    at = next;
    if (c + 1 == e) break;
    const uint32_t *u = j->table + 2 * (int64_t)j->code[c + 1];
    const int64_t after = at + (u[1] >> 24);
    if (after > j->across) return after;
    b0 = _mm512_fmadd_ps(_mm512_permutexvar_ps(_mm512_srlv_epi32(_mm512_set1_epi32((int)u[0]), first), w),
                         _mm512_loadu_ps(j->x + at), b0);
    b1 = _mm512_fmadd_ps(_mm512_permutexvar_ps(_mm512_srlv_epi32(_mm512_set1_epi32((int)u[1]), then), w),
                         _mm512_loadu_ps(j->x + at + 16), b1);
    at = after;
  }
  j->y[r] = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a0, a1), _mm512_add_ps(b0, b1)));
  return at;
}

#elif defined(__AVX2__) && defined(__FMA__)

static int64_t ternary_row(const ternary_job *j, int64_t r, int64_t c, int64_t e) {
  const __m256i lanes = _mm256_set_epi32(14, 12, 10, 8, 6, 4, 2, 0);
  const __m256i last = _mm256_set_epi32(32, 32, 32, 32, 22, 20, 18, 16);
  const float lo = of_bf16(j->levels[2 * r]), hi = of_bf16(j->levels[2 * r + 1]);
  const __m256 w = _mm256_set_ps(0, hi, lo, 0, 0, hi, lo, 0);
  __m256 a0 = _mm256_setzero_ps(), a1 = a0, a2 = a0, a3 = a0;
  int64_t at = 0;
  for (; c < e; c++) {
    ternary_ahead(j, c + AHEAD);
    const uint32_t *t = j->table + 2 * (int64_t)j->code[c];
    const float *x = j->x + at;
    at += t[1] >> 24;
    if (at > j->across) return at;
    const __m256i d0 = _mm256_set1_epi32((int)t[0]), d1 = _mm256_set1_epi32((int)t[1]);
    a0 = _mm256_fmadd_ps(_mm256_permutevar8x32_ps(w, _mm256_srlv_epi32(d0, lanes)), _mm256_loadu_ps(x), a0);
    a1 = _mm256_fmadd_ps(_mm256_permutevar8x32_ps(w, _mm256_srlv_epi32(_mm256_srli_epi32(d0, 16), lanes)),
                         _mm256_loadu_ps(x + 8), a1);
    a2 = _mm256_fmadd_ps(_mm256_permutevar8x32_ps(w, _mm256_srlv_epi32(d1, lanes)), _mm256_loadu_ps(x + 16), a2);
    a3 = _mm256_fmadd_ps(_mm256_permutevar8x32_ps(w, _mm256_srlv_epi32(d1, last)), _mm256_loadu_ps(x + 24), a3);
  }
  j->y[r] = sum_x8(_mm256_add_ps(_mm256_add_ps(a0, a1), _mm256_add_ps(a2, a3)));
  return at;
}

#else

static int64_t ternary_row(const ternary_job *j, int64_t r, int64_t c, int64_t e) {
  const float w[4] = {0, of_bf16(j->levels[2 * r]), of_bf16(j->levels[2 * r + 1]), 0};
  float sum = 0;
  int64_t at = 0;
  for (; c < e; c++) {
    const uint32_t *t = j->table + 2 * (int64_t)j->code[c];
    const int count = (int)(t[1] >> 24);
    if (at + count > j->across) return at + count;
    const uint64_t digits = (uint64_t)t[0] | (uint64_t)(t[1] & 0xffffff) << 32;
    for (int i = 0; i < count && i < DIGITS; i++) sum += w[(digits >> (2 * i)) & 3] * j->x[at + i];
    at += count;
  }
  j->y[r] = sum;
  return at;
}

#endif

static void ternary_rows(void *given, int64_t part) {
  const ternary_job *j = given;
  const int64_t from = first_row(j->ptr, j->codes, j->rows, 2, 8, part, j->parts);
  const int64_t to = first_row(j->ptr, j->codes, j->rows, 2, 8, part + 1, j->parts);
  for (int64_t r = from; r < to; r++) {
    const int64_t c = j->ptr[r], e = j->ptr[r + 1];
    if (ternary_row(j, r, c, e) != j->across) {
      note_fault(j->fault, r);
      return;
    }
  }
}

/* y (batch, rows) of x (batch, across + BEHIND).  code: (codes), ptr: (rows + 1), table: (65536, 2),
   levels: (rows, 2). */
INTARSIA_API int64_t intarsia_ternary(const float *x, float *y, int64_t batch, int64_t across,
                                      const uint16_t *code, const int64_t *ptr, const uint32_t *table,
                                      const uint16_t *levels, int64_t rows, int64_t codes, int threads) {
  int64_t fault = 0;
  if (ptr[0] != 0 || ptr[rows] != codes) return rows ? rows : 1;
  for (int64_t r = 0; r < rows; r++)
    if (ptr[r + 1] < ptr[r]) return r + 1;
  const int64_t parts = parts_of(codes * 32, threads); /* a code is a load of 8 bytes and 28 products */
  for (int64_t b = 0; b < batch && !fault; b++, x += across + BEHIND, y += rows) {
    ternary_job job = {x, y, code, ptr, table, levels, rows, codes, across, parts, &fault};
    intarsia_parallel(ternary_rows, &job, parts, threads);
  }
  return fault;
}
