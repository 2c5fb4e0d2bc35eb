/* The k documents of the largest score sum_t q_t w_t(d) by posting lists (kernels/postings/naive.py).
 *
 * A list has documents, ascending, and a weight of each: float32, float16, or with `norm` a count c
 * that weighs c / (c + norm[d]), BM25's. Lists may be mapped from a file that changes: a document is
 * compared with what it may be before anything is read at it, and what is wrong then is the answer
 * alone.
 *
 * Documents are taken WINDOW at a time. The largest weight of each BLOCK of postings bounds what a
 * list can add in a window; lists that cannot lift a document into the best k together are read only
 * for documents that the others have lifted near it. Terms come heaviest first, and every score is
 * added up in that order, so that it does not depend on what was skipped.
 */
#include "common.h"

enum { WINDOW = 8192, BLOCK = 128, CHUNK = 64, STEP = 32 };
enum { LOOKUP = 16, FEW = WINDOW / 4 }; /* postings read while one is looked up; while a window is read */
enum { F32 = 0, F16 = 1 };
static const double SLACK = 1e-5; /* of a bound: more than float32 rounds sums of bounds */

/* The numbers of kernels/postings/native.py, each of 64 bits. */
typedef struct {
    int64_t kind, tokens, postings;
    const int64_t *starts;
    const int32_t *docs;
    const void *weights;
    const float *norm;
    float *maxima;
} lists;

typedef struct {
    const lists *of;
    int64_t first, end, at, stop, block;
    float weight, bound;
} term;

typedef struct {
    int64_t k, found;
    int32_t *docs;
    float *scores;
} best;

ALWAYS int64_t block_of(const lists *l, int64_t token) { return l->starts[token] / BLOCK + token; }

/* out[j] = weight times the weight of posting i + j, j < n <= CHUNK. One function for whole lists
 * and for one posting: the same bits. */
static __attribute__((noinline)) void products(const lists *l, float weight, int64_t i, int n,
                                               int64_t count, float *restrict out) {
    if (l->kind == F32) memcpy(out, (const float *)l->weights + i, n * sizeof(float));
    else {
        const uint16_t *from = (const uint16_t *)l->weights + i;
        int j = 0;
#if defined(__AVX512F__)
        for (; j + 16 <= n; j += 16)
            _mm512_storeu_ps(out + j, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(from + j))));
#elif defined(__F16C__)
        for (; j + 8 <= n; j += 8)
            _mm256_storeu_ps(out + j, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + j))));
#endif
        for (; j < n; j++) out[j] = of_f16(from[j]);
    }
    if (l->norm) {
        float norm[CHUNK];
        for (int j = 0; j < n; j++) {
            const uint32_t d = (uint32_t)l->docs[i + j];
            norm[j] = l->norm[d < (uint64_t)count ? d : 0];
        }
        for (int j = 0; j < n; j++) out[j] = out[j] / (out[j] + norm[j]);
    }
    for (int j = 0; j < n; j++) out[j] *= weight;
}

/* The first posting in [at, end) of a document from `to` on. */
ALWAYS int64_t seek(const int32_t *docs, int64_t at, int64_t end, int64_t to) {
    int64_t step = 16, high = at;
    while (high < end && docs[high] < to) {
        at = high + 1;
        high += step;
        step *= 2;
    }
    if (high > end) high = end;
    while (at < high) {
        const int64_t middle = at + (high - at) / 2;
        if (docs[middle] < to) at = middle + 1;
        else high = middle;
    }
    return at;
}

/* Of two hits the one that goes first when there is no room: the smaller score, then the later document. */
ALWAYS int worse(const best *b, int64_t i, int64_t j) {
    return b->scores[i] < b->scores[j] || (b->scores[i] == b->scores[j] && b->docs[i] > b->docs[j]);
}

ALWAYS void swap(best *b, int64_t i, int64_t j) {
    const float score = b->scores[i];
    const int32_t doc = b->docs[i];
    b->scores[i] = b->scores[j], b->docs[i] = b->docs[j];
    b->scores[j] = score, b->docs[j] = doc;
}

static void sink(best *b, int64_t i, int64_t n) {
    for (;;) {
        int64_t least = i;
        for (int64_t child = 2 * i + 1; child <= 2 * i + 2 && child < n; child++)
            if (worse(b, child, least)) least = child;
        if (least == i) return;
        swap(b, i, least);
        i = least;
    }
}

/* A heap whose root is the worst; documents come in order, so that an equal score never replaces one. */
static void offer(best *b, int32_t doc, float score) {
    if (b->found == b->k) {
        if (!(score > b->scores[0])) return;
        b->docs[0] = doc, b->scores[0] = score;
        sink(b, 0, b->k);
        return;
    }
    int64_t i = b->found++;
    b->docs[i] = doc, b->scores[i] = score;
    for (; i && worse(b, i, (i - 1) / 2); i = (i - 1) / 2) swap(b, i, (i - 1) / 2);
}

/* What a score must be above to enter. */
ALWAYS float least(const best *b) { return b->found == b->k ? b->scores[0] : 0; }

