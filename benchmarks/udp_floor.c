// The floor of UDP: a batch of datagrams read by one system call and answered by another, and nothing else.
//
//     udp_floor PORT
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

enum { BATCH = 64, SIZE = 1472 };

static char buffers[BATCH][SIZE];
static struct sockaddr_in sources[BATCH];
static struct iovec pieces[BATCH];
static struct mmsghdr messages[BATCH];

int main(int argc, char **argv) {
    if (argc != 2) return 64;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || bind(fd, (struct sockaddr *)&here, sizeof here) != 0) {
        perror("bind");
        return 1;
    }
    for (;;) {
        for (int i = 0; i < BATCH; i++) {
            pieces[i] = (struct iovec){buffers[i], SIZE};
            messages[i].msg_hdr = (struct msghdr){
                .msg_name = &sources[i], .msg_namelen = sizeof sources[i], .msg_iov = &pieces[i], .msg_iovlen = 1};
        }
        int n = recvmmsg(fd, messages, BATCH, MSG_WAITFORONE, NULL);
        for (int i = 0; i < n; i++) pieces[i].iov_len = messages[i].msg_len;
        for (int done = 0; done < n;) {
            int sent = sendmmsg(fd, messages + done, n - done, 0);
            done += sent > 0 ? sent : 1;
        }
    }
}
