/* By calls whose arguments depend on an option: every option, with structures made of nothing but
 * pointers to the secret. What each returns doesn't matter; the harness sees whether the vault
 * changed, and what comes back is searched for the secret. */
#ifndef ESCAPE_SWEEPS_H
#define ESCAPE_SWEEPS_H

#include "kit.h"

#include <linux/if_xdp.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <termios.h>

#define STRUCTURE 512

static struct {
    unsigned calls, errors;
    bool leak;
} sweep;

/* `good` as a structure of pointers to the secret. */
static uint64_t structure(void)
{
    for (unsigned n = 0; n < STRUCTURE / 8; n++)
        ((uint64_t *)good)[n] = given.target + 1024;
    return U(good);
}

static void swept(long result)
{
    sweep.calls++;
    sweep.errors += result < 0;
    sweep.leak |= leaked(good, 2 * PAGE);
}

static void report(const char *what)
{
    say(!sweep.leak, what, sweep.leak ? "the secret was read" : "%u calls, %u with an error",
        sweep.calls, sweep.errors);
    memset(&sweep, 0, sizeof sweep);
}

static void sweep_socket_options(int socket, const char *what)
{
    static const int levels[] = {0,   1,   6,   17,  41,  58,  132, 136, 255, 263, 269,
                                 270, 271, 272, 273, 276, 280, 281, 283, 284, 285, 286};
    uint64_t at = given.target + 1024;

    for (size_t n = 0; n < sizeof levels / sizeof *levels; n++) {
        for (int option = 0; option < 130; option++) {
            uint32_t *length = (uint32_t *)(good + STRUCTURE);

            swept(CALL(SYS_setsockopt, socket, levels[n], option, structure(), STRUCTURE));
            swept(CALL(SYS_setsockopt, socket, levels[n], option, structure(), 16));
            structure();
            *length = STRUCTURE;
            swept(CALL(SYS_getsockopt, socket, levels[n], option, good, length));
            swept(CALL(SYS_getsockopt, socket, levels[n], option, at, at));
        }
    }
    report(what);
}

static void sweep_sockets(void)
{
    static const struct {
        int family, type, protocol;
        const char *what;
    } kinds[] = {
        {AF_INET, SOCK_STREAM, 0, "every socket option, TCP"},
        {AF_UNIX, SOCK_STREAM, 0, "every socket option, AF_UNIX"},
        {AF_PACKET, SOCK_RAW, 0, "every socket option, AF_PACKET"},
        {AF_XDP, SOCK_RAW, 0, "every socket option, AF_XDP"},
    };

    for (size_t n = 0; n < sizeof kinds / sizeof *kinds; n++) {
        long socket = CALL(SYS_socket, kinds[n].family, kinds[n].type, kinds[n].protocol);

        if (socket < 0) {
            fails(kinds[n].what, socket);
            continue;
        }
        sweep_socket_options((int)socket, kinds[n].what);
        CALL(SYS_close, socket);
    }
}

/* The rings' memory would be the vault: the kernel writes packets there. */
static void packet_memory(void)
{
    struct xdp_umem_reg umem = {
        .addr = given.target & ~(PAGE - 1), .len = SECRET_BYTES, .chunk_size = 4096};
    long socket = CALL(SYS_socket, AF_XDP, SOCK_RAW, 0);

    if (socket < 0) {
        fails("AF_XDP", socket);
        return;
    }
    fails("AF_XDP frames in the secret",
          CALL(SYS_setsockopt, socket, SOL_XDP, XDP_UMEM_REG, &umem, sizeof umem));
    fails("AF_XDP frames in the secret, the old form",
          CALL(SYS_setsockopt, socket, SOL_XDP, XDP_UMEM_REG, &umem, 24));
    CALL(SYS_close, socket);
}

