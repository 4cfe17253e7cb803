/* TCP's functions, by file, in the order in which a segment meets them. */
#ifndef IX_TCP_TCP_H
#define IX_TCP_TCP_H

#include "tcp/tcb.h"

/* ---- flow.c: TCBs, lists, handles */
size_t ix_tcp_arena_bytes(const struct ix_config *cfg);
void ix_tcp_init(struct ix_tcp *tcp, const struct ix_config *cfg, void *memory);
struct ix_tcb *ix_tcp_find(struct ix_tcp *tcp, const struct ix_flow_key *key, uint64_t hash);
/* Hints for a frame that will come to input soon. The hash of the connection that it seems to be
 * for, by headers that nobody has checked yet, with its bucket on the way to the cache; 0: none. */
uint64_t ix_tcp_expect(const struct ix_tcp *tcp, const uint8_t *frame, uint32_t bytes);
/* ... and then the TCB itself and its timers. */
void ix_tcp_prefetch(const struct ix_tcp *tcp, uint64_t hash);
void ix_tcp_prefetch_flow(const struct ix_tcp *tcp, uint32_t flow);
/* The live connection that an application's handle names, or NULL. */
struct ix_tcb *ix_tcp_of_handle(struct ix_tcp *tcp, uint64_t handle);
/* A new TCB in the table, or NULL if the table is full (the oldest TIME_WAIT is given up for it).
 */
struct ix_tcb *ix_tcp_new(struct ix_tcp *tcp, const struct ix_flow_key *key, uint64_t hash);
void ix_tcp_want_output(struct ix_tcp *tcp, struct ix_tcb *tcb);
void ix_tcp_want_event(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t flags);
static inline void ix_tcp_ack_now(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    tcb->flags |= IX_TF_ACK_NOW;
    ix_tcp_want_output(tcp, tcb);
}
/* Ends a connection now: state CLOSED, timers off, queues empty; `status` goes into DEAD (or
 * CONNECTED). */
void ix_tcp_finish(struct ix_tcp *tcp, struct ix_tcb *tcb, int32_t status);
/* Frees a CLOSED TCB that nothing waits for any more; one in TIME_WAIT may be given up from now on.
 * Else does nothing. */
void ix_tcp_release_ended(struct ix_tcp *tcp, struct ix_tcb *tcb);
static inline void ix_tcp_release(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (IX_UNLIKELY(tcb->state == IX_TCP_CLOSED || tcb->state == IX_TCP_TIME_WAIT))
        ix_tcp_release_ended(tcp, tcb);
}
void ix_tcp_enter_time_wait(struct ix_tcp *tcp, struct ix_tcb *tcb);
/* The connection no longer counts against its listener's backlog. */
void ix_tcp_leave_backlog(struct ix_tcp *tcp, struct ix_tcb *tcb);
/* ... nor among its connections. */
void ix_tcp_leave_listener(struct ix_tcp *tcp, struct ix_tcb *tcb);
const char *ix_tcp_check(struct ix_tcp *tcp);

/* ---- input.c: RFC 9293 3.10.7 */
enum ix_verdict ix_tcp_input(struct ix_tcp *tcp, struct ix_packet *pkt);
/* An ICMP error about a flow (RFC 5927, RFC 1191). */
void ix_tcp_icmp_error(struct ix_tcp *tcp, const struct ix_icmp_error *error);

/* ---- open.c: listeners and both opens */
struct ix_listener *ix_tcp_listener(struct ix_tcp *tcp, const struct ix_flow_key *key);
/* A SYN for a listener: RFC 9293 3.10.7.2. */
void ix_tcp_passive_open(struct ix_tcp *tcp, struct ix_listener *listener,
                         const struct ix_packet *pkt, const struct ix_tcp_hdr *hdr,
                         const struct ix_flow_key *key, uint64_t hash);
/* The TCB of a connection in SYN_RCVD whose SYN-ACK is due; NULL (counted) if there is none. */
struct ix_tcb *ix_tcp_half_open(struct ix_tcp *tcp, struct ix_listener *listener,
                                const struct ix_packet *pkt, const struct ix_tcp_hdr *hdr,
                                const struct ix_flow_key *key, uint64_t hash);
