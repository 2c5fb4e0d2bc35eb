/* y_t = sum_n weight_n MLP_e(n)(x_t) over the pairs n (token t, expert e): a whole mixture of MLPs.
 *
 * MLP_e(x) = down_e (act(gate_e x) * (up_e x)), or down_e act(up_e x) without a gate. Pairs are taken
 * by expert, a panel of an expert's rows after the other, so that hidden units stay in the cache. A
 * panel of a few rows is computed row by row, which reads each weight once; one of many in tiles.
 */
#include "experts.h"

enum { CACHED = 1 << 20, TOGETHER = 512 }; /* bytes of a panel; rows of panels between two meetings */
enum { FEW = V == 16 ? 12 : V }; /* rows up to which a panel is computed row by row */

typedef struct {
    const void *x, *up, *gate, *down;
    const int64_t *token;
    const float *weight;
    float *y;
    int64_t tokens, pairs, experts, width, hidden, outputs;
    int kind, act;
} mixture;

/* Rows of one expert. vectors: 0 = row by row. x, units: (rows, width), (rows, hidden), or across. */
typedef struct {
    int64_t expert, count, vectors;
    const int64_t *pairs;
    float *x, *units;
} panel;

typedef struct {
    const mixture *of;
    panel *panels;
    int64_t count, parts;
    float *scratch; /* of each part */
    int64_t each;
    int failed;
} job;

static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* The vectors of the next group of a panel with `left` of them: three, but 4 = 2 + 2. */
ALWAYS int64_t wide_of(int64_t left) { return left == 4 ? 2 : left < MOST_WIDE ? left : MOST_WIDE; }

static int64_t bytes_of(const mixture *m) { return m->kind == F32 ? 4 : 2; }

/* A row of x as float32: the row itself, or a copy. */
static const float *row_of(const mixture *m, int64_t token, float *copy) {
    if (m->kind == F32) return (const float *)m->x + token * m->width;
    const uint16_t *row = (const uint16_t *)m->x + token * m->width;
    for (int64_t i = 0; i < m->width; i++) copy[i] = of_bf16(row[i]);
    return copy;
}

/* A panel's rows of x, across if it has vectors. scratch: (5, width). */
static void gather(const mixture *m, const panel *p, float *scratch) {
    if (!p->vectors) {
        for (int64_t i = 0; i < p->count; i++) {
            float *to = p->x + i * m->width;
            const float *from = row_of(m, m->token[p->pairs[i]], to);
            if (from != to) memcpy(to, from, (size_t)m->width * sizeof(float));
        }
        return;
    }
    float *zeros = scratch + 4 * m->width, *group = p->x;
    memset(zeros, 0, (size_t)m->width * sizeof(float));
    for (int64_t left = p->vectors, at = 0; left > 0;) {
        const int64_t wide = wide_of(left), lanes = wide * V;
        for (int64_t lane = 0; lane < lanes; lane += 4) {
            const float *rows[4];
            for (int r = 0; r < 4; r++) {
                const int64_t row = at + lane + r;
                rows[r] = row < p->count
                              ? row_of(m, m->token[p->pairs[row]], scratch + r * m->width) : zeros;
            }
            int64_t j = 0;
            for (; j + 4 <= m->width; j += 4) turned(rows, j, group + j * lanes + lane, lanes);
            for (; j < m->width; j++)
                for (int r = 0; r < 4; r++) group[j * lanes + lane + r] = rows[r][j];
        }
        left -= wide;
        at += lanes;
        group += lanes * m->width;
    }
}

/* `high` rows of an expert's weight from `row` on, as float32. */
ALWAYS const float *weights_of(const void *all, int64_t row, int64_t cols, int high, int kind,
                               float *copy) {
    if (kind == F32) return (const float *)all + row * cols;
    const uint16_t *from = (const uint16_t *)all + row * cols;
    for (int64_t i = 0; i < high * cols; i++) copy[i] = of_bf16(from[i]);
    return copy;
}

/* `high` hidden units from `unit` on, of a group of rows. */
ALWAYS void units_of(const mixture *m, const float *up, const float *gate, const float *x,
                     float *units, const int high, const int wide) {
    vf a[HIGH][MOST_WIDE], b[HIGH][MOST_WIDE];
    tile(up, m->width, x, high, wide, a);
    if (gate) tile(gate, m->width, x, high, wide, b);
    for (int r = 0; r < high; r++)
        for (int n = 0; n < wide; n++)
            store(units + (r * wide + n) * V,
                  gate ? activated(b[r][n], m->act) * a[r][n] : activated(a[r][n], m->act));
}

