/* Signals of guest threads: what signal.c and frame.c share, and what they give to the others.
 *
 * A guest thread's host thread has the guest's signal mask, so that the kernel chooses among
 * threads, queues, ignores, stops and kills as it always does. Only what has a handler comes here:
 * the host's own handler records it, and the loop builds Linux's frame for it on the guest's stack.
 */
#ifndef DUNE_SIGNAL_H
#define DUNE_SIGNAL_H

#include "shim/shim.h"

#if __STDC_HOSTED__ /* tests */
#include <signal.h>
#else
#include <asm/siginfo.h>
#include <asm/signal.h>
#endif

#pragma GCC visibility push(hidden)

/* stack_t's flags. */
#define DUNE_SS_ONSTACK    1u
#define DUNE_SS_DISABLE    2u
#define DUNE_SS_AUTODISARM (1u << 31)

/* fault.c's native access to ring 3's memory: a SIGSEGV or SIGBUS with RIP in
 * [dune_touch_begin, dune_touch_end) goes on at dune_touch_fixup, its siginfo in cpu->probed. */
extern const char dune_touch_begin[], dune_touch_end[], dune_touch_fixup[];

/* ---- signal.c: threads that come, fork and go ------------------------------------------------ */

/* A thread enters the guest: its alternate stack becomes the guest's, and the host has none. */
void dune_signals_enter(struct dune_vcpu *cpu);
/* It leaves, and has given its vCPU back: what is recorded goes to the kernel again, and as that of
 * a thread outside acts at once. The alternate stack is the host's again, too. */
void dune_signals_leave(struct dune_vcpu *cpu);
/* The last one left (open mode): the program's handlers go back to the kernel. */
void dune_signals_end(struct dune_vault *vault);
/* Before execve() what is ignored must be so for the host's kernel, too. False: execve() failed. */
void dune_signals_exec(struct dune_vcpu *cpu, bool begins);

/* As dune_force_signal(), with the whole siginfo_t. */
void dune_force_info(struct dune_vcpu *cpu, const void *info, const struct dune_tf *tf);

long dune_do_rt_sigaction(struct dune_vcpu *cpu, struct dune_call *call);
long dune_do_rt_sigreturn(struct dune_vcpu *cpu, struct dune_call *call);
long dune_do_sigaltstack(struct dune_vcpu *cpu, struct dune_call *call);

/* ---- frame.c: Linux's struct rt_sigframe ----------------------------------------------------- */

/* Without what belongs in ring 3: FPU state lies above it, see fpstate. */
struct dune_sigframe {
    uint64_t pretcode; /* the handler's return address: SA_RESTORER's */
    uint64_t uc_flags;
    uint64_t uc_link;
    uint64_t stack_sp;
    uint32_t stack_flags, stack_pad;
    uint64_t stack_size;
    uint64_t r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip;
    uint64_t rflags;
    uint16_t cs, gs, fs, ss;
    uint64_t error, trapno, oldmask, cr2;
    uint64_t fpstate; /* 64-byte aligned; 0: the initial state */
    uint64_t reserved[8];
    uint64_t mask;
    uint8_t info[128];
};

/* Puts the frame for a handler on the guest's stack, `mask` to be restored, and changes *context
 * into the handler's start. -EFAULT: it can't be written there. */
int dune_frame_build(struct dune_vcpu *cpu, struct dune_context *context,
                     const struct dune_sigaction *action, const void *info, uint64_t mask);
/* What rt_sigreturn() finds at the guest's stack: *context and the FPU become that, *mask is the
 * one to set. -EFAULT: not a frame that can be returned to. */
int dune_frame_restore(struct dune_vcpu *cpu, struct dune_context *context, uint64_t *mask);

/* sigaltstack()'s setting for a thread whose stack pointer is sp: 0, -EPERM, -EINVAL, -ENOMEM, or
 * -EFAULT for one in the vault. */
long dune_altstack_set(struct dune_vcpu *cpu, const uint64_t stack[3], uint64_t sp);
/* And what it tells. */
void dune_altstack_get(const struct dune_vcpu *cpu, uint64_t stack[3], uint64_t sp);

#pragma GCC visibility pop

#endif