/* The least shift with which a window of `bytes` fits into 16 bits (RFC 7323 2.3). */
uint8_t ix_tcp_scale_for(uint32_t bytes);
/* The MSS that our SYNs say (RFC 6691). */
static inline uint16_t ix_tcp_own_mss(const struct ix_tcp *tcp, uint8_t family)
{
    uint32_t mss = tcp->net->mtu - ix_ip_header_bytes(family) - IX_TCP_BYTES;
    return (uint16_t)IX_MIN(mss, tcp->cfg->mss_max);
}
int ix_tcp_active_open(struct ix_tcp *tcp, struct ix_call *call);
/* The numbers of a connection that has sent nothing yet begin at iss. */
void ix_tcp_set_iss(struct ix_tcb *tcb, uint32_t iss);
/* A connection that has sent nothing yet takes the place of one that had sent all before `end`: its
 * numbers begin beyond (RFC 1122 4.2.2.13, RFC 9293 3.10.7.4). */
void ix_tcp_begin_after(struct ix_tcb *tcb, uint32_t end);
/* Limits of connections, as options have them: 0 is none. */
static inline bool ix_tcp_rcvbuf_ok(uint64_t bytes)
{
    return bytes == 0 || (bytes >= IX_MSS_DEFAULT && bytes <= 1u << 30);
}
static inline bool ix_tcp_mss_ok(uint64_t mss)
{
    return mss == 0 || (mss >= IX_MSS_MIN && mss <= UINT16_MAX);
}
/* Takes MSS, window scale, SACK-permitted and timestamps from the peer's SYN. */
void ix_tcp_take_syn_options(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr);
/* Handshake complete: ESTABLISHED, and the event that says so. */
void ix_tcp_established(struct ix_tcp *tcp, struct ix_tcb *tcb);

/* ---- cookie.c: SYN cookies (RFC 4987 3.6) */
uint32_t ix_cookie_make(const struct ix_tcp *tcp, const struct ix_flow_key *key, uint32_t peer_iss,
                        uint32_t mss);
enum ix_cookie {
    IX_COOKIE_BAD = 0,
    IX_COOKIE_EARLY, /* ours, but not with this ISS: the segment is not the first one after the SYN,
                        which was lost or found no room and will come again */
    IX_COOKIE_GOOD,
};
enum ix_cookie ix_cookie_check(const struct ix_tcp *tcp, const struct ix_flow_key *key,
                               uint32_t peer_iss, uint32_t cookie, uint32_t *mss);
/* Answers a SYN with a cookie. */
void ix_cookie_answer(struct ix_tcp *tcp, struct ix_listener *listener, const struct ix_packet *pkt,
                      const struct ix_tcp_hdr *syn, const struct ix_flow_key *key);
/* An ACK that belongs to no flow. False: it brings no cookie of ours. Else *opened is the
 * connection, in SYN_RCVD, for which the segment now is; or NULL, and it is dropped. */
bool ix_cookie_ack(struct ix_tcp *tcp, struct ix_listener *listener, const struct ix_packet *pkt,
                   const struct ix_tcp_hdr *hdr, const struct ix_flow_key *key, uint64_t hash,
                   struct ix_tcb **opened);

/* ---- isn.c */
uint32_t ix_tcp_isn(struct ix_tcp *tcp, const struct ix_flow_key *key);
uint32_t ix_tcp_ts_offset(struct ix_tcp *tcp, const struct ix_flow_key *key);
/* A free outgoing port whose replies arrive on this shard's queue (RFC 6056 algorithm 4); 0 if
 * there is none. */
uint16_t ix_tcp_choose_port(struct ix_tcp *tcp, const struct ix_flow_key *key);

/* ---- ack.c: what an acceptable ACK does to the send side */
void ix_tcp_ack(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr,
                uint32_t payload_bytes);
void ix_tcp_update_window(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr);
void ix_tcp_rtt_sample(struct ix_tcb *tcb, uint64_t rtt_ns);

