/* Attention of new rows over their caches: out_h = sum_p softmax_p(scale q_h k_p) v_p.
 *
 * src: queries (heads x size), other, third: the keys and values (groups x size) of the new rows, all
 * rotated; keys, values: the cache (slots, groups, length, size) in float32 or bfloat16. A row sees
 * places 0 ... its own, or of them the first `sink` and the last `window`. Behind the sink the cache
 * is a ring: place p is kept at sink + (p - sink) mod (length - sink). All new rows are written
 * first, so that rows of one text, a block of a prompt, see those before them; a ring is so much
 * longer than a window that none of them overwrites what another one sees. heads / groups queries
 * share a key. A limit squashes the scores before the softmax, which has the head's idle score, too. */
#include "attention.h"

enum {
    CHUNK = 8,      /* vectors of an output that are summed in registers */
    LONG_RUN = 16,  /* rows from which a run's keys are read once for all of them */
    QUERIES = 96    /* of a run, about: what reads its keys once */
};

static void keep(void *cache, int64_t at, const float *x, int64_t count, int64_t type) {
    if (type == F32) memcpy((float *)cache + at, x, (size_t)count * sizeof(float));
    else for (int64_t i = 0; i < count; i++) ((uint16_t *)cache)[at + i] = to_bf16(x[i]);
}

/* The places that a row sees, as up to three runs of the cache: sink, ring, and the ring's begin. */
struct seen {
    int64_t at[3], count[3], total;
};

ALWAYS struct seen seen_from(const struct decoder_step *s, int64_t place) {
    const int64_t near = s->window && place + 1 - s->window > s->sink ? place + 1 - s->window : s->sink;
    const int64_t first = place + 1 < s->sink ? place + 1 : s->sink, rest = place + 1 - near;
    struct seen r = {.at = {0, 0, s->sink}, .count = {first, 0, 0}, .total = first};
    if (rest <= 0) return r;
    r.at[1] = kept_at(s, near);
    r.count[1] = rest < s->length - r.at[1] ? rest : s->length - r.at[1];
    r.count[2] = rest - r.count[1];
    r.total += rest;
    return r;
}

/* scores[p] of one head, p from ... place; their largest. */
ALWAYS float scored(const float *q, const void *keys, int64_t at, int64_t count, int64_t size,
                    float scale, float *scores, const int type) {
    float most = -INFINITY;
    for (int64_t p = 0; p < count; p++, at += size) {
        vf sum = splat(0);
        int64_t i = 0;
        for (; i + V <= size; i += V) sum += load(q + i) * cached(keys, at + i, type);
        float dot = total(sum);
        for (; i < size; i++) dot += q[i] * cached_one(keys, at + i, type);
        scores[p] = dot * scale;
        most = scores[p] > most ? scores[p] : most;
    }
    return most;
}

/* exp(scores - most) in place, up to whole vectors; 1 / the sum of these and of exp(idle - most). */
ALWAYS float weighed(float *scores, int64_t count, float most, float idle) {
    vf sum = splat(0);
    for (int64_t p = count; p % V; p++) scores[p] = -INFINITY; /* e^-87 of the largest: nothing */
    for (int64_t p = 0; p < count; p += V) {
        const vf some = exponential(load(scores + p) - splat(most));
        store(scores + p, some);
        sum += some;
    }
    return 1.0f / (total(sum) + expf(idle - most));
}

/* `wide` vectors of the output, summed in registers over all places. */
ALWAYS void mixed_vectors(float *out, const float *weights, const void *values, int64_t from,
                          const struct seen *r, int64_t size, float by, const int wide, const int type) {
    vf sums[CHUNK];
    for (int k = 0; k < wide; k++) sums[k] = splat(0);
    for (int run = 0; run < 3; run++) {
        const int64_t at = from + r->at[run] * size;
        for (int64_t p = 0; p < r->count[run]; p++)
            for (int k = 0; k < wide; k++)
                sums[k] += splat(weights[p]) * cached(values, at + p * size + k * V, type);
        weights += r->count[run];
    }
    for (int k = 0; k < wide; k++) store(out + k * V, sums[k] * splat(by));
}

ALWAYS void mixed(float *out, const float *weights, const void *values, int64_t from,
                  const struct seen *r, int64_t size, float by, const int type) {
    int64_t i = 0;
    for (; i + CHUNK * V <= size; i += CHUNK * V)
        mixed_vectors(out + i, weights, values, from + i, r, size, by, CHUNK, type);
    for (; i + 4 * V <= size; i += 4 * V)
        mixed_vectors(out + i, weights, values, from + i, r, size, by, 4, type);
    for (; i + V <= size; i += V) mixed_vectors(out + i, weights, values, from + i, r, size, by, 1, type);
    for (; i < size; i++) {
        const float *weight = weights;
        float sum = 0;
        for (int run = 0; run < 3; run++)
            for (int64_t p = 0; p < r->count[run]; p++)
                sum += *weight++ * cached_one(values, from + (r->at[run] + p) * size + i, type);
        out[i] = sum * by;
    }
}

