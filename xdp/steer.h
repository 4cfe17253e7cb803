/* What the steering program and its loader share: map names, keys, values and
 * the list of verdicts.
 *
 * Included by BPF code (clang -target bpf) and by hosted C, hence the kernel's
 * fixed-width types, which both have. Ports are in network byte order, as the
 * program finds them in frames; the loader converts.
 */
#ifndef IX_XDP_STEER_H
#define IX_XDP_STEER_H

#include <linux/in.h>
#include <linux/types.h>

#define IX_STEER_MAX_QUEUES 256
#define IX_STEER_MAX_CLAIMS 4096
#define IX_STEER_MAX_RANGES 16
#define IX_STEER_MAX_ADDRS  256
#define IX_STEER_MAX_DATAGRAMS 1024
#define IX_STEER_DATAGRAM_NS 30000000000ull /* as long as its fragments may take */

/* Address families as they stand in keys: the IP version. */
#define IX_STEER_IPV4 4
#define IX_STEER_IPV6 6

/* An address; IPv4 in the first 4 bytes, the rest 0. Key of `local_addrs` and
 * `own_addrs`. */
struct ix_steer_addr {
    __u32 family; /* IX_STEER_IPV4 or IX_STEER_IPV6 */
    __u8 addr[16];
};

/* A local endpoint. Key of `claims`. No padding: the kernel hashes all bytes. */
struct ix_steer_flow {
    __u8 family; /* IX_STEER_IPV4 or IX_STEER_IPV6 */
    __u8 proto;  /* IPPROTO_TCP or IPPROTO_UDP */
    __be16 port;
    __u8 addr[16];
};

/* What a local port is wanted for: bits of ix_steer_table.wants. */
#define IX_STEER_WANT_EVERYWHERE 1 /* claimed on every address in `local_addrs` */
#define IX_STEER_WANT_SOMEWHERE  2 /* in `claims`, with at least one address */
#define IX_STEER_WANT_RANGE      4 /* in at least one of `ranges` */

#define IX_STEER_KINDS 4 /* of ports: TCP and UDP of either family */
#define IX_STEER_NEAR  8

/* The one entry of `table`. A hash of a key costs more than all else that the program does with a
 * frame, so what most frames need is here. The loader has it mapped, and is its only writer. */
struct ix_steer_table {
    __u8 wants[IX_STEER_KINDS][65536]; /* of ix_steer_kind(), by port in network byte order */
    /* The first of `local_addrs`. The family is written last, and 0 first, so that the program
     * acts on no half-written address; 0: this place is free. */
    struct ix_steer_addr near[IX_STEER_NEAR];
    __u32 far;       /* entries of `local_addrs` that aren't in `near` */
    __u32 own_addrs; /* entries of `own_addrs` */
};

/* Frames that the owner of a queue sends by way of the program (express_bpf.h), and how. */
#define IX_STEER_EXPRESS_FRAMES 512
#define IX_STEER_EXPRESS_BYTES  2048 /* a frame is shorter than this */
#define IX_STEER_EXPRESS_FROM   1    /* a blank's interface: lo, the first of each namespace */

/* The one entry of `express`, mapped by the sender. */
struct ix_steer_express {
    __u32 next;    /* the frame that the next blank becomes */
    __u32 refused; /* frames that could not be made, ever */
    struct {
        __u64 addr;  /* in the sender's memory */
        __u64 bytes; /* 14 (an Ethernet header) to less than IX_STEER_EXPRESS_BYTES */
    } frames[IX_STEER_EXPRESS_FRAMES];
};

static inline __u32 ix_steer_kind(__u8 family, __u8 proto)
{
    return (family == IX_STEER_IPV6) * 2 + (proto == IPPROTO_UDP);
}

/* Entries of `ranges` are read in order up to the first END. The loader writes
 * an entry's bounds while it is FREE and makes it LIVE by a second update, so
 * that the program never acts on half-written bounds. */
