/* Preloaded into the daemon, it makes calls of the C library fail, as tests/inject.py wants it: that stands in a file
   which both have mapped. Only calls of the main thread fail: the log has its own thread, and its own tests. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum call { ACCEPT, READ, WRITE, ALLOCATE, IO_URING, TCP_INFORMATION, SEND_QUEUE, RESET_ON_CLOSE, SAVE_SYN, CALLS };

static volatile struct {
    struct rule {
        int32_t error;   /* errno, or 0: then it is done, but with `at_most` bytes */
        int32_t at_most; /* bytes, or -1: all, after the process has stopped itself with SIGSTOP */
        int32_t port;    /* the client's, for reads and writes; 0: any */
        int32_t skip;    /* calls that are done well before the first fault */
        int32_t times;   /* faults still to come */
        int32_t hits;    /* faults so far */
    } rules[CALLS];
    int64_t ahead; /* seconds that the wall clock is wrong */
} *wanted;

__attribute__((constructor)) static void begin(void)
{
    const char *name = getenv("TEST_INJECT");
    int fd = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        abort();
    void *map = mmap(NULL, sizeof *wanted, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        abort();
    close(fd);
    wanted = map;
}

/* Return the rule by which this call is to fail, or NULL. */
static volatile struct rule *due(enum call call, int fd)
{
    if (!wanted || wanted->rules[call].times <= 0 || gettid() != getpid())
        return NULL;
    volatile struct rule *rule = &wanted->rules[call];
    if (call == READ || call == WRITE) {
        struct sockaddr_in peer;
        socklen_t size = sizeof peer;
        int before = errno;
        int known = getpeername(fd, (struct sockaddr *)&peer, &size) == 0;
        errno = before;
        if (!known || peer.sin_family != AF_INET || (rule->port && ntohs(peer.sin_port) != rule->port))
            return NULL;
    }
    if (rule->skip > 0) {
        rule->skip--;
        return NULL;
    }
    rule->times--;
    rule->hits++;
    if (rule->error)
        errno = rule->error;
    return rule;
}

/* Return how many bytes it may be. */
static size_t bounded(volatile struct rule *rule, size_t size)
{
    if (rule && rule->at_most < 0)
        raise(SIGSTOP);
    return rule && rule->at_most >= 0 && size > (size_t)rule->at_most ? (size_t)rule->at_most : size;
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) \
        real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

int accept4(int fd, struct sockaddr *address, socklen_t *size, int flags)
{
    REAL(accept4);
    return due(ACCEPT, fd) ? -1 : real(fd, address, size, flags);
}

ssize_t read(int fd, void *data, size_t size)
{
    REAL(read);
    volatile struct rule *rule = due(READ, fd);
    if (rule && rule->error)
        return -1;
    return real(fd, data, bounded(rule, size));
}

ssize_t write(int fd, const void *data, size_t size)
{
    REAL(write);
    volatile struct rule *rule = due(WRITE, fd);
    if (rule && rule->error)
        return -1;
    return real(fd, data, bounded(rule, size));
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    REAL(writev);
    if (wanted && wanted->rules[WRITE].times > 0 && count > 0)
        return write(fd, parts->iov_base, parts->iov_len); /* a short count, as is its right */
    return real(fd, parts, count);
}

int getsockopt(int fd, int level, int name, void *restrict value, socklen_t *restrict size)
{
    REAL(getsockopt);
    int asked = level == IPPROTO_TCP && name == TCP_INFO;
    volatile struct rule *rule = asked ? due(TCP_INFORMATION, fd) : NULL;
    if (rule && rule->error)
        return -1;
    int result = real(fd, level, name, value, size);
    *size = bounded(rule, *size);
    return result;
}

int setsockopt(int fd, int level, int name, const void *value, socklen_t size)
{
    REAL(setsockopt);
    if (level == SOL_SOCKET && name == SO_LINGER && due(RESET_ON_CLOSE, fd))
        return -1;
    if (level == IPPROTO_TCP && name == TCP_SAVE_SYN && due(SAVE_SYN, fd))
        return -1;
    return real(fd, level, name, value, size);
}

int ioctl(int fd, unsigned long request, ...)
{
    REAL(ioctl);
    va_list list;
    va_start(list, request);
    void *argument = va_arg(list, void *);
    va_end(list);
    if (request == TIOCOUTQ && due(SEND_QUEUE, fd)) /* SIOCOUTQ */
        return -1;
    return real(fd, request, argument);
}

/* libuv and Python call io_uring_setup so, if at all: the C library has no function for it. */
long syscall(long number, ...)
{
    REAL(syscall);
    va_list list;
    long arguments[6];
    va_start(list, number);
    for (int i = 0; i < 6; i++)
        arguments[i] = va_arg(list, long);
    va_end(list);
    if (number == SYS_io_uring_setup && due(IO_URING, -1))
        return -1;
    return real(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
}

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);

void *malloc(size_t size)
{
    return due(ALLOCATE, -1) ? NULL : __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    return due(ALLOCATE, -1) ? NULL : __libc_calloc(count, size);
}

void *realloc(void *old, size_t size)
{
    return due(ALLOCATE, -1) ? NULL : __libc_realloc(old, size);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    REAL(clock_gettime);
    int result = real(clock, now);
    if (wanted && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += wanted->ahead;
    return result;
}

time_t time(time_t *result)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result)
        *result = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *restrict result, void *restrict zone)
{
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    result->tv_sec = now.tv_sec;
    result->tv_usec = now.tv_nsec / 1000;
    return 0;
}
