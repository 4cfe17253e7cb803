/* The IX API between dataplane and application: two arrays of fixed-size
 * records in memory that both sides share (IX, OSDI '14, section 3 and table 1).
 *
 * This is the only header of the core that Python sees: it is run through the
 * C preprocessor with IX_CDEF defined and handed to cffi. Keep it free of inline
 * functions outside #ifndef IX_CDEF and of expressions that cffi can't parse.
 *
 * The application fills calls[0..n_calls), calls ix_shard_poll(), finds in each
 * call's `result` what became of it, and events[0..n_events) to act on. The
 * arrays are valid until the next poll.
 */
#ifndef IX_API_API_H
#define IX_API_API_H

#ifndef IX_CDEF
#include <stdint.h>
#endif

/* ---- events: dataplane to application ---------------------------------- */

enum ix_event_type {
    IX_EV_NONE = 0,
    /* A peer completed a handshake with a listener. `cookie` is the listener's.
     * Answer with ACCEPT or REJECT; nothing else of this connection is
     * reported before. peer, local: the addresses. */
    IX_EV_KNOCK = 1,
    /* A CONNECT came to its end. status 0: established. status < 0 (-errno):
     * failed, and the handle is void. */
    IX_EV_CONNECTED = 2,
    /* In-order payload, lent read-only: `bytes` bytes at
     * umem + frame * frame_size + offset, until RECV_DONE. bytes == 0: the peer
     * closed its half (FIN); there is nothing to give back. */
    IX_EV_RECV = 3,
    /* The peer acknowledged `bytes` more bytes: the oldest borrowed memory is
     * the application's again. SENDV takes `window` bytes now. */
    IX_EV_SENT = 4,
    /* The connection is over and the handle void; everything borrowed by SENDV
     * is given back. What RECV lent is still the application's to give back.
     * status: 0 both sides closed in order, else -errno (-ECONNRESET, -ETIMEDOUT, ...). */
    IX_EV_DEAD = 5,
    /* A datagram, lent as with RECV. handle, cookie: the UDP endpoint's. peer, local set. */
    IX_EV_UDP_RECV = 6,
    /* The datagram whose payload lies at frame/offset/bytes has left; its memory is
     * the application's again. */
    IX_EV_UDP_SENT = 7,
    /* A timer ran out; handle, cookie as TIMER_SET had them. */
    IX_EV_TIMER = 8
};

/* One event. 64 bytes: one cache line. Fields that an event type does not name are 0. */
struct ix_event {
    uint8_t type;    /* enum ix_event_type */
    uint8_t family;  /* 4 or 6 where peer and local are set; UDP_RECV: and IX_UDP_MORE */
    uint16_t offset; /* RECV, UDP_*: payload's offset in its frame, bytes */
    uint32_t bytes;  /* RECV, UDP_*: payload length; SENT: bytes acknowledged */
    uint64_t handle; /* the connection, UDP endpoint or timer */
    uint64_t cookie; /* what the application gave with ACCEPT, CONNECT, TIMER_SET or the listener */
    union {
        uint32_t frame;  /* RECV, UDP_*: index of the UMEM frame */
        uint32_t window; /* SENT: bytes */
        int32_t status; /* CONNECTED, DEAD: 0 or -errno; -ENOBUFS: reset as the one that held the
                         * most frames when none were left for others */
    };
    uint16_t peer_port;  /* host byte order */
    uint16_t local_port; /* host byte order */
    uint8_t peer[16];    /* network byte order; IPv4 in the first 4 bytes */
    uint8_t local[16];   /* likewise */
};

/* ---- calls: application to dataplane ------------------------------------ */

