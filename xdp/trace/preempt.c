/* ixnet trace preempt: what kept a worker, ready to run, from its core: other tasks, interrupts,
 * softirqs.
 *
 * `cores` has the pids of a CPU's workers, IX_CORE_WORKERS places a CPU, the first free one 0.
 */

#define IX_CORE_WORKERS 4

/* enum Cause of ixnet/trace/preempt.py. WAIT_*: the whole of one wait; BY_TASK: the part of waits
 * that a task took. */
enum { WAIT_PREEMPTED, WAIT_WOKEN, BY_TASK, BY_IRQ, BY_VECTOR, BY_SOFTIRQ, BY_OWN_SOFTIRQ };

#define STATES 0xff /* of prev_state: 0 is a task that could run on */

/* what: a task's tid, an interrupt's number, a softirq's vector, an enum below. */
struct ix_loss {
    u32 worker;
    u32 cause;
    u32 what;
    u32 slot;
};

struct ix_wait {
    u64 since_ns;
    u64 mark_ns; /* what was before it has been counted */
    u32 cause;
    u32 pad;
};

struct ix_name {
    char text[16];
};

/* What a CPU is in the middle of. irq_ns grows with each interrupt: it is not a softirq's time. */
struct ix_cpu {
    u64 irq_since_ns;
    u64 vector_since_ns;
    u64 softirq_since_ns;
    u64 irq_ns;
    u64 irq_ns_before;
};

BPF_HASH(workers, u32, u32, 1024);
BPF_HASH(cores, u32, u32, 8192);
BPF_HASH(waits, u32, struct ix_wait, 1024);
BPF_HASH(losses, struct ix_loss, struct ix_time, 65536);
BPF_HASH(task_names, u32, struct ix_name, 16384);
BPF_HASH(irq_names, u32, struct ix_name, 1024);
/* Workers in a system call of theirs. */
BPF_HASH(in_call, u32, u32, 1024);
BPF_PERCPU_ARRAY(cpus, struct ix_cpu, 1);

static inline void lose(u32 worker, u32 cause, u32 what, u64 ns)
{
    struct ix_loss key = {.worker = worker, .cause = cause, .what = what, .slot = ix_slot(ns)};
    struct ix_time none = {0};

    ix_add_time(losses.lookup_or_try_init(&key, &none), ns);
}

/* ---- other tasks ----------------------------------------------------------------------------- */

static inline void begin_wait(u32 worker, u32 cause, u64 now)
{
    struct ix_wait wait = {.since_ns = now, .mark_ns = now, .cause = cause};

    waits.update(&worker, &wait);
}

TRACEPOINT_PROBE(sched, sched_wakeup)
{
    u32 pid = args->pid;

    if (workers.lookup(&pid) && !waits.lookup(&pid))
        begin_wait(pid, WAIT_WOKEN, bpf_ktime_get_ns());
    return 0;
}

/* `prev` ran until now while the worker waited. */
static inline void was_kept_by(u32 worker, u32 prev, struct ix_name *name, u64 now)
{
    struct ix_wait *wait = waits.lookup(&worker);

    if (!wait || prev == worker)
        return;
    lose(worker, BY_TASK, prev, now - wait->mark_ns);
    wait->mark_ns = now;
    task_names.update(&prev, name);
}

TRACEPOINT_PROBE(sched, sched_switch)
{
    u32 first = bpf_get_smp_processor_id() * IX_CORE_WORKERS, prev = args->prev_pid;
    u32 next = args->next_pid;
    u64 now = bpf_ktime_get_ns();
    struct ix_name name = {{0}};

    if (!cores.lookup(&first))
        return 0;
    bpf_probe_read_kernel(&name.text, sizeof name.text, args->prev_comm);
    for (u32 i = 0; i < IX_CORE_WORKERS; i++) {
        u32 place = first + i;
        u32 *worker = cores.lookup(&place);
        if (worker && *worker)
            was_kept_by(*worker, prev, &name, now);
    }
    if (workers.lookup(&prev) && !(args->prev_state & STATES))
        begin_wait(prev, WAIT_PREEMPTED, now);
    struct ix_wait *wait = waits.lookup(&next);
    if (wait) {
        lose(next, wait->cause, 0, now - wait->since_ns);
        waits.delete(&next);
    }
    return 0;
}

/* ---- interrupts ------------------------------------------------------------------------------ */

/* The worker that runs here, or 0. */
static inline u32 running_worker(void)
{
    u32 tid = bpf_get_current_pid_tgid();

    return workers.lookup(&tid) ? tid : 0;
}

static inline struct ix_cpu *this_cpu(void)
{
    int zero = 0;

    return cpus.lookup(&zero);
}

