/* Exceptions that nobody in ring 0 handled: what the library owes the process is done (windows
 * open, executable memory becomes so), the rest becomes the signal that Linux would have sent.
 *
 * Execution: a window's entry forbids it, and Linux's own tables can't tell a guest's fetch from
 * its read. So the first fetch from a mapping comes here, Linux is asked, and the whole mapping (as
 * far as it lies in the window) becomes executable in the guest's tables, in entries as fine as its
 * ends need. mm.c takes it away again before the mapping changes. Cost: an exit and an ioctl for
 * each executable mapping that is ever run; none for mprotect(PROT_EXEC), which sets it at once;
 * 4 KiB of tables for each end that is not aligned to 2 MiB.
 *
 * What differs from Linux: int $0x80 (32-bit system calls) is a #GP, thus a SIGSEGV. The vsyscall
 * page is emulated, whatever the host's kernel does with it; its getcpu() tells of the host's CPU.
 */
#include "shim/fault.h"
#include "shim/pagetable.h"
#include "shim/signal.h"
#include "shim/sys.h"

#include <asm/errno.h>

#define VSYSCALL    0xffffffffff600000ull
#define FETCH_TRIES 1000

enum {
    DIVIDE = 0,
    DEBUG = 1,
    BREAKPOINT = 3,
    UNDEFINED = 6,
    NOT_PRESENT = 11,
    STACK = 12,
    PAGE = 14,
    X87 = 16,
    ALIGNMENT = 17,
    MACHINE_CHECK = 18,
    SIMD = 19,
    NO_DEVICE = 7,
    DOUBLE = 8,
};

int dune_fault_open(struct dune_vcpu *cpu, uint64_t address)
{
    struct dune_vault *vault = cpu->vault;
    int error = dune_window_open(vault, address);

    if (error)
        return error;
    dune_lock(&vault->lock);
    error = dune_root_open_window(vault, cpu->root, address);
    dune_unlock(&vault->lock);
    return error;
}

/* ---- execution ------------------------------------------------------------------------------ */

int dune_fault_may_fetch(struct dune_vcpu *cpu, uint64_t address)
{
    struct dune_vma vma;
    int error = dune_vma_at(cpu->vault, address, &vma);

    if (error)
        return error == -ENOSYS ? 0 : -ENOENT;
    return vma.flags & DUNE_VMA_EXEC ? 0 : -EACCES;
}

void dune_fault_no_fetch(struct dune_vcpu *cpu, struct dune_tf *tf)
{
    struct dune_vma vma;

    /* Linux gets the page first, as for a read, and only then meets the CPU's refusal to run it. */
    tf->error &= ~(uint64_t)DUNE_FAULT_PRESENT;
    if (dune_vma_at(cpu->vault, tf->cr2, &vma) == 0 && vma.flags) {
        if (dune_touch(cpu, tf->cr2, false) == DUNE_TOUCH_FAULT) {
            cpu->pending.error |= DUNE_FAULT_FETCH;
            dune_force_info(cpu, cpu->probed, NULL);
            return;
        }
        tf->error |= DUNE_FAULT_PRESENT;
    }
    dune_force_signal(cpu, SIGSEGV, SEGV_ACCERR, tf->cr2, tf);
}

/* The mapping around address as far as its window goes; its page alone where procfs isn't there. */
static int executable_around(int maps_fd, uint64_t address, struct dune_vma *vma)
{
    uint64_t window = address & ~(uint64_t)(DUNE_WINDOW - 1);
    int error = dune_vma_query(maps_fd, address, vma);

    if (error == -ENOSYS) {
        vma->start = address & ~(uint64_t)(DUNE_PAGE - 1);
        vma->end = vma->start + DUNE_PAGE;
        return 0;
    }
    if (error)
        return -ENOENT;
    if (!(vma->flags & DUNE_VMA_EXEC))
        return -EACCES;
    if (vma->start < window)
        vma->start = window;
    if (vma->end > window + DUNE_WINDOW)
        vma->end = window + DUNE_WINDOW;
    return 0;
}

/* Between the question and the change no other thread may take the permission away: what mm.c
 * begins waits for mm_lock, and what it has begun is waited for. 0, -EACCES, -ENOENT. */
