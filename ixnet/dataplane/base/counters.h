/* What a shard counts. One list; the struct, the names that `ixnet stat` shows and
 * their descriptions come from it. A drop is never silent: it has a line here.
 */
#ifndef IX_BASE_COUNTERS_H
#define IX_BASE_COUNTERS_H

#include "base/types.h"

/* X(name, meaning) */
#define IX_COUNTERS(X)                                                                        \
    /* cycle */                                                                               \
    X(cycles, "cycles run")                                                                   \
    X(cycles_idle, "cycles that found nothing to do")                                         \
    X(syscalls, "wakeups of the kernel (system calls or exits)")                              \
    X(wakeup_errors, "wakeups that the link refused")                                         \
    /* link */                                                                                \
    X(rx_frames, "frames received")                                                           \
    X(rx_bytes, "bytes received, Ethernet header included")                                   \
    X(tx_frames, "frames sent")                                                               \
    X(tx_bytes, "bytes sent, Ethernet header included")                                       \
    X(tx_full, "cycles that stopped building frames because TX was full")                     \
    X(tx_no_frame, "frames not built for want of a free frame")                               \
    X(tx_inplace, "segments sent from where their payload lies (zero copy)")                  \
    X(tx_copied, "segments whose payload was copied into a frame")                            \
    X(fill_grown, "times that FILL had run dry and is kept fuller since")                     \
    X(fill_starved, "cycles in which FILL could not be refilled: the pool is empty")          \
    /* ethernet, arp */                                                                       \
    X(drop_eth_short, "frames shorter than an Ethernet header")                               \
    X(drop_eth_type, "frames of an EtherType that the core does not speak")                   \
    X(drop_eth_dst, "frames to another MAC address")                                          \
    X(drop_arp_bad, "malformed ARP packets")                                                  \
    X(arp_requests_in, "ARP requests for an own address")                                     \
    X(arp_replies_out, "ARP replies sent")                                                    \
    X(arp_learned, "neighbours learned from ARP or ND")                                       \
    X(drop_nd_bad, "malformed neighbor solicitations and advertisements")                     \
    X(nd_solicits_in, "neighbor solicitations for an own address")                            \
    X(nd_adverts_out, "neighbor advertisements sent")                                         \
    X(nd_duplicates, "signs that another one has an own IPv6 address")                        \
    X(neigh_misses, "packets whose next hop had no known MAC address")                        \
    X(drop_no_route, "packets without a route")                                               \
    X(drop_neigh, "packets not sent because the next hop is unresolved")                      \
    /* ip */                                                                                  \
    X(drop_ip_short, "truncated IP headers or packets")                                       \
    X(drop_ip_version, "IP version field wrong")                                              \
    X(drop_ip_header, "bad IPv4 header length")                                               \
    X(drop_ip_csum, "bad IPv4 header checksums")                                              \
    X(drop_ip_frag, "fragments that are malformed, of another protocol than UDP, or repeated")  \
    X(ip_reassembled, "datagrams put together from fragments")                                \
    X(drop_reass_timeout, "datagrams given up: their fragments did not all come in time")      \
    X(drop_reass_overlap, "datagrams given up: their fragments overlap (RFC 5722)")            \
    X(drop_reass_full, "datagrams given up for newer ones: too many were incomplete")          \
    X(drop_ip_src, "impossible source addresses (broadcast, multicast, own: land)")           \
    X(drop_ip_dst, "IP packets to an address that is not this shard's")                       \
    X(drop_ip_proto, "IP protocols that the core does not speak")                             \
    X(ip6_extensions, "IPv6 packets with extension headers")                                  \
    X(drop_ip6_extension, "IPv6 packets with malformed, unknown or too many extension headers") \
    /* icmp */                                                                                \
    X(icmp_in, "ICMP messages received")                                                      \
    X(icmp_echo_replies, "ICMP echo replies sent")                                            \
    X(icmp_errors_in, "ICMP errors that named a flow of this shard")                          \
    X(icmp_errors_out, "ICMP errors sent")                                                    \
    X(drop_icmp_bad, "malformed ICMP messages or bad checksums")                              \
    X(drop_icmp_unknown, "ICMP messages of no use here")                                      \
    X(drop_icmp_stale, "ICMP errors that match no flow or no outstanding data (RFC 5927)")    \
    X(pmtu_lowered, "paths found to take less than the link (RFC 1191, RFC 8201)")              \
    X(pmtu_black_holes, "... of these by silence: longer segments were lost again and again")  \
    X(icmp_rate_limited, "ICMP errors not sent because of the rate limit")                    \
    /* udp */                                                                                 \
    X(udp_in, "datagrams delivered")                                                          \
    X(udp_out, "datagrams sent")                                                              \
    X(drop_udp_short, "truncated UDP headers or bad lengths")                                 \
    X(drop_udp_csum, "bad UDP checksums")                                                     \
    X(drop_udp_port, "datagrams to a port without endpoint")                                  \
    X(drop_udp_full, "datagrams dropped because the application is behind")                   \
    /* tcp */                                                                                 \
    X(tcp_in, "TCP segments received with a good checksum")                                   \
    X(tcp_out, "TCP segments sent")                                                           \
    X(tcp_rexmit, "TCP segments retransmitted")                                               \
    X(tcp_rto, "retransmission timeouts")                                                     \
    X(tcp_fast_rexmit, "fast recoveries entered")                                             \
    X(tcp_lost_rexmits, "retransmissions found lost and sent once more (RFC 8985)")            \
    X(tcp_tlp, "tail loss probes sent (RFC 8985)")                                            \
    X(tcp_undo, "reductions undone: the retransmission was spurious (RFC 3522, RFC 2883)")    \
    X(tcp_reordering, "connections on which segments overtook each other")                    \
    X(tcp_dsack_in, "D-SACKs received: the peer has something twice (RFC 2883)")              \
    X(tcp_dsack_out, "D-SACKs sent")                                                          \
    X(tcp_dupacks, "duplicate ACKs received")                                                 \
    X(tcp_ecn, "connections that agreed on ECN (RFC 3168)")                                   \
    X(tcp_ce_in, "data segments that came marked: congestion experienced")                    \
    X(tcp_ece_reductions, "windows made smaller because the peer saw marks")                  \
    X(tcp_ooo, "segments that arrived out of order and were kept")                            \
    X(tcp_dup_data, "segments that held nothing new")                                         \
    X(tcp_delayed_acks, "ACKs that the delayed-ACK timer sent")                               \
    X(tcp_pure_acks, "ACKs sent without data")                                                \
    X(tcp_probes, "zero-window probes sent")                                                  \
    X(tcp_keepalives, "keepalive probes sent")                                                \
    X(tcp_challenge_acks, "challenge ACKs sent (RFC 5961)")                                   \
    X(tcp_linger_resets, "connections reset because their linger time was over")               \
    X(tcp_challenge_limited, "challenge ACKs not sent because of the shard's limit")           \
    X(tcp_cookies_sent, "SYNs answered with a cookie: no room for a half-open connection")     \
    X(tcp_cookies_good, "connections opened by a cookie that came back")                      \
    X(tcp_cookies_bad, "ACKs to a listener that sends cookies, without a good one")            \
    X(tcp_rst_in, "acceptable RSTs received")                                                 \
    X(tcp_rst_out, "RSTs sent")                                                               \
    X(tcp_active_opens, "connections opened by CONNECT")                                      \
    X(tcp_passive_opens, "connections accepted by a listener")                                \
    X(tcp_established, "handshakes completed")                                                \
    X(tcp_closed, "connections ended in order")                                               \
    X(tcp_aborted, "connections ended by RST, timeout or ABORT")                              \
    X(tcp_timeouts, "connections given up after unanswered retransmissions or probes")        \
    X(tcp_time_wait, "connections that entered TIME_WAIT")                                    \
    X(tcp_time_wait_reused, "TIME_WAIT connections reused by a new SYN")                      \
    X(drop_tcp_short, "truncated TCP headers")                                                \
    X(drop_tcp_header, "bad TCP data offsets or malformed options")                           \
    X(drop_tcp_csum, "bad TCP checksums")                                                     \
    X(drop_partial_csum, "bad checksums that look like partial ones: turn tx off at the peer")  \
    X(drop_tcp_flags, "impossible TCP flag combinations")                                     \
    X(drop_tcp_no_listener, "segments to a port that nobody listens on")                      \
    X(drop_tcp_many, "SYNs from a broadcast address, or to a broadcast MAC (RFC 1122 4.2.3.10)") \
    X(drop_tcp_foreign, "segments for an outgoing port of another shard")                     \
    X(drop_tcp_backlog, "SYNs dropped because the listener's backlog is full")                \
    X(drop_tcp_accept_full, "handshakes not begun or completed: too many wait for ACCEPT")     \
    X(drop_tcp_half_open, "SYNs dropped because the shard has too many half-open connections") \
    X(drop_tcp_connections, "handshakes not begun or completed: the listener has its connections") \
    X(drop_tcp_flows, "SYNs dropped because the flow table is full")                          \
    X(drop_tcp_seq, "segments outside the receive window")                                    \
    X(drop_tcp_ack, "segments with an unacceptable ACK")                                      \
    X(drop_tcp_paws, "segments with an old timestamp (PAWS, RFC 7323)")                       \
    X(drop_tcp_ooo_limit, "out-of-order segments beyond the limit")                           \
    X(drop_tcp_lend_limit, "segments dropped because the application holds too many frames")  \
    X(tcp_collapsed, "small segments copied behind the one before: a frame less was held")     \
    X(tcp_ooo_pruned, "out-of-order segments given up again for want of frames")               \
    X(tcp_pressure_resets, "connections reset: held the most frames when others found none left") \
    X(drop_tcp_wnd, "payload bytes beyond the receive window, cut off")                       \
    X(drop_tcp_closed, "segments to a connection that takes no more data")                    \
    /* application */                                                                         \
    X(calls, "calls run")                                                                     \
    X(call_errors, "calls refused with an error")                                             \
    X(calls_stale, "calls that named a void handle")                                          \
    X(events, "events delivered")                                                             \
    X(events_full, "cycles whose event array filled up; the rest waited for the next")        \
    X(ctl_messages, "control messages applied")                                               \
    X(ctl_full, "requests to the control plane dropped because its ring was full")

struct ix_counters {
#define X(name, meaning) uint64_t name;
    IX_COUNTERS(X)
#undef X
};

enum { IX_COUNTER_COUNT = sizeof(struct ix_counters) / sizeof(uint64_t) };

#endif
