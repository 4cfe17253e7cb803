/* The state of one connection, and of a shard's TCP.
 *
 * Variables have RFC 9293's names (section 3.3.1); those of congestion control RFC 5681's, of
 * retransmission RFC 6298's, of timestamps RFC 7323's. Sequence numbers are uint32_t modulo 2^32.
 */
#ifndef IX_TCP_TCB_H
#define IX_TCP_TCB_H

#include "mem/flowtab.h"
#include "mem/wheel.h"
#include "net/net.h"
#include "net/udp.h"
#include "wire/tcp.h"

enum ix_tcp_state {
    IX_TCP_CLOSED = 0, /* the TCB is free, or waits for its last event or transmission */
    IX_TCP_SYN_SENT,
    IX_TCP_SYN_RCVD,
    IX_TCP_ESTABLISHED,
    IX_TCP_FIN_WAIT_1,
    IX_TCP_FIN_WAIT_2,
    IX_TCP_CLOSE_WAIT,
    IX_TCP_CLOSING,
    IX_TCP_LAST_ACK,
    IX_TCP_TIME_WAIT,
};

enum ix_tcb_flag {
    /* how it came to be, what was negotiated */
    IX_TF_PASSIVE = 1u << 0,  /* opened by a listener */
    IX_TF_TS = 1u << 1,       /* timestamps (RFC 7323) */
    IX_TF_SACK = 1u << 2,     /* SACK (RFC 2018) */
    IX_TF_NAGLE = 1u << 3,    /* Nagle's algorithm on */
    /* the application's side */
    IX_TF_KNOCKED = 1u << 4,  /* KNOCK was delivered */
    IX_TF_ACCEPTED = 1u << 5, /* the application has put its cookie: events flow */
    IX_TF_CLOSED_WR = 1u << 6, /* CLOSE: FIN after what is queued */
    IX_TF_CLOSED_RD = 1u << 7, /* full CLOSE: reads no more */
    IX_TF_DETACHED = 1u << 8, /* the application has had its last event; the handle is void */
    IX_TF_MORE = 1u << 9,     /* the last SENDV said that more follows */
    /* events that wait to be delivered */
    IX_TF_EV_KNOCK = 1u << 10,
    IX_TF_EV_CONNECTED = 1u << 11,
    IX_TF_EV_EOF = 1u << 12,
    IX_TF_EV_DEAD = 1u << 13,
    /* lists */
    IX_TF_ON_OUTPUT = 1u << 14,
    IX_TF_ON_EVENTS = 1u << 15,
    IX_TF_ON_TW = 1u << 16,
    /* what output has to do */
    IX_TF_ACK_NOW = 1u << 17,
    IX_TF_SYN_DUE = 1u << 18, /* (re)send the SYN or SYN-ACK */
    IX_TF_FIN_SENT = 1u << 19, /* the FIN stands at snd_max - 1 */
    IX_TF_FIN_RCVD = 1u << 20, /* the peer's FIN was taken in order */
    IX_TF_FIN_OOO = 1u << 21, /* the peer's FIN was seen at fin_seq, data before it is missing */
    /* loss recovery */
    IX_TF_RECOVERY = 1u << 22, /* fast recovery until snd_una reaches `recover` */
    IX_TF_RTO = 1u << 23,      /* recovering from a timeout, likewise */
    IX_TF_PERSIST = 1u << 25,  /* the retransmission timer probes a zero window */
    IX_TF_REXMIT_ONE = 1u << 26, /* send the segment at snd_una again, whatever cwnd says */
    IX_TF_WSCALE = 1u << 29, /* window scaling (RFC 7323), be the shifts 0 */
    IX_TF_CWND_LIMITED = 1u << 27, /* after the last output cwnd was all but full */
    IX_TF_PACED = 1u << 24,    /* what leaves is spread over the round trip (pace.c) */
    IX_TF_PACE_HELD = 1u << 30, /* more waits for that; the delayed ACK's timer is armed */
    IX_TF_NO_PUSH = 1u << 31, /* the last SENDV said that more follows */
    IX_TF_ACK_HELD = 1u << 28, /* the ACK waits one cycle for what the application has to say */
};

