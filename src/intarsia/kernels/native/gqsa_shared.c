/* Group-sparse int4 whose kept groups are those of a block of 4 or 8 rows (GQSA with one pattern for
   them): x is loaded once for all rows of the block, and nothing is gathered.

   A group has the codes of its rows one after the other, 8 bytes each, even inputs in the low
   nibbles. x is therefore taken apart: the 8 even inputs of a group, then the 8 odd ones. With low
   nibbles times the evens and high ones times the odds no code is moved, and the two 32-bit lanes
   of a row add up to its product. A block is computed by one thread in the order of its groups. */
#include "gqsa.h"

enum { WIDEST = 8, TOGETHER = 4 }; /* rows of a block, and of x, that are computed at once */

typedef struct {
  const float *x;      /* (batch, across, GROUP), taken apart; NULL if it is rounded */
  const int8_t *x8;    /* the same as int8 */
  const float *xscale; /* (batch, across) */
  const int32_t *xless; /* (batch, across): -1 times the sum of x8 */
  float *y;            /* (batch, rows) */
  const int32_t *ptr;
  const uint16_t *col;
  const uint8_t *code;
  const uint16_t *scale;
  const uint8_t *zero;
  int64_t batch, rows, blocks, groups, across, parts;
  int block;
  int64_t *fault;
} shared_job;

/* The zeros of four or more rows as nibbles.  at: of the first one, a multiple of 4. */
ALWAYS uint32_t zeros_at(const uint8_t *zero, int64_t at, const int count) {
  uint32_t nibbles = 0;
  memcpy(&nibbles, zero + at / 2, (size_t)count / 2);
  return nibbles;
}

ALWAYS int64_t eight_bytes(const int8_t *x) {
  int64_t bytes;
  memcpy(&bytes, x, 8);
  return bytes;
}

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)

/* Eight rows of codes with B rows of x: all rows of a block of 8, or two groups of a block of 4. Of a
   single group of 4 rows the second half is a group of scale 0. */
ALWAYS void eight_rows(const shared_job *j, int64_t g, const int pair, int64_t b0, const int B,
                       const int block, __m512 *sums) {
  const __m512i low = _mm512_set1_epi8(15);
  const int whole = block == 8 || pair;
  const __m512i q = _mm512_maskz_loadu_epi64(whole ? 0xff : 0x0f, j->code + g * block * 8);
  const uint16_t *halves = j->scale + g * block;
  const __m128i eight = whole ? _mm_loadu_si128((const __m128i *)halves)
                              : _mm_loadl_epi64((const __m128i *)halves);
  /* bfloat16 is the upper half of a float: each goes into both lanes of its row */
  const __m512i lanes = _mm512_set_epi32(0x70000, 0x70000, 0x60000, 0x60000, 0x50000, 0x50000, 0x40000,
                                         0x40000, 0x30000, 0x30000, 0x20000, 0x20000, 0x10000,
                                         0x10000, 0, 0);
  const __m512 scale = _mm512_castsi512_ps(
      _mm512_maskz_permutexvar_epi16(0xaaaaaaaa, lanes, _mm512_castsi128_si512(eight)));
  const __m512i shifts =
      _mm512_set_epi32(32, 28, 32, 24, 32, 20, 32, 16, 32, 12, 32, 8, 32, 4, 32, 0);
  const uint32_t nibbles = zeros_at(j->zero, g * block, whole ? 8 : 4);
  const __m512i zero = _mm512_and_si512(
      _mm512_srlv_epi32(_mm512_set1_epi32((int)nibbles), shifts), _mm512_set1_epi32(15));
  const __m512i even = _mm512_and_si512(q, low), odd = _mm512_and_si512(_mm512_srli_epi16(q, 4), low);
  for (int b = 0; b < B; b++) {
    const int64_t at = (b0 + b) * j->across + j->col[g];
    const int8_t *x = j->x8 + at * GROUP;
    __m512i evens = _mm512_set1_epi64(eight_bytes(x)), odds = _mm512_set1_epi64(eight_bytes(x + 8));
    __m512i less = _mm512_set1_epi32(j->xless[at]);
    __m512 step = _mm512_set1_ps(j->xscale[at]);
    if (block == 4 && pair) {
      const int64_t then = (b0 + b) * j->across + j->col[g + 1];
      evens = _mm512_mask_set1_epi64(evens, 0xf0, eight_bytes(j->x8 + then * GROUP));
      odds = _mm512_mask_set1_epi64(odds, 0xf0, eight_bytes(j->x8 + then * GROUP + 8));
      less = _mm512_mask_set1_epi32(less, 0xff00, j->xless[then]);
      step = _mm512_mask_broadcastss_ps(step, 0xff00, _mm_load_ss(j->xscale + then));
    }
    /* (q - z) x = q x - z sum x; zeros have nothing in the upper 16 bits of a lane */
    __m512i dots = _mm512_dpwssd_epi32(_mm512_setzero_si512(), zero, less);
    dots = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(dots, even, evens), odd, odds);
    sums[b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), _mm512_mul_ps(scale, step), sums[b]);
  }
}

