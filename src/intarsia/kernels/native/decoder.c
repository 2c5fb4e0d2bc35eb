/* One token of a decoder in one call: embedding, norms, products, rotation, attention, gates, head;
 * routers and mixtures of experts.
 *
 * A program is a table of steps on rows of float32, several texts at once or several tokens of one.
 * The table is made and checked by kernels/decoder/native.py: addresses and places are trusted. */
#include "decoder.h"
#include "products.h"

enum kind { EMBED, NORM, PRODUCT, CLIP, ROTATE, ATTEND, GATE, ADD, ROUTE, MIX, SQUASH, CLAMP };
enum act { SILU, GELU, GELU_TANH, RELU };
enum share { OF_ALL, OF_CHOSEN, SIGMOID }; /* how a router weighs what it chose */
enum { F32, BF16 };

#define POINTER(number) ((const void *)(intptr_t)(number))

static void embed(const struct decoder_step *s, int64_t row, int64_t token) {
    float *y = row_at(s->dst, s->dst_pitch, row);
    const float scale = number_of(s);
    const int64_t at = token * s->width;
    const float *x = (const float *)POINTER(s->weight) + at;
    const uint16_t *half = (const uint16_t *)POINTER(s->weight) + at;
    if (s->type == F32) for (int64_t i = 0; i < s->width; i++) y[i] = scale * x[i];
    else for (int64_t i = 0; i < s->width; i++) y[i] = scale * of_bf16(half[i]);
}

/* y = w (x - m) / sqrt(mean (x - m)^2 + e) of each `size` numbers; act: m is their mean, else 0. */
static void norm(const struct decoder_step *s, int64_t row) {
    const float *w = POINTER(s->weight);
    for (int64_t at = 0; at < s->width; at += s->size) {
        const float *x = row_at(s->src, s->src_pitch, row) + at;
        float *y = row_at(s->dst, s->dst_pitch, row) + at, mean = 0, sum;
        int64_t i;
        if (s->act) {
            vf all = splat(0);
            for (i = 0; i + V <= s->size; i += V) all += load(x + i);
            for (mean = total(all); i < s->size; i++) mean += x[i];
            mean /= (float)s->size;
        }
        vf squares = splat(0);
        for (i = 0; i + V <= s->size; i += V) {
            const vf off = load(x + i) - splat(mean);
            squares += off * off;
        }
        for (sum = total(squares); i < s->size; i++) sum += (x[i] - mean) * (x[i] - mean);
        const float by = 1.0f / sqrtf(sum / (float)s->size + number_of(s));
        for (i = 0; i + V <= s->size; i += V) {
            const vf some = (load(x + i) - splat(mean)) * splat(by);
            store(y + i, w ? some * load(w + i) : some);
        }
        for (; i < s->size; i++) y[i] = (x[i] - mean) * by * (w ? w[i] : 1.0f);
    }
}

static int64_t product(const struct decoder_step *s, int64_t rows, int threads) {
    const float *x = POINTER(s->src), *bias = POINTER(s->bias);
    float *y = row_at(s->dst, 0, 0);
    const int64_t fault = intarsia_product(POINTER(s->weight), x, y, rows, threads);
    for (int64_t r = 0; bias && r < rows; r++)
        for (int64_t i = 0; i < s->width; i++) y[r * s->width + i] += bias[i];
    return fault;
}

/* The first `size` numbers of each head, by halves: (a, b) -> (a cos - b sin, b cos + a sin). */
static void rotate(const struct decoder_step *s, int64_t row, int64_t place) {
    const float *cos = (const float *)POINTER(s->weight) + place * s->size;
    const float *sin = (const float *)POINTER(s->bias) + place * s->size;
    const int64_t half = s->size / 2, head = s->width / s->heads;
    for (int64_t h = 0; h < s->heads; h++) {
        float *a = row_at(s->dst, s->dst_pitch, row) + h * head, *b = a + half;
        for (int64_t i = 0; i < half; i++) {
            const float first = a[i], second = b[i];
            a[i] = first * cos[i] - second * sin[i];
            b[i] = second * cos[half + i] + first * sin[half + i];
        }
    }
}

