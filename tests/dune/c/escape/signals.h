/* By signals and what the kernel writes or restores around them. */
#ifndef ESCAPE_SIGNALS_H
#define ESCAPE_SIGNALS_H

#include "kit.h"

#include <ucontext.h>

static ucontext_t forged;
static volatile unsigned landed_in;
static volatile uint64_t landed_flags;
static char landed_fpu[512] __attribute__((aligned(64)));
static char landing_stack[16384] __attribute__((aligned(64)));

/* Where a forged frame leads, if it leads to ring 3's own code. */
__attribute__((noreturn, used)) static void landed(void)
{
    uint64_t flags;

    __asm__ volatile("fxsave64 %0\n\tpushfq\n\tpop %1" : "=m"(landed_fpu), "=r"(flags));
    landed_flags = flags;
    landed_in = code_segment();
    armed = 0;
    siglongjmp(back, 2);
}

static void fill_frame(void)
{
    greg_t *regs = forged.uc_mcontext.gregs;

    memset(&forged, 0, sizeof forged);
    memset(landed_fpu, 0, sizeof landed_fpu);
    landed_in = 0;
    landed_flags = 0;
    forged.uc_flags = 6; /* UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS */
    regs[REG_RIP] = (greg_t)landed;
    regs[REG_RSP] = (greg_t)(landing_stack + sizeof landing_stack - 8);
    regs[REG_EFL] = 0x202;
    regs[REG_CSGSFS] = 0x33 | (greg_t)0x2b << 48;
}

/* rt_sigreturn with the stack pointer behind the frame's first word, as a handler's `ret` leaves
 * it. */
__attribute__((noinline)) static void return_from(void *frame)
{
    __asm__ volatile("mov %0, %%rsp\n\tmov $15, %%eax\n\tsyscall\n\tud2" ::"r"(frame) : "memory");
    __builtin_unreachable();
}

static struct {
    ucontext_t context;
    siginfo_t info;
} frame __attribute__((aligned(64)));

static void try_frame(const char *what)
{
    memcpy(&frame.context, &forged, sizeof forged);
    TRY(return_from(&frame));
    /* A frame that the kernel takes must lead to ring 3, with ring 3's flags. */
    say((caught || landed_in == 0x23) && !(landed_flags & 0x3000) &&
            (caught || landed_flags & 0x200) && !leaked(landed_fpu, sizeof landed_fpu),
        what, "%s, cs 0x%02x, flags 0x%llx", caught ? sigabbrev_np(caught) : "goes on in ring 3",
        landed_in, (unsigned long long)landed_flags);
}

static void forged_frames(void)
{
    static const uint64_t selectors[] = {0x08, 0x10, 0x18, 0x28, 0x1b,
                                         0x00, 0x0b, 0x33, 0x23, 0xffff};
    static const uint64_t flags[] = {0x3202,  0x0002,   0x20202, 0x4202,
                                     0x40202, 0x180202, 0x102,   ~0ull};
    char what[64];

    group = "forged signal frame";
    for (size_t n = 0; n < sizeof selectors / sizeof *selectors; n++) {
        for (int ss = 0; ss < 2; ss++) {
            fill_frame();
            forged.uc_mcontext.gregs[REG_CSGSFS] =
                ss ? 0x33 | (greg_t)selectors[n] << 48 : (greg_t)selectors[n] | (greg_t)0x2b << 48;
            snprintf(what, sizeof what, "%s 0x%llx", ss ? "ss" : "cs",
                     (unsigned long long)selectors[n]);
            try_frame(what);
        }
    }
    for (size_t n = 0; n < sizeof flags / sizeof *flags; n++) {
        fill_frame();
        forged.uc_mcontext.gregs[REG_EFL] = (greg_t)flags[n];
        snprintf(what, sizeof what, "flags 0x%llx", (unsigned long long)flags[n]);
        try_frame(what);
    }
}

static void forged_places(void)
{
    static const uint64_t nowhere[] = {0x8000000000000000, 0x800000000000, 0xffff800000000000};

    group = "forged signal frame";
    fill_frame();
    forged.uc_mcontext.gregs[REG_RIP] = (greg_t)given.vault;
    try_frame("rip in the image");
    fill_frame();
    forged.uc_mcontext.gregs[REG_RIP] = (greg_t)(given.vault + 0x10000000);
    forged.uc_mcontext.gregs[REG_CSGSFS] = 0x08 | (greg_t)0x10 << 48;
    try_frame("rip in a stub, in ring 0");
    for (size_t n = 0; n < sizeof nowhere / sizeof *nowhere; n++) {
        fill_frame();
        forged.uc_mcontext.gregs[REG_RIP] = (greg_t)nowhere[n];
        try_frame("rip that is not canonical");
    }
    fill_frame();
    forged.uc_mcontext.fpregs = (void *)given.target;
    try_frame("FPU state in the secret");
    fill_frame();
    forged.uc_mcontext.fpregs = (void *)(given.target + 64);
    forged.uc_flags |= 1;
    try_frame("FPU state in the secret, as XSAVE's");
    fill_frame();
    forged.uc_mcontext.fpregs = (void *)0x800000000000;
    try_frame("FPU state nowhere");
    fill_frame();
    memset(landing_stack, 0xff, 4096); /* reserved bits of MXCSR and of the header */
    forged.uc_mcontext.fpregs = (void *)landing_stack;
    forged.uc_flags |= 1;
    try_frame("FPU state with every bit set");
    fill_frame();
    forged.uc_stack.ss_sp = (void *)given.target;
    forged.uc_stack.ss_size = 32768;
    try_frame("alternate stack in the secret");
    TRY(return_from((void *)(given.target + 64)));
    say(caught != 0, "the frame itself in the secret", "%s", caught ? sigabbrev_np(caught) : "?");
    TRY(return_from((void *)(given.vault - GIB - 64)));
    say(caught != 0, "the frame across the guard's edge", "%s",
        caught ? sigabbrev_np(caught) : "?");
    watch_signals(); /* the alternate stack, if a frame has changed it */
}

static void signals_all(void)
{
    forged_frames();
    forged_places();
}

#endif