ALWAYS void block_i8(const shared_job *j, int64_t n, int64_t b0, const int B, const int block) {
  __m512 sums[TOGETHER];
  int64_t g = j->ptr[n];
  const int64_t end = j->ptr[n + 1], left = j->rows - n * block;
  for (int b = 0; b < B; b++) sums[b] = _mm512_setzero_ps();
  for (; g + 8 / block <= end; g += 8 / block) {
    eight_rows(j, g, block == 4, b0, B, block, sums);
    _mm_prefetch((const char *)(j->code + g * block * 8) + 2048, _MM_HINT_T0);
  }
  if (block == 4 && g < end) eight_rows(j, g, 0, b0, B, block, sums);
  const __mmask8 some = left >= block ? (__mmask8)((1u << block) - 1) : (__mmask8)((1u << left) - 1);
  for (int b = 0; b < B; b++) {
    const __m512 both = _mm512_add_ps(sums[b], _mm512_permute_ps(sums[b], 0xb1));
    __m256 y = _mm512_castps512_ps256(_mm512_maskz_compress_ps(0x5555, both));
    if (block == 4) y = _mm256_add_ps(y, _mm256_permute2f128_ps(y, y, 1));
    _mm512_mask_storeu_ps(j->y + (b0 + b) * j->rows + n * block, some, _mm512_castps256_ps512(y));
  }
}

#elif defined(__AVX2__) && defined(__FMA__)

/* Four rows of codes with B rows of x.  row: of the block, 0 or 4. */
ALWAYS void four_rows(const shared_job *j, int64_t g, int row, int64_t b0, const int B,
                      const int block, __m256 *sums) {
  const __m256i low = _mm256_set1_epi8(15);
  const int64_t first = g * block + row;
  const __m256i q = _mm256_loadu_si256((const __m256i *)(j->code + first * 8));
  const __m256i halves = _mm256_cvtepu16_epi64(_mm_loadl_epi64((const __m128i *)(j->scale + first)));
  const __m256 scale = _mm256_castsi256_ps(
      _mm256_or_si256(_mm256_slli_epi64(halves, 16), _mm256_slli_epi64(halves, 48)));
  const __m256i shifts = _mm256_set_epi32(32, 12, 32, 8, 32, 4, 32, 0);
  const __m256i nibbles = _mm256_set1_epi32((int)zeros_at(j->zero, first, 4));
  const __m256i zero = _mm256_and_si256(_mm256_srlv_epi32(nibbles, shifts), _mm256_set1_epi32(15));
  const __m256i even = _mm256_and_si256(q, low), odd = _mm256_and_si256(_mm256_srli_epi16(q, 4), low);
  for (int b = 0; b < B; b++) {
    const int64_t at = (b0 + b) * j->across + j->col[g];
    const int8_t *x = j->x8 + at * GROUP;
    /* at most 4 * 15 * 127 in 16 bits */
    const __m256i pairs =
        _mm256_add_epi16(_mm256_maddubs_epi16(even, _mm256_set1_epi64x(eight_bytes(x))),
                         _mm256_maddubs_epi16(odd, _mm256_set1_epi64x(eight_bytes(x + 8))));
    const __m256i dots =
        _mm256_add_epi32(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)),
                         _mm256_madd_epi16(zero, _mm256_set1_epi32(j->xless[at])));
    const __m256 by = _mm256_mul_ps(scale, _mm256_set1_ps(j->xscale[at]));
    sums[b] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), by, sums[b]);
  }
}

