/* What befalls a frame on the simulated wire: each answer a pure function of the wire's seed, the
 * direction and the frame's number in it. */
#include "base/hash.h"
#include "link/sim_link.h"

enum { ETHERNET_BYTES = 14, ETHERTYPE_IPV4 = 0x0800, ETHERTYPE_IPV6 = 0x86dd };

uint64_t ix_sim_roll(const struct ix_sim_wire *wire, uint32_t direction, uint64_t number,
                     enum ix_sim_fault fault)
{
    uint64_t state = wire->seed;
    state = ix_random(&state) ^ number;
    state = ix_random(&state) ^ (direction << 8 | fault);
    return ix_random(&state);
}

bool ix_sim_happens(const struct ix_sim_wire *wire, uint32_t direction, uint64_t number,
                    enum ix_sim_fault fault, uint32_t ppm)
{
    return ppm > 0 && ix_sim_roll(wire, direction, number, fault) % IX_SIM_PPM < ppm;
}

bool ix_sim_is_lost(const struct ix_sim_wire *wire, uint32_t direction, uint64_t number,
                    uint32_t bytes)
{
    const struct ix_sim_path *p = &wire->direction[direction].path;
    uint64_t burst = IX_MAX(p->loss_burst_frames, 1u);
    if (p->loss_max_bytes && bytes > p->loss_max_bytes)
        return false;
    /* A burst that began at any of the last few frames covers this one too. */
    for (uint64_t back = 0; back < burst && back <= number; back++)
        if (ix_sim_happens(wire, direction, number - back, IX_SIM_LOSS, p->loss_ppm))
            return true;
    return false;
}

bool ix_sim_is_dropped(const struct ix_sim_path *p, uint64_t number)
{
    for (uint32_t i = 0; i < p->drops; i++)
        if (p->drop[i] == number)
            return true;
    return false;
}

bool ix_sim_flip_bit(uint8_t *frame, uint32_t bytes, uint64_t random)
{
    if (bytes <= ETHERNET_BYTES)
        return false;
    uint16_t type = ix_load_be16(frame + 12);
    if (type != ETHERTYPE_IPV4 && type != ETHERTYPE_IPV6)
        return false;
    uint64_t bit = random % ((uint64_t)(bytes - ETHERNET_BYTES) * 8);
    frame[ETHERNET_BYTES + bit / 8] ^= (uint8_t)(1u << (bit % 8));
    return true;
}

uint64_t ix_sim_jitter(const struct ix_sim_wire *wire, uint32_t direction, uint64_t number,
                       enum ix_sim_fault which)
{
    uint64_t most = wire->direction[direction].path.jitter_ns;
    return most ? ix_sim_roll(wire, direction, number, which) % (most + 1) : 0;
}

uint64_t ix_sim_spike(const struct ix_sim_path *p, uint64_t now_ns)
{
    if (p->spike_every_ns == 0)
        return now_ns;
    uint64_t since = now_ns % p->spike_every_ns;
    bool still = since + p->spike_ns >= p->spike_every_ns;
    return still ? now_ns - since + p->spike_every_ns : now_ns;
}

/* The two low bits of the traffic class, which no checksum covers. */
static bool mark6(uint8_t *packet)
{
    enum { ECN_AT = 1, ECN_MASK = 0x30 };
    bool capable = packet[ECN_AT] & ECN_MASK;
    if (capable)
        packet[ECN_AT] |= ECN_MASK;
    return capable;
}

bool ix_sim_mark(uint8_t *frame, uint32_t bytes)
{
    enum { TOS_AT = 1, CSUM_AT = 10, CE = 3, IPV4_BYTES = 20 };
    if (bytes < ETHERNET_BYTES + IPV4_BYTES)
        return false;
    if (ix_load_be16(frame + 12) == ETHERTYPE_IPV6)
        return mark6(frame + ETHERNET_BYTES);
    if (ix_load_be16(frame + 12) != ETHERTYPE_IPV4)
        return false;
    uint8_t *packet = frame + ETHERNET_BYTES;
    uint32_t ecn = packet[TOS_AT] & CE;
    if (ecn == 0)
        return false;
    packet[TOS_AT] |= CE;
    /* RFC 1624 equation 3: HC' = ~(~HC + ~m + m'), with m' - m = CE - ecn */
    uint32_t sum = (ix_load_be16(packet + CSUM_AT) ^ 0xffffu) + (CE - ecn);
    sum = (sum & 0xffff) + (sum >> 16);
    ix_store_be16(packet + CSUM_AT, (uint16_t)~sum);
    return true;
}