/* Find the postings of a window, and what they can add to a document there; return the sum. */
static double enter(term *terms, int64_t n, int64_t window_end) {
    double total = 0;
    for (int64_t t = 0; t < n; t++) {
        term *one = terms + t;
        const int32_t *docs = one->of->docs;
        one->at = one->stop;
        one->stop = seek(docs, one->at, one->end, window_end);
        one->bound = 0;
        if (one->at == one->stop) continue;
        const float *maxima = one->of->maxima + one->block;
        const int64_t last = (one->stop - 1 - one->first) / BLOCK;
        for (int64_t b = (one->at - one->first) / BLOCK; b <= last; b++)
            if (maxima[b] > one->bound) one->bound = maxima[b];
        one->bound *= one->weight;
        total += one->bound;
    }
    return total;
}

/* Add the postings of a window to scores; those of another document go to scores[size]. */
static void add(const term *one, int64_t base, int64_t size, int64_t count, float *scores) {
    float weights[CHUNK];
    const int32_t *docs = one->of->docs;
    for (int64_t i = one->at; i < one->stop; i += CHUNK) {
        const int n = one->stop - i < CHUNK ? (int)(one->stop - i) : CHUNK;
        products(one->of, one->weight, i, n, count, weights);
        for (int j = 0; j < n; j++) {
            const uint64_t d = (uint64_t)((int64_t)docs[i + j] - base);
            scores[d < (uint64_t)size ? d : (uint64_t)size] += weights[j];
        }
    }
}

/* What a score must be above before `rest` is added, to enter then. */
ALWAYS float limit_of(const best *b, double rest) {
    if (b->found < b->k) return 0;
    const double limit = b->scores[0] - rest - SLACK * (b->scores[0] + rest);
    return limit > 0 ? (float)limit : 0;
}

ALWAYS int64_t above(const float *scores, int64_t size, float limit) {
    int32_t found = 0;
    for (int64_t i = 0; i < size; i++) found += scores[i] > limit;
    return found;
}

/* Offer the documents of a window whose scores are above what is left to add. */
static void choose(best *b, const term *terms, int64_t n, int64_t whole, double rest, int64_t base,
                   int64_t size, int64_t count, const uint8_t *mask, const float *scores) {
    float limit = limit_of(b, rest);
    for (int64_t i = 0; i < size; i += STEP) {
        int any = 0;
        for (int j = 0; j < STEP; j++) any |= scores[i + j] > limit;
        if (!any) continue;
        for (int64_t d = i; d < i + STEP && d < size; d++) {
            float score = scores[d];
            if (!(score > limit) || (mask && !mask[base + d])) continue;
            double left = rest;
            for (int64_t t = whole; t < n; t++) {
                if (score + left + SLACK * (score + left) < least(b)) break;
                left -= terms[t].bound;
                const int64_t place = seek(terms[t].of->docs, terms[t].at, terms[t].stop, base + d);
                if (place >= terms[t].stop || terms[t].of->docs[place] != base + d) continue;
                float product;
                products(terms[t].of, terms[t].weight, place, 1, count, &product);
                score += product;
            }
            if (!(score > least(b))) continue;
            offer(b, (int32_t)(base + d), score);
            limit = limit_of(b, rest);
        }
    }
}

static int begin(const lists *groups, const int64_t *numbers, const float *weights, int64_t n,
                 term *terms) {
    for (int64_t t = 0; t < n; t++) {
        const lists *of = groups + numbers[2 * t];
        const int64_t token = numbers[2 * t + 1];
        if (token < 0 || token >= of->tokens) return 0;
        const int64_t first = of->starts[token], end = of->starts[token + 1];
        if (first < 0 || end < first || end > of->postings) return 0;
        terms[t] = (term){of, first, end, first, first, block_of(of, token), weights[t], 0};
    }
    return 1;
}

/* numbers: (n, 2), group and token of each term; weights: (n,), above 0, heaviest first; count: of
 * documents; mask: (count,), 0 = left out, NULL = none is; docs, scores: (k,), largest first, equal
 * ones by document. Returns how many were found, or -1 for terms outside their lists. */