/* What CLOSE, timers and events look at with a flow in this state. */
#define IX_TF_EVENTS (IX_TF_EV_KNOCK | IX_TF_EV_CONNECTED | IX_TF_EV_EOF | IX_TF_EV_DEAD)

enum ix_tcp_timer {
    IX_TIMER_RTX = 0, /* retransmission, zero-window probe, SYN */
    IX_TIMER_ACK = 1, /* delayed ACK; pacing */
    IX_TIMER_KEEP = 2, /* keepalive; FIN_WAIT_2 of a closed application; TIME_WAIT */
    IX_TIMERS_PER_FLOW = 3,
};

/* Numbers that more than one file goes by. */
enum {
    IX_CWND_MAX = 1 << 30, /* so that sums don't wrap */
    IX_PORT_COUNTERS = 64,         /* RFC 6056 3.3.4: a table of counters */
    IX_TCP_DUP_THRESH = 3,         /* DupThresh (RFC 5681 3.2, RFC 6675 section 2) */
    IX_OOO_LATEST = 3,             /* SACK blocks whose order of arrival is known */
    IX_SYN_RETRIES_MAX = 127,      /* Linux: MAX_TCP_SYNCNT */
    IX_TCP_RTO_MAX_US = 120000000, /* RFC 6298 (2.5) allows any maximum of 60 s or more */
};
#define IX_PACE_BY_WINDOW UINT32_MAX

/* What was agreed and is to be said about congestion (RFC 3168); ix_tcb.ecn. */
enum ix_ecn_flag {
    IX_ECNF_ASKED = 1u << 0,   /* our SYN was an ECN-setup SYN */
    IX_ECNF_ON = 1u << 1,      /* both sides agreed: marks are echoed */
    IX_ECNF_ECE = 1u << 2,     /* our ACKs say ECE. DCTCP: the last segment was marked */
    IX_ECNF_CWR = 1u << 3,     /* the next new data says CWR */
    IX_ECNF_MUTE = 1u << 5,    /* a SYN without ECN was among those sent or received: no ECT */
    IX_ECNF_REDUCED = 1u << 4, /* for a mark; not again before snd_una reaches cwr_end */
};

/* CUBIC (RFC 9438 4.1.2). All 0: no congestion yet. */
struct ix_cubic {
    uint32_t w_max;      /* bytes */
    uint32_t cwnd_prior; /* cwnd at the last congestion, bytes */
    uint32_t epoch_ms;   /* when this congestion avoidance stage began; 0: it has not */
    uint32_t k_ms;       /* from then until the window is w_max again */
    uint32_t w_est;      /* Reno's window, bytes */
    uint32_t est_acked;  /* bytes acknowledged towards its next increase */
};

/* HyStart++ (RFC 9406 4.2). UINT32_MAX: no round-trip time yet. */
struct ix_hystart {
    uint32_t round_end;   /* the round ends when this is acknowledged */
    uint32_t min_us;      /* least round-trip time of this round, ... */
    uint32_t last_min_us; /* ... of the one before */
    uint32_t css_base_us; /* not UINT32_MAX: in Conservative Slow Start, since it was so long */
    uint8_t samples, css_rounds;
};

/* DCTCP (RFC 8257 3.3). */
struct ix_dctcp {
    uint32_t alpha;         /* the part of the bytes that was marked, of 2^20 */
    uint32_t window_end;    /* alpha is next updated when more than this is acknowledged */
    uint32_t acked, marked; /* bytes since */
};

/* One SENDV record that is borrowed: memory between SENDV and SENT. */
struct ix_extent {
    uint64_t addr;  /* UMEM offset */
    uint32_t bytes : 31;
    uint32_t eor : 1; /* a record ends with it: no segment holds what follows, too */
    uint32_t next;  /* in its flow's queue, or in the free list */
};

