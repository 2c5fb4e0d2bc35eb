/* Included for 16 lanes and for 8: depthwise outputs straight from the map, with AVX-512.
 *
 * 8 lanes leave fewer of them empty where a row ends: of a row of 7 pixels one instead of nine. The
 * zeros around a picture are lanes that a mask leaves out and rows that are skipped: nothing is
 * copied. LANES: 16 or 8. */
#define JOIN_(name, lanes) name##_##lanes
#define JOIN(name, lanes) JOIN_(name, lanes)
#define HOLD(x) __asm__("" : "+v"(x)) /* in a register, not read again for each product */
#if LANES == 16
#define VEC __m512
#define SPLAT _mm512_set1_ps
#define TAKE _mm512_maskz_loadu_ps
#define MULTIPLY_ADD _mm512_fmadd_ps
#define WIDE(x) (x)
#define EVEN(a, b) \
    _mm512_permutex2var_ps(a, _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0), b)
#define ODD(a, b) \
    _mm512_permutex2var_ps(a, _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1), b)
#else
#define VEC __m256
#define SPLAT _mm256_set1_ps
#define TAKE(mask, at) _mm256_maskz_loadu_ps((__mmask8)(mask), at)
#define MULTIPLY_ADD _mm256_fmadd_ps
#define WIDE(x) _mm512_castps256_ps512(x)
#define EVEN(a, b) _mm256_permutex2var_ps(a, _mm256_set_epi32(14, 12, 10, 8, 6, 4, 2, 0), b)
#define ODD(a, b) _mm256_permutex2var_ps(a, _mm256_set_epi32(15, 13, 11, 9, 7, 5, 3, 1), b)
#endif

/* Columns x ... x + LANES - 1 of `rows` output rows from y on, of channel c. A row of the map is read
 * once for all of them: its row j is tap dy of the output row (j - dy) / stride.
 * masks: of these columns, see masks_of. */
ALWAYS void JOIN(direct, LANES)(const struct step *s, const uint16_t *masks, int64_t c, int64_t y,
                                int64_t x, const int rows, const int k, const int stride) {
    const float *w = (const float *)(intptr_t)s->val + c * k * k;
    const int64_t first = y * stride - s->top; /* of the map */
    const float *src = source(s, c) + first * s->w + x * stride - s->left;
    VEC sum[ROWS];
    UNROLL for (int r = 0; r < rows; r++) sum[r] = SPLAT(((const float *)(intptr_t)s->bias)[c]);
    const int64_t width = s->w, height = s->h;
    VEC by[9];
    if (stride == 1)
        for (int dx = 0; dx < k; dx++) { /* few weights at a time stay in registers */
            const __mmask16 mask = masks[dx];
            const float *in = src + dx;
            UNROLL for (int dy = 0; dy < k; dy++) by[dy] = SPLAT(w[dy * k + dx]);
            UNROLL for (int dy = 0; dy < k; dy++) HOLD(by[dy]);
            UNROLL for (int j = 0; j < rows - 1 + k; j++, in += width) {
                if ((uint64_t)(first + j) >= (uint64_t)height) continue;
                const VEC one = TAKE(mask, in);
                UNROLL for (int dy = 0; dy < k; dy++)
                    if (j >= dy && j - dy < rows)
                        sum[j - dy] = MULTIPLY_ADD(one, by[dy], sum[j - dy]);
            }
        }
    else {
        if (k == 3) {
            UNROLL for (int i = 0; i < 9; i++) by[i] = SPLAT(w[i]);
            UNROLL for (int i = 0; i < 9; i++) HOLD(by[i]);
        }
        UNROLL for (int j = 0; j < (rows - 1) * 2 + k; j++, src += width) {
            if ((uint64_t)(first + j) >= (uint64_t)height) continue;
            VEC tap[6];
            UNROLL for (int dx = 0; dx < k; dx += 2) { /* two taps of the same vectors */
                const VEC a = TAKE((__mmask16)masks[dx], src + dx);
                const VEC b = TAKE((__mmask16)masks[dx + 1], src + dx + LANES);
                tap[dx] = EVEN(a, b);
                tap[dx + 1] = ODD(a, b);
            }
            UNROLL for (int dy = 0; dy < k; dy++)
                if (j >= dy && (j - dy) % 2 == 0 && (j - dy) / 2 < rows)
                    UNROLL for (int dx = 0; dx < k; dx++) {
                        const VEC one = k == 3 ? by[dy * 3 + dx] : SPLAT(w[dy * k + dx]);
                        sum[(j - dy) / 2] = MULTIPLY_ADD(tap[dx], one, sum[(j - dy) / 2]);
                    }
        }
    }
    const vf low = splat(lowest(s->act)), high = splat(highest(s->act));
    UNROLL for (int r = 0; r < rows; r++) {
        const int64_t at = (y + r) * s->wo + x, room = s->pitch_out - at;
        const vf wide = (vf)WIDE(sum[r]);
        const vf made = s->act > RELU6 ? activated(wide, s->act) : limited(wide, low, high);
        float *dst = (float *)(intptr_t)s->dst + c * s->pitch_out + at;
        if (room < LANES) put_some(dst, made, room);
        else JOIN(keep, LANES)(dst, made);
    }
}

#define DIRECT(R_, K, S)                                                                           \
    static void JOIN(direct_##R_##_##K##_##S, LANES)(const struct step *s, const uint16_t *masks,  \
                                                     int64_t c, int64_t y, int64_t x) {            \
        JOIN(direct, LANES)(s, masks, c, y, x, R_, K, S);                                          \
    }
DIRECT(7, 3, 1) DIRECT(4, 3, 1) DIRECT(1, 3, 1) DIRECT(7, 3, 2) DIRECT(4, 3, 2) DIRECT(1, 3, 2)
DIRECT(7, 5, 1) DIRECT(4, 5, 1) DIRECT(1, 5, 1) DIRECT(7, 5, 2) DIRECT(4, 5, 2) DIRECT(1, 5, 2)
#define EACH(K, S)                                                                                 \
    {JOIN(direct_7_##K##_##S, LANES), JOIN(direct_4_##K##_##S, LANES), JOIN(direct_1_##K##_##S, LANES)}
static const direct JOIN(directs, LANES)[2][2][3] = {{EACH(3, 1), EACH(3, 2)},
                                                     {EACH(5, 1), EACH(5, 2)}};
#undef EACH
#undef DIRECT
#undef JOIN
#undef JOIN_
#undef HOLD
#undef VEC
#undef SPLAT
#undef TAKE
#undef MULTIPLY_ADD
#undef WIDE
#undef EVEN
#undef ODD
#undef LANES
