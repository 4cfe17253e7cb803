/* Programs that do what Linux answers by a signal, and print all that the signal says. Addresses
 * are fixed, so that bare and in ring 3 the output is the same. */
#ifndef TELL_H
#define TELL_H

#include "both.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <ucontext.h>

#define PAGE 4096ul
#define MIB  (1ul << 20)
#define AT   0x120000000000ul /* where no kernel puts anything by itself */
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)
#define RW   (PROT_READ | PROT_WRITE)
#define RX   (PROT_READ | PROT_EXEC)

static sigjmp_buf out;
static char alternate[65536];

static inline uint8_t *map(uint64_t at, uint64_t bytes, int prot, int flags)
{
    uint8_t *got = mmap((void *)at, bytes, prot, ANON | MAP_FIXED | flags, -1, 0);

    CHECK(got == (uint8_t *)at);
    return got;
}

static inline void tell(int number, siginfo_t *info, void *context)
{
    const greg_t *reg = ((ucontext_t *)context)->uc_mcontext.gregs;
    bool page = reg[REG_TRAPNO] == 14;

    __asm__ volatile("pushfq; andl $~0x40000, (%%rsp); popfq" : : : "memory"); /* AC */
    printf("  signal %d code %d", number, info->si_code);
    if (info->si_code > 0 && info->si_code != SI_KERNEL && info->si_addr != (void *)reg[REG_RIP])
        printf(" address %p", info->si_addr);
    else if (info->si_code > 0)
        printf(" address %s", info->si_addr ? "rip" : "0");
    /* Whether a page that may not be written was there to be read depends on who read it before. */
    printf(" trap %lld error %llx", reg[REG_TRAPNO],
           page && reg[REG_ERR] & 2 ? reg[REG_ERR] & ~1ll : reg[REG_ERR]);
    if (page)
        printf(" cr2 %llx", reg[REG_CR2]);
    printf(" flags %llx", reg[REG_EFL] & 0x100);
    if (reg[REG_RCX] < 4096) /* a counter, not an address */
        printf(" rcx %llx", reg[REG_RCX]);
    printf("\n");
    siglongjmp(out, 1);
}

static inline void catch (void (*handler)(int, siginfo_t *, void *))
{
    static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof(alternate)};

    sigaltstack(&stack, NULL);
    for (unsigned i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        sigaction(signals[i], &action, NULL);
}

/* Each attempt is a statement; what comes of it goes to the output. */
#define TRY(what) \
    do { \
        printf("%s\n", #what); \
        if (sigsetjmp(out, 1) == 0) { \
            what; \
            printf("  fine\n"); \
        } \
    } while (0)

/* In assembly, so that each access is one of its size, and none is left out. */
static inline uint8_t peek(uint64_t at)
{
    uint8_t value;

    __asm__ volatile("movb (%1), %0" : "=r"(value) : "r"(at) : "memory");
    return value;
}

static inline void poke(uint64_t at)
{
    __asm__ volatile("movb $7, (%0)" : : "r"(at) : "memory");
}

static inline void peek8(uint64_t at)
{
    __asm__ volatile("movq (%0), %%rax" : : "r"(at) : "rax", "memory");
}

static inline void poke8(uint64_t at)
{
    __asm__ volatile("movq $7, (%0)" : : "r"(at) : "memory");
}

/* both_main(), and PROGRAM ring0 CASE: in ring 0, where the signals say the same. */
static inline int tell_main(int argc, char **argv, const struct both_case *cases)
{
    if (argc >= 3 && strcmp(argv[1], "ring0") == 0) {
        if (dune_init(NULL) != 0 || dune_enter() != 0) {
            fprintf(stderr, "%s\n", dune_error());
            exit(98);
        }
        argv[1] = "bare";
    }
    return both_main(argc, argv, cases);
}

#endif
