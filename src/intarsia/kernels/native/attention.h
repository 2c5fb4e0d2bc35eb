/* What both ways through attention share: rows by themselves, and runs of a prompt. */
#ifndef INTARSIA_ATTENTION_H
#define INTARSIA_ATTENTION_H

#include "decoder.h"

enum { F32, BF16 };

/* Numbers of a cache, in float32. */
ALWAYS vf cached(const void *cache, int64_t at, const int type) {
    if (type == F32) return load((const float *)cache + at);
#if defined(__AVX512F__) && defined(__AVX512BW__)
    return (vf)of_bf16_x16((const uint16_t *)cache + at);
#elif defined(__AVX2__)
    return (vf)of_bf16_x8((const uint16_t *)cache + at);
#else
    vf some;
    for (int i = 0; i < V; i++) some[i] = of_bf16(((const uint16_t *)cache)[at + i]);
    return some;
#endif
}
ALWAYS float cached_one(const void *cache, int64_t at, const int type) {
    return type == F32 ? ((const float *)cache)[at] : of_bf16(((const uint16_t *)cache)[at]);
}

/* Where a place of a text is in the cache: behind the sink it is a ring. */
ALWAYS int64_t kept_at(const struct decoder_step *s, int64_t place) {
    return place < s->sink ? place : s->sink + (place - s->sink) % (s->length - s->sink);
}

/* The score of a head for attending to nothing, a key whose value is 0; minus infinity = no such. */
ALWAYS float idle_of(const struct decoder_step *s, int64_t head) {
    return s->weight ? ((const float *)(intptr_t)s->weight)[head] : -INFINITY;
}

/* Rows of one text that follow each other: the first one's number, and how many. */
struct run {
    int64_t first, count;
};

/* Attention of a run, all heads of one key: attention_run.c. 0, or OUT_OF_MEMORY. */
int64_t attend_run(const struct decoder_step *s, const struct decoder_row *rows, const struct run *run,
                   int64_t group);
#endif
