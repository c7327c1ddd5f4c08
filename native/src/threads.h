/* Threads, a lock and a condition, of POSIX or Windows; none in WebAssembly without threads. */
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

#elif !defined(__wasm__) || defined(_REENTRANT)
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
#endif
}

#endif
