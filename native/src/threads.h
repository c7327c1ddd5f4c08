/* Threads, a lock and a condition: of POSIX, of Windows, or of a WebAssembly whose memory is shared. */
#ifndef MNET_THREADS_H
#define MNET_THREADS_H

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

typedef HANDLE thread_t;
typedef SRWLOCK lock_t;
typedef CONDITION_VARIABLE condition_t;
#define THREAD_RESULT DWORD WINAPI
#define THREAD_DONE 0
static inline void lock_init(lock_t *l) { InitializeSRWLock(l); }
static inline void lock_take(lock_t *l) { AcquireSRWLockExclusive(l); }
static inline void lock_give(lock_t *l) { ReleaseSRWLockExclusive(l); }
static inline void lock_free(lock_t *l) { (void)l; }
static inline void condition_init(condition_t *c) { InitializeConditionVariable(c); }
static inline void condition_wait(condition_t *c, lock_t *l) { SleepConditionVariableSRW(c, l, INFINITE, 0); }
static inline void condition_wake(condition_t *c) { WakeAllConditionVariable(c); }
static inline void condition_free(condition_t *c) { (void)c; }
static inline int thread_start(thread_t *t, DWORD(WINAPI *f)(void *), void *arg)
{
    return (*t = CreateThread(NULL, 0, f, arg, 0, NULL)) != NULL;
}
static inline void thread_join(thread_t t)
{
    WaitForSingleObject(t, INFINITE);
    CloseHandle(t);
}
static inline void thread_yield(void) { SwitchToThread(); }

#elif defined(__wasm_atomics__)
#include <stdatomic.h>

/* What runs the module starts its threads (see web/threads.js) and ends them: none is ever joined. A page's own thread
 * may not wait, so a lock is spun for; it is never held for long. */
typedef int thread_t;
typedef atomic_int lock_t, condition_t;
#define THREAD_RESULT void *
#define THREAD_DONE NULL
__attribute__((import_module("mnet"), import_name("thread_start"))) int thread_spawn(void *(*f)(void *), void *arg);
static inline void lock_init(lock_t *l) { atomic_store(l, 0); }
static inline void lock_take(lock_t *l)
{
    while (atomic_exchange(l, 1)) {
    }
}
static inline void lock_give(lock_t *l) { atomic_store(l, 0); }
static inline void lock_free(lock_t *l) { (void)l; }
static inline void condition_init(condition_t *c) { atomic_store(c, 0); }
static inline void condition_wait(condition_t *c, lock_t *l)
{
    const int seen = atomic_load(c);
    lock_give(l);
    __builtin_wasm_memory_atomic_wait32((int *)c, seen, -1);
    lock_take(l);
}
static inline void condition_wake(condition_t *c)
{
    atomic_fetch_add(c, 1);
    __builtin_wasm_memory_atomic_notify((int *)c, 0x7fffffff);
}
static inline void condition_free(condition_t *c) { (void)c; }
static inline int thread_start(thread_t *t, void *(*f)(void *), void *arg) { return *t = thread_spawn(f, arg); }
static inline void thread_join(thread_t t) { (void)t; }
__attribute__((import_module("mnet"), import_name("thread_yield"))) void thread_yield(void);

#elif !defined(__wasm__)
#include <pthread.h>
#include <sched.h>

typedef pthread_t thread_t;
typedef pthread_mutex_t lock_t;
typedef pthread_cond_t condition_t;
#define THREAD_RESULT void *
#define THREAD_DONE NULL
static inline void lock_init(lock_t *l) { pthread_mutex_init(l, NULL); }
static inline void lock_take(lock_t *l) { pthread_mutex_lock(l); }
static inline void lock_give(lock_t *l) { pthread_mutex_unlock(l); }
static inline void lock_free(lock_t *l) { pthread_mutex_destroy(l); }
static inline void condition_init(condition_t *c) { pthread_cond_init(c, NULL); }
static inline void condition_wait(condition_t *c, lock_t *l) { pthread_cond_wait(c, l); }
static inline void condition_wake(condition_t *c) { pthread_cond_broadcast(c); }
static inline void condition_free(condition_t *c) { pthread_cond_destroy(c); }
static inline int thread_start(thread_t *t, void *(*f)(void *), void *arg) { return !pthread_create(t, NULL, f, arg); }
static inline void thread_join(thread_t t) { pthread_join(t, NULL); }
static inline void thread_yield(void) { sched_yield(); }

#else
#define MNET_ONE_THREAD
#endif

static inline void pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#elif defined(__wasm__)
    for (int i = 0; i < 32; i++) /* it has no pause */
        __asm__ volatile("nop");
#endif
}

#endif
