/* Attention of a run of rows of one text, as of a prompt: the equation of attention.c, with the keys and
 * values in tiles of 64 places, each read once for all rows of the run and all heads that share it.
 *
 * A tile of keys stands as (size, 64), so that a vector has as many places, and nothing is added up
 * across its lanes. Scores of all places are there before the softmax. Tiles begin at place 0 where
 * there is no window, so that a row has the same bits in a run of any length. */
#include "attention.h"

enum { TILE = 64, WIDE = V == 16 ? 4 : 2 /* vectors side by side */, MANY = V == 16 ? 6 : 4 /* queries */ };

typedef struct {
    const struct decoder_step *s;
    const struct decoder_row *first; /* the run's first row */
    int64_t count, from, head;       /* rows; where the cache of this text and key begins; first head */
    int64_t queries, pitch, tiles;   /* rows x heads; floats from a query's scores to the next one's */
    int64_t middle, near, end;       /* places 0 ... middle - 1 and near ... end - 1 are seen by some row */
    const float **query;             /* (queries,) */
    float **out, *scores, *by, *tile;
} run_job;

/* The first place of a tile, and how many it has: those of the sink, then those from `near` on. */
ALWAYS int64_t tile_at(const run_job *j, int64_t tile, int64_t *count) {
    const int64_t before = (j->middle + TILE - 1) / TILE;
    const int64_t at = tile < before ? tile * TILE : j->near + (tile - before) * TILE;
    const int64_t end = tile < before ? j->middle : j->end;
    *count = end - at < TILE ? end - at : TILE;
    return at;
}

/* Keys of a tile as (size, 64); places that it lacks are 0. */
ALWAYS void keys_of(const run_job *j, int64_t place, int64_t count, const int type) {
    const struct decoder_step *s = j->s;
    memset(j->tile, 0, (size_t)(TILE * s->size) * sizeof(float));
    for (int64_t p = 0; p < count; p++) {
        const int64_t at = j->from + kept_at(s, place + p) * s->size;
        for (int64_t i = 0; i < s->size; i++)
            j->tile[i * TILE + p] = cached_one((const void *)(intptr_t)s->keys, at + i, type);
    }
}

/* Values of a tile as (64, size). */
ALWAYS void values_of(const run_job *j, int64_t place, int64_t count, const int type) {
    const struct decoder_step *s = j->s;
    for (int64_t p = 0; p < count; p++) {
        const int64_t at = j->from + kept_at(s, place + p) * s->size;
        for (int64_t i = 0; i < s->size; i += V)
            store(j->tile + p * s->size + i, cached((const void *)(intptr_t)s->values, at + i, type));
    }
}

/* Scores of n queries and the places of a tile: WIDE vectors of places at a time. */
ALWAYS void scores_of(const run_job *j, int64_t query, int64_t tile, const int n) {
    const float scale = number_of(j->s);
    for (int64_t p = 0; p < TILE; p += WIDE * V) {
        vf sums[MANY][WIDE];
        for (int q = 0; q < n; q++)
            for (int k = 0; k < WIDE; k++) sums[q][k] = splat(0);
        for (int64_t i = 0; i < j->s->size; i++)
            for (int k = 0; k < WIDE; k++) {
                const vf key = load(j->tile + i * TILE + p + k * V);
                for (int q = 0; q < n; q++) sums[q][k] += splat(j->query[query + q][i]) * key;
            }
        for (int q = 0; q < n; q++)
            for (int k = 0; k < WIDE; k++)
                store(j->scores + (query + q) * j->pitch + tile * TILE + p + k * V, sums[q][k] * splat(scale));
    }
}

/* Add a tile's values, weighed, to `wide` vectors of n outputs. */
ALWAYS void mixed_of(const run_job *j, int64_t query, int64_t tile, int64_t count, int64_t i, const int n,
                     const int wide) {
    const float *weights = j->scores + query * j->pitch + tile * TILE;
    vf sums[MANY][WIDE];
    for (int q = 0; q < n; q++)
        for (int k = 0; k < wide; k++) sums[q][k] = tile ? load(j->out[query + q] + i + k * V) : splat(0);
    for (int64_t p = 0; p < count; p++)
        for (int k = 0; k < wide; k++) {
            const vf value = load(j->tile + p * j->s->size + i + k * V);
            for (int q = 0; q < n; q++) sums[q][k] += splat(weights[q * j->pitch + p]) * value;
        }
    for (int q = 0; q < n; q++)
        for (int k = 0; k < wide; k++) store(j->out[query + q] + i + k * V, sums[q][k]);
}

ALWAYS void mixed_rows(const run_job *j, int64_t query, int64_t tile, int64_t count, const int n) {
    int64_t i = 0;
    for (; i + WIDE * V <= j->s->size; i += WIDE * V) mixed_of(j, query, tile, count, i, n, WIDE);
    for (; i < j->s->size; i += V) mixed_of(j, query, tile, count, i, n, 1);
}