/* ---- txrec.c: records of what is outstanding */
struct ix_tx_rec *ix_rec_first(struct ix_tcp *tcp, struct ix_tcb *tcb);
struct ix_tx_rec *ix_rec_next(struct ix_tcp *tcp, struct ix_tcb *tcb, struct ix_tx_rec *r);
/* [snd_max, end) has left for the first time: moves snd_max. */
void ix_rec_sent(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t end);
/* Where `last` begins. */
uint32_t ix_rec_last_start(const struct ix_tcp *tcp, const struct ix_tcb *tcb);
/* A record of `bytes` bytes is in another state now: the sums follow. */
void ix_rec_set_state(struct ix_tcb *tcb, struct ix_tx_rec *r, uint32_t bytes, uint8_t state);
/* Makes two of one at sequence number `at` inside it. Returns the part before; NULL (and changes
 * nothing) if no record is to be had. */
struct ix_tx_rec *ix_rec_split(struct ix_tcp *tcp, struct ix_tcb *tcb, struct ix_tx_rec *r,
                               uint32_t at);
void ix_rec_drop_first(struct ix_tcp *tcp, struct ix_tcb *tcb);
/* Makes one of neighbours that say the same. */
void ix_rec_join(struct ix_tcp *tcp, struct ix_tcb *tcb);
/* All of them, and what recovery holds. */
void ix_rec_drop(struct ix_tcp *tcp, struct ix_tcb *tcb);
const char *ix_rec_check(struct ix_tcp *tcp, struct ix_tcb *tcb);

/* ---- sack.c: what an ACK says has arrived */
/* Takes the segment's blocks. */
void ix_sack_update(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr,
                    struct ix_ack *a);
/* Moves snd_una to the segment's ACK. */
void ix_sack_advance(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr,
                     struct ix_ack *a);

/* ---- rack.c: loss detection by time, tail loss probes (RFC 8985) */
void ix_rack_min_rtt(const struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t rtt_us);
/* A record, or its part up to `end`, has arrived: steps 1 to 3 of section 6.2. */
void ix_rack_delivered(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr,
                       const struct ix_tx_rec *r, uint32_t end);
void ix_rack_dsack(struct ix_tcb *tcb);
/* Nothing is out any more, or all that was counts as lost. */
static inline void ix_rack_idle(struct ix_tcb *tcb)
{
    /* Whatever leaves from now on was sent later than what has arrived. Kept, it would be compared
     * on a clock that goes round in 71 minutes, and after half of them seem to be the later one. */
    tcb->rack &= (uint8_t)~IX_RACK_VALID;
}
/* A recovery is over. */
void ix_rack_recovered(struct ix_tcb *tcb);
/* Step 5: marks what is lost. Returns after how many us more may be; 0: no more. */
uint32_t ix_rack_detect(struct ix_tcp *tcp, struct ix_tcb *tcb);
/* Marks what a timeout takes for lost; forget: whatever the peer has SACKed. */
void ix_rack_timeout(struct ix_tcp *tcp, struct ix_tcb *tcb, bool forget);
/* After how many us a probe is due; 0: none is. */
uint32_t ix_tlp_wait_us(const struct ix_tcb *tcb);
void ix_tlp_sent(struct ix_tcp *tcp, struct ix_tcb *tcb, bool again);
void ix_tlp_end(struct ix_tcb *tcb);
/* True if the ACK shows that a probe has repaired a loss. */
bool ix_tlp_ack(struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr, const struct ix_ack *a);

/* ---- recovery.c */
/* Loss was found. */
void ix_recovery_enter(struct ix_tcp *tcp, struct ix_tcb *tcb);
void ix_recovery_timeout(struct ix_tcp *tcp, struct ix_tcb *tcb);
/* What has left meanwhile. */
void ix_recovery_resent(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t bytes);
void ix_recovery_sent_new(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t bytes);
/* After the records: loss, recovery, the window. dup: a duplicate ACK as in RFC 5681 section 2, or
 * one with news by SACK. Returns after how many us to look again for loss; 0: need not. */
uint32_t ix_recovery_ack(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr,
                         struct ix_ack *a, bool dup);
