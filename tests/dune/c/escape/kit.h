/* What the attempts to escape share: the target, how to try, how to tell.
 *
 * The program runs in ring 3. Its target lies in the vault: pages that the harness (outside) filled
 * with a secret and watches. An attempt that gets an error or a signal is refused; one that goes
 * through is reported as BROKEN. Whether the vault changed, the harness sees. */
#ifndef ESCAPE_KIT_H
#define ESCAPE_KIT_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Newer than the headers that this may be compiled with. */
#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif
#ifndef SYS_map_shadow_stack
#define SYS_map_shadow_stack 453
#endif
#ifndef SYS_futex_wake
#define SYS_futex_wake 454
#define SYS_futex_wait 455
#endif
#ifndef SYS_statmount
#define SYS_statmount 457
#define SYS_listmount 458
#endif
#ifndef SYS_mseal
#define SYS_mseal 462
#endif

#define GIB          (1ull << 30)
#define PAGE         4096ull
#define SECRET_BYTES 65536ull

static struct {
    uint64_t vault;   /* its first address; a window of nothing below, one above */
    uint64_t target;  /* SECRET_BYTES of secret in it */
    uint64_t scratch; /* the part without a protection key */
    uint64_t tids;    /* a page of the numbers tid_base, tid_base + 1, ... as 32-bit words */
    uint32_t tid_base;
    uint64_t not_secret; /* its complement: the secret itself lies nowhere in ring 3 */
    int first_fd;        /* the shim's descriptors begin here */
} given;

static unsigned tried, broken;
static const char *group = "";

static long call6(long nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
    register uint64_t r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#define U(x)                             ((uint64_t)(x))
#define CALL(...)                        CALL_(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)
#define CALL_(nr, a, b, c, d, e, f, ...) call6(nr, U(a), U(b), U(c), U(d), U(e), U(f))

__attribute__((format(printf, 3, 4))) static void say(bool ok, const char *what, const char *format,
                                                      ...)
{
    char line[512];
    va_list list;
    int used = snprintf(line, sizeof line, "%s\t%s\t%s\t", ok ? "refused" : "BROKEN", group, what);

    tried++;
    broken += !ok;
    va_start(list, format);
    used += vsnprintf(line + used, sizeof line - (size_t)used - 1, format, list);
    va_end(list);
    if (used > (int)sizeof line - 2)
        used = sizeof line - 2;
    line[used++] = '\n';
    if (CALL(SYS_write, 1, line, used) != used)
        _exit(5);
}

/* True: a word of the secret is in [at, at + bytes). */
static bool leaked(const void *at, size_t bytes)
{
    for (size_t n = 0; n + 8 <= bytes; n += 8) {
        uint64_t word;

        memcpy(&word, (const char *)at + n, 8);
        if (word == ~given.not_secret)
            return true;
    }
    return false;
}

/* A call that must fail. */
static void fails(const char *what, long result)
{
    if (result < 0 && result > -4096)
        say(true, what, "%s", strerrorname_np((int)-result));
    else
        say(false, what, "returned %ld", result);
}

/* A call that may succeed, if it does nothing to the vault (which the harness sees). */
static void harmless(const char *what, long result)
{
    if (result < 0 && result > -4096)
        say(true, what, "%s", strerrorname_np((int)-result));
    else
        say(true, what, "without effect on the vault");
}

/* ---- signals -------------------------------------------------------------------------------- */

static sigjmp_buf back;
static volatile sig_atomic_t armed, caught;
static siginfo_t caught_info;
static const int watched[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE, SIGSYS};

static uint64_t own_fs; /* attempts change it, and siglongjmp() needs it */

static void on_signal(int number, siginfo_t *info, void *context)
{
    __asm__ volatile("wrfsbase %0\n\t"
                     "sub $128, %%rsp\n\tpushq $0x202\n\tpopfq\n\tadd $128, %%rsp" ::"r"(own_fs)
                     : "memory", "cc"); /* Linux leaves AC as it was */
    (void)context;
    if (!armed)
        _exit(100 + number);
    armed = 0;
    caught = number;
    caught_info = *info;
    siglongjmp(back, 1);
}

static void watch_signals(void)
{
    static char room[65536];
    stack_t stack = {.ss_sp = room, .ss_size = sizeof room};
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};

    __asm__ volatile("rdfsbase %0" : "=r"(own_fs));
    sigaltstack(&stack, NULL);
    for (size_t n = 0; n < sizeof watched / sizeof *watched; n++)
        sigaction(watched[n], &action, NULL);
}

/* Runs the statement; `caught` is the signal that ended it, 0: none. */
#define TRY(...) \
    do { \
        caught = 0; \
        if (sigsetjmp(back, 1) == 0) { \
            armed = 1; \
            __asm__ volatile("" ::: "memory"); \
            __VA_ARGS__; \
            __asm__ volatile("" ::: "memory"); \
        } \
        armed = 0; \
    } while (0)

/* ... and must have been ended by a signal. */
#define FAULTS(what, ...) \
    do { \
        TRY(__VA_ARGS__); \
        say(caught != 0, what, "%s", caught ? sigabbrev_np(caught) : "went through"); \
    } while (0)

/* ... or does nothing to the vault. */
#define MAY_PASS(what, ...) \
    do { \
        TRY(__VA_ARGS__); \
        say(true, what, "%s", caught ? sigabbrev_np(caught) : "without effect on the vault"); \
    } while (0)

/* The code segment selector: 0x23 in the guest, 0x33 outside, 0x08 in ring 0. */
static inline unsigned code_segment(void)
{
    unsigned cs;

    __asm__ volatile("mov %%cs, %0" : "=r"(cs));
    return cs;
}

static char *good; /* a page that may be read and written */
static int a_file, a_socket, other_socket, a_pipe[2];

static void open_things(void)
{
    int pair[2];

    good = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    a_file = memfd_create("escape", MFD_CLOEXEC);
    if (good == MAP_FAILED || a_file < 0 || ftruncate(a_file, 65536) != 0 ||
        socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, pair) != 0 ||
        pipe2(a_pipe, O_NONBLOCK) != 0) {
        perror("escape: can't begin");
        _exit(4);
    }
    a_socket = pair[0];
    other_socket = pair[1];
}

#endif