enum ix_tx_state {
    IX_TX_OUT = 0, /* in the network, for all we know */
    IX_TX_SACKED,  /* the peer has it */
    IX_TX_LOST,    /* and not yet sent again */
};

/* What was sent at one time and has had one fate: from the end of the record before, or snd_una, to
 * `end`; see txrec.c. */
struct ix_tx_rec {
    uint32_t end;
    uint32_t next;    /* IX_NONE: the TCB's last one follows. Or in the free list */
    uint32_t sent_us; /* the latest transmission, on tcp->now_us */
    uint8_t state;    /* enum ix_tx_state */
    bool again;       /* sent more than once */
    bool coarse;      /* ... in part, for want of a record */
    bool pushed;      /* its last segment ended a SENDV, and had PSH for it */
};
IX_STATIC_ASSERT(sizeof(struct ix_tx_rec) == 16, "four records to a cache line");

/* After a timeout: was it needed? (F-RTO, RFC 5682) */
enum ix_frto {
    IX_FRTO_OFF = 0,
    IX_FRTO_FIRST, /* step 2: the segment was sent again, and its answer is awaited */
    IX_FRTO_NEW,   /* (2b): new data leaves in the place of what may be lost, ... */
    IX_FRTO_SECOND, /* step 3: ... and has left; the next ACK decides */
};

/* What a flow needs in loss recovery, and for a round trip after it. */
struct ix_recovery {
    uint32_t prr_delivered, prr_out, recover_fs; /* RFC 6937 section 3; RecoverFS */
    uint32_t prior_cwnd, prior_ssthresh; /* before the reduction, for undoing it; CUBIC's W_max */
    uint32_t prior_w_max;
    uint32_t resent;   /* bytes sent again and not reported as duplicates (RFC 2883) */
    uint32_t first_ts; /* TSval of the first retransmission (RFC 3522: RetransmitTS) */
    uint32_t until;    /* over: forgotten when snd_una is beyond */
    bool eifel;        /* the next ACK of new data tells whether it was spurious (RFC 3522) */
    bool resent_once, undone, over;
    uint8_t frto;  /* enum ix_frto */
    uint32_t next; /* free list */
};

/* What one ACK told. */
struct ix_ack {
    uint32_t acked;       /* bytes that snd_una moved by */
    uint32_t delivered;   /* bytes newly known to have arrived (RFC 6937: DeliveredData) */
    uint32_t rtt_us;      /* round-trip time of the oldest of them that was sent once, plus 1;
                             0: none */
    uint32_t last_rtt_us; /* ... of the latest */
    struct ix_tcp_sack dsack;
    bool has_dsack;
    bool sack_news; /* a SACK block said something new */
    bool hole;      /* the ACK ended inside a coarse record */
    bool original;  /* of what was outstanding when recovery began, something sent once arrived */
};

enum ix_rack_flag { /* ix_tcb.rack */
    IX_RACK_VALID = 1u << 0,     /* rack_sent_us and rack_end are set, and less than 35 min old */
    IX_RACK_REORDER = 1u << 1,   /* the network has reordered (RACK.reordering_seen) */
    IX_RACK_DSACK = 1u << 2,     /* a D-SACK came in the round that ends at rack_dsack_end */
    IX_RACK_TLP_DUE = 1u << 3,   /* output sends a tail loss probe */
    IX_RACK_TLP_OUT = 1u << 4,   /* one is out until tlp_end is acknowledged */
    IX_RACK_TLP_AGAIN = 1u << 5, /* it was a retransmission (TLP.is_retrans) */
    IX_RACK_DSACK_DUE = 1u << 6, /* our next ACK reports tcp->dsack, if that is still ours */
};

/* What the retransmission timer is armed for. */
enum ix_rtx_kind { IX_RTX_TIMEOUT = 0, IX_RTX_REORDER, IX_RTX_PROBE };

/* Where the next byte to send lies in the send queue. */
struct ix_send_cursor {
    uint32_t seq;    /* of that byte */
    uint32_t extent; /* IX_NONE: at the end of the queue */
    uint32_t offset; /* in the extent */
};

