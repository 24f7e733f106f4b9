// Clients of UDP in a closed loop: each has one datagram under way, and sends the next one when it has its echo, or after a
// tenth of a second without one, which is a loss.
//
//     udp_load PORT CLIENTS SIZE SECONDS
//
// It writes {"messages": N, "lost": N, "seconds": S}.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

enum { MOST = 1024, SIZE = 1472 };

static struct {
    int fd;
    double sent;
    unsigned long number; // at the beginning of each datagram, so that a late echo is none of the next
} clients[MOST];
static char said[SIZE], heard[SIZE];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void ask(int i, int size) {
    clients[i].number++;
    clients[i].sent = now();
    memcpy(said, &clients[i].number, sizeof clients[i].number);
    send(clients[i].fd, said, size, 0);
}

int main(int argc, char **argv) {
    if (argc != 5) return 64;
    int many = atoi(argv[2]), size = atoi(argv[3]), poll = epoll_create1(0);
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    there.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int i = 0; i < many; i++) {
        clients[i].fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
        if (connect(clients[i].fd, (struct sockaddr *)&there, sizeof there) != 0) return 1;
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
        epoll_ctl(poll, EPOLL_CTL_ADD, clients[i].fd, &event);
    }
    unsigned long messages = 0, lost = 0;
    double began = now(), end = began + atof(argv[4]), checked = began;
    for (int i = 0; i < many; i++) ask(i, size);
    while (now() < end) {
        struct epoll_event events[MOST];
        int n = epoll_wait(poll, events, MOST, 10);
        for (int e = 0; e < n; e++) {
            int i = events[e].data.u32;
            if (recv(clients[i].fd, heard, SIZE, 0) != size) continue;
            if (memcmp(heard, &clients[i].number, sizeof clients[i].number) != 0) continue;
            messages++;
            ask(i, size);
        }
        if (now() - checked > 0.05) {
            checked = now();
            for (int i = 0; i < many; i++)
                if (checked - clients[i].sent > 0.1) lost++, ask(i, size);
        }
    }
    printf("{\"messages\": %lu, \"lost\": %lu, \"seconds\": %f}\n", messages, lost, now() - began);
}
