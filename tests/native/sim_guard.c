/* An assertion of the core ends the simulation, not the process: the trap is caught, and what
 * ix_assert_failed() left in the registers says what it was. */
#include "tests/native/sim_world.h"

#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <ucontext.h>

static sigjmp_buf back;
static char what[256];

static void trapped(int signal_number, siginfo_t *info, void *context)
{
    (void)signal_number;
    (void)info;
#if defined(__x86_64__)
    /* rdi, rsi, rdx: its arguments; see base/assert.c */
    const greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    snprintf(what, sizeof what, "assertion failed: %s (%s:%d)", (const char *)regs[REG_RDI],
             (const char *)regs[REG_RSI], (int)regs[REG_RDX]);
#else
    (void)context;
    snprintf(what, sizeof what, "assertion failed");
#endif
    siglongjmp(back, 1);
}

const char *sim_guarded(void (*run)(struct sim_world *), struct sim_world *w)
{
    struct sigaction action = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO | SA_NODEFER};
    struct sigaction old[2];
    const char *failure = NULL;
    sigaction(SIGILL, &action, &old[0]);
    sigaction(SIGTRAP, &action, &old[1]);
    if (sigsetjmp(back, 1) == 0)
        run(w);
    else
        failure = what;
    sigaction(SIGILL, &old[0], NULL);
    sigaction(SIGTRAP, &old[1], NULL);
    return failure;
}
