/* ioctl: the commands that are let through, and what lies behind their argument.
 *
 * A command is a number that each driver reads in its own way. What makes the list below safe on
 * any descriptor: none of these arguments leads to further pointers (those that do are copied
 * first), and one that begins outside of the vault ends before it, whatever the driver thinks it
 * is.
 */
#include "shim/path.h"
#include "shim/sys.h"

#include <asm/ioctls.h>
#include <errno.h>

#define FS_IOC_GETFLAGS   0x80086601u
#define FS_IOC_GETVERSION 0x80087601u
#define FS_IOC_FSGETXATTR 0x801c581fu
#define FIGETBSZ          2u
#define FICLONE           0x40049409u
#define FICLONERANGE      0x4020940du
#define BLKGETSIZE        0x1260u
#define BLKSSZGET         0x1268u
#define BLKGETSIZE64      0x80081272u
#define RNDGETENTCNT      0x80045200u
#define FIOGETOWN         0x8903u
#define SIOCGPGRP         0x8904u
#define SIOCATMARK        0x8905u
#define SIOCGSTAMP_OLD    0x8906u
#define SIOCGSTAMPNS_OLD  0x8907u
#define SIOCGIFCONF       0x8912u
#define SIOCOUTQNSD       0x894bu

#define IFREQ_BYTES   40
#define TERMIOS_BYTES 36
#define TERMIO_BYTES  18

/* Bytes behind the argument; NUMBER: it is a number, or nothing. */
#define NUMBER 0

struct command {
    uint32_t number;
    uint32_t bytes;
};

static const struct command commands[] = {
    /* terminals; TIOCSTI (input in another's name), TIOCLINUX, TIOCCONS and TIOCSETD are missing */
    {TCGETS, TERMIOS_BYTES},
    {TCSETS, TERMIOS_BYTES},
    {TCSETSW, TERMIOS_BYTES},
    {TCSETSF, TERMIOS_BYTES},
    {TCGETA, TERMIO_BYTES},
    {TCSETA, TERMIO_BYTES},
    {TCSETAW, TERMIO_BYTES},
    {TCSETAF, TERMIO_BYTES},
    {0x802c542a, 44}, /* TCGETS2, TCSETS2, TCSETSW2, TCSETSF2 */
    {0x402c542b, 44},
    {0x402c542c, 44},
    {0x402c542d, 44},
    {TCSBRK, NUMBER},
    {TCSBRKP, NUMBER},
    {TCXONC, NUMBER},
    {TCFLSH, NUMBER},
    {TIOCSBRK, NUMBER},
    {TIOCCBRK, NUMBER},
    {TIOCEXCL, NUMBER},
    {TIOCNXCL, NUMBER},
    {TIOCGEXCL, 4},
    {TIOCSCTTY, NUMBER},
    {TIOCNOTTY, NUMBER},
    {TIOCGPGRP, 4},
    {TIOCSPGRP, 4},
    {TIOCGSID, 4},
    {TIOCOUTQ, 4},
    {TIOCGWINSZ, 8},
    {TIOCSWINSZ, 8},
    {TIOCMGET, 4},
    {TIOCGETD, 4},
    {TIOCPKT, 4},
    {TIOCGPKT, 4},
    {TIOCGPTN, 4},
    {TIOCSPTLCK, 4},
    {TIOCGPTLCK, 4},
    /* any descriptor */
    {FIONREAD, 4},
    {FIONBIO, 4},
    {FIOASYNC, 4},
    {FIOCLEX, NUMBER},
    {FIONCLEX, NUMBER},
    {FIOQSIZE, 8},
    /* sockets */
    {FIOGETOWN, 4},
    {SIOCGPGRP, 4},
    {SIOCATMARK, 4},
    {SIOCGSTAMP_OLD, 16},
    {SIOCGSTAMPNS_OLD, 16},
    {SIOCOUTQNSD, 4},
    {0x8910, IFREQ_BYTES}, /* SIOCGIFNAME, FLAGS, ADDR, DSTADDR, BRDADDR, NETMASK, METRIC */
    {0x8913, IFREQ_BYTES},
    {0x8915, IFREQ_BYTES},
    {0x8917, IFREQ_BYTES},
    {0x8919, IFREQ_BYTES},
    {0x891b, IFREQ_BYTES},
    {0x891d, IFREQ_BYTES},
    {0x8921, IFREQ_BYTES}, /* MTU, HWADDR, INDEX, TXQLEN, MAP */
    {0x8927, IFREQ_BYTES},
    {0x8933, IFREQ_BYTES},
    {0x8942, IFREQ_BYTES},
    {0x8970, IFREQ_BYTES},
    /* files, block devices, random numbers */
    {FIGETBSZ, 4},
    {FS_IOC_GETFLAGS, 8},
    {FS_IOC_GETVERSION, 8},
    {FS_IOC_FSGETXATTR, 28},
    {BLKGETSIZE, 8},
    {BLKSSZGET, 4},
    {BLKGETSIZE64, 8},
    {RNDGETENTCNT, 4},
};

