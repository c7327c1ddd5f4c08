/* Makes and ends sessions, their memory and threads. */
#include "session.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

enum { MOST_THREADS = 256, FIRST_BLOCKS = 16 };

void *mnet_allocate(struct mnet_session *s, size_t bytes)
{
    if (s->count == s->room) {
        const int room = s->room ? 2 * s->room : FIRST_BLOCKS;
        void **more = realloc(s->blocks, (size_t)room * sizeof *more);
        if (!more)
            return NULL;
        s->blocks = more;
        s->room = room;
    }
    uint8_t *block = calloc(1, bytes + UNIT);
    if (!block)
        return NULL;
    s->blocks[s->count++] = block;
    s->bytes += bytes + UNIT;
    return block + (UNIT - (uintptr_t)block % UNIT) % UNIT;
}

struct mnet_session *mnet_session(const struct mnet_model *m, int threads, const char *isa, char *why, size_t room)
{
    const struct kernels *k = mnet_kernels(isa);
    const char *wrong = NULL;
    struct mnet_session *s = NULL;
    if (threads < 1 || threads > MOST_THREADS)
        wrong = "threads have to be from 1 to 256";
    else if (!k)
        wrong = "this processor has no such instruction set";
    else if (!(s = calloc(1, sizeof *s)))
        wrong = "no memory";
    if (!wrong) {
        s->model = m;
        s->kernels = k;
        s->threads = threads;
        if (!(s->busy = mnet_allocate(s, sizeof(atomic_flag))) || !mnet_build(s) || !mnet_sparse(s))
            wrong = "no memory";
        else if (!(s->pool = pool_new(threads)))
            wrong = "the system gives no more threads";
    }
    if (!wrong) {
        atomic_flag_clear((atomic_flag *)s->busy);
        return s;
    }
    if (room)
        snprintf(why, room, "%s", wrong);
    mnet_end(s);
    return NULL;
}

void mnet_end(struct mnet_session *s)
{
    if (!s)
        return;
    pool_free(s->pool);
    for (int i = 0; i < s->count; i++)
        free(s->blocks[i]);
    free(s->blocks);
    free(s);
}

const char *mnet_isa(const struct mnet_session *s) { return s->kernels->name; }
size_t mnet_memory(const struct mnet_session *s) { return s->bytes; }