/* Scores of places that a row does not see become minus infinity. */
static void hide(const run_job *j, int64_t query, int64_t place) {
    const int64_t window = j->s->window, sink = j->s->sink;
    for (int64_t tile = 0, count; tile < j->tiles; tile++) {
        const int64_t at = tile_at(j, tile, &count);
        float *scores = j->scores + query * j->pitch + tile * TILE;
        const int whole = count == TILE && at + TILE - 1 <= place &&
                          (!window || at + TILE <= sink || at >= place + 1 - window);
        for (int64_t p = 0; p < TILE && !whole; p++) {
            const int seen = !window || at + p < sink || at + p >= place + 1 - window;
            if (p >= count || at + p > place || !seen) scores[p] = -INFINITY;
        }
    }
}

/* The softmax of a query's scores and its head's idle one in place, not divided by their sum yet.
 * -> 1 / their sum. */
static float weights_of(const run_job *j, int64_t query, int64_t place, int64_t head) {
    const float idle = idle_of(j->s, head);
    float *scores = j->scores + query * j->pitch, most = idle;
    const float limit = float_of(j->s->limit);
    if (limit) squash(scores, j->pitch, limit);
    hide(j, query, place);
    for (int64_t p = 0; p < j->pitch; p++) most = scores[p] > most ? scores[p] : most;
    vf sum = splat(0);
    for (int64_t p = 0; p < j->pitch; p += V) {
        const vf some = load(scores + p);
        const vf weight = pick(some == splat(-INFINITY), splat(0), exponential(some - splat(most)));
        store(scores + p, weight);
        sum += weight;
    }
    return 1.0f / (total(sum) + expf(idle - most));
}

ALWAYS void run_of(const run_job *j, const int type) {
    const int64_t each = j->queries / j->count;
    for (int64_t tile = 0, count; tile < j->tiles; tile++) {
        const int64_t at = tile_at(j, tile, &count);
        int64_t q = 0;
        keys_of(j, at, count, type);
        for (; q + MANY <= j->queries; q += MANY) scores_of(j, q, tile, MANY);
        for (; q < j->queries; q++) scores_of(j, q, tile, 1);
    }
    for (int64_t q = 0; q < j->queries; q++)
        j->by[q] = weights_of(j, q, j->first->place + q / each, j->head + q % each);
    for (int64_t tile = 0, count; tile < j->tiles; tile++) {
        const int64_t at = tile_at(j, tile, &count);
        int64_t q = 0;
        values_of(j, at, count, type);
        for (; q + MANY <= j->queries; q += MANY) mixed_rows(j, q, tile, count, MANY);
        for (; q < j->queries; q++) mixed_rows(j, q, tile, count, 1);
    }
    for (int64_t q = 0; q < j->queries; q++)
        for (int64_t i = 0; i < j->s->size; i += V)
            store(j->out[q] + i, load(j->out[q] + i) * splat(j->by[q]));
}

int64_t attend_run(const struct decoder_step *s, const struct decoder_row *rows, const struct run *run,
                   int64_t group) {
    const struct decoder_row *first = rows + run->first;
    const int64_t each = s->heads / s->groups, end = first->place + run->count;
    int64_t near = s->window ? first->place + 1 - s->window : 0;
    const int64_t middle = near > 0 ? (s->sink < end ? s->sink : end) : 0;
    near = near > middle ? near : middle; /* before it, places of the sink are there once */
    run_job j = {.s = s, .first = first, .count = run->count, .middle = middle, .near = near, .end = end};
    j.from = (first->slot * s->groups + group) * s->length * s->size;
    j.queries = each * run->count;
    j.head = group * each;
    j.tiles = (middle + TILE - 1) / TILE + (end - near + TILE - 1) / TILE;
    j.pitch = j.tiles * TILE;
    const size_t floats = (size_t)(j.queries * (j.pitch + 1) + TILE * s->size);
    j.query = malloc((size_t)j.queries * 2 * sizeof(float *) + floats * sizeof(float));
    if (!j.query) return OUT_OF_MEMORY;
    j.out = (float **)(j.query + j.queries);
    j.scores = (float *)(j.out + j.queries);
    j.by = j.scores + j.queries * j.pitch;
    j.tile = j.by + j.queries;
    for (int64_t q = 0; q < j.queries; q++) {
        const int64_t row = run->first + q / each, head = (group * each + q % each) * s->size;
        j.query[q] = row_at(s->src, s->src_pitch, row) + head;
        j.out[q] = row_at(s->dst, s->dst_pitch, row) + head;
    }
    if (s->type == F32) run_of(&j, F32);
    else run_of(&j, BF16);
    free(j.query);
    return 0;
}
