/* ixnet trace drops: frames of the interface that end before a shard has them. What the XDP
 * program redirected and the AF_XDP socket refused; what the driver gave up; packets that the
 * kernel freed as dropped.
 */

/* bcc writes down the events' arguments with the kernel's names of types. */
enum ix_drop_reason { IX_DROP_REASON_MAX = 0xffffffff };
#define skb_drop_reason ix_drop_reason

/* queue: the index in the map of sockets, which is the queue's number. */
struct ix_redirect {
    u32 queue;
    s32 error;
    u32 cpu;
};

/* action: enum xdp_action. */
struct ix_exception {
    u32 action;
    u32 cpu;
};

struct ix_free {
    u64 location;
    u32 reason; /* enum skb_drop_reason */
    u32 protocol;
};

BPF_HASH(redirects, struct ix_redirect, u64, 16384);
BPF_HASH(exceptions, struct ix_exception, u64, 4096);
BPF_HASH(frees, struct ix_free, u64, 16384);

/* These events tell an index without its namespace; the program's id tells which it is. */
static inline int is_ours(u32 ifindex, u32 prog_id)
{
    return ifindex == IX_IFINDEX && (!IX_PROGRAM_ID || prog_id == IX_PROGRAM_ID);
}

/* The sockets' map is xdp_redirect_err's too, since 5.13. */
TRACEPOINT_PROBE(xdp, xdp_redirect_err)
{
    struct ix_redirect key = {.queue = args->map_index, .error = args->err};

    if (!is_ours(args->ifindex, args->prog_id))
        return 0;
    key.cpu = bpf_get_smp_processor_id();
    redirects.increment(key);
    return 0;
}

TRACEPOINT_PROBE(xdp, xdp_exception)
{
    struct ix_exception key = {.action = args->act};

    if (!is_ours(args->ifindex, args->prog_id))
        return 0;
    key.cpu = bpf_get_smp_processor_id();
    exceptions.increment(key);
    return 0;
}

/* On its way out a packet's device is the one that sends; on its way in the one that received,
 * which the stack may have changed: skb_iif remembers it. */
static inline int is_of_interface(const void *skb)
{
    const void *dev = (const void *)ix_read_u64(skb, IX_OFF_SK_BUFF_DEV);

    if (ix_is_ours(dev))
        return 1;
    return ix_read_u32(skb, IX_OFF_SK_BUFF_SKB_IIF) == IX_IFINDEX && ix_in_netns(dev);
}

TRACEPOINT_PROBE(skb, kfree_skb)
{
    struct ix_free key = {.location = (u64)args->location};

    if (!is_of_interface(args->skbaddr))
        return 0;
    key.reason = args->reason;
    key.protocol = args->protocol;
    frees.increment(key);
    return 0;
}
