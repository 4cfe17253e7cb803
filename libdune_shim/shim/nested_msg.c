/* Messages: sendto, sendmsg, recvmsg and those for many. Host side. The header, the vector, the
 * address and the control data that are sent are copied to the scratch and checked there; what is
 * received goes straight to ring 3's memory, and the kernel's results in the header are copied
 * back.
 */
#include "shim/call.h"
#include "shim/path.h"
#include "shim/policy.h"
#include "shim/sys.h"

#include "dune_syscalls.h"

#include <asm/errno.h>
#include <linux/uio.h>

#define ADDRESS_MAX 128 /* struct sockaddr_storage */
#define CONTROL_MAX \
    (64 * 1024) /* no more than half the scratch; Linux's own default is 128 KiB \
                 */

#define LEVEL_SOCKET   1 /* SOL_SOCKET */
#define LEVEL_RDS      276
#define CONTROL_RIGHTS 1 /* SCM_RIGHTS */
#define DONT_WAIT      0x40u
#define WAIT_FOR_ONE   0x10000u

#define CLOCK_OF_TIMEOUT 1 /* CLOCK_MONOTONIC */
#define NS_PER_S         1000000000

struct header { /* struct msghdr */
    uint64_t name;
    uint32_t name_bytes, pad;
    uint64_t iov, n_iov, control, control_bytes;
    uint32_t flags, pad2;
};

struct many { /* struct mmsghdr */
    struct header header;
    uint32_t bytes, pad;
};

struct control { /* struct cmsghdr */
    uint64_t bytes;
    int32_t level, type;
};

/* ---- addresses ------------------------------------------------------------------------------- */

/* An address to send to: a checked copy in scratch. *fd: to close behind the call, or -1. Returns
 * its length. */
static long copy_address(struct dune_vcpu *cpu, const struct dune_call *call, uint64_t from,
                         uint64_t bytes, void **to, int *fd)
{
    uint8_t address[ADDRESS_MAX];
    uint16_t family = 0;

    *fd = -1;
    *to = NULL;
    if (dune_copy_in(cpu, address, from, bytes) != 0)
        return -EFAULT;
    if (bytes >= sizeof(family))
        __builtin_memcpy(&family, address, sizeof(family));
    /* AF_UNSPEC means to connect to nobody; but UDP takes such an address for its own. */
    if (family == 0 && (cpu->vault->policy->denied & DUNE_CLASS_NET))
        return dune_refuse(cpu, call, "the policy denies to send to such an address", -EPERM);
    return dune_path_sockaddr(cpu, call, address, bytes, false, to, fd);
}

long dune_do_sendto(struct dune_vcpu *cpu, struct dune_call *call)
{
    int32_t bytes = (int32_t)call->arg[5];
    long result;
    void *to;
    int fd;

    if (call->arg[4] == 0)
        return dune_forward_raw(cpu, call->nr, call->arg);
    if (bytes < 0 || bytes > ADDRESS_MAX)
        return -EINVAL;
    result = copy_address(cpu, call, call->arg[4], (uint64_t)bytes, &to, &fd);
    if (result < 0)
        return result;
    call->arg[4] = (uint64_t)to;
    call->arg[5] = (uint64_t)result;
    result = dune_forward_raw(cpu, call->nr, call->arg);
    if (fd >= 0)
        dune_sys1(__NR_close, fd);
    return result;
}

/* ---- control data ---------------------------------------------------------------------------- */

/* None of the shim's descriptors may leave; RDS takes addresses of memory to write to. Malformed
 * data is the kernel's to refuse: it sees the same copy. */
static long check_control(struct dune_vcpu *cpu, const struct dune_call *call, const uint8_t *at,
                          uint64_t bytes)
{
    while (bytes >= sizeof(struct control)) {
        const struct control *control = (const struct control *)at;
        const int32_t *fd = (const int32_t *)(control + 1);
        uint64_t step;

        if (control->bytes < sizeof(*control) || control->bytes > bytes)
            return 0;
        if (control->level == LEVEL_RDS)
            return dune_refuse(cpu, call, "RDS reaches memory by address", -EINVAL);
        if (control->level == LEVEL_SOCKET && control->type == CONTROL_RIGHTS)
            for (uint64_t i = 0; i < (control->bytes - sizeof(*control)) / sizeof(*fd); i++)
                if (!dune_fd_is_free(cpu->vault, (uint64_t)fd[i]))
                    return dune_refuse(cpu, call, "a descriptor of the shim's", -EBADF);
        step = (control->bytes + 7) & ~(uint64_t)7;
        if (step > bytes)
            return 0;
        at += step;
        bytes -= step;
    }
    return 0;
}

