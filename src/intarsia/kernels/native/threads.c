/* A few threads that wait for work: those of torch's OpenMP where the main thread calls, since their
 * spin keeps others from a core, or our own, of which the caller never waits for one that sleeps. */
#include "common.h"

INTARSIA_API int intarsia_abi(void) { return INTARSIA_ABI; }

/* What the kernels were compiled for: 2 AVX-512 with VNNI and VBMI2, 1 AVX2, 0 neither. */
INTARSIA_API int intarsia_instructions(void) {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__) && \
    defined(__AVX512VBMI2__)
    return 2;
#elif defined(__AVX2__) && defined(__FMA__)
    return 1;
#else
    return 0;
#endif
}

#if defined(__wasm__) || defined(_WIN32)
void intarsia_parallel(intarsia_part run, void *context, int64_t parts, int threads) {
    (void)threads;
    for (int64_t part = 0; part < parts; part++) run(context, part);
}
#else
#include <pthread.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

enum { MOST_THREADS = 64, SPINS = 4000, YIELDS = 64 };

static struct {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    pid_t owner; /* the process that started the threads: a fork has none of them */
    int started, inside, open, wanted;
    uint64_t number; /* of the job */
    intarsia_part run;
    void *context;
    int64_t parts, next;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};
static pthread_mutex_t busy = PTHREAD_MUTEX_INITIALIZER; /* one job at a time */

#if defined(__linux__)
#include <sys/syscall.h>
/* Of the OpenMP that torch has loaded: run(data) on several threads, which have ended when it returns. */
extern void GOMP_parallel(void (*run)(void *), void *data, unsigned threads, unsigned flags)
    __attribute__((weak));
#define OPENMP (GOMP_parallel != NULL)
#else
#define OPENMP 0
#define GOMP_parallel(run, data, threads, flags)
#endif
static int is_fork;

/* Whether torch's threads are at hand: those of the main thread, which spin while torch computes there.
 * OpenMP gives each other thread a team of its own, and lets all sleep where they are too many; a fork
 * has none. */
static int on_openmp(void) {
#if defined(__linux__)
    return OPENMP && !is_fork && syscall(SYS_gettid) == getpid();
#else
    return 0;
#endif
}

static void work(void) {
    for (;;) {
        const int64_t part = __atomic_fetch_add(&pool.next, 1, __ATOMIC_ACQ_REL);
        if (part >= pool.parts) return;
        pool.run(pool.context, part);
    }
}

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Wait a little, the n-th time in a row. A thread that is waited for may have no core to run on, so
 * that the one that waits must let go of its own. */
static void rest(int n) {
    const struct timespec moment = {.tv_nsec = 20000};
    if (n < SPINS) relax();
    else if (n < SPINS + YIELDS) sched_yield();
    else nanosleep(&moment, NULL);
}

static void work_in_team(void *unused) {
    (void)unused;
    work();
}

static void *wait_for_work(void *unused) {
    (void)unused;
    uint64_t seen = 0;
    for (;;) {
        for (int i = 0; i < SPINS; i++) {
            if (__atomic_load_n(&pool.number, __ATOMIC_ACQUIRE) != seen) break;
            relax();
        }
        pthread_mutex_lock(&pool.lock);
        while (pool.number == seen) pthread_cond_wait(&pool.wake, &pool.lock);
        seen = pool.number;
        const int joins = pool.open && pool.inside < pool.wanted;
        __atomic_fetch_add(&pool.inside, joins, __ATOMIC_ACQ_REL); /* others leave without the lock */
        pthread_mutex_unlock(&pool.lock);
        if (!joins) continue;
        work();
        __atomic_fetch_sub(&pool.inside, 1, __ATOMIC_ACQ_REL);
    }
    return NULL;
}

/* Threads that wait, as many as there can be; how many there are. */
static int start(int wanted) {
    if (pool.owner != getpid()) {
        pool.owner = getpid();
        pool.started = pool.inside = pool.open = 0;
        pthread_mutex_init(&pool.lock, NULL); /* another thread may have held them in the fork */
        pthread_cond_init(&pool.wake, NULL);
    }
    while (pool.started < wanted && pool.started < MOST_THREADS) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, wait_for_work, NULL)) break;
        pthread_detach(thread);
        pool.started++;
    }
    return pool.started < wanted ? pool.started : wanted;
}

static void forked(void) {
    pthread_mutex_init(&busy, NULL);
    is_fork = 1;
}

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, forked); }

void intarsia_parallel(intarsia_part run, void *context, int64_t parts, int threads) {
    if (threads > parts) threads = (int)parts;
    if (threads < 2 || pthread_mutex_trylock(&busy)) {
        for (int64_t part = 0; part < parts; part++) run(context, part);
        return;
    }
    if (on_openmp()) {
        pool.run = run;
        pool.context = context;
        pool.parts = parts;
        pool.next = 0;
        GOMP_parallel(work_in_team, NULL, (unsigned)threads, 0);
        pthread_mutex_unlock(&busy);
        return;
    }
    const int others = start(threads - 1);
    pthread_mutex_lock(&pool.lock);
    pool.run = run;
    pool.context = context;
    pool.parts = parts;
    pool.next = 0;
    pool.wanted = others;
    pool.open = 1;
    __atomic_fetch_add(&pool.number, 1, __ATOMIC_ACQ_REL);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    work();
    pthread_mutex_lock(&pool.lock);
    pool.open = 0; /* who wakes now finds nothing to do */
    pthread_mutex_unlock(&pool.lock);
    for (int n = 0; __atomic_load_n(&pool.inside, __ATOMIC_ACQUIRE); n += n < SPINS + YIELDS) rest(n);
    pthread_mutex_unlock(&busy);
}
#endif

/* The sum of n numbers that are only read: how fast memory is.  n: a multiple of 64. */
INTARSIA_API float intarsia_read(const float *a, int64_t n) {
    typedef float lanes __attribute__((vector_size(64), aligned(4)));
    lanes s[4] = {{0}, {0}, {0}, {0}};
    for (int64_t i = 0; i + 64 <= n; i += 64)
        for (int k = 0; k < 4; k++) s[k] += *(const lanes *)(a + i + 16 * k);
    const lanes all = (s[0] + s[1]) + (s[2] + s[3]);
    float sum = 0;
    for (int k = 0; k < 16; k++) sum += all[k];
    return sum;
}

struct reading {
    const float *a;
    int64_t n, parts;
    float sums[MOST_PARTS];
};

static void read_part(void *context, int64_t part) {
    struct reading *job = context;
    const int64_t blocks = job->n / 64, from = blocks * part / job->parts;
    const int64_t to = blocks * (part + 1) / job->parts;
    job->sums[part] = intarsia_read(job->a + 64 * from, 64 * (to - from));
}

/* The same on several threads. */
INTARSIA_API float intarsia_read_threads(const float *a, int64_t n, int threads) {
    struct reading job = {.a = a, .n = n, .parts = parts_of(4 * n, threads)};
    intarsia_parallel(read_part, &job, job.parts, threads);
    float sum = 0;
    for (int64_t part = 0; part < job.parts; part++) sum += job.sums[part];
    return sum;
}
