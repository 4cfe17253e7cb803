/* Numbers that a stranger must not guess: initial sequence numbers, ports, timestamp offsets. */
#include "tcp/tcp.h"

/* A secret's hash of a connection, or of a part of its key (the rest 0). The hash costs by the
 * word, and twelve bytes are all that differs between keys of IPv4. */
static uint64_t keyed(const struct ix_key *secret, const struct ix_flow_key *key)
{
    if (IX_UNLIKELY(key->family != 4))
        return ix_siphash(secret, key, sizeof *key);
    const uint32_t words[] = {key->peer.v4, key->local.v4,
                              (uint32_t)key->peer_port << 16 | key->local_port};
    return ix_siphash(secret, words, sizeof words);
}

uint32_t ix_tcp_isn(struct ix_tcp *tcp, const struct ix_flow_key *key)
{
    /* RFC 6528 section 3: ISN = M + F(connection, secret), M a clock of 4 us. */
    return (uint32_t)(tcp->now_ns >> 12) + (uint32_t)keyed(&tcp->isn_key, key);
}

uint32_t ix_tcp_ts_offset(struct ix_tcp *tcp, const struct ix_flow_key *key)
{
    /* RFC 7323 7.1: per-connection offsets keep the timestamps from telling the uptime. Only the
     * addresses count, so that timestamps of a reused 4-tuple keep rising (RFC 6191). */
    struct ix_flow_key addresses = *key;
    addresses.peer_port = addresses.local_port = 0;
    return (uint32_t)keyed(&tcp->ts_key, &addresses);
}

/* The Toeplitz hash that NICs spread flows with (Microsoft, "RSS hashing types"): over source
 * address, destination address, source port, destination port of the packet that arrives. */
static uint32_t toeplitz(const uint8_t *key, const uint8_t *data, uint32_t bytes)
{
    uint32_t hash = 0;
    uint64_t window = (uint64_t)ix_load_be32(key) << 32 | ix_load_be32(key + 4);
    for (uint32_t i = 0; i < bytes; i++) {
        for (uint32_t bit = 0; bit < 8; bit++, window <<= 1)
            if (data[i] & (0x80 >> bit))
                hash ^= (uint32_t)(window >> 32);
        window |= key[i + 8];
    }
    return hash;
}

/* Will the NIC put the peer's packets of this connection on our queue? */
static bool arrives_here(const struct ix_config *cfg, const struct ix_flow_key *key)
{
    uint8_t data[36];
    uint32_t ip_bytes = key->family == 6 ? 16 : 4, bytes = 2 * ip_bytes + 4;
    if (cfg->shard_count == 1 || cfg->rss_key_bytes < bytes + 4 || cfg->rss_table_len == 0)
        return true; /* unknown: replies that arrive elsewhere make the SYN time out, and the next
                        port is tried */
    __builtin_memcpy(data, key->peer.b, ip_bytes);
    __builtin_memcpy(data + ip_bytes, key->local.b, ip_bytes);
    ix_store_be16(data + 2 * ip_bytes, key->peer_port);
    ix_store_be16(data + 2 * ip_bytes + 2, key->local_port);
    uint32_t hash = toeplitz(cfg->rss_key, data, bytes);
    return cfg->rss_table[hash % cfg->rss_table_len] == cfg->queue;
}

uint16_t ix_tcp_choose_port(struct ix_tcp *tcp, const struct ix_flow_key *key)
{
    const struct ix_config *cfg = tcp->cfg;
    if (cfg->port_lo == 0 || cfg->port_hi < cfg->port_lo)
        return 0;
    uint32_t count = (uint32_t)(cfg->port_hi - cfg->port_lo) + 1;
    struct ix_flow_key probe = *key;
    probe.local_port = 0;
    /* RFC 6056 algorithm 4: with one counter for all a peer would learn how many connections went
     * to others between two of his. */
    uint64_t hash = keyed(&tcp->port_key, &probe);
    uint32_t offset = (uint32_t)hash;
    uint32_t *counter = &tcp->port_counters[(hash >> 32) % IX_PORT_COUNTERS];
    for (uint32_t tries = 0; tries < count; tries++) {
        probe.local_port = (uint16_t)(cfg->port_lo + (offset + (*counter)++) % count);
        if (arrives_here(cfg, &probe) && !ix_tcp_find(tcp, &probe, ix_tcp_hash(tcp, &probe)))
            return probe.local_port;
    }
    return 0;
}