static long copy_control(struct dune_vcpu *cpu, const struct dune_call *call, struct header *header)
{
    uint8_t *copy;
    long error;

    if (header->control_bytes == 0)
        return 0;
    if (header->control_bytes > CONTROL_MAX)
        return -ENOBUFS;
    copy = dune_scratch(cpu, header->control_bytes);
    if (copy == NULL)
        return -ENOBUFS;
    if (dune_copy_in(cpu, copy, header->control, header->control_bytes) != 0)
        return -EFAULT;
    error = check_control(cpu, call, copy, header->control_bytes);
    header->control = (uint64_t)copy;
    return error;
}

/* ---- one message ----------------------------------------------------------------------------- */

/* The header and its vector, in scratch, checked. */
static long copy_header(struct dune_vcpu *cpu, const struct dune_call *call, uint64_t from,
                        struct header **copy)
{
    struct header *header = dune_scratch(cpu, sizeof(*header));
    struct dune_iovec *iov;
    long error;

    if (header == NULL)
        return -ENOMEM;
    if (dune_copy_in(cpu, header, from, sizeof(*header)) != 0)
        return -EFAULT;
    if (header->name == 0)
        header->name_bytes = 0;
    if ((int32_t)header->name_bytes < 0)
        return -EINVAL;
    if (header->name_bytes > ADDRESS_MAX)
        header->name_bytes = ADDRESS_MAX;
    if (header->n_iov > UIO_MAXIOV)
        return -EMSGSIZE;
    error = dune_copy_iov(cpu, call, header->iov, header->n_iov, &iov);
    if (error != 0)
        return error;
    header->iov = (uint64_t)iov;
    *copy = header;
    return 0;
}

static long send_one(struct dune_vcpu *cpu, const struct dune_call *call, uint64_t from,
                     uint64_t flags)
{
    struct header *header;
    long result = copy_header(cpu, call, from, &header);
    uint64_t arg[6] = {call->arg[0], 0, flags, 0, 0, 0};
    void *to;
    int fd = -1;

    if (result == 0)
        result = copy_control(cpu, call, header);
    if (result == 0 && header->name != 0 && header->name_bytes != 0) {
        result = copy_address(cpu, call, header->name, header->name_bytes, &to, &fd);
        header->name = (uint64_t)to;
        header->name_bytes = result < 0 ? 0 : (uint32_t)result;
    } else if (result == 0) {
        header->name = 0;
    }
    if (result < 0)
        return result;
    arg[1] = (uint64_t)header;
    result = dune_forward_raw(cpu, __NR_sendmsg, arg);
    if (fd >= 0)
        dune_sys1(__NR_close, fd);
    return result;
}

static long receive_one(struct dune_vcpu *cpu, const struct dune_call *call, uint64_t to,
                        uint64_t flags)
{
    struct header *header;
    long result = copy_header(cpu, call, to, &header);
    uint64_t arg[6] = {call->arg[0], 0, flags, 0, 0, 0};

    if (result != 0)
        return result;
    /* The kernel takes the address's length from this copy, which nobody can change. */
    if (dune_check_range(cpu, call, header->name, header->name_bytes) != 0 ||
        dune_check_range(cpu, call, header->control, header->control_bytes) != 0)
        return -EFAULT;
    arg[1] = (uint64_t)header;
    result = dune_forward_raw(cpu, __NR_recvmsg, arg);
    if (result < 0)
        return result;
    if ((header->name != 0 && dune_copy_out(cpu, to + offsetof(struct header, name_bytes),
                                            &header->name_bytes, sizeof(uint32_t)) != 0) ||
        dune_copy_out(cpu, to + offsetof(struct header, control_bytes), &header->control_bytes,
                      sizeof(uint64_t)) != 0 ||
        dune_copy_out(cpu, to + offsetof(struct header, flags), &header->flags, sizeof(uint32_t)) !=
            0)
        return -EFAULT;
    return result;
}

