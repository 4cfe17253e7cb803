/* See farewell_hosted.h.
 *
 * A peer takes a RST only with the sequence number that it expects next (RFC 5961 3.2). Of what was
 * under way when the shard died some may have arrived: so it gets two, for all and for none of it.
 * If it has a part it answers with a challenge ACK, and that meets the kernel or the next worker,
 * who know no such connection and reset it by its own number.
 */
#include "shard/farewell_hosted.h"
#include "shard/shard.h"
#include "wire/ipv4.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef SO_BINDTOIFINDEX
#define SO_BINDTOIFINDEX 62 /* Linux 5.0 */
#endif

enum {
    AT_ONCE = 64,
    PACKET_BYTES = IX_IPV4_BYTES + IX_TCP_BYTES,
    TTL = 64,
    WAIT_MS = 5,
    PATIENCE_MS = 500,
};

struct packet {
    struct sockaddr_in to;
    uint8_t data[PACKET_BYTES];
};

static void make_reset(struct packet *packet, const struct ix_remains *conn, uint32_t seq)
{
    struct ix_tcp_hdr tcp = {.src_port = conn->key.local_port,
                             .dst_port = conn->key.peer_port,
                             .seq = seq,
                             .ack = conn->rcv_nxt,
                             .flags = IX_TCP_RST | IX_TCP_ACK,
                             .wscale = -1};
    struct ix_ipv4 ip = {.src = conn->key.local.v4,
                         .dst = conn->key.peer.v4,
                         .total_bytes = PACKET_BYTES,
                         .proto = IX_PROTO_TCP,
                         .ttl = TTL,
                         .dont_fragment = true};
    packet->to = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = ip.dst};
    ix_ipv4_emit(packet->data, &ip);
    ix_tcp_emit(packet->data + IX_IPV4_BYTES, &tcp, ip.src, ip.dst, 0, 0);
}

/* Whether the socket takes more. The control process, which waits here, has other workers. */
static bool waited(int fd, int *patience_ms)
{
    struct pollfd pfd = {.fd = fd, .events = POLLOUT};
    if (*patience_ms <= 0 || poll(&pfd, 1, WAIT_MS) < 0)
        return false;
    *patience_ms -= WAIT_MS;
    return true;
}

/* Sends them all but those that can't be sent. */
static void send_all(int fd, struct packet *packets, unsigned n, int *patience_ms)
{
    struct mmsghdr messages[2 * AT_ONCE];
    struct iovec pieces[2 * AT_ONCE];
    for (unsigned i = 0; i < n; i++) {
        pieces[i] = (struct iovec){packets[i].data, PACKET_BYTES};
        messages[i] = (struct mmsghdr){.msg_hdr = {.msg_name = &packets[i].to,
                                                   .msg_namelen = sizeof packets[i].to,
                                                   .msg_iov = &pieces[i],
                                                   .msg_iovlen = 1}};
    }
    for (unsigned done = 0; done < n;) {
        int sent = sendmmsg(fd, messages + done, n - done, MSG_DONTWAIT);
        if (sent < 0 && (errno == EINTR || (errno == EAGAIN && waited(fd, patience_ms))))
            continue;
        done += sent > 0 ? (unsigned)sent : 1;
    }
}

/* Its protocol is not TCP: it only sends, and receives nothing. */
static int open_raw(uint32_t ifindex)
{
    int fd = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW), index = (int)ifindex;
    if (fd < 0)
        return -errno;
    if (ifindex && setsockopt(fd, SOL_SOCKET, SO_BINDTOIFINDEX, &index, sizeof index) < 0) {
        int err = -errno;
        close(fd);
        return err;
    }
    return fd;
}

int ix_farewell(const void *memory, const struct ix_config *cfg, uint32_t ifindex)
{
    struct ix_remains conns[AT_ONCE];
    struct packet packets[2 * AT_ONCE];
    uint32_t at = 0, n;
    int told = 0, patience_ms = PATIENCE_MS, fd = open_raw(ifindex);
    if (fd < 0)
        return fd;
    do {
        unsigned made = 0;
        n = ix_shard_remains(memory, cfg, &at, conns, AT_ONCE);
        for (uint32_t i = 0; i < n; i++) {
            if (conns[i].key.family != 4)
                continue;
            make_reset(&packets[made++], &conns[i], conns[i].snd_max);
            if (conns[i].snd_una != conns[i].snd_max)
                make_reset(&packets[made++], &conns[i], conns[i].snd_una);
            told++;
        }
        send_all(fd, packets, made, &patience_ms);
    } while (n == AT_ONCE);
    close(fd);
    return told;
}