static vf activated(vf x, int64_t act) {
    switch (act) {
    case SILU: return x / (exponential(-x) + 1.0f);
    case GELU_TANH: { /* x (1 + tanh u) / 2 = x / (1 + e^-2u) */
        const vf u = (x + x * x * x * 0.044715f) * 0.7978845608f;
        return x / (exponential(u * -2.0f) + 1.0f);
    }
    case GELU: {
        vf y;
        for (int i = 0; i < V; i++) y[i] = x[i] * 0.5f * (1.0f + erff(x[i] * 0.7071067812f));
        return y;
    }
    default: return pick(x > splat(0), x, splat(0));
    }
}

static void gate(const struct decoder_step *s, int64_t row) {
    const float *x = row_at(s->src, s->src_pitch, row), *z = row_at(s->other, s->other_pitch, row);
    float *y = row_at(s->dst, s->dst_pitch, row);
    int64_t i = 0;
    for (; i + V <= s->width; i += V) store(y + i, activated(load(x + i), s->act) * load(z + i));
    for (; i < s->width; i++) y[i] = activated(splat(x[i]), s->act)[0] * z[i];
}

/* y = g sigmoid(a g) (u + 1) of pairs (g, u) of x: g at most `limit`, u between -limit and limit; a: number. */
static void clamp(const struct decoder_step *s, int64_t row) {
    const float *x = row_at(s->src, s->src_pitch, row), most = float_of(s->limit), by = number_of(s);
    float *y = row_at(s->dst, s->dst_pitch, row);
    for (int64_t i = 0; i < s->width; i += V) {
        const int64_t n = s->width - i < V ? s->width - i : V;
        vf g = splat(0), u = splat(0);
        for (int64_t k = 0; k < n; k++) {
            g[k] = x[2 * (i + k)];
            u[k] = x[2 * (i + k) + 1];
        }
        g = pick(g > splat(most), splat(most), g);
        u = pick(u > splat(most), splat(most), pick(u < splat(-most), splat(-most), u));
        const vf some = g / (exponential(g * splat(-by)) + 1.0f) * (u + 1.0f);
        memcpy(y + i, &some, (size_t)n * sizeof(float));
    }
}

static void clip(const struct decoder_step *s, int64_t row) {
    float *y = row_at(s->dst, s->dst_pitch, row);
    const float limit = number_of(s);
    for (int64_t i = 0; i < s->width; i++) y[i] = y[i] > limit ? limit : y[i] < -limit ? -limit : y[i];
}

static void add(const struct decoder_step *s, int64_t row) {
    const float *x = row_at(s->src, s->src_pitch, row), *z = row_at(s->other, s->other_pitch, row);
    float *y = row_at(s->dst, s->dst_pitch, row);
    for (int64_t i = 0; i < s->width; i++) y[i] = x[i] + z[i];
}

/* The `size` entries with the largest scores x get a weight y, the others 0; act: it is the sigmoid of
 * the score, or the softmax of all scores or of the chosen ones. */
static void route(const struct decoder_step *s, int64_t row) {
    const float *x = row_at(s->src, s->src_pitch, row);
    float *y = row_at(s->dst, s->dst_pitch, row), most = x[0], sum = 0;
    for (int64_t e = 0; e < s->width; e++) {
        y[e] = 0;
        if (x[e] > most) most = x[e];
    }
    for (int64_t e = 0; s->act == OF_ALL && e < s->width; e++) sum += expf(x[e] - most);
    for (int64_t n = 0; n < s->size; n++) {
        int64_t best = -1; /* a weight that rounds to 0 is chosen again, which changes nothing */
        for (int64_t e = 0; e < s->width; e++)
            if (y[e] == 0 && (best < 0 || x[e] > x[best])) best = e;
        y[best] = s->act == SIGMOID ? 1.0f / (1.0f + expf(-x[best])) : expf(x[best] - most);
        if (s->act == OF_CHOSEN) sum += y[best];
    }
    for (int64_t e = 0; s->act != SIGMOID && e < s->width; e++) y[e] /= sum;
}