static void sweep_ioctls(void)
{
    static const uint32_t ranges[][2] = {{0, 64},          {0x1240, 0x1290}, {0x2200, 0x22a0},
                                         {0x5300, 0x53a0}, {0x5400, 0x5480}, {0x8900, 0x89ff},
                                         {0xae00, 0xaeff}, {0x4b00, 0x4b80}, {0x5600, 0x5610}};
    int fds[] = {a_file,
                 a_socket,
                 a_pipe[0],
                 (int)CALL(SYS_open, "/dev/ptmx", O_RDWR | O_NOCTTY),
                 (int)CALL(SYS_open, "/dev/urandom", O_RDONLY),
                 (int)CALL(SYS_open, "/", O_RDONLY),
                 (int)CALL(SYS_open, "/proc/self/maps", O_RDONLY),
                 (int)CALL(SYS_socket, AF_INET, SOCK_DGRAM, 0)};

    for (size_t fd = 0; fd < sizeof fds / sizeof *fds; fd++) {
        for (size_t n = 0; n < sizeof ranges / sizeof *ranges; n++) {
            for (uint32_t number = ranges[n][0]; number < ranges[n][1]; number++) {
                if (number == FIONBIO || number == FIOASYNC)
                    continue; /* what follows must not block, nor be signalled */
                swept(CALL(SYS_ioctl, fds[fd], number, structure()));
                swept(CALL(SYS_ioctl, fds[fd], number, given.target + 1024));
            }
        }
        if (fd > 2)
            CALL(SYS_close, fds[fd]);
    }
    report("ioctl commands");
    fails("ioctl TIOCSTI", CALL(SYS_ioctl, 0, TIOCSTI, "x"));
}

/* Left out: those that a process does to itself on purpose, for good. */
static void sweep_prctl(void)
{
    for (int option = 0; option < 90; option++) {
        if (option == PR_SET_TIMERSLACK || option == PR_SET_PDEATHSIG || option == PR_SET_DUMPABLE)
            continue;
        swept(CALL(SYS_prctl, option, given.target + 1024, 0, 0, 0));
        swept(CALL(SYS_prctl, option, structure(), given.target + 1024, STRUCTURE,
                   given.target + 1024));
        swept(CALL(SYS_prctl, option, 1, structure(), given.target + 1024, structure()));
    }
    report("prctl options");
    for (int option = 0x1001; option < 0x1030; option++)
        if (option != 0x1002 && option != 0x1001)
            swept(CALL(SYS_arch_prctl, option, given.target + 1024));
    for (int option = 0x4000; option < 0x4006; option++)
        swept(CALL(SYS_arch_prctl, option, given.target + 1024));
    report("arch_prctl options");
}

static void sweep_fcntl(void)
{
    for (int command = 0; command < 1200; command++) {
        if (command == 40)
            command = 1024;
        if (command == F_SETFL || command == F_DUPFD || command == F_DUPFD_CLOEXEC)
            continue;
        swept(CALL(SYS_fcntl, a_file, command, structure()));
        swept(CALL(SYS_fcntl, a_socket, command, given.target + 1024));
    }
    report("fcntl commands");
}

static void sweep_others(void)
{
    for (int command = 0; command < 40; command++) {
        swept(CALL(SYS_keyctl, command, structure(), given.target + 1024, STRUCTURE,
                   given.target + 1024));
        swept(CALL(SYS_semctl, 0, 0, command, given.target + 1024));
        swept(CALL(SYS_shmctl, 0, command, given.target + 1024));
        swept(CALL(SYS_msgctl, 0, command, given.target + 1024));
        swept(CALL(SYS_bpf, command, structure(), 128));
        swept(CALL(SYS_futex, good, command, 0, structure(), given.target + 1024, 0));
        swept(CALL(SYS_futex, given.target + 1024, command, 0, structure(), good, 0));
        swept(CALL(SYS_io_uring_register, a_file, command, structure(), 1));
        swept(CALL(SYS_quotactl, command << 8, good, 0, given.target + 1024));
        swept(CALL(SYS_sigaltstack, structure(), structure()));
    }
    report("keyctl, semctl, shmctl, msgctl, bpf, futex, quotactl");
}

static void sweeps_all(void)
{
    group = "every option";
    signal(SIGHUP, SIG_IGN); /* a terminal that is closed has the last word */
    sweep_sockets();
    packet_memory();
    sweep_ioctls();
    sweep_prctl();
    sweep_fcntl();
    sweep_others();
}

#endif
