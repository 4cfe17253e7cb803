/* Every frame to the socket of its queue, as load_redirect() of xsk_pair.h makes it, in a program
 * that also sends (xdp/express_bpf.h).
 */
#include "express_bpf.h"

struct {
    __uint(type, BPF_MAP_TYPE_XSKMAP);
    __uint(max_entries, 64);
    __type(key, __u32);
    __type(value, __u32);
} limit_sockets SEC(".maps");

SEC("xdp")
int limit_redirect(struct xdp_md *ctx)
{
    if (ctx->ingress_ifindex == IX_STEER_EXPRESS_FROM)
        return express_make(ctx);
    return bpf_redirect_map(&limit_sockets, ctx->rx_queue_index, XDP_PASS);
}

char LICENSE[] SEC("license") = "GPL";