/* Weighted outputs of a group of rows are added to their tokens, at columns from `row` on. */
ALWAYS void outputs_of(const mixture *m, const panel *p, int64_t at, const float *down, int64_t row,
                       const float *units, const int high, const int wide) {
    vf sums[HIGH][MOST_WIDE];
    float lanes[HIGH][MOST_WIDE * V], across[4 * 4];
    tile(down, m->hidden, units, high, wide, sums);
    for (int r = 0; r < high; r++)
        for (int n = 0; n < wide; n++) store(lanes[r] + n * V, sums[r][n]);
    const int64_t count = p->count - at < wide * V ? p->count - at : wide * V;
    for (int r = 0; r < high; r += 4) {
        const int rows = high - r < 4 ? high - r : 4;
        for (int64_t lane = 0; lane < count; lane += 4) {
            if (rows == 4) {
                const float *four[4] = {lanes[r], lanes[r + 1], lanes[r + 2], lanes[r + 3]};
                turned(four, lane, across, 4);
            } else
                for (int i = 0; i < rows; i++)
                    for (int l = 0; l < 4; l++) across[l * 4 + i] = lanes[r + i][lane + l];
            for (int64_t l = 0; l < 4 && lane + l < count; l++) {
                const int64_t pair = p->pairs[at + lane + l];
                float *y = m->y + m->token[pair] * m->outputs + row + r;
                for (int i = 0; i < rows; i++) y[i] += m->weight[pair] * across[l * 4 + i];
            }
        }
    }
}

ALWAYS void block_of(const mixture *m, const panel *p, int64_t row, const int high, const int outer,
                     float *scratch) {
    const int64_t rows = outer ? m->outputs : m->hidden, cols = outer ? m->hidden : m->width;
    const int64_t first = p->expert * rows + row;
    const float *w = weights_of(outer ? m->down : m->up, first, cols, high, m->kind, scratch);
    const float *gate = NULL;
    if (!outer && m->gate)
        gate = weights_of(m->gate, first, cols, high, m->kind, scratch + HIGH * cols);
    int64_t at = 0;
    for (int64_t left = p->vectors; left > 0;) {
        const int64_t wide = wide_of(left);
        const float *x = p->x + at * m->width;
        float *units = p->units + at * m->hidden;
        switch (wide) {
#define OF(n)                                                                                      \
    case n:                                                                                        \
        if (outer) outputs_of(m, p, at, w, row, units, high, n);                                   \
        else units_of(m, w, gate, x, units + row * n * V, high, n);                                \
        break;
            OF(1)
            OF(2)
            OF(3)
#undef OF
        }
        left -= wide;
        at += wide * V;
    }
}

/* Hidden units `row` to `to` of a panel of few rows. */
static void units_by_row(const mixture *m, const panel *p, int64_t row, int64_t to, float *gated) {
    const int64_t skip = p->expert * m->hidden * m->width * bytes_of(m);
    const void *up = (const char *)m->up + skip;
    intarsia_dense_rows(m->kind, p->x, p->units, up, m->hidden, m->width, p->count, row, to);
    if (m->gate)
        intarsia_dense_rows(m->kind, p->x, gated, (const char *)m->gate + skip, m->hidden, m->width,
                            p->count, row, to);
    for (int64_t n = 0; n < p->count; n++) {
        float *units = p->units + n * m->hidden, *gates = gated + n * m->hidden;
        for (int64_t i = row; i < to; i += V) {
            const size_t some = (size_t)(to - i < V ? to - i : V) * sizeof(float);
            vf a = splat(0), b = splat(0);
            memcpy(&a, units + i, some);
            if (m->gate) memcpy(&b, gates + i, some);
            a = m->gate ? activated(b, m->act) * a : activated(a, m->act);
            memcpy(units + i, &a, some);
        }
    }
}

static void outputs_by_row(const mixture *m, const panel *p, int64_t row, int64_t to, float *outputs) {
    const void *down = (const char *)m->down + p->expert * m->outputs * m->hidden * bytes_of(m);
    intarsia_dense_rows(m->kind, p->units, outputs, down, m->outputs, m->hidden, p->count, row, to);
    for (int64_t n = 0; n < p->count; n++) {
        const float weight = m->weight[p->pairs[n]], *from = outputs + n * m->outputs;
        float *y = m->y + m->token[p->pairs[n]] * m->outputs;
        for (int64_t i = row; i < to; i++) y[i] += weight * from[i];
    }
}

ALWAYS void panels_of(const job *all, int64_t part, const int outer) {
    const mixture here = *all->of, *m = &here;
    const int64_t rows = outer ? m->outputs : m->hidden, blocks = (rows + HIGH - 1) / HIGH;
    const int64_t from = blocks * part / all->parts * HIGH, end = blocks * (part + 1) / all->parts * HIGH;
    const int64_t to = end < rows ? end : rows;
    float *scratch = all->scratch + part * all->each;
    for (int64_t i = 0; i < all->count; i++) {
        const panel *p = all->panels + i;
        if (!p->vectors) {
            if (outer) outputs_by_row(m, p, from, to, scratch);
            else units_by_row(m, p, from, to, scratch);
            continue;
        }
        int64_t row = from;
        for (; row + HIGH <= to; row += HIGH) block_of(m, p, row, HIGH, outer, scratch);
        for (; row < to; row++) block_of(m, p, row, 1, outer, scratch);
    }
}

