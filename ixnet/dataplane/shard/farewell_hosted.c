/* See farewell_hosted.h.
 *
 * A peer takes a RST only with the sequence number that it expects next (RFC 5961 3.2). Of what was
 * under way when the shard died some may have arrived: so it gets two, for all and for none of it.
 * If it has a part it answers with a challenge ACK, and that meets the kernel or the next worker,
 * who know no such connection and reset it by its own number.
 */
#include "shard/farewell_hosted.h"
#include "shard/shard.h"
#include "wire/csum.h"
#include "wire/ipv4.h"
#include "wire/ipv6.h"

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
    TTL = 64,
    WAIT_MS = 5,
    PATIENCE_MS = 500,
};

struct packet {
    union {
        struct sockaddr_in to4;
        struct sockaddr_in6 to6;
    };
    uint8_t data[IX_IPV6_BYTES + IX_TCP_BYTES];
};

/* Those of one family, and the socket that sends them; -1: none. */
struct outbox {
    struct packet packets[2 * AT_ONCE];
    unsigned count;
    uint8_t family;
    int fd;
};

static void address(struct packet *packet, const struct ix_remains *conn, uint32_t ifindex)
{
    if (conn->key.family == 4) {
        struct ix_ipv4 ip = {.src = conn->key.local.v4,
                             .dst = conn->key.peer.v4,
                             .total_bytes = IX_IPV4_BYTES + IX_TCP_BYTES,
                             .proto = IX_PROTO_TCP,
                             .ttl = TTL,
                             .dont_fragment = true};
        packet->to4 = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = ip.dst};
        ix_ipv4_emit(packet->data, &ip);
        return;
    }
    struct ix_ipv6 ip = {
        .payload_bytes = IX_TCP_BYTES, .next = IX_PROTO_TCP, .hop_limit = TTL};
    memcpy(ip.src, conn->key.local.b, 16);
    memcpy(ip.dst, conn->key.peer.b, 16);
    packet->to6 = (struct sockaddr_in6){.sin6_family = AF_INET6};
    memcpy(&packet->to6.sin6_addr, ip.dst, 16);
    if (IN6_IS_ADDR_LINKLOCAL(&packet->to6.sin6_addr))
        packet->to6.sin6_scope_id = ifindex;
    ix_ipv6_emit(packet->data, &ip);
}

static void add_reset(struct outbox *out, const struct ix_remains *conn, uint32_t seq,
                      uint32_t ifindex)
{
    struct packet *packet = &out->packets[out->count++];
    struct ix_tcp_hdr tcp = {.src_port = conn->key.local_port,
                             .dst_port = conn->key.peer_port,
                             .seq = seq,
                             .ack = conn->rcv_nxt,
                             .flags = IX_TCP_RST | IX_TCP_ACK,
                             .wscale = -1};
    address(packet, conn, ifindex);
    ix_tcp_emit(packet->data + ix_ip_header_bytes(out->family), &tcp,
                ix_csum_address(conn->key.local.b), ix_csum_address(conn->key.peer.b), 0, 0);
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
static void send_all(struct outbox *out, int *patience_ms)
{
    unsigned n = out->count;
    struct mmsghdr messages[2 * AT_ONCE];
    struct iovec pieces[2 * AT_ONCE];
    for (unsigned i = 0; i < n; i++) {
        struct packet *packet = &out->packets[i];
        pieces[i] =
            (struct iovec){packet->data, ix_ip_header_bytes(out->family) + IX_TCP_BYTES};
        messages[i].msg_hdr = (struct msghdr){
            .msg_name = &packet->to6,
            .msg_namelen = out->family == 4 ? sizeof packet->to4 : sizeof packet->to6,
            .msg_iov = &pieces[i],
            .msg_iovlen = 1};
    }
    for (unsigned done = 0; done < n;) {
        int sent = sendmmsg(out->fd, messages + done, n - done, MSG_DONTWAIT);
        if (sent < 0 && (errno == EINTR || (errno == EAGAIN && waited(out->fd, patience_ms))))
            continue;
        done += sent > 0 ? (unsigned)sent : 1;
    }
    out->count = 0;
}

/* Its protocol is not TCP: it only sends, and receives nothing. */
static int open_raw(int domain, uint32_t ifindex)
{
    int fd = socket(domain, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW), index = (int)ifindex;
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
    struct outbox ip4 = {.family = 4, .fd = open_raw(AF_INET, ifindex)};
    if (ip4.fd < 0)
        return ip4.fd;
    struct outbox ip6 = {.family = 6, .fd = open_raw(AF_INET6, ifindex)};
    uint32_t at = 0, n;
    int told = 0, patience_ms = PATIENCE_MS;
    do {
        n = ix_shard_remains(memory, cfg, &at, conns, AT_ONCE);
        for (uint32_t i = 0; i < n; i++) {
            struct outbox *out = conns[i].key.family == 6 ? &ip6 : &ip4;
            if (out->fd < 0) /* a kernel without IPv6 */
                continue;
            add_reset(out, &conns[i], conns[i].snd_max, ifindex);
            if (conns[i].snd_una != conns[i].snd_max)
                add_reset(out, &conns[i], conns[i].snd_una, ifindex);
            told++;
        }
        send_all(&ip4, &patience_ms);
        send_all(&ip6, &patience_ms);
    } while (n == AT_ONCE);
    close(ip4.fd);
    if (ip6.fd >= 0)
        close(ip6.fd);
    return told;
}
