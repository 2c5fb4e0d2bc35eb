/* Group-sparse int4: y_r = sum of s_g (sum_j (q_gj - z_g) x_j) over the kept groups g of row r, 16
   inputs a group (GQSA, arXiv:2412.17560).

   Task-centric: the kept groups of all rows are one list, cut into units of UNIT; each worker has
   equal runs of units, whatever the rows' lengths. A row that goes on in a later unit has its
   part there in a fix-up array, added in the order of the units: the same bits for any number of
   workers. The zero point is taken off the codes, not off the sums: infinite inputs stay so. */
#include "gqsa.h"

#define UNIT 1024

typedef struct {
  float value;
  int32_t row; /* -1: the unit begins with a row */
} gqsa_part;

typedef struct {
  const float *x;      /* (in) */
  const int8_t *x8;    /* (in), or NULL: fp32 activations */
  const float *xscale; /* (in / GROUP) */
  const int32_t *xless; /* (in / GROUP): -1 times the sum of x8 */
  float *y;            /* (rows) */
  gqsa_part *part;     /* (units) */
  const int32_t *ptr;
  const uint16_t *col;
  const uint8_t *code; /* 8 bytes a group, the even weight in the low nibble */
  const uint16_t *scale;
  const uint8_t *zero; /* a nibble a group, the even group in the low one */
  int64_t rows, groups, across, parts;
  int64_t *fault;
} gqsa_job;

ALWAYS int gqsa_zero(const uint8_t *zero, int64_t g) {
  return (zero[g >> 1] >> (4 * (g & 1))) & 15;
}

/* the zeros of groups g ... g + 3 as nibbles; reads no byte behind theirs */
ALWAYS uint32_t gqsa_zeros4(const uint8_t *zero, int64_t g) {
  const uint8_t *z = zero + (g >> 1);
  uint32_t v = (uint32_t)z[0] | (uint32_t)z[1] << 8;
  return (g & 1) ? (v | (uint32_t)z[2] << 16) >> 4 : v;
}

static float gqsa_one_f32(const gqsa_job *j, int64_t g) {
  const uint8_t *q = j->code + g * 8;
  const float *x = j->x + (int64_t)j->col[g] * GROUP;
  int z = gqsa_zero(j->zero, g);
  float even = 0, odd = 0;
  for (int i = 0; i < 8; i++) {
    even += (float)((q[i] & 15) - z) * x[2 * i];
    odd += (float)((q[i] >> 4) - z) * x[2 * i + 1];
  }
  return (even + odd) * of_bf16(j->scale[g]);
}

static float gqsa_one_i8(const gqsa_job *j, int64_t g) {
  const uint8_t *q = j->code + g * 8;
  int64_t c = j->col[g];
  const int8_t *x = j->x8 + c * GROUP;
  int z = gqsa_zero(j->zero, g), sum = 0;
  for (int i = 0; i < 8; i++) sum += ((q[i] & 15) - z) * x[2 * i] + ((q[i] >> 4) - z) * x[2 * i + 1];
  return (float)sum * (of_bf16(j->scale[g]) * j->xscale[c]);
}

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__) && \
    defined(__AVX512VL__) && defined(__BMI2__)

static float gqsa_f32(const gqsa_job *j, int64_t g, int64_t e) {
  const __m128i low = _mm_set1_epi8(15);
  __m512 a0 = _mm512_setzero_ps(), a1 = a0, a2 = a0, a3 = a0;
  for (; g + 3 < e; g += 4) {
    uint32_t z = gqsa_zeros4(j->zero, g);
    for (int k = 0; k < 2; k++) { /* two groups each */
      __m128i b = _mm_loadu_si128((const __m128i *)(j->code + (g + 2 * k) * 8));
      __m128i l = _mm_and_si128(b, low), h = _mm_and_si128(_mm_srli_epi16(b, 4), low);
      __m128i q0 = _mm_sub_epi8(_mm_unpacklo_epi8(l, h), _mm_set1_epi8((z >> (8 * k)) & 15));
      __m128i q1 = _mm_sub_epi8(_mm_unpackhi_epi8(l, h), _mm_set1_epi8((z >> (8 * k + 4)) & 15));
      __m512 w0 = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q0)),
                                _mm512_set1_ps(of_bf16(j->scale[g + 2 * k])));
      __m512 w1 = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q1)),
                                _mm512_set1_ps(of_bf16(j->scale[g + 2 * k + 1])));
      const float *x0 = j->x + GROUP * (int64_t)j->col[g + 2 * k];
      const float *x1 = j->x + GROUP * (int64_t)j->col[g + 2 * k + 1];
      if (k) {
        a2 = _mm512_fmadd_ps(w0, _mm512_loadu_ps(x0), a2);
        a3 = _mm512_fmadd_ps(w1, _mm512_loadu_ps(x1), a3);
      } else {
        a0 = _mm512_fmadd_ps(w0, _mm512_loadu_ps(x0), a0);
        a1 = _mm512_fmadd_ps(w1, _mm512_loadu_ps(x1), a1);
      }
    }
    _mm_prefetch((const char *)(j->code + g * 8) + 1024, _MM_HINT_T0);
  }
  float t = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a0, a1), _mm512_add_ps(a2, a3)));
  for (; g < e; g++) t += gqsa_one_f32(j, g);
  return t;
}

