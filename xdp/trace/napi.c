/* ixnet trace napi: polls of the interface's NAPI contexts, by CPU and by whom, the frames that
 * each took, and how long it was.
 *
 * There is no event where a poll begins. It begins when the softirq does, when napi_busy_loop() is
 * called, or where the poll before it ended; so a duration has in it what lies between.
 */

/* enum PollBy of ixnet/trace/napi.py. */
enum { BY_SOFTIRQ, BY_KSOFTIRQD, BY_BUSY_POLL, BY_KTHREAD };

#define NET_RX 3 /* NET_RX_SOFTIRQ */

#define UNTIMED 0xff

/* pid: the process that polls; of a softirq the worker that it interrupted, or 0. slot: of the
 * histogram of durations; UNTIMED: nobody saw it begin. */
struct ix_poll {
    u32 cpu;
    u32 by;
    u32 pid;
    u32 frames;
    u32 slot;
};

BPF_HASH(workers, u32, u32, 1024);
BPF_HASH(polls, struct ix_poll, struct ix_time, 65536);
/* When the softirq at hand, or the poll before in it, began; 0 outside of one. */
BPF_PERCPU_ARRAY(softirq_since, u64, 1);
/* The same for threads in napi_busy_loop(). */
BPF_HASH(busy_since, u64, u64, 1024);

TRACEPOINT_PROBE(irq, softirq_entry)
{
    u64 now = bpf_ktime_get_ns();
    int zero = 0;

    if (args->vec == NET_RX)
        softirq_since.update(&zero, &now);
    return 0;
}

TRACEPOINT_PROBE(irq, softirq_exit)
{
    u64 none = 0;
    int zero = 0;

    if (args->vec == NET_RX)
        softirq_since.update(&zero, &none);
    return 0;
}

int busy_begins(struct pt_regs *ctx)
{
    u64 id = bpf_get_current_pid_tgid(), now = bpf_ktime_get_ns();

    busy_since.update(&id, &now);
    return 0;
}

int busy_ends(struct pt_regs *ctx)
{
    u64 id = bpf_get_current_pid_tgid();

    busy_since.delete(&id);
    return 0;
}

static inline int begins_with(const char *name, const char *with, int length)
{
    for (int i = 0; i < length; i++)
        if (name[i] != with[i])
            return 0;
    return 1;
}

static inline u32 by_whom(int in_softirq)
{
    char comm[16] = {0};

    bpf_get_current_comm(comm, sizeof comm);
    if (in_softirq)
        return begins_with(comm, "ksoftirqd/", 10) ? BY_KSOFTIRQD : BY_SOFTIRQ;
    /* Outside of a softirq only a NAPI thread polls, and whoever asks for it by a system call. */
    return begins_with(comm, "napi/", 5) ? BY_KTHREAD : BY_BUSY_POLL;
}

TRACEPOINT_PROBE(napi, napi_poll)
{
    u64 id = bpf_get_current_pid_tgid(), now = bpf_ktime_get_ns(), began = 0;
    int zero = 0;
    u64 *since = softirq_since.lookup(&zero);
    int in_softirq = since && *since;
    struct ix_poll key = {.cpu = bpf_get_smp_processor_id(), .pid = id >> 32};
    struct ix_time none = {0};

    if (!in_softirq)
        since = busy_since.lookup(&id);
    if (since && *since) {
        began = *since;
        *since = now;
    }
    if (!ix_is_ours((const void *)ix_read_u64(args->napi, IX_OFF_NAPI_STRUCT_DEV)))
        return 0;
    key.by = by_whom(in_softirq);
    if (key.by == BY_KSOFTIRQD || (key.by == BY_SOFTIRQ && !workers.lookup(&key.pid)))
        key.pid = 0;
    key.frames = args->work;
    key.slot = began ? ix_slot(now - began) : UNTIMED;
    ix_add_time(polls.lookup_or_try_init(&key, &none), began ? now - began : 0);
    return 0;
}