/* All heads of one key of one row. */
ALWAYS int64_t attend_one(const struct decoder_job *j, int64_t row, int64_t group, const int type) {
    const struct decoder_step *s = j->s;
    const int64_t each = s->heads / s->groups;
    const struct decoder_row *r = j->rows + row;
    const struct seen places = seen_from(s, r->place);
    const int64_t from = (r->slot * s->groups + group) * s->length * s->size;
    float *scores = malloc((size_t)(places.total + V) * sizeof(float));
    if (!scores) return OUT_OF_MEMORY;
    for (int64_t h = group * each; h < (group + 1) * each; h++) {
        const float *q = row_at(s->src, s->src_pitch, row) + h * s->size;
        float *out = row_at(s->dst, s->dst_pitch, row) + h * s->size;
        const void *keys = (const void *)(intptr_t)s->keys, *values = (const void *)(intptr_t)s->values;
        float most = -INFINITY, *next = scores;
        for (int run = 0; run < 3; next += places.count[run++]) {
            const int64_t at = from + places.at[run] * s->size;
            const float here = scored(q, keys, at, places.count[run], s->size, number_of(s), next, type);
            most = here > most ? here : most;
        }
        const float limit = float_of(s->limit);
        if (limit) {
            squash(scores, places.total, limit);
            squash(&most, 1, limit); /* it grows with its argument: the largest stays the largest */
        }
        const float idle = idle_of(s, h);
        const float by = weighed(scores, places.total, idle > most ? idle : most, idle);
        mixed(out, scores, values, from, &places, s->size, by, type);
    }
    free(scores);
    return 0;
}

/* Cut the rows into runs: of the same text one behind the other, as long as a run pays, or one row.
 * -> their number. */
static int64_t runs_of(const struct decoder_step *s, const struct decoder_row *rows, int64_t count,
                       struct run *runs) {
    const int64_t each = s->heads / s->groups;
    const int64_t most = QUERIES / each > LONG_RUN ? QUERIES / each : LONG_RUN;
    int64_t all = 0;
    for (int64_t r = 0, end; r < count; r = end) {
        for (end = r + 1; end < count && rows[end].slot == rows[r].slot; end++)
            if (rows[end].place != rows[end - 1].place + 1) break;
        const int64_t one = end - r < LONG_RUN || s->size % V ? 1 : most;
        for (int64_t first = r; first < end; first += one)
            runs[all++] = (struct run){first, first + one < end ? one : end - first};
    }
    return all;
}

static void attend_part(void *context, int64_t part) {
    struct decoder_job *j = context;
    const int64_t groups = j->s->groups, units = j->count * groups, to = units * (part + 1) / j->parts;
    for (int64_t unit = units * part / j->parts; unit < to; unit++) {
        const struct run *run = j->runs + unit / groups;
        int64_t fault;
        if (run->count > 1) fault = attend_run(j->s, j->rows, run, unit % groups);
        else if (j->s->type == F32) fault = attend_one(j, run->first, unit % groups, F32);
        else fault = attend_one(j, run->first, unit % groups, BF16);
        if (fault) __atomic_store_n(&j->fault, fault, __ATOMIC_RELAXED);
    }
}

int64_t decoder_attend(const struct decoder_step *s, const struct decoder_row *rows, int64_t count,
                       int threads) {
    struct run *runs = malloc((size_t)count * sizeof *runs);
    if (!runs) return OUT_OF_MEMORY;
    struct decoder_job j = {.s = s, .rows = rows, .runs = runs, .count = runs_of(s, rows, count, runs)};
    int64_t bytes = 0;
    for (int64_t r = 0; r < count; r++) {
        for (int64_t g = 0; g < s->groups; g++) {
            const int64_t place = kept_at(s, rows[r].place), from = g * s->size;
            const int64_t at = ((rows[r].slot * s->groups + g) * s->length + place) * s->size;
            keep((void *)(intptr_t)s->keys, at, row_at(s->other, s->other_pitch, r) + from, s->size, s->type);
            keep((void *)(intptr_t)s->values, at, row_at(s->third, s->third_pitch, r) + from, s->size, s->type);
        }
        bytes += seen_from(s, rows[r].place).total * s->size * s->heads * 8;
    }
    j.parts = parts_of(bytes, threads);
    if (j.parts > j.count * s->groups) j.parts = j.count * s->groups;
    intarsia_parallel(attend_part, &j, j.parts, threads);
    free(runs);
    return j.fault;
}