/* Sums of eight groups: (q - z) x = q x - z sum x, exact, 4 sums for each.  code: 64 bytes, zeros: 8
   nibbles. */
ALWAYS void gqsa_eight(const gqsa_job *j, const uint16_t *col, const uint8_t *code,
                       const uint16_t *scale, uint32_t zeros, __m512 *a, __m512 *b) {
  const __m256i at = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)col));
  const __m256i halves = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)scale));
  const __m256 s = _mm256_castsi256_ps(_mm256_slli_epi32(halves, 16));
  const __m256 f = _mm256_mul_ps(s, _mm256_i32gather_ps(j->xscale, at, 4));
  __m256i z = _mm256_srlv_epi32(_mm256_set1_epi32((int)zeros),
                                _mm256_set_epi32(28, 24, 20, 16, 12, 8, 4, 0));
  z = _mm256_mullo_epi32(_mm256_and_si256(z, _mm256_set1_epi32(15)),
                         _mm256_i32gather_epi32(j->xless, at, 4));
  __m512i each = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
  for (int k = 0; k < 2; k++, col += 4, code += 32) {
    __m512i w = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)code));
    w = _mm512_and_si512(_mm512_or_si512(w, _mm512_slli_epi16(w, 4)), _mm512_set1_epi8(15));
    __m512i x = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(j->x8 + 16 * (int64_t)col[0])));
    for (int i = 1; i < 4; i++) {
      const __m128i one = _mm_loadu_si128((const __m128i *)(j->x8 + 16 * (int64_t)col[i]));
      x = _mm512_mask_broadcast_i32x4(x, (__mmask16)(15 << (4 * i)), one);
    }
    const __m512i less = _mm512_maskz_permutexvar_epi32(0x1111, each, _mm512_castsi256_si512(z));
    const __m512 dots = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(less, w, x));
    const __m512 by = _mm512_permutexvar_ps(each, _mm512_castps256_ps512(f));
    if (k) *b = _mm512_fmadd_ps(dots, by, *b);
    else *a = _mm512_fmadd_ps(dots, by, *a);
    each = _mm512_add_epi32(each, _mm512_set1_epi32(4));
  }
}