INTARSIA_API int64_t postings_search(const lists *groups, const int64_t *numbers,
                                     const float *weights, int64_t n, int64_t count,
                                     const uint8_t *mask, int64_t k, int32_t *docs, float *scores) {
    float window[WINDOW + STEP] __attribute__((aligned(64)));
    best b = {k, 0, docs, scores};
    if (k < 1 || n < 1) return 0;
    term *terms = malloc(n * sizeof(term));
    if (!terms) return -2;
    if (!begin(groups, numbers, weights, n, terms)) {
        free(terms);
        return -1;
    }
    for (int64_t base = 0; base < count; base += WINDOW) {
        const int64_t size = count - base < WINDOW ? count - base : WINDOW;
        const double total = enter(terms, n, base + size), top = least(&b);
        if (total == 0 || (b.found == k && total * (1 + SLACK) <= top * (1 - SLACK))) continue;
        int64_t whole = n;
        double rest = 0;
        while (b.found == k && (rest + terms[whole - 1].bound) * (1 + SLACK) < top * (1 - 2 * SLACK))
            rest += terms[--whole].bound;
        memset(window, 0, sizeof(window));
        for (int64_t t = 0; t < whole; t++) add(terms + t, base, size, count, window);
        /* looking documents up takes longer than reading a list that is not much longer */
        int64_t unread = 0;
        for (int64_t t = whole; t < n; t++) unread += terms[t].stop - terms[t].at;
        while (whole < n && (unread < FEW || above(window, size, limit_of(&b, rest)) * LOOKUP >
                                                 terms[whole].stop - terms[whole].at)) {
            unread -= terms[whole].stop - terms[whole].at;
            rest -= terms[whole].bound;
            add(terms + whole++, base, size, count, window);
        }
        for (int64_t i = size; i < WINDOW + STEP; i++) window[i] = 0; /* of wrong documents */
        choose(&b, terms, n, whole, rest, base, size, count, mask, window);
    }
    free(terms);
    for (int64_t left = b.found - 1; left > 0; left--) { /* the worst goes to the end */
        swap(&b, 0, left);
        sink(&b, 0, left);
    }
    return b.found;
}

/* The largest weight of each block, BLOCK postings of a list: maxima, (postings / BLOCK + tokens + 1,).
 * Returns 0, or 1 + a list outside the postings. */
INTARSIA_API int64_t postings_maxima(const lists *l, int64_t count) {
    float weights[CHUNK];
    for (int64_t token = 0; token < l->tokens; token++) {
        const int64_t first = l->starts[token], end = l->starts[token + 1];
        if (first < 0 || end < first || end > l->postings) return 1 + token;
        float *maxima = l->maxima + block_of(l, token);
        for (int64_t b = 0; b * BLOCK < end - first; b++) maxima[b] = 0;
        for (int64_t i = first; i < end; i += CHUNK) {
            const int n = end - i < CHUNK ? (int)(end - i) : CHUNK;
            float most = maxima[(i - first) / BLOCK];
            products(l, 1, i, n, count, weights);
            for (int j = 0; j < n; j++) most = weights[j] > most ? weights[j] : most;
            maxima[(i - first) / BLOCK] = most;
        }
    }
    return 0;
}

/* Check lists, and add up the weights of each document: lengths, (count,), NULL = do not.
 * Returns 0, or 1 + the first list with documents that do not ascend, that there are not, or of a
 * weight that is no number above 0. */
INTARSIA_API int64_t postings_check(const lists *l, int64_t count, float *lengths) {
    float weights[CHUNK];
    for (int64_t token = 0; token < l->tokens; token++) {
        const int64_t first = l->starts[token], end = l->starts[token + 1];
        if (first < 0 || end < first || end > l->postings) return 1 + token;
        int64_t before = -1;
        for (int64_t i = first; i < end; i += CHUNK) {
            const int n = end - i < CHUNK ? (int)(end - i) : CHUNK;
            products(l, 1, i, n, count, weights);
            for (int j = 0; j < n; j++) {
                const int64_t doc = l->docs[i + j];
                if (doc <= before || doc >= count || !(weights[j] > 0 && weights[j] < INFINITY))
                    return 1 + token;
                before = doc;
                if (lengths) lengths[doc] += weights[j];
            }
        }
    }
    return 0;
}

/* How often each text has each number, as lists. numbers: (ends[texts - 1],), below size; below 0 =
 * none; starts: (size + 1,); last: (size,), for the work; docs, counts: as long as numbers.
 * Returns the number of postings, or -1 for numbers that are too large, or ends that fall. */
INTARSIA_API int64_t postings_count(const int32_t *numbers, const int64_t *ends, int64_t texts,
                                    int64_t size, int64_t *starts, int32_t *last, int32_t *docs,
                                    float *counts) {
    memset(starts, 0, (size + 1) * sizeof(int64_t));
    for (int64_t i = 0; i < size; i++) last[i] = -1;
    for (int64_t text = 0, i = 0; text < texts; text++) {
        if (ends[text] < i) return -1;
        for (; i < ends[text]; i++) {
            const int32_t number = numbers[i];
            if (number >= size) return -1;
            if (number < 0 || last[number] == text) continue;
            last[number] = (int32_t)text;
            starts[number + 1]++;
        }
    }
    for (int64_t i = 0; i < size; i++) {
        starts[i + 1] += starts[i];
        last[i] = -1;
    }
    /* starts[number] is where the next posting goes: at the end, where the list ends */
    for (int64_t text = 0, i = 0; text < texts; text++) {
        for (; i < ends[text]; i++) {
            const int32_t number = numbers[i];
            if (number < 0) continue;
            if (last[number] == text) {
                counts[starts[number] - 1] += 1;
                continue;
            }
            last[number] = (int32_t)text;
            docs[starts[number]] = (int32_t)text;
            counts[starts[number]++] = 1;
        }
    }
    memmove(starts + 1, starts, size * sizeof(int64_t));
    starts[0] = 0;
    return starts[size];
}