ALWAYS void block_i8(const shared_job *j, int64_t n, int64_t b0, const int B, const int block) {
  const int64_t left = j->rows - n * block;
  for (int row = 0; row < block; row += 4) {
    __m256 sums[TOGETHER];
    for (int b = 0; b < B; b++) sums[b] = _mm256_setzero_ps();
    for (int64_t g = j->ptr[n]; g < j->ptr[n + 1]; g++) {
      four_rows(j, g, row, b0, B, block, sums);
      _mm_prefetch((const char *)(j->code + g * block * 8) + 1024, _MM_HINT_T0);
    }
    for (int b = 0; b < B; b++) {
      float lanes[8], *y = j->y + (b0 + b) * j->rows + n * block;
      _mm256_storeu_ps(lanes, sums[b]);
      for (int r = row; r < row + 4 && r < left; r++)
        y[r] = lanes[2 * (r - row)] + lanes[2 * (r - row) + 1];
    }
  }
}

#else

ALWAYS void block_i8(const shared_job *j, int64_t n, int64_t b0, const int B, const int block) {
  const int64_t left = j->rows - n * block;
  for (int b = 0; b < B; b++) {
    float sums[WIDEST] = {0};
    for (int64_t g = j->ptr[n]; g < j->ptr[n + 1]; g++) {
      const int64_t at = (b0 + b) * j->across + j->col[g];
      const int8_t *x = j->x8 + at * GROUP;
      for (int r = 0; r < block; r++) {
        const int64_t row = g * block + r;
        const uint8_t *q = j->code + row * 8;
        int sum = ((j->zero[row >> 1] >> (4 * (row & 1))) & 15) * j->xless[at];
        for (int i = 0; i < 8; i++) sum += (q[i] & 15) * x[i] + (q[i] >> 4) * x[i + 8];
        sums[r] += (float)sum * (of_bf16(j->scale[row]) * j->xscale[at]);
      }
    }
    for (int r = 0; r < block && r < left; r++) j->y[(b0 + b) * j->rows + n * block + r] = sums[r];
  }
}

#endif

/* With inputs that are not rounded. The zero is taken off the codes: infinite inputs stay so. */
ALWAYS void block_f32(const shared_job *j, int64_t n, int64_t b, const int block) {
  const int64_t left = j->rows - n * block;
  float sums[WIDEST][GROUP] = {{0}};
  for (int64_t g = j->ptr[n]; g < j->ptr[n + 1]; g++) {
    const float *x = j->x + (b * j->across + j->col[g]) * GROUP;
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
    /* the 16 values that a row's codes may have, looked up by the nibbles */
    const __m512 codes = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i high = _mm512_set_epi32(4, 4, 4, 4, 4, 4, 4, 4, 0, 0, 0, 0, 0, 0, 0, 0);
    const uint16_t *halves = j->scale + g * block;
    const __m128i all = block == 8 ? _mm_loadu_si128((const __m128i *)halves)
                                   : _mm_loadl_epi64((const __m128i *)halves);
    const __m512 scale = _mm512_castsi512_ps(
        _mm512_castsi256_si512(_mm256_slli_epi32(_mm256_cvtepu16_epi32(all), 16)));
    const __m256i nibbles = _mm256_srlv_epi32(
        _mm256_set1_epi32((int)zeros_at(j->zero, g * block, block)),
        _mm256_set_epi32(28, 24, 20, 16, 12, 8, 4, 0));
    const __m512 zero = _mm512_castps256_ps512(
        _mm256_cvtepi32_ps(_mm256_and_si256(nibbles, _mm256_set1_epi32(15))));
    const __m512 inputs = _mm512_loadu_ps(x);
    for (int r = 0; r < block; r++) {
      const __m512i row = _mm512_set1_epi32(r);
      const __m512 values = _mm512_mul_ps(_mm512_sub_ps(codes, _mm512_permutexvar_ps(row, zero)),
                                          _mm512_permutexvar_ps(row, scale));
      const __m128i q = _mm_set1_epi64x(eight_bytes((const int8_t *)j->code + (g * block + r) * 8));
      const __m512i at = _mm512_srlv_epi32(_mm512_cvtepu8_epi32(q), high);
      _mm512_storeu_ps(sums[r], _mm512_fmadd_ps(_mm512_permutexvar_ps(at, values), inputs,
                                                _mm512_loadu_ps(sums[r])));
    }
    _mm_prefetch((const char *)(j->code + g * block * 8) + 2048, _MM_HINT_T0);
#else
    for (int r = 0; r < block; r++) {
      const int64_t row = g * block + r;
      const uint8_t *q = j->code + row * 8;
      const int z = (j->zero[row >> 1] >> (4 * (row & 1))) & 15;
      const float scale = of_bf16(j->scale[row]);
      for (int i = 0; i < 8; i++) sums[r][i] += (float)((q[i] & 15) - z) * scale * x[i];
      for (int i = 0; i < 8; i++) sums[r][i + 8] += (float)((q[i] >> 4) - z) * scale * x[i + 8];
    }
#endif
  }
  for (int r = 0; r < block && r < left; r++) {
    float sum = 0;
    for (int i = 0; i < GROUP; i++) sum += sums[r][i];
    j->y[b * j->rows + n * block + r] = sum;
  }
}

