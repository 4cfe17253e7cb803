/* What the tracing programs share. ixnet/trace/program.py puts before it
 *
 *   IX_IFINDEX, IX_NETNS   the interface, and its network namespace's inode number: an index alone
 *                          is one of several interfaces' where there are namespaces
 *   IX_OFF_<TYPE>_<MEMBER> where a member lies in the running kernel
 *
 * and bcc its own headers. The kernel's others are not for programs: no compiler takes all of all
 * kernels.
 */

static inline u64 ix_read_u64(const void *base, u32 offset)
{
    u64 value = 0;

    bpf_probe_read_kernel(&value, sizeof value, base + offset);
    return value;
}

static inline u32 ix_read_u32(const void *base, u32 offset)
{
    u32 value = 0;

    bpf_probe_read_kernel(&value, sizeof value, base + offset);
    return value;
}

/* Whether a struct net_device is in the interface's namespace. */
static inline int ix_in_netns(const void *dev)
{
    const void *net;

    if (!dev)
        return 0;
    net = (const void *)ix_read_u64(dev, IX_OFF_NET_DEVICE_ND_NET);
    return ix_read_u32(net, IX_OFF_NET_NS + IX_OFF_NS_COMMON_INUM) == IX_NETNS;
}

/* Whether it is the interface. */
static inline int ix_is_ours(const void *dev)
{
    return dev && ix_read_u32(dev, IX_OFF_NET_DEVICE_IFINDEX) == IX_IFINDEX && ix_in_netns(dev);
}

/* Slot s of a histogram holds durations of 2^s to 2^(s+1) - 1 ns. */
static inline u32 ix_slot(u64 ns)
{
    return ns ? bpf_log2l(ns) - 1 : 0;
}

struct ix_time {
    u64 count;
    u64 total_ns;
    u64 max_ns;
};

/* Keys have the CPU in them, or the one who calls: nobody else changes the value. */
static inline void ix_add_time(struct ix_time *time, u64 ns)
{
    if (!time)
        return;
    time->count++;
    time->total_ns += ns;
    if (ns > time->max_ns)
        time->max_ns = ns;
}