static float gqsa_i8(const gqsa_job *j, int64_t g, int64_t e) {
  __m512 a = _mm512_setzero_ps(), b = a;
  const uint8_t *code = j->code + g * 8, *zero = j->zero + (g >> 1);
  const int odd = (int)(g & 1);
  for (; g + 7 < e; g += 8, code += 64, zero += 4) {
    uint32_t zeros;
    memcpy(&zeros, zero, 4);
    zeros = (uint32_t)(((uint64_t)zeros | (uint64_t)zero[3 + odd] << 32) >> (4 * odd));
    gqsa_eight(j, j->col + g, code, j->scale + g, zeros, &a, &b);
    _mm_prefetch((const char *)code + 2048, _MM_HINT_T0);
    _mm_prefetch((const char *)(j->scale + g) + 512, _MM_HINT_T0);
    _mm_prefetch((const char *)(j->col + g) + 512, _MM_HINT_T0);
  }
  if (g < e) { /* the last ones, with a scale of 0 behind them */
    const __mmask8 some = (__mmask8)((1u << (e - g)) - 1);
    uint16_t col[8], scale[8];
    uint8_t last[64] = {0};
    uint32_t zeros = 0;
    /* no column of the next row, which nobody has looked at, nor one that may be NaN */
    const __m128i again = _mm_set1_epi16((short)j->col[e - 1]);
    _mm_storeu_si128((__m128i *)col, _mm_mask_loadu_epi16(again, some, j->col + g));
    _mm_storeu_si128((__m128i *)scale, _mm_maskz_loadu_epi16(some, j->scale + g));
    if (g + 8 < j->groups) { /* codes and zeros of the next row are there to be read */
      memcpy(&zeros, zero, 4);
      zeros = (uint32_t)(((uint64_t)zeros | (uint64_t)zero[3 + odd] << 32) >> (4 * odd));
      gqsa_eight(j, col, code, scale, zeros, &a, &b);
    } else {
      for (int i = 0; g + i < e; i++) zeros |= (uint32_t)gqsa_zero(j->zero, g + i) << (4 * i);
      memcpy(last, code, (size_t)(e - g) * 8);
      gqsa_eight(j, col, last, scale, zeros, &a, &b);
    }
  }
  return _mm512_reduce_add_ps(_mm512_add_ps(a, b));
}

#elif defined(__AVX2__) && defined(__FMA__)

/* the 16 codes of a group, one a byte */
ALWAYS __m128i gqsa_codes(const uint8_t *code) {
  __m128i b = _mm_loadl_epi64((const __m128i *)code), low = _mm_set1_epi8(15);
  return _mm_unpacklo_epi8(_mm_and_si128(b, low), _mm_and_si128(_mm_srli_epi16(b, 4), low));
}

static float gqsa_f32(const gqsa_job *j, int64_t g, int64_t e) {
  __m256 a0 = _mm256_setzero_ps(), a1 = a0;
  for (; g < e; g++) {
    __m128i q = _mm_sub_epi8(gqsa_codes(j->code + g * 8), _mm_set1_epi8((char)gqsa_zero(j->zero, g)));
    __m256 s = _mm256_set1_ps(of_bf16(j->scale[g]));
    const float *x = j->x + GROUP * (int64_t)j->col[g];
    __m256 w0 = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q));
    __m256 w1 = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(q, 8)));
    a0 = _mm256_fmadd_ps(_mm256_mul_ps(w0, s), _mm256_loadu_ps(x), a0);
    a1 = _mm256_fmadd_ps(_mm256_mul_ps(w1, s), _mm256_loadu_ps(x + 8), a1);
    _mm_prefetch((const char *)(j->code + g * 8) + 1024, _MM_HINT_T0);
  }
  return sum_x8(_mm256_add_ps(a0, a1));
}

static float gqsa_i8(const gqsa_job *j, int64_t g, int64_t e) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256 a = _mm256_setzero_ps();
  for (; g + 1 < e; g += 2) {
    const uint8_t *q = j->code + g * 8;
    int64_t c0 = j->col[g], c1 = j->col[g + 1];
    __m256i w = _mm256_set_m128i(gqsa_codes(q + 8), gqsa_codes(q));
    __m256i x = _mm256_set_m128i(_mm_loadu_si128((const __m128i *)(j->x8 + 16 * c1)),
                                 _mm_loadu_si128((const __m128i *)(j->x8 + 16 * c0)));
    __m256i z = _mm256_set_m128i(_mm_set1_epi8((char)gqsa_zero(j->zero, g + 1)),
                                 _mm_set1_epi8((char)gqsa_zero(j->zero, g)));
    /* at most 2 * 15 * 127 in 16 bits, of both */
    __m256i d = _mm256_sub_epi16(_mm256_maddubs_epi16(w, x), _mm256_maddubs_epi16(z, x));
    float f0 = of_bf16(j->scale[g]) * j->xscale[c0], f1 = of_bf16(j->scale[g + 1]) * j->xscale[c1];
    __m256 f = _mm256_set_m128(_mm_set1_ps(f1), _mm_set1_ps(f0));
    a = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_madd_epi16(d, ones)), f, a);
    _mm_prefetch((const char *)q + 1024, _MM_HINT_T0);
  }
  float t = sum_x8(a);
  if (g < e) t += gqsa_one_i8(j, g);
  return t;
}

#else