static const struct command *find(uint32_t number)
{
    for (uint32_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
        if (commands[i].number == number)
            return &commands[i];
    return NULL;
}

/* The list of the machine's interfaces: a length and a pointer to as much room. */
static long get_interfaces(struct dune_vcpu *cpu, struct dune_call *call)
{
    struct {
        int32_t bytes;
        uint32_t pad;
        uint64_t buffer;
    } *list = dune_scratch(cpu, sizeof(*list));
    uint64_t arg[6] = {call->arg[0], call->arg[1], (uint64_t)list};
    long result;

    if (!list)
        return -ENOMEM;
    if (dune_copy_in(cpu, list, call->arg[2], sizeof(*list)))
        return -EFAULT;
    if (list->buffer &&
        (list->bytes < 0 || !dune_range_is_free(cpu->vault, list->buffer, (uint32_t)list->bytes)))
        return dune_refuse(cpu, call, "the list lies in the vault", -EFAULT);
    result = dune_forward_raw(cpu, call->nr, arg);
    if (result >= 0 && dune_copy_out(cpu, call->arg[2], &list->bytes, sizeof(list->bytes)))
        return -EFAULT;
    return result;
}

/* The other file's descriptor must be ring 3's too. */
static long clone_range(struct dune_vcpu *cpu, struct dune_call *call)
{
    struct {
        int64_t from_fd;
        uint64_t from, bytes, to;
    } *range = dune_scratch(cpu, sizeof(*range));
    uint64_t arg[6] = {call->arg[0], call->arg[1], (uint64_t)range};

    if (!range)
        return -ENOMEM;
    if (dune_copy_in(cpu, range, call->arg[2], sizeof(*range)))
        return -EFAULT;
    if (!dune_fd_is_free(cpu->vault, (uint64_t)range->from_fd))
        return -EBADF;
    return dune_forward_raw(cpu, call->nr, arg);
}

/* In the open way ring 3 is trusted: any command, as long as it doesn't name the vault by mistake.
 */
static long unknown(struct dune_vcpu *cpu, struct dune_call *call)
{
    if ((cpu->vault->flags & DUNE_SEALED) || !dune_range_is_free(cpu->vault, call->arg[2], 1))
        return dune_refuse(cpu, call, "a command of ioctl() that is not let through", -ENOTTY);
    return dune_forward_raw(cpu, call->nr, call->arg);
}

/* ioctl(fd, command, argument) */
long dune_do_ioctl(struct dune_vcpu *cpu, struct dune_call *call)
{
    uint32_t number = (uint32_t)call->arg[1];
    const struct command *command = find(number);

    if (!dune_fd_is_free(cpu->vault, call->arg[0]))
        return -EBADF;
    switch (number) {
    case SIOCGIFCONF:
        return get_interfaces(cpu, call);
    case FICLONERANGE:
        return clone_range(cpu, call);
    case FICLONE:
        if (!dune_fd_is_free(cpu->vault, call->arg[2]))
            return -EBADF;
        return dune_forward_raw(cpu, call->nr, call->arg);
    case TIOCGPTPEER: /* opens the other side */
        return dune_fd_result(cpu, dune_forward_raw(cpu, call->nr, call->arg));
    }
    if (!command)
        return unknown(cpu, call);
    if (command->bytes != NUMBER && !dune_range_is_free(cpu->vault, call->arg[2], command->bytes))
        return dune_refuse(cpu, call, "an argument lies in the vault", -EFAULT);
    return dune_forward_raw(cpu, call->nr, call->arg);
}
