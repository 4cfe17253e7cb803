/* Sending without skbs: the steering program run over blank frames, which it makes into those that
 * are to go out.
 *
 * In copy mode AF_XDP makes an skb of each frame, and the receiving end of a veth a page of each
 * skb again. BPF_PROG_TEST_RUN with BPF_F_TEST_XDP_LIVE_FRAMES (Linux 5.18, Documentation/bpf/
 * bpf_prog_run.rst) makes XDP frames instead, runs the program over them, and gives those that it
 * redirects to the driver's ndo_xdp_xmit, a batch at a time. It takes the program that is attached:
 * to run another one the kernel would wait for two RCU grace periods.
 *
 * Blanks come from the loopback interface, where the program is not attached, so no frame off a
 * wire is taken for one. What they hold doesn't count: the kernel uses the memory of frames that
 * have gone again. The frame is read from the memory of the process that makes the call
 * (express.c), which says where in `express`.
 */
#ifndef IX_XDP_EXPRESS_BPF_H
#define IX_XDP_EXPRESS_BPF_H

#include "steer.h"

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(map_flags, BPF_F_MMAPABLE);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct ix_steer_express);
} express SEC(".maps");

/* Where frames go out. Not in what the sender may write: it is to send there only. */
struct {
    __uint(type, BPF_MAP_TYPE_DEVMAP);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, __u32);
} express_out SEC(".maps");

struct express_frame {
    __u8 bytes[IX_STEER_EXPRESS_BYTES];
};

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct express_frame);
} express_frames SEC(".maps");

/* Makes the blank into the next frame. The copy is in two steps: no helper reads from a process
 * into a frame. */
static __always_inline int express_make(struct xdp_md *ctx)
{
    const __u32 only = 0;
    struct ix_steer_express *e = bpf_map_lookup_elem(&express, &only);
    struct express_frame *frame = bpf_map_lookup_elem(&express_frames, &only);
    __u32 blank = (__u32)bpf_xdp_get_buff_len(ctx), i, bytes;

    if (!e || !frame)
        return XDP_DROP;
    i = e->next;
    if (i >= IX_STEER_EXPRESS_FRAMES)
        return XDP_DROP;
    e->next = i + 1;
    bytes = e->frames[i].bytes & (IX_STEER_EXPRESS_BYTES - 1);
    if (bytes && bytes == e->frames[i].bytes &&
        !bpf_probe_read_user(frame, bytes, (void *)(long)e->frames[i].addr) &&
        (bytes == blank || !bpf_xdp_adjust_tail(ctx, (int)(bytes - blank))) &&
        !bpf_xdp_store_bytes(ctx, 0, frame, bytes))
        return (int)bpf_redirect_map(&express_out, 0, XDP_DROP);
    e->refused++;
    return XDP_DROP;
}

#endif
