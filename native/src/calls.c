/* Runs images: each on all threads together, or as many as there are threads at once. */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* clock_gettime */
#endif
#include "session.h"

#include <stdatomic.h>
#include <string.h>
#include <time.h>

static double now(void) /* nanoseconds */
{
    struct timespec t;
#if defined(_WIN32)
    timespec_get(&t, TIME_UTC);
#else
    clock_gettime(CLOCK_MONOTONIC, &t);
#endif
    return 1e9 * (double)t.tv_sec + (double)t.tv_nsec;
}

static void timed(const struct context *c, uint32_t op, int from, int to, int first, int last)
{
    const double start = now();
    mnet_rows(c, op, from, to, first, last);
    c->s->nanoseconds[op] += now() - start;
}

struct job {
    struct mnet_session *s;
    const uint8_t *image;
    float *const *outputs;
    int image_index;
};

static struct context context_of(const struct job *j, int arena, int thread, int image)
{
    const struct value *v = &j->s->model->values[j->s->model->h.image];
    const size_t bytes = (size_t)v->height * (size_t)v->row;
    return (struct context){j->s, &j->s->thread[thread], j->s->arena[arena], j->image + (size_t)image * bytes};
}

static void together(void *what, int thread, int threads)
{
    const struct job *j = what;
    const struct mnet_model *m = j->s->model;
    const struct context c = context_of(j, 0, thread, j->image_index);
    for (uint32_t g = 0; g < m->h.groups; g++) {
        mnet_group(&c, &m->groups[g], thread, threads);
        pool_meet(j->s->pool);
    }
    if (thread == 0)
        mnet_give(&c, j->outputs, j->image_index);
}

static void apart(void *what, int thread, int threads)
{
    (void)threads;
    const struct job *j = what;
    const struct mnet_model *m = j->s->model;
    const struct context c = context_of(j, thread, thread, j->image_index + thread);
    for (uint32_t g = 0; g < m->h.groups; g++)
        mnet_group(&c, &m->groups[g], 0, 1);
    mnet_give(&c, j->outputs, j->image_index + thread);
}

static int arenas(struct mnet_session *s)
{
    for (int i = 1; i < s->threads; i++)
        if (!s->arena[i] && !(s->arena[i] = mnet_allocate(s, (size_t)s->model->h.arena_units * UNIT + SLACK)))
            return 0;
    return 1;
}

int mnet_run(struct mnet_session *s, const uint8_t *images, int n, float *const outputs[])
{
    if (n < 1)
        return MNET_WRONG;
    if (atomic_flag_test_and_set((atomic_flag *)s->busy))
        return MNET_BUSY;
    struct job j = {s, images, outputs, 0};
    int code = MNET_OK;
    if (s->threads > 1 && n >= s->threads) {
        code = arenas(s) ? MNET_OK : MNET_MEMORY;
        for (; code == MNET_OK && n - j.image_index >= s->threads; j.image_index += s->threads)
            pool_run(s->pool, apart, &j);
    }
    for (; code == MNET_OK && j.image_index < n; j.image_index++)
        pool_run(s->pool, together, &j);
    atomic_flag_clear((atomic_flag *)s->busy);
    return code;
}

int mnet_layers(struct mnet_session *s, const uint8_t *image, float *const outputs[], double nanoseconds[])
{
    if (atomic_flag_test_and_set((atomic_flag *)s->busy))
        return MNET_BUSY;
    struct job j = {s, image, outputs, 0};
    memset(nanoseconds, 0, s->model->h.operations * sizeof *nanoseconds);
    s->nanoseconds = nanoseconds;
    s->timed = timed;
    pool_run(s->pool, together, &j);
    s->timed = NULL;
    atomic_flag_clear((atomic_flag *)s->busy);
    return MNET_OK;
}
