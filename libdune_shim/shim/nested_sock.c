/* Socket options. Host side. Most are a number or a struct without pointers, and lie where the
 * table has checked. Those that lead further, or that nobody has looked at, are as unknown to ring
 * 3 as to a kernel without them.
 */
#include "shim/call.h"
#include "shim/sys.h"

#include "dune_syscalls.h"

#include <asm/errno.h>

enum {
    LEVEL_IP = 0,
    LEVEL_SOCKET = 1,
    LEVEL_TCP = 6,
    LEVEL_UDP = 17,
    LEVEL_VSOCK = 40,
    LEVEL_IP6 = 41,
    LEVEL_ICMP6 = 58,
    LEVEL_CAN_RAW = 101,
    LEVEL_UDPLITE = 136,
    LEVEL_RAW = 255,
    LEVEL_PACKET = 263,
    LEVEL_NETLINK = 270,
    LEVEL_ALG = 279,
    LEVEL_TLS = 282,
    LEVEL_XDP = 283,
};

#define NETFILTER_FIRST         64 /* from here, for IPv6 up to 69: tables with pointers in them */
#define NETFILTER6_LAST         69
#define IP6_TCLASS              67 /* between those */
#define IP6_RECVTCLASS          66
#define IP6_LAST                80
#define TCP_LAST                45
#define TCP_ZEROCOPY_RECEIVE_NR 35 /* maps packets over an address */
#define UDP_LAST                104
#define XDP_UMEM_REG_NR         4
#define XDP_LAST                16
#define FANOUT_DATA             22 /* a pointer to a program */

/* Programs: read from an address, or running in the kernel. */
static bool is_filter(int32_t option)
{
    enum { ATTACH_FILTER = 26, ATTACH_BPF = 50, REUSEPORT_CBPF = 51, REUSEPORT_EBPF = 52 };

    return option == ATTACH_FILTER || option == ATTACH_BPF || option == REUSEPORT_CBPF ||
           option == REUSEPORT_EBPF;
}

/* True: no pointer in it, whichever way. */
static bool is_flat(int32_t level, int32_t option)
{
    switch (level) {
    case LEVEL_SOCKET:
        return !is_filter(option);
    case LEVEL_IP:
        return option < NETFILTER_FIRST;
    case LEVEL_IP6:
        return option <= IP6_LAST && (option < NETFILTER_FIRST || option > NETFILTER6_LAST ||
                                      option == IP6_TCLASS || option == IP6_RECVTCLASS);
    case LEVEL_TCP:
        return option <= TCP_LAST && option != TCP_ZEROCOPY_RECEIVE_NR;
    case LEVEL_UDP:
    case LEVEL_UDPLITE:
        return option <= UDP_LAST;
    case LEVEL_PACKET:
        return option != FANOUT_DATA;
    case LEVEL_XDP:
        return option <= XDP_LAST;
    case LEVEL_VSOCK:
    case LEVEL_ICMP6:
    case LEVEL_CAN_RAW:
    case LEVEL_RAW:
    case LEVEL_NETLINK:
    case LEVEL_ALG:
    case LEVEL_TLS:
        return true;
    default:
        return false;
    }
}

static long check_option(struct dune_vcpu *cpu, const struct dune_call *call)
{
    if (!(cpu->vault->flags & DUNE_SEALED) || is_flat((int32_t)call->arg[1], (int32_t)call->arg[2]))
        return 0;
    return dune_refuse(cpu, call, "a socket option that may lead to other memory", -ENOPROTOOPT);
}

/* Memory of ring 3's that packets are to be written to. */
static long register_umem(struct dune_vcpu *cpu, struct dune_call *call)
{
    struct {
        uint64_t address, bytes, rest[2];
    } *umem = dune_scratch(cpu, sizeof(*umem));
    uint64_t bytes = (uint32_t)call->arg[4];

    if (umem == NULL)
        return -ENOMEM;
    /* Older programs have a shorter struct, and the kernel takes what it knows of a longer one. */
    if (bytes > sizeof(*umem))
        bytes = sizeof(*umem);
    if (bytes < 2 * sizeof(uint64_t))
        return -EINVAL;
    if (dune_copy_in(cpu, umem, call->arg[3], bytes) != 0 ||
        dune_check_range(cpu, call, umem->address, umem->bytes) != 0)
        return -EFAULT;
    call->arg[3] = (uint64_t)umem;
    call->arg[4] = bytes;
    return dune_forward_raw(cpu, call->nr, call->arg);
}

long dune_do_setsockopt(struct dune_vcpu *cpu, struct dune_call *call)
{
    long error = check_option(cpu, call);

    if (error != 0)
        return error;
    if ((int32_t)call->arg[1] == LEVEL_XDP && (int32_t)call->arg[2] == XDP_UMEM_REG_NR &&
        (int32_t)call->arg[4] >= 0)
        return register_umem(cpu, call);
    return dune_forward_raw(cpu, call->nr, call->arg);
}

long dune_do_getsockopt(struct dune_vcpu *cpu, struct dune_call *call)
{
    long error = check_option(cpu, call);

    return error != 0 ? error : dune_forward_raw(cpu, call->nr, call->arg);
}