TRACEPOINT_PROBE(irq, irq_handler_entry)
{
    struct ix_cpu *cpu = this_cpu();
    struct ix_name name = {{0}};
    u32 irq = args->irq;

    if (!cpu || !running_worker())
        return 0;
    TP_DATA_LOC_READ_STR(&name.text, name, sizeof name.text);
    irq_names.update(&irq, &name);
    cpu->irq_since_ns = bpf_ktime_get_ns();
    return 0;
}

TRACEPOINT_PROBE(irq, irq_handler_exit)
{
    struct ix_cpu *cpu = this_cpu();
    u32 worker = running_worker();
    u64 ns;

    if (!cpu || !worker || !cpu->irq_since_ns)
        return 0;
    ns = bpf_ktime_get_ns() - cpu->irq_since_ns;
    cpu->irq_since_ns = 0;
    cpu->irq_ns += ns;
    lose(worker, BY_IRQ, args->irq, ns);
    return 0;
}

/* ---- softirqs -------------------------------------------------------------------------------- */

TRACEPOINT_PROBE(irq, softirq_entry)
{
    struct ix_cpu *cpu = this_cpu();

    if (!cpu || !running_worker())
        return 0;
    cpu->softirq_since_ns = bpf_ktime_get_ns();
    cpu->irq_ns_before = cpu->irq_ns;
    return 0;
}

TRACEPOINT_PROBE(irq, softirq_exit)
{
    struct ix_cpu *cpu = this_cpu();
    u32 worker = running_worker();
    u64 ns, nested;

    if (!cpu || !worker || !cpu->softirq_since_ns)
        return 0;
    ns = bpf_ktime_get_ns() - cpu->softirq_since_ns;
    nested = cpu->irq_ns - cpu->irq_ns_before;
    cpu->softirq_since_ns = 0;
    lose(worker, in_call.lookup(&worker) ? BY_OWN_SOFTIRQ : BY_SOFTIRQ, args->vec,
         ns > nested ? ns - nested : 0);
    return 0;
}

/* What a worker's call asks of the kernel, a veth's other end for instance, often runs as a softirq
 * before the call returns: that is the worker's own work. */
TRACEPOINT_PROBE(raw_syscalls, sys_enter)
{
    u32 tid = bpf_get_current_pid_tgid();

    if (workers.lookup(&tid))
        in_call.update(&tid, &tid);
    return 0;
}

TRACEPOINT_PROBE(raw_syscalls, sys_exit)
{
    u32 tid = bpf_get_current_pid_tgid();

    if (workers.lookup(&tid))
        in_call.delete(&tid);
    return 0;
}

/* ---- interrupts without a number, of x86 ----------------------------------------------------- */

#if IX_HAVE_VECTORS

/* Not irq_work: perf, by which programs are attached, makes such interrupts itself. */
enum { TIMER, RESCHEDULE, CALL_FUNCTION, CALL_FUNCTION_SINGLE };

static inline int vector_begins(void)
{
    struct ix_cpu *cpu = this_cpu();

    if (cpu && running_worker())
        cpu->vector_since_ns = bpf_ktime_get_ns();
    return 0;
}

static inline int vector_ends(u32 what)
{
    struct ix_cpu *cpu = this_cpu();
    u32 worker = running_worker();
    u64 ns;

    if (!cpu || !worker || !cpu->vector_since_ns)
        return 0;
    ns = bpf_ktime_get_ns() - cpu->vector_since_ns;
    cpu->vector_since_ns = 0;
    cpu->irq_ns += ns;
    lose(worker, BY_VECTOR, what, ns);
    return 0;
}

TRACEPOINT_PROBE(irq_vectors, local_timer_entry)
{
    return vector_begins();
}

TRACEPOINT_PROBE(irq_vectors, local_timer_exit)
{
    return vector_ends(TIMER);
}

TRACEPOINT_PROBE(irq_vectors, reschedule_entry)
{
    return vector_begins();
}

TRACEPOINT_PROBE(irq_vectors, reschedule_exit)
{
    return vector_ends(RESCHEDULE);
}

TRACEPOINT_PROBE(irq_vectors, call_function_entry)
{
    return vector_begins();
}

TRACEPOINT_PROBE(irq_vectors, call_function_exit)
{
    return vector_ends(CALL_FUNCTION);
}

TRACEPOINT_PROBE(irq_vectors, call_function_single_entry)
{
    return vector_begins();
}

TRACEPOINT_PROBE(irq_vectors, call_function_single_exit)
{
    return vector_ends(CALL_FUNCTION_SINGLE);
}

#endif