/* A function that brings experts into memory, where not all are there. It is called with the number of
 * rows and BEFORE; with each expert before that one is computed; and with the number of experts at the
 * end, after a fault, too. It returns 0 or a fault; after one of BEFORE it is not called again. */
typedef int64_t (*expert_reader)(int64_t rows, int64_t expert);
enum { BEFORE = -1 };

/* y = sum_e g_e expert_e(x), the experts in order; those with a weight g_e of 0 are left out. An
 * expert is a program that computes the rows `third` in place, one row of y each. */
static int64_t mix(const struct decoder_step *s, int64_t count, int64_t *at, int threads) {
    const expert_reader read = (expert_reader)(intptr_t)s->read;
    int64_t fault = read ? read(count, BEFORE) : 0;
    if (fault) return fault;
    for (int64_t r = 0; r < count; r++)
        memset(row_at(s->dst, s->dst_pitch, r), 0, (size_t)s->width * 4);
    for (int64_t e = 0; e < s->experts && !fault; e++) {
        int64_t rows = 0;
        for (int64_t r = 0; r < count; r++)
            if (row_at(s->other, s->other_pitch, r)[e] != 0)
                memcpy(row_at(s->third, s->third_pitch, rows++), row_at(s->src, s->src_pitch, r),
                       (size_t)s->width * 4);
        if (!rows) continue;
        if (read) fault = read(count, e);
        const struct decoder_step *program =
            (const struct decoder_step *)POINTER(s->weight) + e * s->stride;
        if (!fault) fault = intarsia_decoder_run((const int64_t *)program, s->steps, NULL, rows, at, threads);
        rows = 0;
        for (int64_t r = 0; r < count && !fault; r++) {
            const float weight = row_at(s->other, s->other_pitch, r)[e];
            if (weight == 0) continue;
            const float *x = row_at(s->third, s->third_pitch, rows++);
            float *y = row_at(s->dst, s->dst_pitch, r);
            for (int64_t i = 0; i < s->width; i++) y[i] += weight * x[i];
        }
    }
    const int64_t ended = read ? read(count, s->experts) : 0;
    return fault ? fault : ended;
}

/* Carry out all steps for `count` rows, (count, 3) numbers. 0; 1 + a row of a weight that does not fit
 * together, whose step is then in `at`; or OUT_OF_MEMORY. */
INTARSIA_API int64_t intarsia_decoder_run(const int64_t *table, int64_t steps, const int64_t *rows,
                                          int64_t count, int64_t *at, int threads) {
    const struct decoder_row *r = (const struct decoder_row *)rows;
    for (int64_t i = 0; i < steps; i++) {
        const struct decoder_step *s = (const struct decoder_step *)table + i;
        int64_t fault = 0;
        if (s->kind == PRODUCT) fault = product(s, count, threads);
        else if (s->kind == ATTEND) fault = decoder_attend(s, r, count, threads);
        else if (s->kind == MIX) fault = mix(s, count, at, threads);
        else for (int64_t n = 0; n < count; n++) switch (s->kind) {
            case EMBED: embed(s, n, r[n].token); break;
            case NORM: norm(s, n); break;
            case CLIP: clip(s, n); break;
            case SQUASH: squash(row_at(s->dst, s->dst_pitch, n), s->width, number_of(s)); break;
            case ROTATE: rotate(s, n, r[n].place); break;
            case GATE: gate(s, n); break;
            case ROUTE: route(s, n); break;
            case CLAMP: clamp(s, n); break;
            default: add(s, n);
            }
        *at = i;
        if (fault) return fault;
    }
    return 0;
}