enum ix_call_op {
    IX_CALL_NONE = 0,
    /* Opens a connection to peer:peer_port (local_port 0: chosen). bytes: enum ix_congestion.
     * `open` is what its SYN must know. result: 0 and `handle` filled in, or -errno. Ends in
     * CONNECTED. */
    IX_CALL_CONNECT = 1,
    /* Takes a KNOCKed connection; `cookie` comes back with each of its events. */
    IX_CALL_ACCEPT = 2,
    /* Resets a KNOCKed connection. */
    IX_CALL_REJECT = 3,
    /* Appends `bytes` bytes at UMEM offset `addr` to the stream. result: how many
     * were taken (a prefix, possibly 0 under back-pressure), borrowed until SENT
     * covers them, or -errno. IX_SEND_MORE: more follows at once, hold a partial segment. */
    IX_CALL_SENDV = 4,
    /* Gives back `bytes` bytes of what RECV lent in the frame that holds `addr`;
     * the receive window opens by as much. Valid for a void handle too, as long as
     * it is the one of the RECV. */
    IX_CALL_RECV_DONE = 5,
    /* Ends the stream: what was accepted is still delivered, then FIN. The
     * application reads no more; data that still arrives resets the connection
     * (RFC 1122 4.2.2.13). With IX_CLOSE_WRITE only this direction ends, and RECV goes on. */
    IX_CALL_CLOSE = 6,
    /* Resets the connection at once. DEAD follows with -ECONNABORTED. */
    IX_CALL_ABORT = 7,
    /* Sends one datagram of `bytes` bytes at `addr` from endpoint `handle` to
     * peer:peer_port. result: bytes or -errno. Ends in UDP_SENT. */
    IX_CALL_UDP_SENDV = 8,
    /* Gives back the datagram that UDP_RECV lent in the frame that holds `addr`. */
    IX_CALL_UDP_RECV_DONE = 9,
    /* handle 0: makes a one-shot timer that fires in `value` ns; handle filled in.
     * Else sets that timer anew. IX_TIMER_CANCEL: drops it. */
    IX_CALL_TIMER_SET = 10,
    /* Sets the connection's option number `bytes` (enum ix_option) to `value`. */
    IX_CALL_OPTION = 11
};

enum ix_call_flags {
    IX_SEND_MORE = 1,   /* SENDV */
    IX_SEND_EOR = 2,    /* SENDV: a record ends here, no segment holds what follows, too */
    IX_SEND_CORKED = 4, /* SENDV with MORE: a part that leaves all the same is pushed */
    IX_CLOSE_WRITE = 1, /* CLOSE */
    IX_TIMER_CANCEL = 1 /* TIMER_SET */
};

/* A datagram that came in fragments is told in several UDP_RECV events, one after the other in the
 * same array: all but the last have this in `family` beside the family. */
enum { IX_UDP_MORE = 0x80 };

enum ix_option {
    IX_OPT_NODELAY = 1,      /* 0: Nagle's algorithm (RFC 9293 3.7.4); default 1. Either lets go of
                              * what IX_SEND_MORE holds */
    IX_OPT_KEEPALIVE_NS = 2, /* idle time before the first probe; 0 off (default) */
    IX_OPT_USER_TIMEOUT_NS =
        3,            /* unacknowledged for so long: abort (RFC 9293 3.8.3); 0: default of RTOs */
    IX_OPT_RCVBUF = 4, /* receive window limit, bytes; it no longer grows by itself */
    IX_OPT_CONGESTION = 5, /* enum ix_congestion */
    IX_OPT_SNDBUF = 6,     /* most bytes borrowed at a time; it no longer grows by itself */
    /* CLOSE: what is not acknowledged so long after it, or after this, is given up by a reset, and
     * DEAD says -ETIMEDOUT; 0: as long as retransmissions take (default). ABORT is a linger of no
     * time. SO_LINGER is another thing: on Linux its end lets close() return, and TCP goes on. */
    IX_OPT_LINGER_NS = 7,
    IX_OPT_KEEPALIVE_INTERVAL_NS = 8, /* between probes; 0: 75 s, but not more than KEEPALIVE_NS */
    IX_OPT_KEEPALIVE_PROBES = 9,      /* unanswered ones that end the connection; 0: 9 */
    /* Only of listeners: connections at a time, of all that it ever accepted; 0: no limit. */
    IX_OPT_CONNECTIONS = 10,
    IX_OPT_BACKLOG = 11, /* only of listeners: as in ix_shard_listen() */
    /* Only of listeners: the most payload of a segment, both ways; 0: as the path has it */
    IX_OPT_MSS = 12,
    IX_OPT_TOS = 13,         /* DSCP (RFC 2474) of its segments, as in the TOS byte */
    IX_OPT_FIN_WAIT_NS = 14, /* closed: how long the peer's FIN is waited for; 0: 60 s */
    /* So many data segments are acknowledged without delay, unless the application answers one
     * before; an ACK that waits goes at once (default 0). Of a listener: its connections begin
     * with it */
    IX_OPT_QUICKACK = 16,
    /* What leaves is spread over the round trip, by window and round-trip time, and is not more
     * than so many bytes a second; from UINT32_MAX on by those alone; 0: not paced */
    IX_OPT_PACING = 17
};

/* Congestion control of what a connection sends. */
enum ix_congestion {
    IX_CC_DEFAULT = 0, /* the configuration's; CUBIC there */
    IX_CC_CUBIC = 1,   /* RFC 9438, with HyStart++ (RFC 9406) */
    IX_CC_NEWRENO = 2, /* RFC 5681 */
    /* RFC 8257: for networks whose switches mark at a low threshold. Asks for ECN; without it, it
     * does as NewReno. */
    IX_CC_DCTCP = 3
};

