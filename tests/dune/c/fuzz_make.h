/* Random system calls for fuzz.c, made of the table's own kinds, with what an attacker would try.
 */
#ifndef FUZZ_MAKE_H
#define FUZZ_MAKE_H

/* The table as the shim has it; its switch isn't used here. */
#define DUNE_PARTIAL
#include "dune_syscalls.c"

#include "shim/layout.h"

#include <linux/prctl.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum { CALL_MSEAL = 462, PLAY_BYTES = 1 << 20, TEXTS = 64, TEXT_BYTES = 64, FDS = 24, PAIRS = 4 };

#define FUZZ_DATA_BYTES (2u << 20) /* that are mapped in the data windows */

struct fuzz_space {
    uint64_t base; /* the vault's */
    uint64_t data_bytes; /* of the data windows behind it */
    int32_t first_fd;
    uint8_t *play; /* PLAY_BYTES of ring 3's own, full of pointers good and bad */
    char (*text)[TEXT_BYTES];
    unsigned texts;
    uint64_t endless; /* a descriptor that always has something to read */
    uint64_t pairs;   /* the first of PAIRS descriptors of connected sockets */
};

struct fuzz_random {
    uint64_t state;
};

static uint64_t fuzz_next(struct fuzz_random *random)
{
    random->state ^= random->state << 13;
    random->state ^= random->state >> 7;
    random->state ^= random->state << 17;
    return random->state * 0x2545f4914f6cdd1dull;
}

static uint64_t below(struct fuzz_random *random, uint64_t n)
{
    return (fuzz_next(random) >> 11) % n;
}

static bool chance(struct fuzz_random *random, unsigned percent)
{
    return below(random, 100) < percent;
}

/* An address in the vault or its guards, mostly where it would hurt. */
static uint64_t bad_address(const struct fuzz_space *space, struct fuzz_random *random)
{
    static const uint32_t spot[] = {
        DUNE_IMAGE_AT,
        DUNE_VAULT_AT,
        DUNE_TABLES_AT,
        DUNE_MODULES_AT,
        DUNE_MODULES_AT + 0x8000000,
        DUNE_BLOCKS_AT + DUNE_BLOCK_STUB,
        DUNE_BLOCKS_AT + DUNE_BLOCK_VCPU,
        DUNE_BLOCKS_AT + DUNE_BLOCK_GDT,
        DUNE_BLOCKS_AT + DUNE_BLOCK_IDT,
        DUNE_BLOCKS_AT + DUNE_BLOCK_RUN,
        DUNE_BLOCKS_AT + DUNE_BLOCK_HOST,
        DUNE_BLOCKS_AT + DUNE_BLOCK_TOP - 256,
        DUNE_SCRATCH_AT,
    };
    uint64_t base = space->base, window = DUNE_WINDOW;

    switch (below(random, 9)) {
    case 0:
        return base - window + below(random, 2 * window) - 64;
    case 1:
        return base - window - below(random, 64) + 1;
    case 2:
        return base + 2 * window + space->data_bytes - 1 - below(random, 64);
    case 3:
        return base + below(random, window);
    case 8:
        return base + window + below(random, FUZZ_DATA_BYTES);
    case 4: /* of some vCPU */
        return base + spot[5 + below(random, 7)] + below(random, 4) * DUNE_BLOCK;
    default:
        return base + spot[below(random, sizeof(spot) / sizeof(spot[0]))] +
               below(random, 2) * 8 * below(random, 512);
    }
}

static uint64_t good_address(const struct fuzz_space *space, struct fuzz_random *random)
{
    uint64_t at = below(random, PLAY_BYTES);

    if (chance(random, 90))
        at &= ~7ull;
    if (chance(random, 3))
        at = PLAY_BYTES - 1 - below(random, 64);
    return (uint64_t)space->play + at;
}

/* Of the first half, which may be unmapped and changed by others. The second keeps what calls put
 * there. */
static uint64_t shaky_address(const struct fuzz_space *space, struct fuzz_random *random)
{
    return (uint64_t)space->play + below(random, PLAY_BYTES / 2);
}

static uint64_t some_number(struct fuzz_random *random)
{
    switch (below(random, 6)) {
    case 0:
        return 1ull << below(random, 64);
    case 1:
        return (1ull << below(random, 64)) - 1;
    case 2:
        return (uint64_t) - (int64_t)below(random, 200);
    case 3:
        return fuzz_next(random);
    default:
        return below(random, 1 + (1ull << below(random, 14)));
    }
}