struct ix_tcb {
    /* line 0: demultiplexing */
    struct ix_flow_key key;
    uint32_t generation; /* of the handle; never 0 */
    uint32_t flags;      /* enum ix_tcb_flag */
    uint64_t cookie;
    uint64_t hash;

    /* line 1: receive side */
    uint8_t state;          /* enum ix_tcp_state */
    uint8_t rcv_wscale;     /* shift of the windows that we send (RFC 7323) */
    uint8_t snd_wscale;     /* shift of the windows that we receive */
    uint8_t unacked_segs;   /* data segments since our last ACK */
    uint32_t rcv_nxt;       /* next byte expected */
    uint32_t rcv_adv;       /* right edge of the window that we advertised; never moves left */
    uint32_t rcvbuf_bytes;  /* limit of what is received and not given back */
    uint32_t held_frames;   /* frames of the pool that hold lent_bytes */
    uint32_t lent_bytes;    /* received in order, not yet given back (waiting events included) */
    uint32_t ts_recent;     /* TS.Recent */
    uint32_t ts_recent_ms;  /* when it was set */
    uint32_t last_ack_sent; /* Last.ACK.sent */
    uint32_t ts_offset;     /* added to our clock in TSval */
    uint32_t wait_head;     /* in-order frames whose RECV has not been delivered yet; IX_NONE */
    uint32_t wait_tail;
    uint32_t ooo_head;      /* out-of-order frames by sequence number; IX_NONE */
    uint32_t ooo_latest[IX_OOO_LATEST]; /* sequence numbers of the latest arrivals in it, one a
                                           block: these are reported first */
    uint16_t ooo_count;
    uint16_t
        pinned; /* frames sent in place and not yet completed: the application's memory is in use */
    uint32_t fin_seq;       /* IX_TF_FIN_OOO: sequence number of the peer's FIN */

    /* line 2: send side */
    uint32_t snd_una;      /* oldest byte not acknowledged */
    union {
        struct ix_tx_rec last; /* of what was sent last; nothing if nothing is outstanding */
        struct {
            uint32_t snd_max;  /* one past the highest byte sent (SND.NXT): where `last` ends */
            uint32_t rec_tail; /* the record before it; IX_NONE */
        };
    };
    uint32_t snd_wnd;      /* the peer's window, scaled, from snd_una */
    uint32_t snd_wl1;      /* seq of the segment that last updated snd_wnd */
    uint32_t snd_wl2;      /* its ack */
    uint32_t max_wnd;      /* the largest window that the peer ever offered */
    uint32_t cwnd;         /* bytes (RFC 5681) */
    uint32_t ssthresh;     /* bytes */
    uint32_t cwnd_acked;   /* bytes acknowledged towards the next increase in congestion avoidance
                              (RFC 3465) */
    union {
        struct ix_cubic cubic;     /* CUBIC, after the first slow start */
        struct ix_hystart hystart; /* CUBIC, in it (ssthresh UINT32_MAX) */
        struct ix_dctcp dctcp;
    };
    uint32_t cwr_end;      /* snd_max when IX_ECNF_REDUCED was set */
    union {
        uint32_t recover;  /* snd_max when recovery began (RFC 6582) */
        uint32_t tlp_end;  /* IX_RACK_TLP_OUT, never in recovery: TLP.end_seq (RFC 8985) */
    };
    uint32_t queued_bytes; /* in the send queue from snd_una on */
    uint32_t q_head, q_tail; /* extents; IX_NONE */
    uint32_t q_head_off;   /* bytes of the head extent already acknowledged */
    uint32_t sent_bytes;   /* acknowledged, SENT not yet delivered */

