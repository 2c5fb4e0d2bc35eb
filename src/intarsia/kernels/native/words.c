/* The words of texts as numbers: runs of two or more letters, digits and underscores, in lower case.
 *
 * A byte above 127 is part of a word: texts with one come as their words with spaces between them.
 * A dictionary keeps the words of all texts so far, numbered as they came.
 */
#include "common.h"

typedef struct {
    uint64_t *slots; /* upper half: of the hash; lower half: 1 + the word's number */
    int64_t slot_count, words, room, used, letters_room;
    uint8_t *letters;
    int64_t *ends;
} dictionary;

ALWAYS uint64_t hash_of(const uint8_t *word, int64_t size) {
    uint64_t hash = 0x9e3779b97f4a7c15u ^ (uint64_t)size;
    for (; size >= 8; word += 8, size -= 8) {
        uint64_t part;
        memcpy(&part, word, 8);
        hash = (hash ^ part) * 0xff51afd7ed558ccdu;
        hash ^= hash >> 32;
    }
    uint64_t part = 0;
    for (int64_t i = 0; i < size; i++) part |= (uint64_t)word[i] << 8 * i;
    hash = (hash ^ part) * 0xc4ceb9fe1a85ec53u;
    return hash ^ hash >> 29;
}

static int grow_slots(dictionary *d) {
    const int64_t count = d->slot_count ? 2 * d->slot_count : 1 << 14;
    uint64_t *slots = calloc(count, sizeof(uint64_t));
    if (!slots) return 0;
    for (int64_t i = 0, begin = 0; i < d->words; begin = d->ends[i++]) {
        const uint64_t hash = hash_of(d->letters + begin, d->ends[i] - begin);
        int64_t at = hash & (count - 1);
        while (slots[at]) at = (at + 1) & (count - 1);
        slots[at] = (hash & 0xffffffff00000000u) | (uint64_t)(i + 1);
    }
    free(d->slots);
    d->slots = slots, d->slot_count = count;
    return 1;
}

static int keep(dictionary *d, const uint8_t *word, int64_t size) {
    if (d->words == d->room) {
        const int64_t room = d->room ? 2 * d->room : 1 << 12;
        int64_t *ends = realloc(d->ends, room * sizeof(int64_t));
        if (!ends) return 0;
        d->ends = ends, d->room = room;
    }
    if (d->used + size > d->letters_room) {
        const int64_t room = 2 * (d->used + size) + (1 << 16);
        uint8_t *letters = realloc(d->letters, room);
        if (!letters) return 0;
        d->letters = letters, d->letters_room = room;
    }
    memcpy(d->letters + d->used, word, size);
    d->used += size;
    d->ends[d->words++] = d->used;
    return 2 * d->words < d->slot_count || grow_slots(d);
}

/* The number of a word, a new one for a new word; -1 without memory. */
static int64_t number_of(dictionary *d, const uint8_t *word, int64_t size) {
    const uint64_t hash = hash_of(word, size), upper = hash & 0xffffffff00000000u;
    for (int64_t at = hash & (d->slot_count - 1);; at = (at + 1) & (d->slot_count - 1)) {
        const uint64_t slot = d->slots[at];
        if (!slot) {
            if (d->words >= INT32_MAX) return -1;
            d->slots[at] = upper | (uint64_t)(d->words + 1);
            const int64_t number = d->words;
            return keep(d, word, size) ? number : -1;
        }
        if ((slot & 0xffffffff00000000u) != upper) continue;
        const int64_t number = (int64_t)(slot & 0xffffffffu) - 1;
        const int64_t begin = number ? d->ends[number - 1] : 0;
        if (d->ends[number] - begin == size && !memcmp(d->letters + begin, word, size)) return number;
    }
}

/* A dictionary's address; 0 without memory. */
INTARSIA_API int64_t words_new(void) {
    dictionary *d = calloc(1, sizeof(dictionary));
    if (d && !grow_slots(d)) {
        free(d);
        d = NULL;
    }
    return (int64_t)(intptr_t)d;
}

INTARSIA_API int64_t words_free(dictionary *d) {
    free(d->slots);
    free(d->letters);
    free(d->ends);
    free(d);
    return 0;
}

/* The numbers of the words of texts. text: all texts one after another; ends: (texts,), where each
 * ends; numbers: (ends[texts - 1] / 2 + 1,); of_text: (texts,), where each text's numbers end.
 * Returns how many numbers there are; -1 without memory, or for ends that fall. */
INTARSIA_API int64_t words_add(dictionary *d, const uint8_t *text, const int64_t *ends,
                               int64_t texts, int32_t *numbers, int64_t *of_text) {
    uint8_t inside[256];
    for (int c = 0; c < 256; c++)
        inside[c] = c >= 128 || c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z');
    int64_t found = 0, at = 0;
    for (int64_t i = 0; i < texts; i++) {
        if (ends[i] < at) return -1;
        while (at < ends[i]) {
            while (at < ends[i] && !inside[text[at]]) at++;
            const int64_t begin = at;
            while (at < ends[i] && inside[text[at]]) at++;
            if (at - begin < 2) continue;
            const int64_t number = number_of(d, text + begin, at - begin);
            if (number < 0) return -1;
            numbers[found++] = (int32_t)number;
        }
        of_text[i] = found;
    }
    return found;
}

INTARSIA_API int64_t words_count(const dictionary *d) { return d->words; }

/* How many bytes the words from `first` on have. */
INTARSIA_API int64_t words_bytes(const dictionary *d, int64_t first) {
    return d->used - (first ? d->ends[first - 1] : 0);
}

/* The words from `first` on: their letters, and where each ends among them. */
INTARSIA_API int64_t words_copy(const dictionary *d, int64_t first, uint8_t *letters, int64_t *ends) {
    const int64_t begin = first ? d->ends[first - 1] : 0;
    memcpy(letters, d->letters + begin, d->used - begin);
    for (int64_t i = first; i < d->words; i++) ends[i - first] = d->ends[i] - begin;
    return d->words - first;
}
