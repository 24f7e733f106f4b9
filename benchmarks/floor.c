// The floor: one read and one write for each piece that arrives, and nothing else. Edge-triggered epoll, one thread.
//
//     floor PORT [reuse_port]
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUFFER = 256 * 1024, EVENTS = 1024, BACKLOG = 1024 };

struct connection {
    int fd;
    char *rest; // what the kernel has not taken; while there is any, nothing is read
    size_t begin, end;
};

static char buffer[BUFFER];

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void end(struct connection *c) {
    close(c->fd); // which also takes it out of the epoll set
    free(c->rest);
    free(c);
}

// Write what is left; say whether all is out.
static int flush(struct connection *c) {
    while (c->begin < c->end) {
        ssize_t n = write(c->fd, c->rest + c->begin, c->end - c->begin);
        if (n < 0) return 0; // EAGAIN, or an error that the next read tells
        c->begin += n;
    }
    free(c->rest);
    c->rest = NULL;
    return 1;
}

static void serve(struct connection *c, unsigned events) {
    int resumed = c->rest != NULL;
    if (resumed && !flush(c)) {
        if (events & (EPOLLERR | EPOLLHUP)) end(c);
        return;
    }
    for (;;) {
        ssize_t n = read(c->fd, buffer, BUFFER);
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0) return end(c);
        ssize_t out = write(c->fd, buffer, n);
        if (out < 0 && errno != EAGAIN) return end(c);
        if (out < n) {
            if (out < 0) out = 0;
            c->begin = 0;
            c->end = n - out;
            c->rest = malloc(c->end);
            if (!c->rest) fail("malloc");
            memcpy(c->rest, buffer + out, c->end);
            return;
        }
        // A short read has taken all there was, and the next byte is a new edge: epoll(7).
        if (n < BUFFER && !resumed && !(events & EPOLLRDHUP)) return;
    }
}

static void welcome(int listener, int poll) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        struct connection *c = calloc(1, sizeof *c);
        if (!c) fail("calloc");
        c->fd = fd;
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
        if (epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event)) fail("epoll_ctl");
    }
}

int main(int argc, char **argv) {
    if (argc < 2) return fprintf(stderr, "floor PORT [reuse_port]\n"), 64;
    signal(SIGPIPE, SIG_IGN);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int)); // what is accepted inherits it
    if (argc > 2) setsockopt(listener, SOL_SOCKET, SO_REUSEPORT, &(int){1}, sizeof(int));
    struct sockaddr_in address = {AF_INET, htons(atoi(argv[1])), {htonl(INADDR_LOOPBACK)}, {0}};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, BACKLOG)) fail("listen");
    int poll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event events[EVENTS] = {{.events = EPOLLIN}}; // data.ptr NULL: the listener
    if (epoll_ctl(poll, EPOLL_CTL_ADD, listener, &events[0])) fail("epoll_ctl");
    for (;;) {
        int n = epoll_wait(poll, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr) serve(events[i].data.ptr, events[i].events);
            else welcome(listener, poll);
        }
    }
}