    /* line 3: sending, RTT, lists */
    struct ix_send_cursor cursor;
    union {
        uint32_t iss;       /* until the handshake is over: initial send sequence number */
        uint32_t rack_fack; /* after it: RACK.fack, the highest number that arrived */
    };
    uint16_t mss; /* largest payload that the peer takes, options not subtracted (RFC 6691) */
    uint8_t dupacks;
    uint8_t cc;            /* enum ix_congestion; never IX_CC_DEFAULT */
    uint8_t ecn;           /* enum ix_ecn_flag */
    uint8_t unanswered;    /* zero-window probes since the peer was last heard of */
    uint8_t retries;       /* retransmissions of the same data, probes, SYNs */
    uint8_t rtx_kind;      /* enum ix_rtx_kind */
    uint8_t rack;          /* enum ix_rack_flag */
    uint8_t reo_mult, reo_persist; /* RACK.reo_wnd_mult, RACK.reo_wnd_persist (RFC 8985 5.3) */
    uint8_t quick_acks;    /* data segments still to be acknowledged without delay */
    uint8_t soft_error;    /* what ICMP last said, an errno; 0 nothing */
    uint16_t rec_count;    /* records in the list from rec_head on */
    uint16_t min_rtt_s;    /* when min_rtt_us was measured, s */
    uint16_t ooo_runs;     /* of the frames from ooo_head on */
    uint32_t srtt_us, rttvar_us, rto_us; /* RFC 6298; srtt_us 0: no sample yet */
    uint32_t min_rtt_us;   /* RACK.min_RTT; 0: none */
    uint32_t sacked_bytes, lost_bytes; /* of the records in these states */
    uint32_t rec_head;     /* records, oldest first; IX_NONE: there is only `last` */
    uint32_t recovery;     /* struct ix_recovery; IX_NONE */
    uint32_t rack_rtt_us;  /* RACK.rtt */
    uint32_t rack_dsack_end; /* RACK.dsack_round */
    uint32_t out_next, ev_next; /* output and event lists */

    union {
        struct {
            uint32_t tw_next, tw_prev; /* TIME_WAIT list, oldest first */
        };
        struct {
            uint32_t rack_sent_us, rack_end; /* before: RACK.xmit_ts and RACK.end_seq, of the latest
                                                sent that arrived */
        };
    };
    uint32_t listener;     /* index while it counts against a backlog, else IX_NONE */
    struct ix_dst dst;
    uint32_t last_rx_ms;   /* when the peer was last heard of */
    uint32_t last_tx_ms;   /* when data was last sent (RFC 5681 4.1) */
    uint32_t ack_due_ms;   /* when the ACK of the latest data is due, if it waits; far in the
                              future: no data came. The timer may stand earlier, and is then set
                              again */
    uint32_t rtx_start_ms; /* retries > 0: when what is not yet answered was first sent */
    uint32_t challenge_ms; /* when the last challenge ACK was sent */
    uint32_t keepalive_ms; /* 0: off */
    uint32_t user_timeout_ms; /* 0: default */
    uint32_t keepalive_interval_ms; /* 0: default */
    uint32_t linger_ms;    /* after CLOSE; 0: without end */
    uint32_t sndbuf_bytes; /* 0: as ix_tcp_send_limit() finds right */
    /* Dynamic right-sizing: since drs_ms, when the application had taken all before drs_seq. */
    uint32_t drs_ms, drs_seq;
    uint32_t drs_bytes;    /* taken in the round trip before; UINT32_MAX: rcvbuf_bytes is fixed */
    uint32_t ack_floor;    /* no ACK is older (RFC 5961 5.2): snd_una less what was ever
                              acknowledged, at most max_wnd */
    uint32_t fin_wait_ms;  /* 0: default */
    uint32_t pace_us;      /* when what was sent has left at the pace; 0: nothing was yet */
    uint32_t pace_max;     /* bytes a second; IX_PACE_BY_WINDOW: as the window has it */
    uint32_t index;        /* its own among the flows; never changes */
    uint32_t short_end;    /* where the latest segment ended that was not full */
    uint32_t run_start;    /* where the latest run of several segments began (output.c) */
    uint16_t own_mss;      /* what our SYN says */
    uint8_t tos;           /* without the ECN bits */
    uint16_t accepted_by;  /* listener that counts it among its connections, plus 1; 0: none */
    uint8_t keepalive_probes; /* 0: default */
    uint8_t syn_retries;   /* SYNs after the first; 0: default */
    bool records;          /* an extent of its queue had `eor` */
    uint32_t retransmits;  /* segments, in all */
    int32_t dead_status;   /* of the DEAD or CONNECTED event to come */
} IX_ALIGNED(IX_CACHE_LINE);
IX_STATIC_ASSERT(sizeof(struct ix_tcb) <= 448,
                 "an idle connection costs at most 1 KiB, tables included");

