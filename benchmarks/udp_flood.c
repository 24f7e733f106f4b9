// Latency of echoes over TCP, with and without a flood of datagrams from forged sources beside them, in windows that take turns.
//
//     udp_flood TCP_PORT UDP_PORT CONNECTIONS ECHOES_PER_SECOND DATAGRAMS_PER_SECOND SECONDS
//
// Each line of standard input, "0" or "1", makes a window of so many seconds, without or with the flood. For each, it writes
// {"messages": N, "datagrams": N, "p50": US, "p99": US, "max": US}.
//
// Echoes are due at fixed times, taking turns on the connections. Each takes from its send, or from when it was due if the
// connection was still busy, to the moment at which the kernel received the echo (SO_TIMESTAMPNS): what this program does
// meanwhile, such as sending the flood, does not count. The first quarter of a window is left out: at its beginning, the server
// has tokens for a second's worth of answers.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 64, MOST = 64, BURST = 4, TAKEN = 1 << 20, FIRST_PORT = 10000 };
#define NS 1000000000LL

struct packet {
    struct iphdr ip;
    struct udphdr udp;
    char data[SIZE];
} __attribute__((packed));

static struct {
    int fd, got;
    int64_t began; // 0: it has no echo under way
} connections[MOST];
static struct packet packets[BURST];
static struct mmsghdr messages[BURST];
static struct iovec pieces[BURST];
static int64_t taken[TAKEN];
static int count, taken_count, raw;
static uint32_t forged;
static struct sockaddr_in there = {.sin_family = AF_INET};

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int64_t now(void) { // the clock of SO_TIMESTAMPNS
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec * NS + t.tv_nsec;
}

static void connect_all(int port) {
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(port)};
    int on = 1;
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int i = 0; i < count; i++) {
        int fd = connections[i].fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(fd, (struct sockaddr *)&server, sizeof server)) fail("connect");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on)) fail("SO_TIMESTAMPNS");
    }
}

static void prepare_flood(int port) {
    raw = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
    if (raw < 0) fail("a raw socket, which needs root");
    there.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int i = 0; i < BURST; i++) {
        packets[i].ip = (struct iphdr){.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_UDP, .daddr = there.sin_addr.s_addr};
        packets[i].udp = (struct udphdr){.dest = htons(port), .len = htons(sizeof(struct udphdr) + SIZE)};
        pieces[i] = (struct iovec){&packets[i], sizeof packets[i]};
        messages[i].msg_hdr = (struct msghdr){.msg_name = &there, .msg_namelen = sizeof there, .msg_iov = &pieces[i], .msg_iovlen = 1};
    }
}

static int flood(void) { // 65,536 sources, 127.1.0.0 to 127.1.255.255
    for (int i = 0; i < BURST; i++, forged++) {
        packets[i].ip.saddr = htonl(0x7f010000 | (forged & 0xffff));
        packets[i].udp.source = htons(FIRST_PORT + forged % 1000);
    }
    int sent = sendmmsg(raw, messages, BURST, 0);
    return sent < 0 ? 0 : sent;
}

static void receive(int i, int counts) {
    char data[SIZE], ancillary[256];
    struct iovec piece = {data, sizeof data};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = ancillary, .msg_controllen = sizeof ancillary};
    int got = recvmsg(connections[i].fd, &message, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) fail("recvmsg");
    if ((connections[i].got += got) < SIZE) return;
    int64_t end = now();
    for (struct cmsghdr *each = CMSG_FIRSTHDR(&message); each; each = CMSG_NXTHDR(&message, each)) {
        if (each->cmsg_level == SOL_SOCKET && each->cmsg_type == SCM_TIMESTAMPNS) {
            struct timespec t;
            memcpy(&t, CMSG_DATA(each), sizeof t);
            end = t.tv_sec * NS + t.tv_nsec;
        }
    }
    if (counts && taken_count < TAKEN) taken[taken_count++] = end - connections[i].began;
    connections[i].began = 0;
}

static int ascending(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static double quantile(double part) {
    int index = taken_count * part;
    return taken[index < taken_count ? index : taken_count - 1] / 1e3;
}

static void window(int with_flood, double echoes, double datagrams, double seconds) {
    char data[SIZE] = "x";
    int64_t began = now(), end = began + seconds * NS, counts_from = began + seconds * NS / 4, due = began;
    int64_t sent = 0, last = began, away = 0, blocked = 0; // until when echoes that were due had to wait for a connection that was busy
    int next = 0, open;
    taken_count = 0;
    for (;;) {
        int64_t at = now();
        if (at - last > NS / 1000) { // this program had no core: what was due meanwhile must not become a burst
            due += at - last;
            away += at - last;
        }
        last = at;
        if (with_flood && at < end && (at - began - away) / 1e9 * datagrams - sent >= BURST) sent += flood();
        if (at < end && due <= at) {
            if (connections[next].began) {
                blocked = at;
            } else {
                connections[next].began = due <= blocked ? due : now();
                connections[next].got = 0;
                if (send(connections[next].fd, data, SIZE, 0) != SIZE) fail("send");
                next = (next + 1) % count;
                due += NS / echoes;
            }
        }
        open = 0;
        for (int i = 0; i < count; i++) {
            if (!connections[i].began) continue;
            receive(i, connections[i].began >= counts_from);
            open += connections[i].began != 0;
        }
        if (at >= end && !open) break;
    }
    if (!taken_count) fail("nothing was measured");
    qsort(taken, taken_count, sizeof *taken, ascending);
    printf("{\"messages\": %d, \"datagrams\": %ld, \"p50\": %.3f, \"p99\": %.3f, \"max\": %.3f}\n", taken_count, (long)sent,
           quantile(0.5), quantile(0.99), quantile(1));
    fflush(stdout);
}

int main(int argc, char **argv) {
    char line[16];
    if (argc != 7) return 64;
    count = atoi(argv[3]);
    if (count < 1 || count > MOST) return 64;
    connect_all(atoi(argv[1]));
    prepare_flood(atoi(argv[2]));
    while (fgets(line, sizeof line, stdin)) window(line[0] == '1', atof(argv[4]), atof(argv[5]), atof(argv[6]));
}
