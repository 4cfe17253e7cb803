/* Calls whose arguments lead to more pointers, or mean this or that by another argument's value.
 * Host side. What lies in ring 3's memory is copied to the scratch, the copy is checked, and the
 * kernel gets the copy: so no thread can change it in between. (Messages: nested_msg.c. Socket
 * options: nested_sock.c.)
 */
#include "shim/call.h"
#include "shim/path.h"
#include "shim/policy.h"
#include "shim/sys.h"

#include "dune_syscalls.h"

#include <asm/errno.h>
#include <linux/futex.h>
#include <linux/ipc.h>
#include <linux/sem.h>
#include <linux/uio.h>

#define SIGSET_BYTES   8
#define TIMESPEC_BYTES 16
#define EVENT_BYTES    64  /* struct sigevent */
#define COOKIE_BYTES   32  /* NOTIFY_COOKIE_LEN */
#define WAITERS_MAX    128 /* FUTEX_WAITV_MAX */
#define WAITERS_MOVED  2   /* futex_requeue(): from, to */
#define SEMID_BYTES    104 /* struct semid64_ds */
/* semctl() doesn't say how many semaphores a set has: more than any can. */
#define SEMAPHORES_BYTES (2 * 65536)

#define POLLED_MAX   8192 /* half the scratch */
#define SKIPPED      (-0x7fffffff)
#define POLL_INVALID 0x20 /* POLLNVAL */

#define EVENT_THREAD 2 /* SIGEV_THREAD */
#define LOCK_CURRENT 1 /* MCL_CURRENT */
#define LOCK_ONFAULT 4 /* MCL_ONFAULT */

/* ---- vectors --------------------------------------------------------------------------------- */

long dune_copy_iov(struct dune_vcpu *cpu, const struct dune_call *call, uint64_t from, uint64_t n,
                   struct dune_iovec **copy)
{
    struct dune_iovec *iov;

    *copy = NULL;
    if (n > UIO_MAXIOV)
        return -EINVAL;
    if (n == 0)
        return 0;
    iov = dune_scratch(cpu, n * sizeof(*iov));
    if (iov == NULL)
        return -ENOMEM;
    if (dune_copy_in(cpu, iov, from, n * sizeof(*iov)) != 0)
        return -EFAULT;
    for (uint64_t i = 0; i < n; i++) {
        if ((int64_t)iov[i].bytes < 0)
            return -EINVAL;
        /* All together the kernel moves no more than this. */
        if (iov[i].bytes > DUNE_RW_MAX)
            iov[i].bytes = DUNE_RW_MAX;
        if (dune_check_range(cpu, call, iov[i].base, iov[i].bytes) != 0)
            return -EFAULT;
    }
    *copy = iov;
    return 0;
}

static long forward_vector(struct dune_vcpu *cpu, struct dune_call *call)
{
    struct dune_iovec *iov;
    long error = dune_copy_iov(cpu, call, call->arg[1], call->arg[2], &iov);

    if (error != 0)
        return error;
    call->arg[1] = (uint64_t)iov;
    return dune_forward_raw(cpu, call->nr, call->arg);
}

long dune_do_readv(struct dune_vcpu *cpu, struct dune_call *call)
{
    return forward_vector(cpu, call);
}

long dune_do_writev(struct dune_vcpu *cpu, struct dune_call *call)
{
    return forward_vector(cpu, call);
}

long dune_do_preadv(struct dune_vcpu *cpu, struct dune_call *call)
{
    return forward_vector(cpu, call);
}

long dune_do_pwritev(struct dune_vcpu *cpu, struct dune_call *call)
{
    return forward_vector(cpu, call);
}

long dune_do_preadv2(struct dune_vcpu *cpu, struct dune_call *call)
{
    return forward_vector(cpu, call);
}

long dune_do_pwritev2(struct dune_vcpu *cpu, struct dune_call *call)
{
    return forward_vector(cpu, call);
}

long dune_do_vmsplice(struct dune_vcpu *cpu, struct dune_call *call)
{
    return forward_vector(cpu, call);
}

/* ---- waiting for descriptors ----------------------------------------------------------------- */