struct ix_listener {
    struct ix_ip ip; /* all 0: every local address */
    uint16_t port;   /* 0: free */
    uint8_t family; /* 4, 6, or 0: both, then ip is all 0 */
    uint8_t cc; /* enum ix_congestion of its connections */
    uint8_t quick_acks;    /* theirs, at first */
    uint16_t mss;          /* limit of theirs; 0: none */
    bool pace_set;         /* pace_max counts, not the configuration */
    uint32_t pace_max;     /* as ix_pace_choose() has it */
    uint32_t rcvbuf_bytes; /* their receive windows' limit; 0: the configuration's, and grows */
    uint32_t backlog;
    uint32_t pending;  /* connections in SYN_RCVD or not yet ACCEPTed */
    uint32_t complete; /* of those the ones whose handshake is over */
    uint32_t connections, max_connections; /* of all states but TIME_WAIT; 0: no limit */
    uint64_t cookie;
    uint64_t cookie_ns; /* when the last SYN cookie left; 0: none yet */
};

static inline bool ix_listener_full(const struct ix_listener *listener)
{
    return listener->max_connections && listener->connections >= listener->max_connections;
}

/* Connections that hold few frames are refused one (pressure.c). */
struct ix_pressure {
    uint64_t since_ns; /* when this began; 0: it has not */
    uint32_t refused, taken; /* segments of such connections since, in order; windows kept shut */
    uint32_t owed; /* frames lent to connections that were reset for it, not yet given back */
    uint32_t hand; /* the frame that was looked at last */
    bool prune;    /* what waits out of order is to be given up */
};

/* A list of flows linked by an index field. */
struct ix_flow_list {
    uint32_t head, tail;
};

struct ix_tcp {
    struct ix_net *net;
    struct ix_wheel *wheel; /* timer of a flow: flow * IX_TIMERS_PER_FLOW + enum ix_tcp_timer */
    struct ix_counters *counters;
    struct ix_arrays *io;
    uint64_t now_ns;
    uint32_t now_ms; /* now_ns / 10^6, modulo 2^32: the timestamp clock */
    uint32_t now_us; /* now_ns / 10^3, likewise: when segments were sent */

    struct ix_tcb *flows;
    uint32_t max_flows;
    uint32_t free_head; /* free TCBs, linked by out_next */
    uint32_t in_use, half_open, time_wait;
    struct ix_flowtab table;
    struct ix_extent *extents;
    uint32_t max_extents, extent_free, extents_used;
    struct ix_tx_rec *recs;
    uint32_t max_recs, rec_free, recs_used;
    struct ix_recovery *recoveries;
    uint32_t max_recoveries, recovery_free, recoveries_used;

    struct ix_tcp_sack dsack; /* a duplicate to report (RFC 2883), ... */
    uint32_t dsack_flow;      /* ... and whose it is; a later one of another flow takes its place */

    struct ix_flow_list output; /* have something to send */
    struct ix_flow_list events; /* have something to tell */
    struct ix_flow_list tw;     /* in TIME_WAIT and nothing to say: oldest first */

    struct ix_pressure pressure;

