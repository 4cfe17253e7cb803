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
#include "shim/fpu.h"
#include "shim/pagetable.h"
#include "shim/shim.h"
#include "shim/trap.h"

#define DEBUG              1
#define PAGE_FAULT         14
#define ERROR_PRESENT      1u
#define ERROR_FETCH        16u
#define XSAVE_ALIGN_BITS   512

static void hypercall_trap(struct dune_tf *tf)
{
    __asm__ volatile("out %%al, %0" : : "i"(DUNE_PORT_TRAP), "D"(tf), "a"(0) : "memory");
}

static void hypercall_forward(struct dune_tf *tf)
{
    __asm__ volatile("out %%al, %0" : : "i"(DUNE_PORT_FORWARD), "D"(tf), "a"(0) : "memory");
}

/* Calls the program's handler; what it does to vector registers does not show afterwards. */
static bool call_handler(struct dune_vcpu *cpu, struct dune_tf *tf, dune_handler handler,
                         uint32_t flags)
{
    const struct dune_vault *vault = cpu->vault;
    uint8_t *area;
    bool done;

    if (flags & DUNE_HANDLER_NO_FPU)
        return handler(tf);
    area = __builtin_alloca_with_align(vault->xsave_bytes, XSAVE_ALIGN_BITS);
    for (int i = 0; i < DUNE_XSAVE_HEADER_BYTES / 8; i++)
        ((uint64_t *)(area + DUNE_XSAVE_HEADER_AT))[i] = 0;
    dune_fpu_save(vault, area);
    __asm__ volatile("fninit"); /* the x87 stack empty */
    dune_fpu_plain_sse();
    done = handler(tf);
    dune_fpu_restore(vault, area);
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