static float gqsa_f32(const gqsa_job *j, int64_t g, int64_t e) {
  float t = 0;
  for (; g < e; g++) t += gqsa_one_f32(j, g);
  return t;
}

static float gqsa_i8(const gqsa_job *j, int64_t g, int64_t e) {
  float t = 0;
  for (; g < e; g++) t += gqsa_one_i8(j, g);
  return t;
}

#endif

/* the row that has group g, by bisection: the last one that begins at g or before it */
static int64_t gqsa_row(const int32_t *ptr, int64_t rows, int64_t g) {
  int64_t low = 0, high = rows - 1;
  while (low < high) {
    int64_t middle = (low + high + 1) / 2;
    if (ptr[middle] <= g) low = middle; else high = middle - 1;
  }
  return low;
}

static void gqsa_units(void *given, int64_t part) {
  const gqsa_job *j = given;
  const int64_t units = (j->groups + UNIT - 1) / UNIT;
  const int64_t from = units * part / j->parts, to = units * (part + 1) / j->parts;
  int64_t row = gqsa_row(j->ptr, j->rows, from * UNIT);
  for (int64_t u = from; u < to; u++) {
    int64_t g = u * UNIT, end = g + UNIT < j->groups ? g + UNIT : j->groups;
    j->part[u].row = -1;
    if (!gqsa_inside(j->col + g, end - g, j->across)) {
      note_fault(j->fault, row);
      return;
    }
    while (g < end) {
      while (j->ptr[row + 1] <= g) row++; /* the last row ends at `groups`, above g */
      int64_t stop = j->ptr[row + 1] < end ? j->ptr[row + 1] : end;
      float sum = j->x8 ? gqsa_i8(j, g, stop) : gqsa_f32(j, g, stop);
      if (g == j->ptr[row]) {
        j->y[row] = sum;
      } else {
        j->part[u].value = sum;
        j->part[u].row = (int32_t)row;
      }
      g = stop;
    }
  }
}

/* y (batch, rows) of x (batch, GROUP across).  block: rows that share their groups, 1, 4 or 8; of
   each group the rows of its block stand one after the other.  ptr: (blocks + 1), col: (groups),
   scale: (groups block), code: (8 groups block), zero: (groups block / 2, rounded up); rounded:
   activations as int8. */
INTARSIA_API int64_t intarsia_gqsa(const float *x, float *y, int64_t batch, int64_t across,
                                   const int32_t *ptr, const uint16_t *col, const uint8_t *code,
                                   const uint16_t *scale, const uint8_t *zero, int64_t rows,
                                   int64_t groups, int block, int rounded, int threads) {
  if (block > 1)
    return gqsa_shared(x, y, batch, across, ptr, col, code, scale, zero, rows, groups, block, rounded,
                       threads);
  const int64_t units = (groups + UNIT - 1) / UNIT;
  int64_t fault = gqsa_disorder(ptr, rows, groups);
  if (fault) return fault;
  memset(y, 0, (size_t)(batch * rows) * sizeof(float)); /* of rows without groups */
  if (!groups || !batch) return 0;
  gqsa_part *part = malloc((size_t)units * sizeof(gqsa_part));
  int8_t *x8 = rounded ? malloc((size_t)(across * GROUP)) : NULL;
  float *xscale = rounded ? malloc((size_t)across * sizeof(float)) : NULL;
  int32_t *xless = rounded ? malloc((size_t)across * sizeof(int32_t)) : NULL;
  if (!part || (rounded && !(x8 && xscale && xless))) fault = OUT_OF_MEMORY;
  const int64_t parts = parts_of(groups * 13, threads);
  for (int64_t b = 0; b < batch && !fault; b++, x += across * GROUP, y += rows) {
    gqsa_job job = {x,    x8,   xscale, xless,  y,      part, ptr, col, code, scale,
                    zero, rows, groups, across, parts < units ? parts : units, &fault};
    if (rounded) gqsa_rounded(x, across, x8, xscale, xless);
    intarsia_parallel(gqsa_units, &job, job.parts, threads);
    if (fault) break;
    for (int64_t u = 0; u < units; u++)
      if (part[u].row >= 0) y[part[u].row] += part[u].value;
  }
  free(part);
  free(x8);
  free(xscale);
  free(xless);
  return fault;
}