    struct ix_key flow_key, isn_key, port_key, ts_key, cookie_key;
    uint32_t port_counters[IX_PORT_COUNTERS];
    uint32_t challenge_s;    /* the second that challenge_left counts for */
    uint32_t challenge_left; /* challenge ACKs that may still leave in it */
    const struct ix_config *cfg;
    uint32_t listener_count; /* slots in use lie below this */
    struct ix_listener listeners[IX_LISTENERS_MAX];
};

/* 0 marks a free TCB, so no key hashes to it. */
static inline uint64_t ix_tcp_hash(const struct ix_tcp *tcp, const struct ix_flow_key *key)
{
    uint64_t hash = ix_flow_hash(&tcp->flow_key, key);
    return hash ? hash : 1;
}
static inline uint32_t ix_tcb_index(const struct ix_tcp *tcp, const struct ix_tcb *tcb)
{
    (void)tcp;
    return tcb->index;
}
static inline uint64_t ix_tcb_handle(const struct ix_tcp *tcp, const struct ix_tcb *tcb)
{
    return ix_handle_make(0, ix_tcb_index(tcp, tcb), tcb->generation);
}
static inline uint32_t ix_tcb_timer(const struct ix_tcp *tcp, const struct ix_tcb *tcb,
                                    uint32_t kind)
{
    return ix_tcb_index(tcp, tcb) * IX_TIMERS_PER_FLOW + kind;
}
/* IP and TCP header without options. */
static inline uint32_t ix_tcb_headers(const struct ix_tcb *tcb)
{
    return ix_ip_header_bytes(tcb->key.family) + IX_TCP_BYTES;
}
/* What the path, too, takes at this time; options not subtracted. */
static inline uint32_t ix_tcb_mss_now(const struct ix_tcb *tcb)
{
    uint32_t room = tcb->dst.mtu - ix_tcb_headers(tcb); /* not looked up yet: beyond all */
    return IX_MIN(tcb->mss, room);
}
/* Payload bytes that fit beside the timestamp option. */
static inline uint32_t ix_tcb_mss(const struct ix_tcb *tcb)
{
    return ix_tcb_mss_now(tcb) - (tcb->flags & IX_TF_TS ? 12u : 0u);
}
static inline bool ix_tcb_synchronized(const struct ix_tcb *tcb)
{
    return tcb->state >= IX_TCP_ESTABLISHED;
}
/* May the peer still send data? */
static inline bool ix_tcb_receives(const struct ix_tcb *tcb)
{
    return tcb->state == IX_TCP_ESTABLISHED || tcb->state == IX_TCP_FIN_WAIT_1 ||
           tcb->state == IX_TCP_FIN_WAIT_2;
}
/* Closed, and something not acknowledged yet whose time is limited. */
static inline bool ix_tcb_lingers(const struct ix_tcb *tcb)
{
    return tcb->linger_ms && tcb->flags & IX_TF_CLOSED_RD &&
           (tcb->state == IX_TCP_FIN_WAIT_1 || tcb->state == IX_TCP_CLOSING ||
            tcb->state == IX_TCP_LAST_ACK);
}
/* The sequence number after the last queued byte: where the FIN goes. */
static inline uint32_t ix_tcb_data_end(const struct ix_tcb *tcb)
{
    return tcb->snd_una + tcb->queued_bytes;
}
/* Bytes in flight, FIN and SYN included. */
static inline uint32_t ix_tcb_flight(const struct ix_tcb *tcb)
{
    return tcb->snd_max - tcb->snd_una;
}
/* Bytes that the network holds (RFC 6675: pipe). */
static inline uint32_t ix_tcb_pipe(const struct ix_tcb *tcb)
{
    return ix_tcb_flight(tcb) - tcb->sacked_bytes - tcb->lost_bytes;
}
/* The sequence number of a segment without data. Not beyond a window that the peer has taken back:
 * it would drop the segment without reading the ACK. */
static inline uint32_t ix_tcb_ack_seq(const struct ix_tcb *tcb)
{
    uint32_t window_end = tcb->snd_una + tcb->snd_wnd;
    return ix_seq_lt(window_end, tcb->snd_max) ? window_end : tcb->snd_max;
}

#endif
