/* Included once for each pair (R, T): R rows of the weight together, T vectors of pixels. With HALF
 * the last of them has half the lanes: of 49 pixels 7 are empty then, not 15.
 *
 * y[co][p] = act2(act(b[co] + sum w x[ci][p]) + other[co][p]) for the blocks of rows from ... to - 1
 * and the pixels at ... at + T V. The R x T sums must stay in registers: in memory they are slower
 * than a dense product. */
#define JOIN_(name, R, T) name##_##R##_##T
#define JOIN(name, R, T) JOIN_(name, R, T)
#ifdef HALF
#define NAME JOIN(half, R, T)
#define FULL (T - 1)
#else
#define NAME JOIN(spmm, R, T)
#define FULL T
#endif

static void NAME(const struct step *s, int64_t at, int64_t from, int64_t to) {
    const char *src = (const char *)(intptr_t)s->src + 4 * at;
    const int32_t *ptr = (const int32_t *)(intptr_t)s->ptr, *off = (const int32_t *)(intptr_t)s->off;
    const float *w = (const float *)(intptr_t)s->val + (int64_t)ptr[from] * R;
    const float *bias = (const float *)(intptr_t)s->bias;
    const float *other = (const float *)(intptr_t)s->other;
    float *dst = (float *)(intptr_t)s->dst + at;
    const int bent = s->act > RELU6 || s->act2; /* more than limits: a second pass, in cache */
    const vf low = splat(lowest(s->act)), high = splat(highest(s->act));
    for (int64_t b = from; b < to; b++) {
        vf sum[R][FULL];
#ifdef HALF
        vh last[R];
        UNROLL for (int r = 0; r < R; r++) last[r] = splat_half(bias[b * R + r]);
#endif
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int t = 0; t < FULL; t++) sum[r][t] = splat(bias[b * R + r]);
        int32_t k = ptr[b];
        const int32_t end = ptr[b + 1];
#if R == 1 /* one chain of additions a vector would wait for itself */
        vf odd[FULL];
        UNROLL for (int t = 0; t < FULL; t++) odd[t] = splat(0);
#ifdef HALF
        vh odd_last = splat_half(0);
#endif
        for (; k + 1 < end; k += 2, w += 2) {
            const float *x0 = (const float *)(src + off[k]);
            const float *x1 = (const float *)(src + off[k + 1]);
            const vf w0 = splat(w[0]), w1 = splat(w[1]);
            UNROLL for (int t = 0; t < FULL; t++) {
                sum[0][t] += load(x0 + t * V) * w0;
                odd[t] += load(x1 + t * V) * w1;
            }
#ifdef HALF
            last[0] += load_half(x0 + FULL * V) * low_half(w0);
            odd_last += load_half(x1 + FULL * V) * low_half(w1);
#endif
        }
#endif
        for (; k < end; k++, w += R) {
            const float *x = (const float *)(src + off[k]);
            if (R > 1) __builtin_prefetch((const char *)w + 1024); /* weights come once, from far */
            vf in[FULL];
            UNROLL for (int t = 0; t < FULL; t++) in[t] = load(x + t * V);
#ifdef HALF
            const vh in_last = load_half(x + FULL * V);
#endif
            UNROLL for (int r = 0; r < R; r++) {
                const vf one = splat(w[r]);
                UNROLL for (int t = 0; t < FULL; t++) sum[r][t] += in[t] * one;
#ifdef HALF
                last[r] += in_last * low_half(one);
#endif
            }
        }
#if R == 1
        UNROLL for (int t = 0; t < FULL; t++) sum[0][t] += odd[t];
#ifdef HALF
        last[0] += odd_last;
#endif
#endif
        UNROLL for (int r = 0; r < R; r++) {
            const int64_t row = b * R + r, place = row * s->pitch_out;
            if (row >= s->co) continue; /* the last block may have fewer rows */
            if (other && !bent) {
                UNROLL for (int t = 0; t < FULL; t++)
                    store(dst + place + t * V,
                          limited(sum[r][t], low, high) + load(other + at + place + t * V));
            } else {
                UNROLL for (int t = 0; t < FULL; t++)
                    store(dst + place + t * V, limited(sum[r][t], low, high));
            }
#ifdef HALF
            vh y = low_half(limited(of_half(last[r]), low, high));
            if (other && !bent) y += load_half(other + at + place + FULL * V);
            memcpy(dst + place + FULL * V, &y, sizeof y); /* behind it there are no pixels */
#endif
            if (bent) finish(dst + place, other ? other + at + place : 0, T, s->act, s->act2);
        }
    }
}
#undef FULL
#undef NAME
#undef HALF
#undef JOIN
#undef JOIN_
#undef R
#undef T