enum ix_steer_range_state {
    IX_STEER_RANGE_END = 0,
    IX_STEER_RANGE_FREE = 1,
    IX_STEER_RANGE_LIVE = 2,
};

/* Local ports [lo, hi] of outgoing flows. */
struct ix_steer_range {
    __u32 state; /* enum ix_steer_range_state */
    __u8 family;
    __u8 proto;
    __u16 pad;
    __u16 lo; /* host byte order, inclusive */
    __u16 hi; /* host byte order, inclusive */
    __u8 addr[16];
};

/* A datagram that comes in fragments (RFC 791 3.2, RFC 8200 4.5). Key of `datagrams`, whose value
 * is when the first fragment came, ns. */
struct ix_steer_datagram {
    __u32 family;
    __be32 id;
    __u8 src[16];
    __u8 dst[16];
};

/* What steer_stamp.bpf.c and steer_hwstamp.bpf.c write as XDP metadata, directly before the frame.
 * 32 bytes are the most that every kernel takes. */
#define IX_STEER_STAMP_MAGIC 0x69787374616d7031ull
struct ix_steer_stamp {
    __u64 magic;
    __u64 arrived_ns; /* CLOCK_MONOTONIC when the driver ran the program */
    __u64 device_ns;  /* the NIC's own clock when the frame came in; 0: it gave none */
    __s32 device_error; /* -errno of asking the driver; 0: asked; 1: this program does not ask */
    __u32 pad;
};

/* Every frame gets exactly one of these, counted per CPU in `verdicts`.
 * X(enumerator, name, is the frame redirected, what it says) */
#define IX_STEER_VERDICTS(X)                                                                      \
    X(PASS_OTHER, "pass_other", 0, "neither IP nor ARP")                                          \
    X(PASS_VLAN, "pass_vlan", 0, "carries one or two VLAN tags")                                  \
    X(PASS_ARP, "pass_arp", 0, "ARP, for the kernel's own addresses")                             \
    X(PASS_TRUNCATED, "pass_truncated", 0, "ends inside a header")                                \
    X(PASS_MALFORMED, "pass_malformed", 0, "IP version or header length is wrong")                \
    X(PASS_FRAGMENT, "pass_fragment", 0, "fragment that nobody claimed, or before its first one") \
    X(PASS_EXTENSION, "pass_extension", 0, "IPv6 extension headers that are too many or unknown") \
    X(PASS_PROTOCOL, "pass_protocol", 0, "neither TCP, UDP nor ICMP")                             \
    X(PASS_ICMP, "pass_icmp", 0, "ICMP that concerns no claimed flow")                            \
    X(PASS_UNCLAIMED, "pass_unclaimed", 0, "TCP or UDP that nobody claimed")                      \
    X(PASS_NO_SOCKET, "pass_no_socket", 0, "claimed, but its queue has no AF_XDP socket")         \
    X(REDIRECT_CLAIM, "redirect_claim", 1, "to a claimed port")                                   \
    X(REDIRECT_RANGE, "redirect_range", 1, "to a port of a claimed range")                        \
    X(REDIRECT_FRAGMENT, "redirect_fragment", 1, "fragment of a datagram to a claimed port")      \
    X(REDIRECT_ICMP, "redirect_icmp", 1, "ICMP error about a claimed flow")                       \
    X(REDIRECT_OWN, "redirect_own", 1, "IP to an address that only the dataplane has")            \
    X(REDIRECT_ARP, "redirect_arp", 1, "ARP for an address that only the dataplane has")          \
    X(REDIRECT_ND, "redirect_nd", 1, "neighbour discovery of such an address")

#define IX_STEER_ENUMERATOR(e, name, redirected, text) IX_STEER_##e,
enum ix_steer_verdict { IX_STEER_VERDICTS(IX_STEER_ENUMERATOR) IX_STEER_N_VERDICTS };
#undef IX_STEER_ENUMERATOR

#endif
