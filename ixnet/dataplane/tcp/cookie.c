/* SYN cookies (RFC 4987 3.6): when a listener can't remember one more half-open connection, the
 * peer does it for us.
 *
 * Our initial sequence number then is a keyed hash of the connection, with a time slot and the
 * peer's MSS, rounded down to one of eight, beside it; the ACK that brings it back proves that the
 * peer got our SYN-ACK. The other options fit only into a timestamp: as on Linux the low six bits
 * of TSval hold them, and a peer without timestamps has to do without window scaling and SACK.
 */
#include "tcp/tcp.h"

enum {
    SLOT_SHIFT = 36, /* of ns: 68.7 s. A cookie is good for its own slot and the next */
    SLOTS_GOOD = 2,
    SLOT_AT = 30, /* the slot, modulo 4, in the two highest bits; */
    MSS_AT = 27,  /* then the index of the MSS; */
    MAC_MASK = (1 << MSS_AT) - 1, /* the rest has to be guessed: */
    ISS_MASK = (1 << 22) - 1,     /* these bits depend on the peer's ISS, too: as many as may be, or
                                   chance takes a later segment for the first */

    OPT_WSCALE_MASK = 15, /* 15: no window scaling */
    OPT_SACK = 16,
    OPT_MASK = 63,
};

/* Least the peer may say, RFC 9293 3.7.1's default, IPv6's least, tunnels and PPPoE, Ethernet. */
static const uint16_t mss_of[8] = {IX_MSS_MIN, IX_MSS_DEFAULT, 1220, 1360, 1400, 1440, 1452, 1460};
IX_STATIC_ASSERT(IX_ARRAY_LEN(mss_of) == 1 << (SLOT_AT - MSS_AT), "the index has its bits");

static uint32_t slot_now(const struct ix_tcp *tcp)
{
    return (uint32_t)(tcp->now_ns >> SLOT_SHIFT);
}

static uint32_t hash(const struct ix_tcp *tcp, const struct ix_flow_key *key, uint32_t peer_iss,
                     uint32_t slot, uint32_t index)
{
    struct {
        struct ix_flow_key key;
        uint32_t peer_iss, slot, index, pad;
    } what = {*key, peer_iss, slot, index, 0};
    return (uint32_t)ix_siphash(&tcp->cookie_key, &what, sizeof what);
}

static uint32_t mac(const struct ix_tcp *tcp, const struct ix_flow_key *key, uint32_t peer_iss,
                    uint32_t slot, uint32_t index)
{
    uint32_t with_iss = hash(tcp, key, peer_iss, slot, index);
    uint32_t without = hash(tcp, key, 0, slot, index | 16);
    return (with_iss & ISS_MASK) | (without & MAC_MASK & ~(uint32_t)ISS_MASK);
}

/* What hides slot and index, so that a cookie looks like any other number. An index that does not
 * occur sets it apart. */
static uint32_t mask_of(const struct ix_tcp *tcp, const struct ix_flow_key *key)
{
    return hash(tcp, key, 0, 0, 32);
}

uint32_t ix_cookie_make(const struct ix_tcp *tcp, const struct ix_flow_key *key, uint32_t peer_iss,
                        uint32_t mss)
{
    uint32_t index = IX_ARRAY_LEN(mss_of) - 1, slot = slot_now(tcp);
    while (index && mss_of[index] > mss)
        index--;
    uint32_t plain = (slot << SLOT_AT) | (index << MSS_AT) |
                     (mac(tcp, key, peer_iss, slot, index) & MAC_MASK);
    return plain ^ mask_of(tcp, key);
}

enum ix_cookie ix_cookie_check(const struct ix_tcp *tcp, const struct ix_flow_key *key,
                               uint32_t peer_iss, uint32_t cookie, uint32_t *mss)
{
    uint32_t plain = cookie ^ mask_of(tcp, key), now = slot_now(tcp);
    uint32_t age = (now - (plain >> SLOT_AT)) & 3, index = plain >> MSS_AT & 7;
    uint32_t wrong = (plain ^ mac(tcp, key, peer_iss, now - age, index)) & MAC_MASK;
    *mss = mss_of[index];
    if (age >= SLOTS_GOOD || wrong & ~(uint32_t)ISS_MASK)
        return IX_COOKIE_BAD;
    return wrong ? IX_COOKIE_EARLY : IX_COOKIE_GOOD;
}

/* A timestamp of now, or just before, whose low bits say what the SYN offered. */
static uint32_t timestamp(struct ix_tcp *tcp, const struct ix_flow_key *key,
                          const struct ix_tcp_hdr *syn)
{
    uint32_t now = tcp->now_ms + ix_tcp_ts_offset(tcp, key);
    uint32_t options = syn->wscale >= 0 ? (uint32_t)syn->wscale : OPT_WSCALE_MASK;
    uint32_t value = (now & ~(uint32_t)OPT_MASK) | options | (syn->sack_ok ? OPT_SACK : 0);
    return ix_seq_gt(value, now) ? value - OPT_MASK - 1 : value;
}