long dune_do_sendmsg(struct dune_vcpu *cpu, struct dune_call *call)
{
    return send_one(cpu, call, call->arg[1], call->arg[2]);
}

long dune_do_recvmsg(struct dune_vcpu *cpu, struct dune_call *call)
{
    return receive_one(cpu, call, call->arg[1], call->arg[2]);
}

/* ---- many: one after the other, as the kernel does ------------------------------------------- */

static uint32_t limited(uint64_t n)
{
    return (uint32_t)n < UIO_MAXIOV ? (uint32_t)n : UIO_MAXIOV;
}

static uint64_t address_of(const struct dune_call *call, uint32_t i)
{
    return call->arg[1] + i * sizeof(struct many);
}

static long store_bytes(struct dune_vcpu *cpu, uint64_t message, long bytes)
{
    uint32_t n = (uint32_t)bytes;

    return dune_copy_out(cpu, message + offsetof(struct many, bytes), &n, sizeof(n));
}

long dune_do_sendmmsg(struct dune_vcpu *cpu, struct dune_call *call)
{
    uint32_t n = limited(call->arg[2]), done = 0;
    long result = 0;

    while (done < n) {
        uint64_t at = address_of(call, done);

        cpu->scratch_used = 0;
        result = send_one(cpu, call, at, call->arg[3]);
        if (result >= 0)
            result = store_bytes(cpu, at, result);
        if (result < 0)
            break;
        done++;
    }
    return done > 0 ? (long)done : result;
}

static int64_t now_ns(void)
{
    int64_t now[2] = {0, 0};

    dune_sys2(__NR_clock_gettime, CLOCK_OF_TIMEOUT, now);
    return now[0] * NS_PER_S + now[1];
}

/* When recvmmsg() is to end, which it looks at behind each message; 0: never. */
static long read_timeout(struct dune_vcpu *cpu, uint64_t from, int64_t *end_ns)
{
    int64_t time[2];

    *end_ns = 0;
    if (from == 0)
        return 0;
    if (dune_copy_in(cpu, time, from, sizeof(time)) != 0)
        return -EFAULT;
    if (time[0] < 0 || time[1] < 0 || time[1] >= NS_PER_S)
        return -EINVAL;
    if (time[0] < INT64_MAX / NS_PER_S / 2)
        *end_ns = now_ns() + time[0] * NS_PER_S + time[1];
    return 0;
}

static long receive_many(struct dune_vcpu *cpu, const struct dune_call *call, int64_t end_ns)
{
    uint32_t n = limited(call->arg[2]), flags = (uint32_t)call->arg[3], done = 0;
    long result = 0;

    while (done < n) {
        uint64_t at = address_of(call, done);

        cpu->scratch_used = 0;
        result = receive_one(cpu, call, at, flags & ~WAIT_FOR_ONE);
        if (result >= 0)
            result = store_bytes(cpu, at, result);
        if (result < 0)
            break;
        done++;
        if (flags & WAIT_FOR_ONE)
            flags |= DONT_WAIT;
        if (end_ns != 0 && now_ns() >= end_ns)
            break;
    }
    return done > 0 ? (long)done : result;
}

long dune_do_recvmmsg(struct dune_vcpu *cpu, struct dune_call *call)
{
    int64_t end_ns, rest_ns, time[2];
    long result = read_timeout(cpu, call->arg[4], &end_ns);

    if (result != 0)
        return result;
    result = receive_many(cpu, call, end_ns);
    if (result > 0 && end_ns != 0) {
        rest_ns = end_ns - now_ns();
        if (rest_ns < 0)
            rest_ns = 0;
        time[0] = rest_ns / NS_PER_S;
        time[1] = rest_ns % NS_PER_S;
        if (dune_copy_out(cpu, call->arg[4], time, sizeof(time)) != 0)
            return -EFAULT;
    }
    return result;
}
