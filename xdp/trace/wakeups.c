/* ixnet trace wakeups: system calls on the interface's AF_XDP sockets, whoever makes them, how long
 * they are, what they answer, and the frames that a call sends in copy mode.
 *
 * A socket is found through the caller's descriptors; so for all but sleeps there is nothing to be
 * told about workers, and one that is started again is seen too.
 */

/* bcc writes down the events' arguments with the kernel's names of types. */
#define sigset_t void

#define IX_AF_XDP 44

/* enum Call of ixnet/trace/wakeups.py. */
enum { CALL_SENDTO, CALL_RECVFROM, CALL_POLL };

/* Of a poll on several queues' sockets, or of a worker on none: in the dune placement it sleeps on
 * an epoll descriptor, which tells no queue. */
#define NO_QUEUE 0xffffffffu

/* Of the descriptors that a poll has, so many are looked at. */
#define POLLED 8
#define POLLFD_SIZE 8

struct ix_call {
    u64 began_ns;
    u32 queue;
    u32 call;
    u32 frames;
    u32 pad;
};

/* error: the errno, or 0; frames: that it sent; slot: of the histogram of durations. */
struct ix_caller {
    u32 queue;
    u32 pid;
    u32 call;
    u32 error;
    u32 frames;
    u32 slot;
};

BPF_HASH(workers, u32, u32, 1024);
BPF_HASH(under_way, u64, struct ix_call, 1024);
BPF_HASH(calls, struct ix_caller, struct ix_time, 65536);

/* The queue of an AF_XDP socket of the interface, or NO_QUEUE. What is no socket at all has no
 * private data that leads to this very device. */
static inline u32 queue_of(int fd)
{
    const void *task = (const void *)bpf_get_current_task();
    const void *files = (const void *)ix_read_u64(task, IX_OFF_TASK_STRUCT_FILES);
    const void *table = (const void *)ix_read_u64(files, IX_OFF_FILES_STRUCT_FDT);
    const void *array, *file, *socket, *sk;
    u64 mask = 0xffff;

    if (fd < 0 || (u32)fd >= ix_read_u32(table, IX_OFF_FDTABLE_MAX_FDS))
        return NO_QUEUE;
    array = (const void *)ix_read_u64(table, IX_OFF_FDTABLE_FD);
    file = (const void *)ix_read_u64(array + 8 * (u64)(u32)fd, 0);
    socket = (const void *)ix_read_u64(file, IX_OFF_FILE_PRIVATE_DATA);
    sk = (const void *)ix_read_u64(socket, IX_OFF_SOCKET_SK);
    if ((ix_read_u32(sk, IX_OFF_SOCK_COMMON_SKC_FAMILY) & mask) != IX_AF_XDP)
        return NO_QUEUE;
    if (!ix_is_ours((const void *)ix_read_u64(sk, IX_OFF_XDP_SOCK_DEV)))
        return NO_QUEUE;
    return ix_read_u32(sk, IX_OFF_XDP_SOCK_QUEUE_ID) & mask;
}

static inline int begins(u32 call, u32 queue)
{
    struct ix_call at = {.began_ns = bpf_ktime_get_ns(), .queue = queue, .call = call};
    u64 id = bpf_get_current_pid_tgid();

    under_way.update(&id, &at);
    return 0;
}

static inline int ends(long result)
{
    u64 now = bpf_ktime_get_ns(), id = bpf_get_current_pid_tgid();
    struct ix_call *at = under_way.lookup(&id);
    struct ix_caller key = {.pid = id >> 32};
    struct ix_time none = {0};

    if (!at)
        return 0;
    key.queue = at->queue;
    key.call = at->call;
    key.error = result < 0 ? -result : 0;
    key.frames = at->frames;
    key.slot = ix_slot(now - at->began_ns);
    ix_add_time(calls.lookup_or_try_init(&key, &none), now - at->began_ns);
    under_way.delete(&id);
    return 0;
}

static inline int begins_on(u32 call, int fd)
{
    u32 queue = queue_of(fd);

    return queue == NO_QUEUE ? 0 : begins(call, queue);
}

/* A worker polls an eventfd and the sockets of all its shards. */
static inline int poll_begins(const void *fds, unsigned n)
{
    u32 pid = bpf_get_current_pid_tgid() >> 32, found = NO_QUEUE, sockets = 0;

    for (u32 i = 0; i < POLLED && i < n; i++) {
        u32 queue = NO_QUEUE;
        int fd = -1;

        bpf_probe_read_user(&fd, sizeof fd, fds + i * POLLFD_SIZE);
        queue = queue_of(fd);
        if (queue != NO_QUEUE) {
            found = queue;
            sockets++;
        }
    }
    if (!sockets && !workers.lookup(&pid))
        return 0;
    return begins(CALL_POLL, sockets > 1 ? NO_QUEUE : found);
}

/* One frame, in the call's own thread. */
int frame_sent(struct pt_regs *ctx)
{
    u64 id = bpf_get_current_pid_tgid();
    struct ix_call *at = under_way.lookup(&id);

    if (at)
        at->frames++;
    return 0;
}

TRACEPOINT_PROBE(syscalls, sys_enter_sendto)
{
    return begins_on(CALL_SENDTO, args->fd);
}

TRACEPOINT_PROBE(syscalls, sys_exit_sendto)
{
    return ends(args->ret);
}

TRACEPOINT_PROBE(syscalls, sys_enter_recvfrom)
{
    return begins_on(CALL_RECVFROM, args->fd);
}

TRACEPOINT_PROBE(syscalls, sys_exit_recvfrom)
{
    return ends(args->ret);
}

TRACEPOINT_PROBE(syscalls, sys_enter_poll)
{
    return poll_begins(args->ufds, args->nfds);
}

TRACEPOINT_PROBE(syscalls, sys_exit_poll)
{
    return ends(args->ret);
}

TRACEPOINT_PROBE(syscalls, sys_enter_ppoll)
{
    return poll_begins(args->ufds, args->nfds);
}

TRACEPOINT_PROBE(syscalls, sys_exit_ppoll)
{
    return ends(args->ret);
}
