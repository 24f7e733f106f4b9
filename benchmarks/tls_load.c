// Clients of TLS 1.3, which verify every byte of the echo.
//
//     tls_load PORT CONNECTIONS SIZE spin|wait loop SECONDS | churn SECONDS | half SECONDS
//
// loop: each connection sends its next message when it has its echo. churn: connect, handshake, one echo, close_notify and FIN,
// the server's FIN. half: connect, a ClientHello that was made once, and a reset once the server has answered: all of the cost
// is the server's.
//
// It speaks as load.c does: "ready", a line on standard input, a line of JSON, the end of standard input. All servers get
// the same cipher and the same group, and no client resumes a session.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 64 * 1024, EVENTS = 256, PERIOD = 4096, GIVE_UP = 20, LONGEST = 120 };
static const double WARM = 0.2;

enum state { FREE, HANDSHAKE, ECHOING, CLOSING };

struct connection {
    enum state state;
    int fd;
    SSL *tls;
    uint64_t number; // messages begun
    const char *message;
    size_t sent, got;
};

static struct sockaddr_in server = {.sin_family = AF_INET};
static SSL_CTX *context;
static struct connection *connections;
static int count, spin, poll, churns, halves;
static size_t size;
static char *pattern, buffer[BUFFER], hello[1024];
static int hello_size;
static double until;
static unsigned long done, under_way;

static void fail(const char *what) {
    fprintf(stderr, "tls_load: %s: %s\n", what, errno ? strerror(errno) : "");
    ERR_print_errors_fp(stderr);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

// Say whether a call of OpenSSL has done something; if not, wait for what it needs.
static int did(struct connection *c, int result, const char *what) {
    if (result > 0) return 1;
    int error = SSL_get_error(c->tls, result);
    if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE) fail(what);
    return 0;
}

static void watch(struct connection *c, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(poll, operation, c->fd, &event)) fail("epoll_ctl");
}

static SSL *new_client(void) {
    SSL *tls = SSL_new(context);
    if (!tls) fail("SSL_new");
    SSL_set_connect_state(tls);
    return tls;
}

static void make_hello(void) {
    SSL *tls = new_client();
    BIO *out = BIO_new(BIO_s_mem());
    SSL_set_bio(tls, BIO_new(BIO_s_mem()), out);
    SSL_do_handshake(tls);
    hello_size = BIO_read(out, hello, sizeof hello);
    SSL_free(tls);
}

static void begin(struct connection *c);

static void start(struct connection *c) {
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0) fail("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    while (connect(c->fd, (struct sockaddr *)&server, sizeof server)) {
        if (errno != EADDRNOTAVAIL) fail("connect");
        usleep(1000); // every port is in TIME_WAIT; the oldest are free again after a second
    }
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    c->state = HANDSHAKE;
    under_way++;
    watch(c, EPOLL_CTL_ADD, EPOLLIN);
    if (halves) {
        if (send(c->fd, hello, hello_size, MSG_NOSIGNAL) < 0) fail("send");
        return;
    }
    c->tls = new_client();
    if (!SSL_set_fd(c->tls, c->fd)) fail("SSL_set_fd");
    if (did(c, SSL_do_handshake(c->tls), "handshake")) begin(c);
}

static void stop(struct connection *c) {
    SSL_free(c->tls);
    close(c->fd);
    c->state = FREE;
    under_way--;
    done++;
    if (now() < until) start(c);
}

static void push(struct connection *c) {
    size_t n;
    while (c->sent < size) {
        if (!did(c, SSL_write_ex(c->tls, c->message + c->sent, size - c->sent, &n), "write"))
            return watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
        c->sent += n;
    }
    watch(c, EPOLL_CTL_MOD, EPOLLIN);
}

// Each message of a connection begins elsewhere in the pattern, so that another's bytes, or older ones, are noticed.
static void begin(struct connection *c) {
    c->state = ECHOING;
    c->message = pattern + ((c - connections) * 131 + c->number++ * 17) % PERIOD;
    c->sent = c->got = 0;
    push(c);
}