/* The shim's descriptors are beyond the sets' end, as closed ones beyond the table's are. */
static void limit_sets(const struct dune_vcpu *cpu, struct dune_call *call)
{
    if ((int32_t)call->arg[0] > cpu->vault->first_fd)
        call->arg[0] = (uint64_t)cpu->vault->first_fd;
}

long dune_do_select(struct dune_vcpu *cpu, struct dune_call *call)
{
    limit_sets(cpu, call);
    return dune_forward_raw(cpu, call->nr, call->arg);
}

struct polled { /* struct pollfd */
    int32_t fd;
    uint16_t events, revents;
};

/* True: one of the shim's is among them. They are marked in the copy as the kernel skips them. */
static bool skip_closed(const struct dune_vcpu *cpu, struct polled *polled, uint32_t n)
{
    bool any = false;

    for (uint32_t i = 0; i < n; i++) {
        if (dune_fd_is_free(cpu->vault, (uint64_t)polled[i].fd))
            continue;
        polled[i].fd = SKIPPED;
        any = true;
    }
    return any;
}

/* A closed descriptor is ready at once, so that nothing is waited for. */
static long poll_with_closed(struct dune_vcpu *cpu, struct dune_call *call, struct polled *polled,
                             uint32_t n)
{
    uint64_t *zero = dune_scratch(cpu, TIMESPEC_BYTES), to = call->arg[0];
    long result;

    if (zero == NULL)
        return -ENOMEM;
    zero[0] = zero[1] = 0;
    call->arg[0] = (uint64_t)polled;
    call->arg[2] = call->nr == __NR_poll ? 0 : (uint64_t)zero;
    result = dune_forward_raw(cpu, call->nr, call->arg);
    for (uint32_t i = 0; result >= 0 && i < n; i++) {
        if (polled[i].fd == SKIPPED) {
            polled[i].revents = POLL_INVALID;
            result++;
        }
        if (dune_copy_out(cpu, to + i * sizeof(*polled) + offsetof(struct polled, revents),
                          &polled[i].revents, sizeof(polled[i].revents)) != 0)
            return -EFAULT;
    }
    return result;
}

/* Where none of the shim's descriptors is named the kernel gets ring 3's own array: what a thread
 * puts there meanwhile tells it the state of one at most. */
static long forward_poll(struct dune_vcpu *cpu, struct dune_call *call)
{
    uint32_t n = (uint32_t)call->arg[1];
    struct polled *polled;

    if (n == 0 || n > POLLED_MAX)
        return dune_forward_raw(cpu, call->nr, call->arg);
    polled = dune_scratch(cpu, n * sizeof(*polled));
    if (polled == NULL)
        return -ENOMEM;
    if (dune_copy_in(cpu, polled, call->arg[0], n * sizeof(*polled)) != 0)
        return -EFAULT;
    if (skip_closed(cpu, polled, n))
        return poll_with_closed(cpu, call, polled, n);
    return dune_forward_raw(cpu, call->nr, call->arg);
}

long dune_do_poll(struct dune_vcpu *cpu, struct dune_call *call)
{
    return forward_poll(cpu, call);
}

long dune_do_ppoll(struct dune_vcpu *cpu, struct dune_call *call)
{
    return forward_poll(cpu, call);
}

/* The last argument points to a pointer to the mask, and the mask's size. */
long dune_do_pselect6(struct dune_vcpu *cpu, struct dune_call *call)
{
    limit_sets(cpu, call);
    if (call->arg[5] != 0) {
        uint64_t *mask = dune_scratch(cpu, 2 * sizeof(*mask));

        if (mask == NULL)
            return -ENOMEM;
        if (dune_copy_in(cpu, mask, call->arg[5], 2 * sizeof(*mask)) != 0 ||
            dune_check_range(cpu, call, mask[0], SIGSET_BYTES) != 0)
            return -EFAULT;
        call->arg[5] = (uint64_t)mask;
    }
    return dune_forward_raw(cpu, call->nr, call->arg);
}

/* ---- two descriptors at once ----------------------------------------------------------------- */

static void close_both(const int32_t fd[2])
{
    dune_sys1(__NR_close, fd[0]);
    dune_sys1(__NR_close, fd[1]);
}