static int permit_fetch(struct dune_vcpu *cpu, uint64_t address)
{
    struct dune_vault *vault = cpu->vault;
    int maps_fd = dune_vma_fd(vault);
    struct dune_vma vma;

    for (unsigned i = 0; i < FETCH_TRIES; i++) {
        bool quiet = false;
        int error;

        dune_lock(&vault->mm_lock);
        error = executable_around(maps_fd, address, &vma);
        if (!error)
            quiet = dune_mm_is_quiet(vault, vma.start, vma.end);
        if (quiet) {
            dune_lock(&vault->lock);
            if (dune_root_set_exec(vault, cpu->root, vma.start, vma.end - vma.start) != 0)
                dune_panic(cpu, "no page tables left", address);
            dune_unlock(&vault->lock);
        }
        dune_unlock(&vault->mm_lock);
        if (error || quiet)
            return error;
        dune_sys0(__NR_sched_yield);
    }
    return 0; /* it faults again, and signals get their turn meanwhile */
}

static void fetch_fault(struct dune_vcpu *cpu, struct dune_tf *tf)
{
    int error = permit_fetch(cpu, tf->cr2);

    cpu->counts.executable++;
    if (error == -EACCES)
        dune_fault_no_fetch(cpu, tf);
    if (error != -ENOENT || dune_touch(cpu, tf->cr2, false) != DUNE_TOUCH_FAULT)
        return; /* a stack that grew for it is there at the second try */
    cpu->pending.error |= DUNE_FAULT_FETCH;
    dune_force_info(cpu, cpu->probed, NULL);
}

/* The three calls that were functions in the kernel's half, once. */
static bool vsyscall(struct dune_vcpu *cpu, struct dune_tf *tf)
{
    static const uint16_t number[3] = {__NR_gettimeofday, __NR_time, __NR_getcpu};
    uint64_t which = (tf->rip - VSYSCALL) / 0x400, arg[6] = {tf->rdi, tf->rsi}, back;
    long result;

    if (tf->cr2 != tf->rip || which > 2 || tf->rip % 0x400)
        return false;
    if (dune_copy_in(cpu, &back, tf->rsp, sizeof(back)) != 0 || back >= DUNE_USER_END ||
        !dune_range_is_free(cpu->vault, tf->rdi, 16) ||
        !dune_range_is_free(cpu->vault, tf->rsi, 16))
        return false;
    result = dune_forward_raw(cpu, number[which], arg);
    if (result == DUNE_RESTART)
        return true; /* the same fetch again, behind the signal */
    tf->rax = (uint64_t)result;
    tf->rip = back;
    tf->rsp += sizeof(back);
    return true;
}

/* ---- page faults ---------------------------------------------------------------------------- */

/* Not ring 3's to use, and the same wherever it lies: as a page that isn't there. */
static void no_address(struct dune_vcpu *cpu, struct dune_tf *tf)
{
    if ((tf->error & DUNE_FAULT_FETCH) && vsyscall(cpu, tf))
        return;
    tf->error &= ~(uint64_t)DUNE_FAULT_PRESENT;
    if (tf->cr2 >= DUNE_USER_END) /* Linux doesn't tell about its own half */
        tf->error |= DUNE_FAULT_PRESENT;
    dune_force_signal(cpu, SIGSEGV, SEGV_MAPERR, tf->cr2, tf);
}

static void page_fault(struct dune_vcpu *cpu, struct dune_tf *tf)
{
    uint64_t address = tf->cr2, entry, bytes;
    int error;

    tf->error |= DUNE_FAULT_USER; /* ring 0's own faults are the process's, too */
    if (tf->error & DUNE_FAULT_RESERVED)
        dune_panic(cpu, "page tables with reserved bits", address);
    if (address >= DUNE_USER_END || !dune_range_is_free(cpu->vault, address, 1)) {
        no_address(cpu, tf);
        return;
    }
    entry = dune_root_entry(cpu->vault, cpu->root, address, &bytes);
    if (entry & DUNE_ENTRY_OWN) { /* the program's, and it has no handler for it */
        dune_force_signal(cpu, SIGSEGV, entry & DUNE_ENTRY_HELD ? SEGV_ACCERR : SEGV_MAPERR,
                          address, tf);
        return;
    }
    if (!entry) {
        cpu->counts.windows++;
        error = dune_fault_open(cpu, address);
        if (error) { /* more GiB in use than the CPU's physical addresses, or the slots, can hold */
            dune_log(cpu, "no window left for %x (%d)", address, (int64_t)error);
            dune_force_signal(cpu, SIGBUS, BUS_ADRERR, address, tf);
            return;
        }
    }
    /* A present entry permits all but a fetch: then the fault was another vCPU's, or is over. */
    if (tf->error & DUNE_FAULT_FETCH)
        fetch_fault(cpu, tf);
}