static void echoed(struct connection *c) {
    if (churns) {
        c->state = CLOSING;
        SSL_shutdown(c->tls);
        shutdown(c->fd, SHUT_WR);
        return;
    }
    done++;
    if (now() < until) return begin(c);
    c->state = FREE;
    under_way--;
}

static void pull(struct connection *c) {
    size_t n;
    while (c->state == ECHOING) {
        if (!did(c, SSL_read_ex(c->tls, buffer, BUFFER, &n), "read")) return;
        if (c->got + n > c->sent) fail("more came back than was sent");
        if (memcmp(buffer, c->message + c->got, n)) fail("what came back is not what was sent");
        c->got += n;
        if (c->got == size) return echoed(c);
    }
}

static void turn(void) {
    struct epoll_event events[EVENTS];
    static double heard;
    int n = epoll_wait(poll, events, EVENTS, spin ? 0 : 100);
    if (n || !heard) heard = now();
    else if (under_way && now() - heard > GIVE_UP) fail("no answer");
    for (int i = 0; i < n; i++) {
        struct connection *c = events[i].data.ptr;
        errno = 0;
        if (c->state == HANDSHAKE && halves) {
            setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
            stop(c);
        } else if (c->state == HANDSHAKE) {
            if (did(c, SSL_do_handshake(c->tls), "handshake")) begin(c);
        } else if (c->state == ECHOING) {
            if (c->sent < size) push(c);
            pull(c);
        } else if (c->state == CLOSING) {
            ssize_t got = recv(c->fd, buffer, BUFFER, 0); // close_notify, and then FIN
            if (got < 0 && errno != EAGAIN) fail("recv");
            if (got == 0) stop(c);
        } else {
            fail("the server has closed an idle connection, or said more than the echo");
        }
    }
}

static double run(double seconds) {
    double began = now();
    until = began + seconds;
    done = 0;
    for (int i = 0; i < count; i++) {
        if (churns) start(&connections[i]);
        else under_way++, begin(&connections[i]);
    }
    while (under_way) turn();
    return now() - began;
}

// All handshakes, and an echo on each connection: a server is not asked for all at one time, so no backlog overflows.
static void connect_all(void) {
    until = 0;
    for (int i = 0; i < count; i++) {
        start(&connections[i]);
        while (under_way) turn();
    }
}

static void await_line(void) {
    char c;
    while (read(0, &c, 1) == 1 && c != '\n') continue;
}

int main(int argc, char **argv) {
    if (argc != 7) return fprintf(stderr, "tls_load: PORT CONNECTIONS SIZE spin|wait loop|churn|half SECONDS\n"), 64;
    server.sin_port = htons(atoi(argv[1]));
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    count = atoi(argv[2]);
    size = atoll(argv[3]);
    spin = !strcmp(argv[4], "spin");
    halves = !strcmp(argv[5], "half");
    churns = halves || !strcmp(argv[5], "churn");
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    alarm(LONGEST);
    poll = epoll_create1(EPOLL_CLOEXEC);
    context = SSL_CTX_new(TLS_client_method());
    connections = calloc(count, sizeof *connections);
    pattern = malloc(PERIOD + size);
    if (!context || !connections || !pattern) fail("no memory");
    SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
    SSL_CTX_set_ciphersuites(context, "TLS_AES_256_GCM_SHA384");
    SSL_CTX_set1_groups_list(context, "X25519");
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_RELEASE_BUFFERS);
    srandom(862);
    for (size_t i = 0; i < PERIOD + size; i++) pattern[i] = random();

    if (halves) make_hello();
    if (!churns) connect_all();
    run(WARM);
    puts("ready");
    fflush(stdout);
    await_line();

    double seconds = run(atof(argv[6]));
    printf("{\"messages\": %lu, \"seconds\": %.6f}\n", done, seconds);
    fflush(stdout);
    await_line();
    return 0;
}