/* Their numbers go where call->arg[where] says. */
static long make_pair(struct dune_vcpu *cpu, struct dune_call *call, int where)
{
    uint64_t to = call->arg[where];
    int32_t *fd = dune_scratch(cpu, 2 * sizeof(*fd));
    long result, second;

    if (fd == NULL)
        return -ENOMEM;
    call->arg[where] = (uint64_t)fd;
    result = dune_forward_raw(cpu, call->nr, call->arg);
    if (result != 0)
        return result;
    second = dune_fd_result(cpu, fd[1]); /* closes what is beyond ring 3's limit */
    if (second < 0) {
        dune_sys1(__NR_close, fd[0]);
        return second;
    }
    if (!dune_fd_is_free(cpu->vault, (uint64_t)fd[0])) { /* another thread closed lower ones */
        close_both(fd);
        return -EMFILE;
    }
    if (dune_copy_out(cpu, to, fd, 2 * sizeof(*fd)) != 0) {
        close_both(fd);
        return -EFAULT;
    }
    return 0;
}

long dune_do_pipe(struct dune_vcpu *cpu, struct dune_call *call)
{
    return make_pair(cpu, call, 0);
}

long dune_do_pipe2(struct dune_vcpu *cpu, struct dune_call *call)
{
    return make_pair(cpu, call, 0);
}

long dune_do_socketpair(struct dune_vcpu *cpu, struct dune_call *call)
{
    return make_pair(cpu, call, 3);
}

/* ---- futexes --------------------------------------------------------------------------------- */

/* Which arguments of an operation are pointers: the fourth is a time to wait or a number, the fifth
 * a second word or nothing. */
long dune_do_futex(struct dune_vcpu *cpu, struct dune_call *call)
{
    bool waits = false, second = false;

    switch (call->arg[1] & (uint32_t)FUTEX_CMD_MASK) {
    case FUTEX_WAIT:
    case FUTEX_WAIT_BITSET:
    case FUTEX_LOCK_PI:
    case FUTEX_LOCK_PI2:
        waits = true;
        break;
    case FUTEX_WAIT_REQUEUE_PI:
        waits = second = true;
        break;
    case FUTEX_REQUEUE:
    case FUTEX_CMP_REQUEUE:
    case FUTEX_CMP_REQUEUE_PI:
    case FUTEX_WAKE_OP:
        second = true;
        break;
    case FUTEX_WAKE:
    case FUTEX_WAKE_BITSET:
    case FUTEX_UNLOCK_PI:
    case FUTEX_TRYLOCK_PI:
        break;
    default:
        return -ENOSYS;
    }
    if (dune_check_range(cpu, call, call->arg[0], sizeof(uint32_t)) != 0 ||
        (waits && dune_check_range(cpu, call, call->arg[3], TIMESPEC_BYTES) != 0) ||
        (second && dune_check_range(cpu, call, call->arg[4], sizeof(uint32_t)) != 0))
        return -EFAULT;
    return dune_forward_raw(cpu, call->nr, call->arg);
}

struct waiter { /* struct futex_waitv */
    uint64_t value, word;
    uint32_t flags, reserved;
};

static long forward_waiters(struct dune_vcpu *cpu, struct dune_call *call, uint32_t n)
{
    struct waiter *waiter = dune_scratch(cpu, n * sizeof(*waiter));

    if (waiter == NULL)
        return -ENOMEM;
    if (dune_copy_in(cpu, waiter, call->arg[0], n * sizeof(*waiter)) != 0)
        return -EFAULT;
    for (uint32_t i = 0; i < n; i++)
        if (dune_check_range(cpu, call, waiter[i].word, sizeof(uint64_t)) != 0)
            return -EFAULT;
    call->arg[0] = (uint64_t)waiter;
    return dune_forward_raw(cpu, call->nr, call->arg);
}

long dune_do_futex_waitv(struct dune_vcpu *cpu, struct dune_call *call)
{
    uint32_t n = (uint32_t)call->arg[1];

    if (n == 0 || n > WAITERS_MAX)
        return -EINVAL;
    return forward_waiters(cpu, call, n);
}

long dune_do_futex_requeue(struct dune_vcpu *cpu, struct dune_call *call)
{
    return forward_waiters(cpu, call, WAITERS_MOVED);
}

/* ---- signals to processes -------------------------------------------------------------------- */