/* F-RTO (RFC 5682 step (2b)): does what is lost wait, since new data goes in its place and the
 * answer to that will tell? more: there is new data that may go; else the usual recovery does. */
bool ix_recovery_waits(const struct ix_tcp *tcp, const struct ix_tcb *tcb, bool more);
/* Looks again. */
void ix_recovery_look(struct ix_tcp *tcp, struct ix_tcb *tcb);
void ix_recovery_drop(struct ix_tcp *tcp, struct ix_tcb *tcb);

/* ---- cc.c: congestion control, whichever it is */
uint32_t ix_cc_initial_window(uint32_t mss);
/* Is it one of enum ix_congestion, IX_CC_DEFAULT apart? */
bool ix_cc_known(uint64_t cc);
/* The connection has this one from now on. The window stays. */
void ix_cc_choose(struct ix_tcb *tcb, uint8_t cc);
/* `bytes` bytes were acknowledged outside of recovery while the window was all but full; rtt_us: a
 * round-trip time that came with them, or 0. cwnd grows. */
void ix_cc_acked(const struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t bytes, uint32_t rtt_us);
/* Loss was found with flight_bytes outstanding: sets ssthresh, not yet cwnd. */
void ix_cc_lost(struct ix_tcb *tcb, uint32_t flight_bytes);
/* The peer saw a mark (RFC 3168): sets ssthresh and cwnd. */
void ix_cc_marked(struct ix_tcb *tcb);
void ix_cc_timeout(struct ix_tcb *tcb, uint32_t flight_bytes);
/* A reduction was a mistake: the window is again what it was. */
void ix_cc_undo(struct ix_tcb *tcb, uint32_t cwnd, uint32_t ssthresh, uint32_t w_max);
void ix_cc_restart_after_idle(const struct ix_tcp *tcp, struct ix_tcb *tcb);
/* What the algorithms do differently. *_avoid(): congestion avoidance. *_reduced(): the window
 * that is left after a loss. */
void ix_newreno_avoid(struct ix_tcb *tcb, uint32_t acked);
uint32_t ix_newreno_reduced(const struct ix_tcb *tcb, uint32_t flight_bytes);
void ix_cubic_avoid(const struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t acked);
uint32_t ix_cubic_reduced(struct ix_tcb *tcb, uint32_t flight_bytes);
void ix_cubic_idle(struct ix_tcb *tcb, uint32_t idle_ms);
void ix_hystart_begin(struct ix_tcb *tcb);
/* Returns by how much the window may grow; sets ssthresh to end slow start after it. */
uint32_t ix_hystart_acked(struct ix_tcb *tcb, uint32_t bytes, uint32_t rtt_us);
void ix_dctcp_begin(struct ix_tcb *tcb);
void ix_dctcp_acked(struct ix_tcb *tcb, uint32_t acked, bool marked);
uint32_t ix_dctcp_marked(const struct ix_tcb *tcb);

/* ---- pace.c */
/* max: bytes a second, IX_PACE_BY_WINDOW: as window and round-trip time have it; 0: no pacing. */
void ix_pace_choose(struct ix_tcb *tcb, uint32_t max);
static inline uint32_t ix_pace_of_option(uint64_t value)
{
    return (uint32_t)IX_MIN(value, (uint64_t)IX_PACE_BY_WINDOW);
}
/* Bytes a second at this time; UINT64_MAX: not paced, or no round-trip time is known yet. */
uint64_t ix_pace_rate(const struct ix_tcb *tcb);
/* IX_TF_PACED: up to what the pipe may grow in this pass of output, cwnd at most. */
uint32_t ix_pace_window(const struct ix_tcp *tcp, const struct ix_tcb *tcb);
/* The pass is over: it has sent `bytes`, with that window. more: something waits. */
void ix_pace_sent(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t bytes, uint32_t window,
                  bool more);
