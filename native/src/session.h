/* A model with memory and threads to run it. */
#ifndef MNET_SESSION_H
#define MNET_SESSION_H

#include "plan.h"
#include "pool.h"

/* C source that is written for one network says which kernels it has, and which kinds of operations in bytes (U8) and
 * in float32: the compiler leaves out what isn't used. DENSE is pointwise or a convolution, HALVES float16 weights. Here
 * there is all. */
#if !defined(USES)
#define USES(kind, type) 1
#define KERNELS(session) ((session)->kernels)
#define GATHER_BYTES (24 * 1024) /* windows of a convolution side by side, at a time: a part of L1 */
#define MOST_GATHERED 256 /* windows of a whole map, where weights are so many that they should be read but once */
#define WITHOUT_ZEROS(session, i) ((session)->sparse ? (session)->sparse[i] : NULL)
#else
#define MOST_GATHERED 0
#define WITHOUT_ZEROS(session, i) ((const struct sparse *)NULL)
#endif
/* Pixels of them at least, so that weights too large for a cache are read seldom; few where memory is. */
#define LEAST_GATHERED (GATHER_BYTES < 16 * 1024 ? 12 : 64)
#define IN_BYTES(kind, value) (USES(kind, U8) && (!USES(kind, F32) || (value)->type == U8))
#define HAS(kind) (USES(kind, U8) || USES(kind, F32))

/* A case of a switch over kinds. */
#define ON(kind, call) \
    case kind: \
        if (HAS(kind)) \
            call; \
        break

struct thread {
    uint8_t *windows, *gather; /* gather: a convolution's windows, or a channel's numbers each */
    void *scratch;             /* the kernels' */
    float *strip;              /* those of weights that are mostly zeros */
    int *from;                 /* of each map: the first row that its window holds */
    int *done;                 /* of each operation: rows that it has computed */
};

/* A box by one of its classes. */
struct candidate {
    float score;
    uint32_t label, box;
};

struct context;

struct mnet_session {
    const struct mnet_model *model;
    const struct kernels *kernels;
    int threads;
    struct pool *pool;
    struct thread *thread;
    uint8_t **arena; /* the first for all threads together, the others for threads with images of their own */
    const void **weights;
    struct sparse **sparse; /* of each operation or NULL; the whole is NULL where the kernels gain nothing */
    sparse_product *sparse_product;
    uint8_t *around[256]; /* a row of each byte that maps are padded with */
    size_t bytes;
    void **blocks; /* all that was allocated */
    int count, room;
    double *nanoseconds; /* of each operation, where they are timed */
    void (*timed)(const struct context *c, uint32_t op, int from, int to, int first, int last); /* or NULL */
    void *busy;          /* an atomic flag */
};

/* Where one thread computes one image. */
struct context {
    const struct mnet_session *s;
    const struct thread *t;
    uint8_t *arena;
    const uint8_t *image;
};

void *mnet_allocate(struct mnet_session *s, size_t bytes); /* zeros, at a multiple of 64; NULL where there is no memory */
int mnet_build(struct mnet_session *s);                    /* all memory for its threads; 0 where there is none */
int mnet_sparse(struct mnet_session *s);                   /* what layers of mostly zeros need besides; the same */

int mnet_gather_pixels(const struct mnet_model *m, const struct op *o);    /* a convolution's, at a time */
size_t mnet_gather_stride(const struct mnet_model *m, const struct op *o); /* bytes of one pixel's window */

int mnet_in_place(const struct mnet_session *s, const struct op *o); /* whether a convolution's windows aren't gathered */

/* Rows [from, to) of an operation's output, its channels [first, last). */
void mnet_rows(const struct context *c, uint32_t op, int from, int to, int first, int last);

/* The same, of the kinds that only detectors have; 0 for any other. */
int mnet_detect(const struct context *c, const struct op *o, int from, int to);

/* The same, of windows without weights and of channels in another order. */
int mnet_windows(const struct context *c, const struct op *o, int from, int to);

/* One thread's part of a group. */
void mnet_group(const struct context *c, const struct group *g, int thread, int threads);

void mnet_give(const struct context *c, float *const outputs[], int image); /* channels first, as they are given out */

uint8_t *mnet_row(const struct context *c, uint32_t value, int row); /* its first pixel, padding left of it aside */

#endif
