// The load: connections that send, wait for the echo, verify every byte of it, and send again.
//
//     load PORT CONNECTIONS SIZE spin|wait loop SECONDS
//     load PORT CONNECTIONS SIZE spin|wait rate PER_SECOND SECONDS
//     load PORT CONNECTIONS SIZE spin|wait churn CYCLES [proxy]
//
// loop: each connection sends its next message when it has its echo. rate: messages are due at fixed times, taking turns
// on the connections, and latency counts from the time when one was due. churn: connect, one echo, FIN, the server's FIN.
// With proxy, each connection comes from 127.0.0.77 and begins with a PROXY header of version 2, in a segment of its own.
//
// It connects and warms up, writes "ready", and begins when a line comes on standard input. Its result is one line of
// JSON, times in microseconds. Until standard input ends, its connections stay.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 512 * 1024, EVENTS = 1024, PERIOD = 4096, HELLO = 64, WARM_CYCLES = 200, GIVE_UP = 20, LONGEST = 120 };
enum { NS = 1000000000, WARM = NS / 5 };

enum state { FREE, CONNECTING, ECHOING, CLOSING };

struct connection {
    enum state state;
    int fd;
    uint64_t number; // messages begun
    uint64_t began;  // of the message under way, or when it was due
    const char *message;
    size_t sent, got;
};

static struct sockaddr_in server = {.sin_family = AF_INET}, proxy = {.sin_family = AF_INET};
static struct connection *connections;
static int count, spin, poll, proxied;
static size_t size;
static char *pattern, buffer[BUFFER];
static double rate;               // messages a second; 0: not in this mode
static uint64_t began, until;     // of loop; 0: it is over
static uint64_t due, left;        // messages or cycles: not yet begun
static uint64_t open_messages;    // under way
static uint64_t *taken, taken_count, taken_room; // latencies

static const char header[] = "\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\0\x71\x07\xc0\0\2\1\x12\x67\0\7"; // 203.0.113.7:4711

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(1);
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS + t.tv_nsec;
}

static void record(uint64_t latency) {
    if (taken_count == taken_room) {
        taken_room = taken_room ? taken_room * 2 : 1 << 20;
        taken = realloc(taken, taken_room * sizeof *taken);
        if (!taken) fail("no memory");
    }
    taken[taken_count++] = latency;
}

static void watch(struct connection *c) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
    if (epoll_ctl(poll, EPOLL_CTL_ADD, c->fd, &event)) fail("epoll_ctl: %s", strerror(errno));
}

static int new_socket(int flags) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
    if (fd < 0) fail("socket: %s", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    return fd;
}

static void push(struct connection *c) {
    while (c->sent < size) {
        ssize_t n = send(c->fd, c->message + c->sent, size - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) return;
        if (n < 0) fail("send: %s", strerror(errno));
        c->sent += n;
    }
}

// Each message of a connection begins elsewhere in the pattern, so that another's bytes, or older ones, are noticed.
static void begin(struct connection *c, uint64_t when) {
    c->state = ECHOING;
    c->message = pattern + ((c - connections) * 131 + c->number * 17) % PERIOD;
    c->number++;
    c->began = when;
    c->sent = c->got = 0;
    open_messages++;
    push(c);
}

static void connect_slot(struct connection *c) {
    c->state = CONNECTING;
    c->fd = new_socket(SOCK_NONBLOCK);
    if (proxied) {
        setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &(int){1}, sizeof(int));
        if (bind(c->fd, (struct sockaddr *)&proxy, sizeof proxy)) fail("bind: %s", strerror(errno));
    }
    c->began = now();
    left--;
    open_messages++;
    while (connect(c->fd, (struct sockaddr *)&server, sizeof server) && errno != EINPROGRESS) {
        if (errno != EADDRNOTAVAIL) fail("connect: %s", strerror(errno));
        usleep(1000); // every port is in TIME_WAIT; the oldest are free again after a second
    }
    watch(c);
}

static uint64_t due_at(uint64_t number) { return began + (uint64_t)(number * (NS / rate)); }

static void arrive(struct connection *c) { begin(c, due_at(c->number * count + (c - connections))); }

// The echo is complete: what comes next on this connection?
static void finished(struct connection *c, int churns) {
    uint64_t t = now();
    open_messages--;
    if (churns) {
        c->state = CLOSING;
        open_messages++;
        shutdown(c->fd, SHUT_WR);
        return;
    }
    record(t - c->began);
    c->state = FREE;
    if (rate) {
        if (c->number * count + (c - connections) < due) arrive(c); // it was due while the last one was under way
    } else if (t < until) {
        begin(c, t);
    }
}

static void pull(struct connection *c, int churns) {
    ssize_t n = recv(c->fd, buffer, BUFFER, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n < 0) fail("recv: %s", strerror(errno));
    if (c->state == CLOSING && n == 0) {
        close(c->fd);
        open_messages--;
        record(now() - c->began);
        c->state = FREE;
        if (left) connect_slot(c);
        return;
    }
    if (n == 0) fail("the server has closed a connection, %zu of %zu bytes echoed", c->got, size);
    if (c->state != ECHOING || c->got + n > c->sent) fail("more came back than was sent");
    if (memcmp(buffer, c->message + c->got, n)) fail("what came back is not what was sent");
    c->got += n;
    if (c->got == size) finished(c, churns);
}