/* A flow that its pace holds back uses its window as well as one with so many bytes less. */
/* How many segments of at most `max` bytes Linux would give to its device as one packet. */
uint32_t ix_pace_run(const struct ix_tcp *tcp, const struct ix_tcb *tcb, uint32_t max);
uint32_t ix_pace_spare(const struct ix_tcb *tcb);
/* IX_TF_PACE_HELD, and the timer fired: more may go, or it is set again. */
void ix_pace_fired(struct ix_tcp *tcp, struct ix_tcb *tcb);

/* ---- ecn.c (RFC 3168) */
/* Header flags of our SYN or SYN-ACK. */
uint8_t ix_ecn_syn_flags(const struct ix_tcp *tcp, struct ix_tcb *tcb);
/* What the peer's SYN or SYN-ACK says; ect: its IP header was not Not-ECT. */
void ix_ecn_take_syn(const struct ix_tcp *tcp, struct ix_tcb *tcb, uint8_t flags, bool ect);
/* A SYN that was taken before comes again. */
void ix_ecn_take_syn_again(struct ix_tcb *tcb, uint8_t flags);
/* A data segment arrived; before it is counted in. */
void ix_ecn_data(struct ix_tcp *tcp, struct ix_tcb *tcb, uint8_t tos, uint8_t flags);
/* An ACK of `acked` bytes was taken. */
void ix_ecn_acked(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t acked, uint8_t flags);
/* Header flags of a segment that leaves. */
uint8_t ix_ecn_flags(struct ix_tcb *tcb, bool new_data);

/* ---- recv.c: data, reassembly, window */
enum ix_verdict ix_tcp_data(struct ix_tcp *tcp, struct ix_tcb *tcb, struct ix_packet *pkt,
                            const struct ix_tcp_hdr *hdr);
/* The window to advertise now, bytes; moves rcv_adv. */
uint32_t ix_tcp_receive_window(struct ix_tcp *tcp, struct ix_tcb *tcb);
/* Would telling the peer of the window be worth a segment of its own? (RFC 9293 3.8.6.2.2) */
bool ix_tcp_window_update_due(const struct ix_tcp *tcp, const struct ix_tcb *tcb);
/* SACK blocks for what lies out of order (RFC 2018 section 4). Returns how many, at most max. */
uint32_t ix_tcp_sack_blocks(const struct ix_tcp *tcp, const struct ix_tcb *tcb,
                            struct ix_tcp_sack *out, uint32_t max);
/* [start, end) came twice: the next ACK says so (D-SACK, RFC 2883). */
void ix_tcp_report_duplicate(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t start, uint32_t end);
void ix_tcp_drop_queues(struct ix_tcp *tcp, struct ix_tcb *tcb);
/* Of `most` frames that may be lent or kept those that are not. */
uint32_t ix_tcp_frames_left(const struct ix_tcp *tcp, uint32_t most);
/* Gives up frames that wait out of order, at most `most`. Returns how many. */
uint32_t ix_tcp_prune(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t most);

/* ---- pressure.c: no frames are left */
/* A segment of a connection that holds few frames found none left, or its window stays shut for
 * want of them. */
void ix_tcp_starved(struct ix_tcp *tcp, bool in_order);
/* Once a cycle, after the application's calls: what can be had back. */
void ix_tcp_relieve(struct ix_tcp *tcp);
/* When that has to be called again, ns; UINT64_MAX: need not. */
uint64_t ix_tcp_relief_ns(const struct ix_tcp *tcp);

/* ---- output.c: everything that a flow has to send */
/* False if it has to go on in the next cycle (TX full, no frame). */
bool ix_tcp_output(struct ix_tcp *tcp, struct ix_tcb *tcb);
/* ---- segment.c: one segment */
/* Sends payload [seq, seq + bytes) with `flags`. in_place: may be sent from where it lies. False if
 * no frame is to be had. */
bool ix_tcp_send_segment(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t seq, uint32_t bytes,
                         uint8_t flags, bool in_place);
/* A segment without a TCB behind it, back to where pkt came from. False if it can't be sent. */
bool ix_tcp_send_bare(struct ix_tcp *tcp, const struct ix_packet *pkt,
                      const struct ix_tcp_hdr *hdr);