static void inner(void *context, int64_t part) { panels_of(context, part, 0); }
static void outer(void *context, int64_t part) { panels_of(context, part, 1); }

/* The pairs by expert, those of one in their order, and how many each has; 1 + a pair out of range. */
static int64_t sorted(const mixture *m, const int64_t *expert, int64_t *order, int64_t *load) {
    for (int64_t n = 0; n < m->pairs; n++) {
        if (expert[n] < 0 || expert[n] >= m->experts || m->token[n] < 0 || m->token[n] >= m->tokens)
            return 1 + n;
        load[expert[n]]++;
    }
    for (int64_t e = 0, before = 0; e < m->experts; e++) {
        const int64_t count = load[e];
        load[e] = before; /* for now, where its next pair goes */
        before += count;
    }
    for (int64_t n = 0; n < m->pairs; n++) order[load[expert[n]]++] = n;
    for (int64_t e = m->experts - 1; e > 0; e--) load[e] -= load[e - 1];
    return 0;
}

/* Panels of all experts, `lanes` rows of x and units of each behind one another, TOGETHER at once. */
static int64_t run(const mixture *m, const int64_t *order, const int64_t *load, int threads) {
    const int64_t each_row = (m->width + m->hidden) * (int64_t)sizeof(float);
    int64_t vectors = CACHED / (each_row * V) / MOST_WIDE * MOST_WIDE;
    vectors = vectors < MOST_WIDE ? MOST_WIDE : vectors > MOST_VECTORS ? MOST_VECTORS : vectors;
    const int64_t longest = vectors * V, room = threads > 1 ? most(TOGETHER, longest) : longest;
    job all = {.of = m, .parts = parts_of(most(m->hidden, m->outputs) * each_row, threads)};
    all.each = most(2 * HIGH * most(m->width, m->hidden), FEW * most(m->hidden, m->outputs)) + V;
    all.each = most(all.each, 5 * m->width);
    float *rows = aligned_alloc(64, (size_t)((room * each_row + 63) / 64 * 64 + 64));
    all.scratch = malloc((size_t)(all.parts * all.each) * sizeof(float));
    all.panels = malloc((size_t)room * sizeof(panel));
    const int ready = rows && all.scratch && all.panels;
    int64_t used = 0, at = 0;
    for (int64_t e = 0; ready && e < m->experts; e++)
        for (int64_t done = 0; done < load[e];) {
            const int64_t left = load[e] - done, count = left < longest ? left : longest;
            panel p = {.expert = e, .count = count, .pairs = order + at};
            p.vectors = count > FEW ? (count + V - 1) / V : 0;
            const int64_t lanes = p.vectors ? p.vectors * V : count;
            if (used + lanes > room || (all.count && threads < 2)) {
                intarsia_parallel(inner, &all, all.parts, threads);
                intarsia_parallel(outer, &all, all.parts, threads);
                all.count = used = 0;
            }
            p.x = rows + used * (m->width + m->hidden);
            p.units = p.x + lanes * m->width;
            gather(m, &p, all.scratch);
            all.panels[all.count++] = p;
            used += lanes;
            done += count;
            at += count;
        }
    if (all.count) {
        intarsia_parallel(inner, &all, all.parts, threads);
        intarsia_parallel(outer, &all, all.parts, threads);
    }
    free(rows);
    free(all.scratch);
    free(all.panels);
    return ready ? 0 : OUT_OF_MEMORY;
}

/* kind: of x and the weights, 0 float32, 1 bfloat16. x: (tokens, width); token, expert, weight:
 * (pairs,); up, gate: (experts, hidden, width), gate may be NULL; down: (experts, outputs, hidden);
 * y: (tokens, outputs) float32, zeros. sizes: tokens, pairs, experts, width, hidden, outputs. */
INTARSIA_API int64_t experts_mix(int kind, int act, const int64_t *sizes, const void *x,
                                 const int64_t *token, const int64_t *expert, const float *weight,
                                 const void *up, const void *gate, const void *down, float *y,
                                 int threads) {
    const mixture m = {.x = x, .up = up, .gate = gate, .down = down, .token = token,
                       .weight = weight, .y = y, .tokens = sizes[0], .pairs = sizes[1],
                       .experts = sizes[2], .width = sizes[3], .hidden = sizes[4],
                       .outputs = sizes[5], .kind = kind, .act = act};
    int64_t *order = calloc((size_t)(m.pairs + m.experts) + 1, sizeof(int64_t));
    if (!order) return OUT_OF_MEMORY;
    int64_t fault = sorted(&m, expert, order, order + m.pairs);
    if (!fault) fault = run(&m, order, order + m.pairs, threads);
    free(order);
    return fault;
}
