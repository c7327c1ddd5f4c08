/* Between calls threads spin for a moment, as the next call often comes at once, then sleep. They are born with the
 * caller's affinity, and so share the processors that it may use. */
#include "pool.h"

#include "threads.h"

#include <stdlib.h>

#if defined(MNET_ONE_THREAD)

struct pool {
    int threads;
};
struct pool *pool_new(int threads)
{
    struct pool *p = threads == 1 ? malloc(sizeof *p) : NULL;
    if (p)
        p->threads = 1;
    return p;
}
void pool_free(struct pool *p) { free(p); }
void pool_run(struct pool *p, pool_work work, void *what) { work(what, 0, p->threads); }
void pool_meet(struct pool *p) { (void)p; }

#else
#include <stdatomic.h>

enum { SPINS = 4000, POLITE = 200 }; /* looks before a thread sleeps; looks before it lets others run */

struct worker {
    struct pool *pool;
    thread_t thread;
    int index;
};

struct pool {
    int threads;
    atomic_uint turn; /* counts the calls: a change is the sign to begin */
    atomic_int here;  /* at a meeting */
    atomic_uint meeting;
    atomic_int asleep, stop;
    pool_work work;
    void *what;
    lock_t lock;
    condition_t begin;
    struct worker worker[]; /* the first is the caller */
};

static void wait_for_turn(struct pool *p, unsigned before)
{
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&p->turn, memory_order_acquire) != before)
            return;
        pause_briefly();
    }
    lock_take(&p->lock);
    atomic_fetch_add(&p->asleep, 1);
    while (atomic_load(&p->turn) == before)
        condition_wait(&p->begin, &p->lock);
    atomic_fetch_sub(&p->asleep, 1);
    lock_give(&p->lock);
}

void pool_meet(struct pool *p)
{
    if (p->threads == 1)
        return;
    const unsigned now = atomic_load_explicit(&p->meeting, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&p->here, 1, memory_order_acq_rel) == p->threads - 1) {
        atomic_store_explicit(&p->here, 0, memory_order_relaxed);
        atomic_store_explicit(&p->meeting, now + 1, memory_order_release);
        return;
    }
    for (int i = 0; atomic_load_explicit(&p->meeting, memory_order_acquire) == now; i++)
        if (i < POLITE)
            pause_briefly();
        else
            thread_yield();
}

static THREAD_RESULT loop(void *arg)
{
    struct worker *w = arg;
    struct pool *p = w->pool;
    for (unsigned turn = 0;; turn++) {
        wait_for_turn(p, turn);
        if (atomic_load(&p->stop))
            return THREAD_DONE;
        p->work(p->what, w->index, p->threads);
        pool_meet(p);
    }
}

static void begin(struct pool *p)
{
    atomic_fetch_add(&p->turn, 1);
    if (atomic_load(&p->asleep)) {
        lock_take(&p->lock);
        condition_wake(&p->begin);
        lock_give(&p->lock);
    }
}

void pool_run(struct pool *p, pool_work work, void *what)
{
    if (p->threads == 1) {
        work(what, 0, 1);
        return;
    }
    p->work = work;
    p->what = what;
    begin(p);
    work(what, 0, p->threads);
    pool_meet(p);
}

static void stop(struct pool *p, int started)
{
    atomic_store(&p->stop, 1);
    begin(p);
    for (int i = 1; i < started; i++)
        thread_join(p->worker[i].thread);
    condition_free(&p->begin);
    lock_free(&p->lock);
    free(p);
}

struct pool *pool_new(int threads)
{
    struct pool *p = calloc(1, sizeof *p + (size_t)threads * sizeof p->worker[0]);
    if (!p)
        return NULL;
    p->threads = threads;
    lock_init(&p->lock);
    condition_init(&p->begin);
    for (int i = 1; i < threads; i++) {
        p->worker[i].pool = p;
        p->worker[i].index = i;
        if (!thread_start(&p->worker[i].thread, loop, &p->worker[i])) {
            stop(p, i);
            return NULL;
        }
    }
    return p;
}

void pool_free(struct pool *p)
{
    if (p)
        stop(p, p->threads);
}
#endif