/* Where the policy denies the class, the process may still signal itself: abort() does. */
static long check_target(struct dune_vcpu *cpu, const struct dune_call *call, uint64_t pid)
{
    if ((cpu->vault->policy->denied & DUNE_CLASS_SIGNAL) == 0 ||
        (int32_t)pid == (int32_t)dune_sys0(__NR_getpid))
        return 0;
    return dune_refuse(cpu, call, "the policy denies signals to other processes", -EPERM);
}

static long forward_signal(struct dune_vcpu *cpu, struct dune_call *call)
{
    long error = check_target(cpu, call, call->arg[0]);

    return error != 0 ? error : dune_forward_raw(cpu, call->nr, call->arg);
}

long dune_do_kill(struct dune_vcpu *cpu, struct dune_call *call)
{
    return forward_signal(cpu, call);
}

long dune_do_tgkill(struct dune_vcpu *cpu, struct dune_call *call)
{
    return forward_signal(cpu, call);
}

/* Names a thread of any process: where that matters, it is made to be one of this. */
long dune_do_tkill(struct dune_vcpu *cpu, struct dune_call *call)
{
    uint64_t arg[6] = {(uint64_t)dune_sys0(__NR_getpid), call->arg[0], call->arg[1], 0, 0, 0};

    if ((cpu->vault->policy->denied & DUNE_CLASS_SIGNAL) == 0)
        return dune_forward_raw(cpu, call->nr, call->arg);
    return dune_forward_raw(cpu, __NR_tgkill, arg);
}

long dune_do_rt_sigqueueinfo(struct dune_vcpu *cpu, struct dune_call *call)
{
    return forward_signal(cpu, call);
}

long dune_do_rt_tgsigqueueinfo(struct dune_vcpu *cpu, struct dune_call *call)
{
    return forward_signal(cpu, call);
}

/* ---- odds and ends --------------------------------------------------------------------------- */

/* MCL_CURRENT would fill the vault's whole GiB with memory. */
long dune_do_mlockall(struct dune_vcpu *cpu, struct dune_call *call)
{
    if (call->arg[0] & LOCK_CURRENT)
        call->arg[0] |= LOCK_ONFAULT;
    return dune_forward_raw(cpu, call->nr, call->arg);
}

/* SIGEV_THREAD: sigev_value points to what is sent to the netlink socket sigev_signo. */
long dune_do_mq_notify(struct dune_vcpu *cpu, struct dune_call *call)
{
    struct {
        uint64_t value;
        int32_t number, kind;
        uint8_t rest[EVENT_BYTES - 16];
    } * event;

    if (call->arg[1] == 0)
        return dune_forward_raw(cpu, call->nr, call->arg);
    event = dune_scratch(cpu, sizeof(*event));
    if (event == NULL)
        return -ENOMEM;
    if (dune_copy_in(cpu, event, call->arg[1], sizeof(*event)) != 0)
        return -EFAULT;
    if (event->kind == EVENT_THREAD) {
        if (!dune_fd_is_free(cpu->vault, (uint64_t)event->number))
            return -EBADF;
        if (dune_check_range(cpu, call, event->value, COOKIE_BYTES) != 0)
            return -EFAULT;
    }
    call->arg[1] = (uint64_t)event;
    return dune_forward_raw(cpu, call->nr, call->arg);
}

long dune_do_semctl(struct dune_vcpu *cpu, struct dune_call *call)
{
    uint64_t bytes = 0;

    switch ((uint32_t)call->arg[2]) {
    case IPC_SET:
    case IPC_STAT:
    case IPC_INFO:
    case SEM_STAT:
    case SEM_INFO:
    case SEM_STAT_ANY:
        bytes = SEMID_BYTES;
        break;
    case GETALL:
    case SETALL:
        bytes = SEMAPHORES_BYTES;
        break;
    case IPC_RMID:
    case GETPID:
    case GETVAL:
    case GETNCNT:
    case GETZCNT:
    case SETVAL:
        break; /* no pointer */
    default:
        return -EINVAL;
    }
    if (bytes != 0 && dune_check_range(cpu, call, call->arg[3], bytes) != 0)
        return -EFAULT;
    return dune_forward_raw(cpu, call->nr, call->arg);
}