static uint64_t some_fd(const struct fuzz_space *space, struct fuzz_random *random)
{
    if (chance(random, 80))
        return 3 + below(random, FDS);
    if (chance(random, 70))
        return (uint64_t)space->first_fd + below(random, 64) +
               (chance(random, 20) ? fuzz_next(random) << 32 : 0);
    return chance(random, 50) ? (uint64_t)-100 : some_number(random);
}

/* What lies in the playground: words that may be taken for pointers, lengths, descriptors. */
static uint64_t some_word(const struct fuzz_space *space, struct fuzz_random *random)
{
    switch (below(random, 9)) {
    case 0:
    case 1:
        return bad_address(space, random);
    case 2:
    case 3:
        return good_address(space, random);
    case 4:
        return (uint64_t)space->first_fd + below(random, 32);
    case 5:
        return some_number(random);
    default:
        return below(random, 256);
    }
}

/* ---- structures that lead further ---------------------------------------------------------------
 */

static uint64_t some_pointer(const struct fuzz_space *space, struct fuzz_random *random,
                             unsigned bad)
{
    if (chance(random, bad))
        return bad_address(space, random);
    if (chance(random, 5))
        return chance(random, 50) ? 0 : some_number(random);
    return good_address(space, random);
}

static void put_words(uint64_t *at, const uint64_t *words, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        __atomic_store_n(&at[i], words[i], __ATOMIC_RELAXED);
}

/* An iovec array of n in the playground. */
static uint64_t make_iov(const struct fuzz_space *space, struct fuzz_random *random, unsigned n)
{
    uint64_t *at = (uint64_t *)(space->play + (below(random, PLAY_BYTES - 4096) & ~7ull));

    for (unsigned i = 0; i < n && i < 128; i++) {
        uint64_t words[2] = {some_pointer(space, random, 30), below(random, 512)};

        if (chance(random, 5))
            words[1] = some_number(random);
        put_words(at + 2 * i, words, 2);
    }
    return (uint64_t)at;
}

/* A struct mmsghdr array of n; a control message with descriptors behind each. */
static uint64_t make_messages(const struct fuzz_space *space, struct fuzz_random *random,
                              unsigned n)
{
    uint64_t *at = (uint64_t *)(space->play + (below(random, PLAY_BYTES - 8192) & ~7ull));

    for (unsigned i = 0; i < n; i++) {
        uint64_t *control = at + 512 + 8 * i;
        uint64_t rights[4] = {24, 1 | 1ull << 32,
                              some_fd(space, random) << 32 | (uint32_t)some_fd(space, random), 0};
        unsigned pieces = (unsigned)below(random, 4);
        uint64_t words[8] = {chance(random, 60) ? 0 : some_pointer(space, random, 40),
                             below(random, 130),
                             chance(random, 85) ? make_iov(space, random, pieces)
                                                : bad_address(space, random),
                             pieces,
                             chance(random, 80) ? (uint64_t)control : bad_address(space, random),
                             chance(random, 60) ? 0 : below(random, 64),
                             0,
                             0};

        put_words(control, rights, 4);
        put_words(at + 8 * i, words, 8);
    }
    return (uint64_t)at;
}

/* ---- arguments ------------------------------------------------------------------------------- */

static uint64_t make_range(const struct fuzz_space *space, struct fuzz_random *random)
{
    uint64_t at = chance(random, 55) ? shaky_address(space, random) : bad_address(space, random);

    return chance(random, 85) ? at & ~4095ull : at;
}

static uint64_t make_length(struct fuzz_random *random)
{
    static const uint64_t length[] = {4096,      8192, 65536, DUNE_WINDOW, 3ull * DUNE_WINDOW,
                                      1ull << 46};

    if (chance(random, 70))
        return below(random, 65536);
    if (chance(random, 70))
        return length[below(random, 6)];
    return some_number(random);
}

static uint64_t make_argument(const struct fuzz_space *space, struct fuzz_random *random,
                              const struct dune_arg_rule *rule)
{
    switch (rule->kind) {
    case DUNE_ARG_FD:
        return some_fd(space, random);
    case DUNE_ARG_POINTER:
        return some_pointer(space, random, 35);
    case DUNE_ARG_STRING:
        return chance(random, 75) ? (uint64_t)space->text[below(random, space->texts)]
                                  : some_pointer(space, random, 70);
    case DUNE_ARG_RANGE:
        return make_range(space, random);
    case DUNE_ARG_NESTED:
        return chance(random, 30) ? some_number(random) : some_pointer(space, random, 45);
    default:
        return some_number(random);
    }
}