/* An RST for a segment that belongs to no connection (RFC 9293 3.10.7.1). */
void ix_tcp_send_reset_for(struct ix_tcp *tcp, const struct ix_packet *pkt,
                           const struct ix_tcp_hdr *hdr, uint32_t payload_bytes);
void ix_tcp_send_reset(struct ix_tcp *tcp, struct ix_tcb *tcb);
/* A challenge ACK (RFC 5961 section 3): at most two a second a flow, and about
 * config.challenge_acks a second in all, a number that nobody can count out. */
void ix_tcp_challenge(struct ix_tcp *tcp, struct ix_tcb *tcb);

/* ---- autotune.c */
/* The application gave payload back: is the receive window large enough? */
void ix_tcp_tune_receive(struct ix_tcp *tcp, struct ix_tcb *tcb);
/* Most bytes that may be borrowed. */
uint32_t ix_tcp_send_limit(const struct ix_tcp *tcp, const struct ix_tcb *tcb);

/* ---- pmtu.c */
/* A router says that a segment was too long. */
void ix_tcp_path_mtu(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_icmp_error *error);
/* A segment was lost again and again: are its like too long, and nobody says so (RFC 4821 7.7)? */
void ix_tcp_black_hole(struct ix_tcp *tcp, struct ix_tcb *tcb);

/* ---- timer.c */
/* FIN_WAIT_2 of an application that has closed and gone: how long its peer may keep its half open.
 */
void ix_tcp_await_fin(struct ix_tcp *tcp, struct ix_tcb *tcb);
/* The retransmission timer, for a timeout. */
void ix_tcp_arm_rtx(struct ix_tcp *tcp, struct ix_tcb *tcb);
/* The same after an ACK: for looking for loss again in reorder_us (0: need not), for a probe, or
 * for a timeout. */
void ix_tcp_arm_after_ack(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t reorder_us);
/* The same after new data: a probe is due before the timeout is (RFC 8985 7.2), and a timeout that
 * runs goes on (RFC 6298 (5.1)). */
void ix_tcp_arm_after_new(struct ix_tcp *tcp, struct ix_tcb *tcb);
void ix_tcp_timer_fired(struct ix_tcp *tcp, uint32_t timer);
/* RTO with backoff, us, bounded. */
uint32_t ix_tcp_rto_us(const struct ix_tcb *tcb);

/* ---- sendq.c: borrowed memory */
/* Bytes that append takes. */
uint32_t ix_sendq_room(const struct ix_tcp *tcp, const struct ix_tcb *tcb);
uint32_t ix_sendq_append(struct ix_tcp *tcp, struct ix_tcb *tcb, uint64_t addr, uint32_t bytes);
/* The first `bytes` bytes were acknowledged: gives their extents up. */
void ix_sendq_acked(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t bytes);
/* A cursor at sequence number seq: the flow's own, or the queue is walked. */
struct ix_send_cursor ix_sendq_walk(const struct ix_tcp *tcp, const struct ix_tcb *tcb,
                                    uint32_t seq);
static inline struct ix_send_cursor ix_sendq_seek(const struct ix_tcp *tcp,
                                                  const struct ix_tcb *tcb, uint32_t seq)
{
    struct ix_send_cursor at = tcb->cursor;
    if (IX_LIKELY(at.extent != IX_NONE && at.seq == seq &&
                  at.offset < tcp->extents[at.extent].bytes))
        return at;
    return ix_sendq_walk(tcp, tcb, seq);
}
/* How many of `bytes` bytes from seq on belong to the record of the first (IX_SEND_EOR). */
uint32_t ix_sendq_record(const struct ix_tcp *tcp, const struct ix_tcb *tcb, uint32_t seq,
                         uint32_t bytes);
void ix_sendq_drop(struct ix_tcp *tcp, struct ix_tcb *tcb);

/* ---- calls.c: the application's calls on connections */
int ix_tcp_call(struct ix_tcp *tcp, struct ix_call *call);
/* ---- deliver.c: events */
/* Writes what the flow has to tell. False if the event array filled up first. */
bool ix_tcp_deliver(struct ix_tcp *tcp, struct ix_tcb *tcb);

#endif
