/* Included once for each pair (R, T): R rows of the weight together, T vectors of pixels.
 *
 * y[co][p] = act2(act(b[co] + sum w x[ci][p]) + other[co][p]) for the blocks of rows from ... to - 1
 * and the pixels at ... at + T V. The R x T sums must stay in registers: in memory they are slower
 * than a dense product. */
#define JOIN_(R, T) spmm_##R##_##T
#define JOIN(R, T) JOIN_(R, T)

static void JOIN(R, T)(const struct step *s, int64_t at, int64_t from, int64_t to) {
    const char *src = (const char *)(intptr_t)s->src + 4 * at;
    const int32_t *ptr = (const int32_t *)(intptr_t)s->ptr, *off = (const int32_t *)(intptr_t)s->off;
    const float *w = (const float *)(intptr_t)s->val + (int64_t)ptr[from] * R;
    const float *bias = (const float *)(intptr_t)s->bias;
    const float *other = (const float *)(intptr_t)s->other;
    float *dst = (float *)(intptr_t)s->dst + at;
    const int bent = s->act > RELU6 || s->act2; /* more than limits: a second pass, in cache */
    const vf low = splat(lowest(s->act)), high = splat(highest(s->act));
    for (int64_t b = from; b < to; b++) {
        vf sum[R][T];
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int t = 0; t < T; t++) sum[r][t] = splat(bias[b * R + r]);
        int32_t k = ptr[b];
        const int32_t end = ptr[b + 1];
#if R == 1 /* one chain of additions a vector would wait for itself */
        vf odd[T];
        UNROLL for (int t = 0; t < T; t++) odd[t] = splat(0);
        for (; k + 1 < end; k += 2, w += 2) {
            const float *x0 = (const float *)(src + off[k]);
            const float *x1 = (const float *)(src + off[k + 1]);
            const vf w0 = splat(w[0]), w1 = splat(w[1]);
            UNROLL for (int t = 0; t < T; t++) {
                sum[0][t] += load(x0 + t * V) * w0;
                odd[t] += load(x1 + t * V) * w1;
            }
        }
#endif
        for (; k < end; k++, w += R) {
            const float *x = (const float *)(src + off[k]);
            vf in[T];
            UNROLL for (int t = 0; t < T; t++) in[t] = load(x + t * V);
            UNROLL for (int r = 0; r < R; r++) {
                const vf one = splat(w[r]);
                UNROLL for (int t = 0; t < T; t++) sum[r][t] += in[t] * one;
            }
        }
#if R == 1
        UNROLL for (int t = 0; t < T; t++) sum[0][t] += odd[t];
#endif
        UNROLL for (int r = 0; r < R; r++) {
            const int64_t row = b * R + r, place = row * s->pitch_out;
            if (row >= s->co) continue; /* the last block may have fewer rows */
            if (other && !bent) {
                UNROLL for (int t = 0; t < T; t++)
                    store(dst + place + t * V,
                          limited(sum[r][t], low, high) + load(other + at + place + t * V));
            } else {
                UNROLL for (int t = 0; t < T; t++)
                    store(dst + place + t * V, limited(sum[r][t], low, high));
            }
            if (bent) finish(dst + place, other ? other + at + place : 0, T, s->act, s->act2);
        }
    }
}
#undef JOIN
#undef JOIN_
#undef R
#undef T