static void make_lengths(const struct dune_call_rule *rule, struct fuzz_random *random,
                         uint64_t *arg)
{
    for (unsigned i = 0; i < 6; i++) {
        const struct dune_arg_rule *of = &rule->arg[i];

        if (of->unit != DUNE_UNIT_FIXED && of->unit != DUNE_UNIT_POINTED)
            arg[of->count] = make_length(random);
    }
}

static void make_nested(const struct fuzz_space *space, struct fuzz_random *random, uint64_t nr,
                        uint64_t *arg)
{
    static const uint32_t command[] = {0xae80,     0x4020ae46, 0xae41, 0x8912,
                                       0x5401,     0x541b,     0x5421, 0x8927,
                                       0xc0045877, 0x40049409, 0x5452, 0x8090ae81};
    unsigned n = (unsigned)below(random, 9);
    bool connected = chance(random, 70), endless = chance(random, 60);

    switch (nr) {
    case SYS_readv:
    case SYS_writev:
    case SYS_preadv:
    case SYS_pwritev:
    case SYS_preadv2:
    case SYS_pwritev2:
    case SYS_vmsplice:
        arg[1] = make_iov(space, random, n);
        arg[2] = n;
        break;
    case SYS_sendmsg:
    case SYS_recvmsg:
        arg[1] = make_messages(space, random, 1);
        arg[2] = chance(random, 80) ? 0x40 : some_number(random);
        break;
    case SYS_sendmmsg:
    case SYS_recvmmsg:
        arg[1] = make_messages(space, random, n);
        arg[2] = n;
        arg[3] = chance(random, 80) ? 0x40 : some_number(random);
        break;
    case SYS_read:
    case SYS_pread64:
        arg[2] = below(random, 4096);
        break;
    case SYS_ioctl:
        arg[1] = chance(random, 80) ? command[below(random, 12)] : some_number(random);
        break;
    case SYS_futex:
        arg[1] = below(random, 14) | below(random, 4) << 7;
        break;
    case SYS_fcntl:
        arg[1] = chance(random, 50) ? below(random, 40) : 1024 + below(random, 20);
        break;
    case SYS_prctl:
        arg[0] = chance(random, 80) ? below(random, 80) : PR_SET_VMA;
        break;
    case SYS_arch_prctl:
        arg[0] = 0x1001 + below(random, 4);
        break;
    case SYS_setsockopt:
    case SYS_getsockopt:
        arg[1] = chance(random, 50) ? 1 : below(random, 290);
        arg[2] = below(random, 80);
        break;
    }
    if (endless && (nr == SYS_read || nr == SYS_pread64 || nr == SYS_readv || nr == SYS_preadv))
        arg[0] = space->endless;
    if (connected && ((nr >= SYS_sendto && nr <= SYS_recvmsg) || nr == SYS_sendmmsg ||
                      nr == SYS_recvmmsg || nr == SYS_writev || nr == SYS_getsockopt))
        arg[0] = space->pairs + below(random, PAIRS);
}

/* ---- calls that would end, stop or disturb more than this process's memory ------------------- */

static bool is_bad(const struct fuzz_space *space, uint64_t address)
{
    return address - (space->base - DUNE_WINDOW) < 3ull * DUNE_WINDOW + space->data_bytes;
}

static uint64_t at_most(uint64_t value, uint64_t most)
{
    return value < most ? value : value % most;
}