/* Explicit congestion notification (RFC 3168). */
enum ix_ecn {
    IX_ECN_ACCEPT = 0,  /* for peers that ask for it, and with DCTCP (default) */
    IX_ECN_OFF = 1,     /* never */
    IX_ECN_REQUEST = 2  /* asked for with every CONNECT too */
};

/* One call. 64 bytes: one cache line. */
struct ix_call {
    uint8_t op;     /* enum ix_call_op */
    uint8_t family; /* CONNECT, UDP_SENDV: 4 or 6 */
    uint16_t flags; /* enum ix_call_flags */
    int32_t result; /* filled in by the dataplane: >= 0, or -errno */
    union {
        uint64_t handle;
        struct {
            uint32_t rcvbuf_bytes; /* IX_OPT_RCVBUF; 0: the configuration's, and grows */
            uint16_t mss;          /* as IX_OPT_MSS */
            uint8_t syn_retries; /* SYNs after the first, at most 127; 0: 6 */
            uint8_t zero;
        } open; /* CONNECT, on its way in */
    };
    uint64_t cookie;
    union {
        struct {
            uint64_t addr;  /* SENDV, RECV_DONE, UDP_*: UMEM byte offset */
            uint64_t value; /* TIMER_SET: delay in ns; OPTION: the value */
        };
        uint8_t local[16]; /* CONNECT: own address, all 0 = by route; IPv4 in the first 4 bytes */
    };
    uint32_t bytes;      /* length; OPTION: which; CONNECT: enum ix_congestion */
    uint16_t peer_port;  /* host byte order */
    uint16_t local_port; /* host byte order */
    uint8_t peer[16];    /* network byte order; IPv4 in the first 4 bytes */
};

/* The shared arrays of one shard, with addresses as the application has them. n_calls is the
 * application's to set and 0 after a poll; n_events is the dataplane's. The dataplane reads nothing
 * of it but n_calls, and copies each call before it looks at it. */
struct ix_io {
    struct ix_call *calls;
    struct ix_event *events;
    uint32_t n_calls, max_calls;
    uint32_t n_events, max_events;
    uint8_t *umem;          /* the UMEM as the application sees it */
    uint64_t umem_bytes;
    uint32_t frame_shift;   /* log2 of the frame size */
    uint32_t arena_frame;   /* first frame of the send arena */
    uint32_t arena_frames;  /* frames in it; the application alone hands them out */
    uint32_t tx_headroom;   /* bytes at the start of an arena frame that are the dataplane's: put
                             * payload at exactly this offset for zero-copy sending */
};

struct ix_shard;

/* Runs one cycle at time now_ns (any monotonic clock). Returns the number of
 * events, io->n_events. Never blocks. */
int ix_shard_poll(struct ix_shard *shard, uint64_t now_ns);

/* The arrays. Valid as long as the shard. */
struct ix_io *ix_shard_io(struct ix_shard *shard);

/* The earliest time at which the shard has something to do by itself, or
 * UINT64_MAX. A caller may sleep until then or until the link is readable. */
uint64_t ix_shard_next_deadline(struct ix_shard *shard, uint64_t now_ns);

/* Listens on ip:port (ip NULL or all 0: every local address of `family`; family 0: of both, and
 * only with such an ip). KNOCKs carry `cookie`.
 * backlog: the most connections not yet ACCEPTed (0: default). Returns 0,
 * -EADDRINUSE, -ENOSPC. */
int ix_shard_listen(struct ix_shard *shard, const uint8_t *ip, uint8_t family, uint16_t port,
                    uint64_t cookie, uint32_t backlog);
int ix_shard_unlisten(struct ix_shard *shard, const uint8_t *ip, uint8_t family, uint16_t port);
/* What later connections of that listener begin with (IX_OPT_CONGESTION, RCVBUF, MSS, PACING), or
 * how many there may be (IX_OPT_CONNECTIONS, BACKLOG). Returns 0, -ENOENT, -EINVAL. */
int ix_shard_listen_option(struct ix_shard *shard, const uint8_t *ip, uint8_t family, uint16_t port,
                           uint32_t option, uint64_t value);

/* Opens a UDP endpoint on ip:port, as above. *handle is filled in. */
int ix_shard_udp_bind(struct ix_shard *shard, const uint8_t *ip, uint8_t family, uint16_t port,
                      uint64_t cookie, uint64_t *handle);
int ix_shard_udp_unbind(struct ix_shard *shard, uint64_t handle);

#endif
