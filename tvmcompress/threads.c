/* The threads of a compiled library: linked into each, in place of TVM's pool.
 *
 * Every parallel loop first says how many iterations it has (tvmcompress_iterations), then launches. Its iterations are
 * cut into tasks. Each thread owns a run of neighbouring tasks, the same part in every loop, so that what it reads is
 * mostly what it wrote; who has finished takes tasks from the far end of another's run. So a thread that sleeps, or
 * whose CPU works for somebody else, delays nothing but the one task it is at.
 *
 * The other threads run wherever the process may, but not on the CPU of the thread that calls. Between loops they wait
 * awake for SPIN_NS, then sleep.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MOST_THREADS = 256, TASKS_OF_A_THREAD = 16, MOST_TASKS = 0xffff, SPIN_NS = 100000, PATIENCE = 2000 };

/* TVM's interface: what generated code calls a parallel loop with (tvm/runtime/c_backend_api.h). */
typedef struct {
    void *sync;
    int32_t tasks;
} environment;
typedef int (*loop)(int task, environment *env, void *closure);

/* The tasks of a thread that nobody has taken: the first in the upper half, behind the last in the lower. */
typedef struct {
    _Alignas(64) uint32_t left;
} owned;

static struct {
    int threads;  /* that work on a loop, the calling one among them */
    int started;  /* threads that exist, the calling one among them */
    int busy;     /* a loop is running; another, from within it or from another thread, runs where it is called */
    int stop;
    int caller;   /* the CPU that the others keep away from */
    cpu_set_t allowed;
    pthread_t handles[MOST_THREADS];
    loop body;
    void *closure;
    environment env;
    int failed;
    _Alignas(64) uint32_t turn; /* counts loops; the others wait for it to change */
    uint32_t sleeping;
    _Alignas(64) uint32_t pending; /* tasks not yet done and counted */
    owned runs[MOST_THREADS];
} pool = {.threads = 1, .started = 1, .caller = -1};

static __thread int32_t iterations;

__attribute__((visibility("hidden"))) void tvmcompress_iterations(int32_t count) { iterations = count; }

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || (defined(__ARM_ARCH) && __ARM_ARCH >= 7)
    __asm__ volatile("yield" ::: "memory");
#else
    __asm__ volatile("" ::: "memory");