static void turn(int churns) {
    struct epoll_event events[EVENTS];
    int n = epoll_wait(poll, events, EVENTS, spin || rate ? 0 : 100);
    if (n == 0 && rate && !spin) sched_yield();
    for (int i = 0; i < n; i++) {
        struct connection *c = events[i].data.ptr;
        if (c->state == FREE) {
            if (events[i].events & EPOLLRDHUP) fail("the server has closed an idle connection");
            continue;
        }
        if (c->state == CONNECTING) {
            if (!(events[i].events & EPOLLOUT)) continue;
            int error = 0;
            getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &(socklen_t){sizeof error});
            if (error) fail("connect: %s", strerror(error));
            open_messages--;
            if (proxied && send(c->fd, header, sizeof header - 1, MSG_NOSIGNAL) < 0) fail("send: %s", strerror(errno));
            begin(c, c->began);
        } else if (c->sent < size && (events[i].events & EPOLLOUT)) {
            push(c);
        }
        if (events[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) pull(c, churns);
    }
    static uint64_t checked, progress;
    uint64_t t = now();
    if (n) progress = t;
    else if (t - checked > NS) {
        checked = t;
        if (progress && open_messages && t - progress > (uint64_t)GIVE_UP * NS) fail("no answer for %d s", GIVE_UP);
    }
}

static void loop(uint64_t duration) {
    began = now();
    until = began + duration;
    for (int i = 0; i < count; i++) begin(&connections[i], now());
    while (open_messages) turn(0);
}

static void fixed_rate(double per_second, double seconds) {
    rate = per_second;
    began = now();
    uint64_t total = per_second * seconds;
    for (int i = 0; i < count; i++) connections[i].number = 0;
    for (due = 0; due < total || open_messages;) {
        if (due < total && due_at(due) <= now()) {
            struct connection *c = &connections[due++ % count];
            if (c->state == FREE) arrive(c);
        } else {
            turn(0);
        }
        if (now() - began > (uint64_t)((seconds * 3 + 5) * NS)) fail("it does not keep up with %.0f a second", rate);
    }
}

static void churn(uint64_t cycles) {
    began = now();
    left = cycles;
    for (int i = 0; i < count && left; i++) connect_slot(&connections[i]);
    while (open_messages) turn(1);
}

// One after the other, and each has its first echo before the next: no backlog overflows.
static void connect_all(void) {
    for (int i = 0; i < count; i++) {
        struct connection *c = &connections[i];
        c->fd = new_socket(0);
        if (connect(c->fd, (struct sockaddr *)&server, sizeof server)) fail("connect: %s", strerror(errno));
        setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){GIVE_UP, 0}, sizeof(struct timeval));
        if (send(c->fd, pattern, HELLO, MSG_NOSIGNAL) != HELLO || recv(c->fd, buffer, HELLO, MSG_WAITALL) != HELLO ||
            memcmp(buffer, pattern, HELLO))
            fail("connection %d has got no echo", i + 1);
        fcntl(c->fd, F_SETFL, fcntl(c->fd, F_GETFL) | O_NONBLOCK);
        watch(c);
    }
}

static int ascending(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static double quantile(double part) {
    uint64_t index = taken_count * part;
    return taken[index < taken_count ? index : taken_count - 1] / 1e3;
}

static void await_line(void) {
    char c;
    while (read(0, &c, 1) == 1 && c != '\n') continue;
}

int main(int argc, char **argv) {
    if (argc < 7) fail("PORT CONNECTIONS SIZE spin|wait loop SECONDS | rate PER_SECOND SECONDS | churn CYCLES [proxy]");
    server.sin_port = htons(atoi(argv[1]));
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    count = atoi(argv[2]);
    size = atoll(argv[3]);
    spin = !strcmp(argv[4], "spin"); // with a core of its own: being woken would count as the server's time
    int churns = !strcmp(argv[5], "churn");
    proxy.sin_addr.s_addr = htonl(0x7f00004d);
    proxied = churns && argc > 7 && !strcmp(argv[7], "proxy");
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    alarm(LONGEST);
    poll = epoll_create1(EPOLL_CLOEXEC);
    connections = calloc(count, sizeof *connections);
    pattern = malloc(PERIOD + size + HELLO);
    if (!connections || !pattern) fail("no memory");
    srandom(862);
    for (size_t i = 0; i < PERIOD + size + HELLO; i++) pattern[i] = random();

    if (churns) {
        churn(WARM_CYCLES);
    } else {
        connect_all();
        loop(WARM);
    }
    taken_count = 0;
    puts("ready");
    fflush(stdout);
    await_line();

    if (churns) churn(atoll(argv[6]));
    else if (!strcmp(argv[5], "rate") && argc > 7) fixed_rate(atof(argv[6]), atof(argv[7]));
    else loop(atof(argv[6]) * NS);
    double seconds = (now() - began) / (double)NS;
    if (!taken_count) fail("nothing was measured");
    qsort(taken, taken_count, sizeof *taken, ascending);
    printf("{\"messages\": %lu, \"seconds\": %.6f, ", (unsigned long)taken_count, seconds);
    printf("\"p50\": %.3f, \"p90\": %.3f, \"p99\": %.3f, ", quantile(0.5), quantile(0.9), quantile(0.99));
    printf("\"p99.9\": %.3f, \"max\": %.3f}\n", quantile(0.999), quantile(1));
    fflush(stdout);
    await_line();
    return 0;
}
