/* Ring 0's side of exceptions and of ring 3's system calls: the program's handlers.
 *
 * The stubs (stub.S) come here with everything that was interrupted in a struct dune_tf, on ring
 * 0's stack (ring 3 was interrupted) or below the red zone of ring 0's own; never on an IST stack,
 * so that a handler may itself fault. What is in *tf on return is what goes on, in whichever ring
 * its cs says.
 *
 * Order of a page fault: first what libdune itself owes the process (a window that nobody touched
 * yet, a first fetch from a page), which the host side settles; only what is left is the program's.
 * In the sealed way no handler is ever registered, and all of it goes to the host side.
 */
#include "shim/pagetable.h"
#include "shim/shim.h"
#include "shim/trap.h"

#define DEBUG              1
#define PAGE_FAULT         14
#define ERROR_PRESENT      1u
#define ERROR_FETCH        16u
#define MXCSR_DEFAULT      0x1f80u
#define XSAVE_LEGACY_BYTES 512
#define XSAVE_HEADER_BYTES 64
#define XSAVE_ALIGN_BITS   512

/* dune_vcpu.handlers_flags */
#define XSAVEC_ASKED 1u
#define XSAVEC_THERE 2u

static void hypercall_trap(struct dune_tf *tf)
{
    __asm__ volatile("out %%al, %0" : : "i"(DUNE_PORT_TRAP), "D"(tf), "a"(0) : "memory");
}

static void hypercall_forward(struct dune_tf *tf)
{
    __asm__ volatile("out %%al, %0" : : "i"(DUNE_PORT_FORWARD), "D"(tf), "a"(0) : "memory");
}

/* XSAVEC writes only what is in use, so that a handler doesn't pay for 8 KiB of AMX tiles. */
static bool has_xsavec(struct dune_vcpu *cpu)
{
    const struct kvm_cpuid2 *cpuid = cpu->vault->cpuid;

    if (cpu->handlers_flags & XSAVEC_ASKED)
        return cpu->handlers_flags & XSAVEC_THERE;
    cpu->handlers_flags |= XSAVEC_ASKED;
    for (uint32_t i = 0; cpuid && i < cpuid->nent; i++) {
        const struct kvm_cpuid_entry2 *entry = &cpuid->entries[i];

        if (entry->function == 0xd && entry->index == 1 && (entry->eax & 2))
            cpu->handlers_flags |= XSAVEC_THERE;
    }
    return cpu->handlers_flags & XSAVEC_THERE;
}

/* As the ABI wants it at a function's start: the x87 stack empty, exceptions masked. */
static void plain_fpu(void)
{
    uint32_t mxcsr = MXCSR_DEFAULT;

    __asm__ volatile("fninit\n\tldmxcsr %0" : : "m"(mxcsr));
}

static bool call_with_fxsave(struct dune_tf *tf, dune_handler handler)
{
    uint8_t area[XSAVE_LEGACY_BYTES] __attribute__((aligned(16)));
    bool done;

    __asm__ volatile("fxsave64 %0" : "=m"(area));
    plain_fpu();
    done = handler(tf);
    __asm__ volatile("fxrstor64 %0" : : "m"(area));
    return done;
}

/* Calls the program's handler; what it does to vector registers does not show afterwards. */
static bool call_handler(struct dune_vcpu *cpu, struct dune_tf *tf, dune_handler handler,
                         uint32_t flags)
{
    const struct dune_vault *vault = cpu->vault;
    uint32_t low = (uint32_t)vault->xcr0, high = (uint32_t)(vault->xcr0 >> 32);
    bool compact, done;
    uint8_t *area;

    if (flags & DUNE_HANDLER_NO_FPU)
        return handler(tf);
    if (!(vault->features & DUNE_HAS_XSAVE))
        return call_with_fxsave(tf, handler);
    compact = has_xsavec(cpu);
    area = __builtin_alloca_with_align(vault->xsave_bytes, XSAVE_ALIGN_BITS);
    for (int i = 0; i < XSAVE_HEADER_BYTES / 8; i++) /* XRSTOR refuses what is not zero there */
        ((uint64_t *)(area + XSAVE_LEGACY_BYTES))[i] = 0;
    if (compact)
        __asm__ volatile("xsavec64 (%0)" : : "r"(area), "a"(low), "d"(high) : "memory");
    else
        __asm__ volatile("xsave64 (%0)" : : "r"(area), "a"(low), "d"(high) : "memory");
    plain_fpu();
    done = handler(tf);
    __asm__ volatile("xrstor64 (%0)" : : "r"(area), "a"(low), "d"(high) : "memory");
    return done;
}

/* dune_run_user() returns in ring 0: its context takes the place of what ring 3 did. */
static void end_user(struct dune_vcpu *cpu, struct dune_tf *tf)
{
    uint64_t *saved = cpu->user_return;

    tf->rip = saved[DUNE_RETURN_RIP];
    tf->rsp = saved[DUNE_RETURN_RSP];
    tf->rax = saved[DUNE_RETURN_RESULT];
    tf->cs = DUNE_KERNEL_CS;
    tf->ss = DUNE_KERNEL_DS;
    tf->rflags = DUNE_RETURN_FLAGS;
    saved[DUNE_RETURN_ENDING] = 0;
}

/* A page fault that is no business of the program: nothing touched its window yet, or it is a first
 * fetch from a page that may yet turn out to be executable. What the program set itself is its own.
 */
static bool is_librarys(const struct dune_vcpu *cpu, const struct dune_tf *tf)
{
    uint64_t entry, bytes;

    if (cpu->step.fast != NULL && (tf->vector == PAGE_FAULT || tf->vector == DEBUG))
        return true; /* step.c runs one instruction on page tables of its own */
    if (tf->vector != PAGE_FAULT || tf->cr2 >> 47)
        return false;
    entry = dune_root_entry(cpu->vault, cpu->root, tf->cr2, &bytes);
    if (entry & DUNE_ENTRY_OWN)
        return false;
    return (tf->error & ERROR_FETCH) || !(entry & DUNE_ENTRY_PRESENT);
}

void dune_ring0_trap(struct dune_vcpu *cpu, struct dune_tf *tf)
{
    const struct dune_vault *vault = cpu->vault;
    dune_handler handler = tf->vector < DUNE_VECTORS ? vault->handler[tf->vector] : NULL;

    if (!handler || is_librarys(cpu, tf) ||
        !call_handler(cpu, tf, handler, vault->handler_flags[tf->vector])) {
        hypercall_trap(tf);
        return;
    }
    if (cpu->user_return[DUNE_RETURN_ENDING])
        end_user(cpu, tf);
}

void dune_ring0_syscall(struct dune_vcpu *cpu, struct dune_tf *tf)
{
    const struct dune_vault *vault = cpu->vault;
    uint64_t *saved = cpu->user_return;

    if (tf->rax == DUNE_CALL_RETURN && saved[DUNE_RETURN_RSP]) {
        saved[DUNE_RETURN_RESULT] = tf->rdi;
        end_user(cpu, tf);
        return;
    }
    if (!vault->syscall_handler ||
        !call_handler(cpu, tf, vault->syscall_handler, vault->syscall_handler_flags))
        hypercall_forward(tf);
    if (saved[DUNE_RETURN_ENDING])
        end_user(cpu, tf);
}