/* False: not this one. */
static bool is_tame(const struct fuzz_space *space, struct fuzz_random *random, uint64_t nr,
                    uint64_t *arg)
{
    switch (nr) {
    case SYS_exit:
    case SYS_exit_group:
    case SYS_rt_sigreturn:
    case SYS_sync:
    case SYS_reboot:
    case SYS_clone:
    case SYS_fork:
    case SYS_vfork: /* fuzz.c has its own ways of these */
    case SYS_setpriority:
    case SYS_ioprio_set:
    case SYS_sched_setscheduler:
        return false;
    case SYS_pause:
    case SYS_nanosleep:
    case SYS_clock_nanosleep:
    case SYS_rt_sigsuspend:
    case SYS_rt_sigtimedwait: /* they only take time */
        return is_bad(space, arg[0]) || is_bad(space, arg[2]) || chance(random, 10);
    case SYS_setrlimit:
    case SYS_sched_setparam:
    case SYS_sched_setattr:
    case SYS_settimeofday:
    case SYS_clock_settime:
    case SYS_clock_adjtime:
    case SYS_rt_sigprocmask:
    case SYS_chroot:
        return is_bad(space, arg[1]) || is_bad(space, arg[0]) || chance(random, 1);
    case SYS_adjtimex:
    case CALL_MSEAL:
        return is_bad(space, arg[0]);
    case SYS_prlimit64:
        arg[0] = 0;
        return is_bad(space, arg[2]) || arg[2] == 0;
    case SYS_setuid:
    case SYS_setreuid:
    case SYS_setresuid:
    case SYS_capset:
    case SYS_personality:
        return chance(random, 2);
    case SYS_kill:
    case SYS_tkill:
    case SYS_rt_sigqueueinfo:
    case SYS_pidfd_send_signal:
        arg[1] = chance(random, 95) ? 0 : arg[1];
        return true;
    case SYS_tgkill:
    case SYS_rt_tgsigqueueinfo:
        arg[2] = chance(random, 95) ? 0 : arg[2];
        return true;
    case SYS_rt_sigaction: /* the clock's and the faults' handlers stay */
        return is_bad(space, arg[1]) || (arg[0] != 14 && arg[0] != 11 && arg[0] != 7);
    case SYS_close:
        return (uint32_t)arg[0] > 20;
    case SYS_dup2:
    case SYS_dup3:
        return (uint32_t)arg[1] > 20;
    default:
        return true;
    }
}

/* Keeps what a call takes or makes within what the process has to spare. */
static void limit_call(const struct fuzz_space *space, struct fuzz_random *random, uint64_t nr,
                       uint64_t *arg)
{
    switch (nr) {
    case SYS_close_range:
        arg[0] = 20 + at_most(arg[0], 1ull << 31);
        break;
    case SYS_mmap:
        if ((arg[3] & MAP_FIXED) && !is_bad(space, arg[0]))
            arg[0] = shaky_address(space, random) & ~4095ull;
        arg[1] = is_bad(space, arg[0]) ? arg[1] : at_most(arg[1], 1 << 16);
        break;
    case SYS_mremap:
        arg[2] = at_most(arg[2], 1 << 16);
        if (!is_bad(space, arg[4]))
            arg[4] = shaky_address(space, random) & ~4095ull;
        break;
    case SYS_shmget:
        arg[1] = at_most(arg[1], 1 << 20);
        break;
    case SYS_move_pages:
    case SYS_migrate_pages:
    case SYS_sched_setaffinity:
        arg[0] = 0;
        break;
    }
}

static bool make_call(const struct fuzz_space *space, struct fuzz_random *random, uint64_t *nr,
                      uint64_t arg[6])
{
    const struct dune_call_rule *rule;

    *nr = below(random, DUNE_CALLS + 20);
    /* Those with the most to them more often. */
    if (chance(random, 30)) {
        static const uint16_t often[] = {
            SYS_readv,        SYS_writev,    SYS_sendmsg,  SYS_recvmsg,  SYS_mmap,
            SYS_sendmmsg,     SYS_recvmmsg,  SYS_munmap,   SYS_mprotect, SYS_mremap,
            SYS_ioctl,        SYS_futex,     SYS_openat,   SYS_pselect6, SYS_process_vm_writev,
            SYS_madvise,      SYS_read,      SYS_recvfrom, SYS_preadv,   SYS_getsockopt,
            SYS_rt_sigaction, SYS_getrandom, SYS_fcntl,    SYS_prctl,    SYS_pread64};

        *nr = often[below(random, sizeof(often) / sizeof(often[0]))];
    }
    if (*nr >= DUNE_CALLS) {
        for (unsigned i = 0; i < 6; i++)
            arg[i] = some_word(space, random);
        return true;
    }
    rule = &dune_call_rules[*nr];
    for (unsigned i = 0; i < 6; i++)
        arg[i] = rule->action == DUNE_CALL_DENY ? some_word(space, random)
                                                : make_argument(space, random, &rule->arg[i]);
    make_lengths(rule, random, arg);
    make_nested(space, random, *nr, arg);
    /* One of ring 3's own that is long would take its text and stacks away. */
    if (rule->arg[0].kind == DUNE_ARG_RANGE && !is_bad(space, arg[0]) && !chance(random, 1))
        arg[1] = at_most(arg[1], 1 << 16);
    /* A range that lies below and ends above. */
    if (rule->arg[0].kind == DUNE_ARG_RANGE && chance(random, 10)) {
        arg[0] = (space->base - DUNE_WINDOW - 4096) & ~4095ull;
        arg[1] = 4096 + below(random, 1 << 20);
    }
    limit_call(space, random, *nr, arg);
    return is_tame(space, random, *nr, arg);
}

#endif
