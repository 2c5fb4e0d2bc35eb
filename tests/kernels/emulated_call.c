/* Runs one kernel under an emulator: memory at the addresses that the caller has it, then the call.
 *
 * stdin: name (64 bytes), count and arguments, count of regions and each one's address, size, bytes;
 * all numbers are 64 bits. stdout: what the kernel returns, then the bytes of all regions. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096, ARGUMENTS = 14, REGIONS = 4096 };
typedef int64_t number;
typedef number (*kernel)(number, number, number, number, number, number, number, number, number,
                         number, number, number, number, number);
#define EACH(F)                                                                                    \
    F(bitmask_linear) F(bitmask_decode) F(dense_linear) F(intarsia_gqsa)         \
    F(intarsia_ternary) F(intarsia_blockint) F(intarsia_product) F(intarsia_chw_run) F(intarsia_chw_scratch)  \
    F(intarsia_chw_codes_scratch) F(intarsia_chw_conv_scratch)
#define DECLARE(name) extern number name();
#define ENTRY(name) {#name, (kernel)name},
EACH(DECLARE)
static const struct { const char *name; kernel run; } kernels[] = {EACH(ENTRY)};

static number given(void) {
    number n;
    if (fread(&n, 8, 1, stdin) != 1) exit(3);
    return n;
}

static void make_room(number at, number size) {
    for (number page = at / PAGE * PAGE; page < at + size; page += PAGE)
        mmap((void *)page, PAGE, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0); /* it may be there already */
}

int main(void) {
    static number at[REGIONS], size[REGIONS];
    char name[64];
    number a[ARGUMENTS] = {0};
    if (fread(name, 64, 1, stdin) != 1) return 3;
    const number count = given();
    for (number i = 0; i < count; i++) a[i] = given();
    const number regions = given();
    for (number i = 0; i < regions; i++) {
        at[i] = given();
        size[i] = given();
        make_room(at[i], size[i]);
        if (fread((void *)at[i], 1, size[i], stdin) != (size_t)size[i]) return 3;
    }
    for (size_t k = 0; k < sizeof(kernels) / sizeof(*kernels); k++) {
        if (strcmp(kernels[k].name, name)) continue;
        const number found = kernels[k].run(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8],
                                            a[9], a[10], a[11], a[12], a[13]);
        fwrite(&found, 8, 1, stdout);
        for (number i = 0; i < regions; i++) fwrite((void *)at[i], 1, size[i], stdout);
        return 0;
    }
    return 4;
}
