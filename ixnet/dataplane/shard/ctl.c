/* The control plane's ring: news in, requests out. */
#include "shard/shard.h"

static int ring_put(struct ix_ctl_ring *ring, const struct ix_ctl_msg *msg)
{
    uint32_t tail = ring->tail;
    if (tail - __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE) == IX_CTL_RING)
        return -IX_EAGAIN;
    ring->slots[tail % IX_CTL_RING] = *msg;
    /* Release: the reader that sees the new tail must see the message. */
    __atomic_store_n(&ring->tail, tail + 1, __ATOMIC_RELEASE);
    return 0;
}

static bool ring_take(struct ix_ctl_ring *ring, struct ix_ctl_msg *msg)
{
    uint32_t head = ring->head;
    if (head == __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE))
        return false;
    *msg = ring->slots[head % IX_CTL_RING];
    /* Release: the writer must not overwrite the slot before it has been copied. */
    __atomic_store_n(&ring->head, head + 1, __ATOMIC_RELEASE);
    return true;
}

int ix_ctl_send(struct ix_shard *shard, const struct ix_ctl_msg *msg)
{
    return ring_put(&shard->news, msg);
}

int ix_ctl_recv(struct ix_shard *shard, struct ix_ctl_msg *msg)
{
    return ring_take(&shard->requests, msg);
}

void ix_ctl_request(struct ix_shard *shard, const struct ix_ctl_msg *msg)
{
    if (ring_put(&shard->requests, msg) < 0)
        shard->counters.ctl_full++;
}

void ix_shard_abort_some(struct ix_shard *shard)
{
    for (; shard->abort_left; shard->abort_left--) {
        struct ix_tcb *tcb = &shard->tcp.flows[shard->cfg.max_flows - shard->abort_left];
        if (tcb->hash == 0 || tcb->state == IX_TCP_CLOSED || tcb->state == IX_TCP_TIME_WAIT)
            continue;
        if (!ix_net_tx_room(&shard->net))
            (void)ix_net_flush(&shard->net);
        if (!ix_net_tx_room(&shard->net) || shard->frames.count[IX_FRAME_FREE] == 0)
            return; /* goes on in the next cycle */
        ix_tcp_send_reset(&shard->tcp, tcb);
        ix_tcp_finish(&shard->tcp, tcb, -IX_ENETDOWN);
    }
}

static struct ix_ip ip_of(const uint8_t *bytes, uint8_t family)
{
    struct ix_ip ip = {.q = {0, 0}};
    __builtin_memcpy(ip.b, bytes, family == 6 ? 16 : 4);
    return ip;
}

static void apply(struct ix_shard *shard, const struct ix_ctl_msg *msg)
{
    struct ix_net *net = &shard->net;
    struct ix_mac mac;
    struct ix_ip ip = ip_of(msg->ip, msg->family), gateway = ip_of(msg->gateway, msg->family),
                 source = ip_of(msg->source, msg->family);
    __builtin_memcpy(mac.b, msg->mac, 6);
    if (msg->type <= IX_CTL_ADDR_DEL && msg->family != 4 && msg->family != 6)
        return;
    switch (msg->type) {
    case IX_CTL_NEIGH_SET:
        ix_net_neigh_set(net, msg->family, &ip, &mac);
        break;
    case IX_CTL_NEIGH_DEL:
        ix_net_neigh_del(net, msg->family, &ip);
        break;
    case IX_CTL_ROUTE_SET:
        (void)ix_net_route_set(net, msg->family, &ip, msg->prefix, &gateway, &source);
        break;
    case IX_CTL_ROUTE_DEL:
        ix_net_route_del(net, msg->family, &ip, msg->prefix);
        break;
    case IX_CTL_ADDR_ADD:
        if (ix_net_addr_add(net, msg->family, &ip, msg->value) == 0 && msg->family == 6 &&
            msg->value && net->own_address)
            ix_nd_begin(net, &ip, shard->cfg.shard_id == 0);
        break;
    case IX_CTL_ADDR_DEL:
        ix_net_addr_del(net, msg->family, &ip);
        break;
    case IX_CTL_LINK:
        net->carrier = msg->value;
        break;
    case IX_CTL_ABORT_ALL:
        shard->abort_left = shard->cfg.max_flows;
        ix_shard_abort_some(shard);
        break;
    default:
        break;
    }
}

void ix_shard_take_news(struct ix_shard *shard)
{
    struct ix_ctl_msg msg;
    for (uint32_t i = 0; i < IX_CTL_PER_CYCLE && ring_take(&shard->news, &msg); i++) {
        apply(shard, &msg);
        shard->counters.ctl_messages++;
    }
}