/* ---- exceptions ----------------------------------------------------------------------------- */

/* si_code by the x87's or SSE's unmasked exceptions; 0: none of them is raised any more. */
static int fpe_code(uint32_t raised)
{
    if (raised & 0x01)
        return FPE_FLTINV;
    if (raised & 0x04)
        return FPE_FLTDIV;
    if (raised & 0x08)
        return FPE_FLTOVF;
    if (raised & 0x12)
        return FPE_FLTUND;
    return raised & 0x20 ? FPE_FLTRES : 0;
}

static void floating_point(struct dune_vcpu *cpu, struct dune_tf *tf)
{
    uint8_t *xsave = (uint8_t *)dune_block(cpu) + DUNE_BLOCK_XSAVE;
    uint16_t control, status;
    uint32_t mxcsr;
    int code;

    if (dune_vcpu_get_fpu(cpu, xsave) != 0)
        dune_panic(cpu, "KVM doesn't tell the FPU's state", 0);
    __builtin_memcpy(&control, xsave, sizeof(control));
    __builtin_memcpy(&status, xsave + 2, sizeof(status));
    __builtin_memcpy(&mxcsr, xsave + 24, sizeof(mxcsr));
    code = fpe_code(tf->vector == X87 ? status & ~control & 0x3fu : mxcsr & ~(mxcsr >> 7) & 0x3fu);
    if (code)
        dune_force_signal(cpu, SIGFPE, code, tf->rip, tf);
}

/* The trap flag (a POPF that clears it is still trapped) or INT1; a guest of ours has no breakpoint
 * registers. */
static void debug(struct dune_vcpu *cpu, const struct dune_tf *tf)
{
    uint8_t before = 0;
    bool traced = tf->rflags & DUNE_RFLAGS_TF || dune_copy_in(cpu, &before, tf->rip - 1, 1) != 0 ||
                  before != 0xf1;

    dune_force_signal(cpu, SIGTRAP, traced ? TRAP_TRACE : TRAP_BRKPT, tf->rip, tf);
}

/* arch/x86's traps, by what their signals look like. */
static void exception(struct dune_vcpu *cpu, struct dune_tf *tf)
{
    switch (tf->vector) {
    case DIVIDE:
        dune_force_signal(cpu, SIGFPE, FPE_INTDIV, tf->rip, tf);
        break;
    case DEBUG:
        debug(cpu, tf);
        break;
    case BREAKPOINT:
        dune_force_signal(cpu, SIGTRAP, SI_KERNEL, 0, tf);
        break;
    case UNDEFINED:
        dune_force_signal(cpu, SIGILL, ILL_ILLOPN, tf->rip, tf);
        break;
    case NO_DEVICE: /* a state component that nobody asked permission for */
        dune_force_signal(cpu, SIGILL, SI_KERNEL, 0, tf);
        break;
    case NOT_PRESENT:
    case STACK:
        dune_force_signal(cpu, SIGBUS, SI_KERNEL, 0, tf);
        break;
    case X87:
    case SIMD:
        floating_point(cpu, tf);
        break;
    case ALIGNMENT:
        dune_force_signal(cpu, SIGBUS, BUS_ADRALN, 0, tf);
        break;
    case DOUBLE:
    case MACHINE_CHECK:
        dune_panic(cpu, "an exception that can't be handled", tf->vector);
    default: /* #OF, #BR, #TS, #GP, and what the CPU may yet learn */
        dune_force_signal(cpu, SIGSEGV, SI_KERNEL, 0, tf);
    }
}

void dune_handle_trap(struct dune_vcpu *cpu, struct dune_tf *tf)
{
    if (cpu->step.fast && dune_step_trap(cpu, tf))
        return;
    if (tf->vector == PAGE) {
        page_fault(cpu, tf);
        return;
    }
    cpu->counts.traps++;
    exception(cpu, tf);
}