#endif
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* A task of thread `who`, from the near end for itself and the far end for others; -1 when none is left. */
static int take(int who, int self) {
    uint32_t *word = &pool.runs[who].left;
    uint32_t left = __atomic_load_n(word, __ATOMIC_ACQUIRE);
    for (;;) {
        uint32_t first = left >> 16, end = left & 0xffff;
        if (first >= end) return -1;
        uint32_t rest = who == self ? (first + 1) << 16 | end : first << 16 | (end - 1);
        if (__atomic_compare_exchange_n(word, &left, rest, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            return (int)(who == self ? first : end - 1);
    }
}

/* Whatever is taken belongs to the loop of this very moment: it cannot end before the task is done and counted. That
 * happens once, when nothing is left to take: a word that threads write in turn goes from core to core each time. */
static void work(int self) {
    int threads = __atomic_load_n(&pool.threads, __ATOMIC_RELAXED);
    uint32_t done = 0;
    for (int i = 0; i < threads; i++) {
        int task, who = (self + i) % threads;
        for (; (task = take(who, self)) >= 0; done++)
            if (pool.body(task, &pool.env, pool.closure)) __atomic_store_n(&pool.failed, 1, __ATOMIC_RELAXED);
    }
    if (done) __atomic_sub_fetch(&pool.pending, done, __ATOMIC_RELEASE);
}

static uint32_t next_turn(uint32_t seen) {
    int64_t end = now() + SPIN_NS;
    uint32_t turn;
    while ((turn = __atomic_load_n(&pool.turn, __ATOMIC_ACQUIRE)) == seen) {
        if (now() < end) {
            for (int i = 0; i < 32; i++) {
                if (__atomic_load_n(&pool.turn, __ATOMIC_RELAXED) != seen) break;
                relax();
            }
        } else {
            __atomic_add_fetch(&pool.sleeping, 1, __ATOMIC_SEQ_CST);
            syscall(SYS_futex, &pool.turn, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
            __atomic_sub_fetch(&pool.sleeping, 1, __ATOMIC_SEQ_CST);
        }
    }
    return turn;
}

static void announce(void) {
    __atomic_add_fetch(&pool.turn, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&pool.sleeping, __ATOMIC_SEQ_CST))
        syscall(SYS_futex, &pool.turn, FUTEX_WAKE_PRIVATE, MOST_THREADS, NULL, NULL, 0);
}

static void *worker(void *self) {
    uint32_t seen = 0;
    for (;;) {
        seen = next_turn(seen);
        if (__atomic_load_n(&pool.stop, __ATOMIC_ACQUIRE)) return NULL;
        if ((int)(intptr_t)self < __atomic_load_n(&pool.threads, __ATOMIC_RELAXED)) work((int)(intptr_t)self);
    }
}

/* The others may run wherever this process may, but not on the CPU of the calling thread. */
static void place(int cpu) {
    cpu_set_t rest = pool.allowed;
    CPU_CLR(cpu, &rest);
    if (CPU_COUNT(&rest) == 0) rest = pool.allowed;
    for (int i = 1; i < pool.started; i++) pthread_setaffinity_np(pool.handles[i], sizeof rest, &rest);
    pool.caller = cpu;
}

static void start(void) {
    if (CPU_COUNT(&pool.allowed) == 0) sched_getaffinity(0, sizeof pool.allowed, &pool.allowed);
    while (pool.started < pool.threads) {
        if (pthread_create(&pool.handles[pool.started], NULL, worker, (void *)(intptr_t)pool.started)) break;
        pool.started++;
        pool.caller = -1;
    }
    if (pool.started < pool.threads) __atomic_store_n(&pool.threads, pool.started, __ATOMIC_RELAXED);
}

static int launch(loop body, void *closure, int tasks) {
    int32_t count = iterations > 0 ? iterations : pool.threads;
    (void)tasks; /* always 0: as many as there are threads */
    iterations = 0;
    if (pool.threads == 1 || count == 1 || __atomic_exchange_n(&pool.busy, 1, __ATOMIC_ACQUIRE)) {
        environment alone = {NULL, 1};
        return body(0, &alone, closure);
    }
    start();
    int cpu = sched_getcpu();
    if (cpu >= 0 && cpu != pool.caller) place(cpu);
    int most = pool.threads * TASKS_OF_A_THREAD;
    int step = (count + most - 1) / most;
    int total = (count + step - 1) / step;
    pool.body = body;
    pool.closure = closure;
    pool.env = (environment){NULL, total};
    pool.failed = 0;
    __atomic_store_n(&pool.pending, (uint32_t)total, __ATOMIC_RELAXED);
    for (int i = 0; i < pool.threads; i++) {
        uint32_t first = (uint32_t)((int64_t)total * i / pool.threads);
        uint32_t end = (uint32_t)((int64_t)total * (i + 1) / pool.threads);
        __atomic_store_n(&pool.runs[i].left, first << 16 | end, __ATOMIC_RELEASE);
    }
    announce();
    work(0);
    for (int i = 0; __atomic_load_n(&pool.pending, __ATOMIC_ACQUIRE); i++) {
        if (i < PATIENCE)
            relax();
        else
            sched_yield();
    }
    int failed = pool.failed;
    __atomic_store_n(&pool.busy, 0, __ATOMIC_RELEASE);
    return failed ? -1 : 0;
}

/* A child has none of its parent's threads. */
static void forked(void) {
    pool.started = 1;
    pool.sleeping = 0;
    pool.busy = 0;
    pool.caller = -1;
    pool.turn = 0;
}

__attribute__((constructor)) static void loaded(void) { pthread_atfork(NULL, NULL, forked); }

__attribute__((destructor)) static void unloaded(void) {
    __atomic_store_n(&pool.stop, 1, __ATOMIC_RELEASE);
    announce();
    for (int i = 1; i < pool.started; i++) pthread_join(pool.handles[i], NULL);
}

/* What generated code calls; whoever loads a library sets it to TVM's own. */
extern int (*__TVMBackendParallelLaunch)(loop, void *, int) __attribute__((weak));

/* TVM's calling convention of 16 bytes a value (tvm/ffi/c_api.h). */
typedef struct {
    int32_t type;
    uint32_t padding;
    int64_t value;
} any;

/* use_threads(count): run parallel loops on so many threads from now on; how many they are. */
__attribute__((visibility("default"))) int32_t __tvm_ffi_use_threads(void *self, const any *arguments, int32_t count,
                                                                     any *result) {
    (void)self;
    int64_t wanted = count > 0 ? arguments[0].value : 1;
    wanted = wanted < 1 ? 1 : wanted > MOST_THREADS ? MOST_THREADS : wanted;
    __atomic_store_n(&pool.threads, (int)wanted, __ATOMIC_RELAXED);
    start();
    if (&__TVMBackendParallelLaunch) __TVMBackendParallelLaunch = launch;
    *result = (any){1, 0, pool.threads};
    return 0;
}
