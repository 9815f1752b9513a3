/* A wall clock that jumps: preloaded into a job's processes (the worker's Python, the engine's Java), it adds to what they are
   told the seconds that a file holds, and takes them off again from the moments up to which they wait. Clocks that only measure
   how long something takes are left alone, as by a real jump. What waits when the clock jumps is not woken early or late. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define LONG_AGO 1000000000 /* s: the wall clock's moments are far from those of a clock that began when the machine did */

static long ahead(void) {
    const char *path = getenv("CHAOS_CLOCK");
    char text[32] = {0};
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return 0;
    ssize_t size = read(file, text, sizeof text - 1);
    close(file);
    return size > 0 ? atol(text) : 0;
}

static struct timespec moment_of(const struct timespec *told) {
    struct timespec moment = *told;
    if (moment.tv_sec > LONG_AGO) moment.tv_sec -= ahead();
    return moment;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime);
    int status = real(clock, now);
    if (!status && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += ahead();
    return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    REAL(gettimeofday);
    int status = real(now, zone);
    if (!status) now->tv_sec += ahead();
    return status;
}

time_t time(time_t *where) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where) *where = now.tv_sec;
    return now.tv_sec;
}

int timespec_get(struct timespec *now, int base) {
    return base == TIME_UTC && !clock_gettime(CLOCK_REALTIME, now) ? base : 0;
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict lock, const struct timespec *restrict until) {
    static __typeof__(&pthread_cond_timedwait) real;
    /* The oldest of several symbols of this name, which dlsym finds, is for another pthread_cond_t. */
    if (!real) real = (__typeof__(real))dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!real) real = (__typeof__(real))dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    struct timespec moment = moment_of(until);
    return real(condition, lock, &moment);
}

int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict lock, const struct timespec *restrict until) {
    REAL(cnd_timedwait);
    struct timespec moment = moment_of(until);
    return real(condition, lock, &moment);
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until) {
    REAL(sem_timedwait);
    struct timespec moment = moment_of(until);
    return real(semaphore, &moment);
}

long syscall(long number, ...) {
    REAL(syscall);
    va_list given;
    va_start(given, number);
    long a = va_arg(given, long), b = va_arg(given, long), c = va_arg(given, long);
    long d = va_arg(given, long), e = va_arg(given, long), f = va_arg(given, long);
    va_end(given);
    struct timespec moment;
    if (number == SYS_futex && (b & FUTEX_CLOCK_REALTIME) && d) {
        moment = moment_of((const struct timespec *)d);
        d = (long)&moment;
    }
    return real(number, a, b, c, d, e, f);
}
