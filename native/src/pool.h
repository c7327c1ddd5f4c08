/* Threads that wait to do one thing together. The caller's is the first of them. */
#ifndef MNET_POOL_H
#define MNET_POOL_H

struct pool;
typedef void (*pool_work)(void *what, int thread, int threads);

struct pool *pool_new(int threads); /* NULL where the system gives none */
void pool_free(struct pool *p);
void pool_run(struct pool *p, pool_work work, void *what); /* on every thread; returns when all are done */
void pool_meet(struct pool *p);                            /* inside work: nobody goes on until everybody is here */

#endif