ALWAYS void block_for_all(const shared_job *j, int64_t n, const int block) {
  int64_t b = 0;
  if (j->x) {
    for (; b < j->batch; b++) block_f32(j, n, b, block);
    return;
  }
  for (; b + TOGETHER <= j->batch; b += TOGETHER) block_i8(j, n, b, TOGETHER, block);
  for (; b < j->batch; b++) block_i8(j, n, b, 1, block);
}

/* the first block whose groups begin at g or behind it, by bisection */
static int64_t block_at(const shared_job *j, int64_t g) {
  int64_t low = 0, high = j->blocks;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (j->ptr[middle] < g) low = middle + 1;
    else high = middle;
  }
  return low;
}

static void shared_blocks(void *given, int64_t part) {
  const shared_job here = *(const shared_job *)given, *j = &here; /* in registers: y does not overlap it */
  /* blocks without groups at the end belong to the last part */
  const int64_t to = part + 1 < j->parts ? block_at(j, j->groups * (part + 1) / j->parts) : j->blocks;
  for (int64_t n = part ? block_at(j, j->groups * part / j->parts) : 0; n < to; n++) {
    if (!gqsa_inside(j->col + j->ptr[n], j->ptr[n + 1] - j->ptr[n], j->across)) {
      note_fault(j->fault, n * j->block);
      return;
    }
    if (j->block == 8) block_for_all(j, n, 8);
    else block_for_all(j, n, 4);
  }
}

/* Evens first, then odds, of each group. */
ALWAYS void apart_i8(int8_t *x, int64_t groups) {
  for (int64_t c = 0; c < groups; c++, x += GROUP) {
    int8_t copy[GROUP];
    memcpy(copy, x, GROUP);
    for (int i = 0; i < 8; i++) x[i] = copy[2 * i], x[i + 8] = copy[2 * i + 1];
  }
}

int64_t gqsa_shared(const float *x, float *y, int64_t batch, int64_t across, const int32_t *ptr,
                    const uint16_t *col, const uint8_t *code, const uint16_t *scale,
                    const uint8_t *zero, int64_t rows, int64_t groups, int block, int rounded,
                    int threads) {
  const int64_t blocks = (rows + block - 1) / block, all = batch * across;
  int64_t fault = gqsa_disorder(ptr, blocks, groups);
  if (fault) return (fault - 1) * block + 1;
  if (!groups) memset(y, 0, (size_t)(batch * rows) * sizeof(float));
  if (!batch || !groups) return 0;
  /* int8, a scale and a sum for each group, or its floats */
  char *memory = malloc((size_t)all * (rounded ? GROUP + 8 : GROUP * sizeof(float)) + 1);
  if (!memory) return OUT_OF_MEMORY;
  float *floats = (float *)memory, *xscale = (float *)(memory + all * GROUP);
  int32_t *xless = (int32_t *)(xscale + all);
  if (rounded) {
    gqsa_rounded(x, all, (int8_t *)memory, xscale, xless);
    apart_i8((int8_t *)memory, all);
  } else {
    for (int64_t c = 0; c < all * GROUP; c += GROUP)
      for (int i = 0; i < 8; i++) floats[c + i] = x[c + 2 * i], floats[c + i + 8] = x[c + 2 * i + 1];
  }
  shared_job job = {rounded ? NULL : floats, (int8_t *)memory, xscale, xless, y, ptr, col, code,
                    scale, zero, batch, rows, blocks, groups, across, 1, block, &fault};
  job.parts = parts_of(groups * block * 11, threads);
  intarsia_parallel(shared_blocks, &job, job.parts, threads);
  free(memory);
  return fault;
}