void ix_cookie_answer(struct ix_tcp *tcp, struct ix_listener *listener, const struct ix_packet *pkt,
                      const struct ix_tcp_hdr *syn, const struct ix_flow_key *key)
{
    uint32_t rcvbuf_bytes = listener->rcvbuf_bytes, rcvbuf_max = rcvbuf_bytes;
    uint16_t mss = ix_tcp_own_mss(tcp, key->family);
    if (!rcvbuf_bytes) {
        rcvbuf_bytes = tcp->cfg->rcvbuf_bytes;
        rcvbuf_max = tcp->cfg->rcvbuf_max_bytes;
    }
    struct ix_tcp_hdr hdr = {
        .src_port = key->local_port,
        .dst_port = key->peer_port,
        .seq = ix_cookie_make(tcp, key, syn->seq, syn->mss ? syn->mss : IX_MSS_DEFAULT),
        .ack = syn->seq + 1,
        .window = (uint16_t)IX_MIN(rcvbuf_bytes, 65535u),
        .flags = IX_TCP_SYN | IX_TCP_ACK,
        .mss = listener->mss ? IX_MIN(listener->mss, mss) : mss,
        .wscale = -1,
    };
    uint8_t without = tcp->cfg->without;
    if (syn->has_ts && !(without & IX_WITHOUT_TIMESTAMPS)) {
        hdr.has_ts = true;
        hdr.ts_val = timestamp(tcp, key, syn);
        hdr.ts_ecr = syn->ts_val;
        hdr.sack_ok = syn->sack_ok && !(without & IX_WITHOUT_SACK);
        if (syn->wscale >= 0 && !(without & IX_WITHOUT_WINDOW_SCALING))
            hdr.wscale = (int8_t)ix_tcp_scale_for(rcvbuf_max);
    }
    listener->cookie_ns = tcp->now_ns ? tcp->now_ns : 1;
    if (ix_tcp_send_bare(tcp, pkt, &hdr))
        tcp->counters->tcp_cookies_sent++;
}

/* The SYN as it must have been. */
static struct ix_tcp_hdr syn_of(const struct ix_tcp_hdr *ack, uint32_t mss)
{
    struct ix_tcp_hdr syn = {.seq = ack->seq - 1,
                             .flags = IX_TCP_SYN,
                             .window = ack->window,
                             .mss = (uint16_t)mss,
                             .wscale = -1};
    if (!ack->has_ts)
        return syn;
    syn.has_ts = true;
    syn.ts_val = ack->ts_val;
    syn.sack_ok = ack->ts_ecr & OPT_SACK;
    if ((ack->ts_ecr & OPT_WSCALE_MASK) != OPT_WSCALE_MASK)
        syn.wscale = (int8_t)(ack->ts_ecr & OPT_WSCALE_MASK);
    return syn;
}

bool ix_cookie_ack(struct ix_tcp *tcp, struct ix_listener *listener, const struct ix_packet *pkt,
                   const struct ix_tcp_hdr *hdr, const struct ix_flow_key *key, uint64_t hash,
                   struct ix_tcb **opened)
{
    *opened = NULL;
    /* Nobody can hold a good cookie of a listener that has sent none of late: no hash for a flood
     * of ACKs, and no chance for a guess. */
    uint64_t span_ns = (uint64_t)SLOTS_GOOD << SLOT_SHIFT;
    if (!listener->cookie_ns || tcp->now_ns - listener->cookie_ns > span_ns)
        return false;
    uint32_t mss;
    enum ix_cookie cookie = ix_cookie_check(tcp, key, hdr->seq - 1, hdr->ack - 1, &mss);
    /* A keepalive comes one number early (RFC 9293 3.8.4): all that a peer may have to say whose
     * ACK was lost and who waits for us. It gets our SYN-ACK once more. */
    bool probe = cookie == IX_COOKIE_EARLY &&
                 ix_cookie_check(tcp, key, hdr->seq, hdr->ack - 1, &mss) == IX_COOKIE_GOOD;
    if (cookie != IX_COOKIE_GOOD && !probe) {
        tcp->counters->tcp_cookies_bad += cookie == IX_COOKIE_BAD;
        return cookie == IX_COOKIE_EARLY;
    }
    if (listener->complete >= listener->backlog) { /* the peer's data bring the cookie again */
        tcp->counters->drop_tcp_accept_full++;
        return true;
    }
    if (ix_listener_full(listener)) {
        tcp->counters->drop_tcp_connections++;
        return true;
    }
    struct ix_tcp_hdr syn = syn_of(hdr, mss);
    syn.seq += probe;
    struct ix_tcb *tcb = ix_tcp_half_open(tcp, listener, pkt, &syn, key, hash);
    if (!tcb)
        return true;
    ix_tcp_set_iss(tcb, hdr->ack - 1);
    ix_rec_sent(tcp, tcb, tcb->iss + 1);
    tcb->last.again = true; /* nobody knows when: its ACK measures nothing */
    tcb->rcv_adv = tcb->rcv_nxt + IX_MIN(tcb->rcvbuf_bytes, 65535u);
    tcb->flags &= ~IX_TF_SYN_DUE;
    if (probe)
        ix_tcp_arm_rtx(tcp, tcb);
    tcp->counters->tcp_cookies_good++;
    *opened = tcb;
    return true;
}
