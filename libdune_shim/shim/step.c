/* Memory that Linux doesn't map as it is used: KVM_RUN says EFAULT, and not where.
 *
 * The instruction is run again on page tables that hold nothing but the vault, with RFLAGS.TF set.
 * Each thing that it touches is then a page fault of the guest, with the address and the kind of
 * access. The same is done natively first: that grows the stack, or makes exactly the signal that
 * Linux would have sent. Where Linux permits it the page is added and the instruction goes on;
 * the debug exception behind it ends the step.
 *
 * KVM needs a mapping to be readable even where x86 doesn't (PROT_WRITE or PROT_EXEC alone): mm.c
 * adds PROT_READ, and what came about otherwise gets it here.
 */
#include "shim/fault.h"
#include "shim/pagetable.h"
#include "shim/signal.h"
#include "shim/sys.h"

#include <asm/errno.h>
#include <asm/mman.h>

#define DEBUG_EXCEPTION     1
#define PAGE_FAULT          14
#define STUCK_MAX           8
#define RED_ZONE_AND_FRAMES 2048 /* what an exception in ring 0 uses of the interrupted stack */

#define NOWHERE          (~0ull)
#define PAGE_OF(address) ((address) & ~(uint64_t)(DUNE_PAGE - 1))

/* touch.S */
int dune_touch_memory(uint64_t address, int write, const uint64_t *mask)
    __attribute__((visibility("hidden")));

static struct dune_regs *regs_of(struct dune_vcpu *cpu)
{
    return (struct dune_regs *)&cpu->run->s.regs.regs;
}

static void set_mask(const uint64_t *mask, uint64_t *was)
{
    dune_sys4(__NR_rt_sigprocmask, SIG_SETMASK, mask, was, DUNE_KERNEL_SIGSET_BYTES);
}

enum dune_touched dune_touch(struct dune_vcpu *cpu, uint64_t address, bool write)
{
    uint64_t all = ~0ull, mask = ~(1ull << (SIGSEGV - 1) | 1ull << (SIGBUS - 1)), was;
    siginfo_t *info = (siginfo_t *)cpu->probed;
    int faulted;

    set_mask(&all, &was);
    if (cpu->pending.recorded) {
        set_mask(&was, 0);
        return DUNE_TOUCH_LATER;
    }
    info->si_signo = 0;
    faulted = dune_touch_memory(address, write, &mask);
    if (cpu->pending.recorded) { /* one that came in there: it found our mask, not ring 3's */
        cpu->pending.mask = cpu->pending.blocked = was;
        return DUNE_TOUCH_LATER; /* all stay blocked until it is delivered */
    }
    set_mask(&was, 0);
    if (!faulted)
        return DUNE_TOUCHED;
    return info->si_signo ? DUNE_TOUCH_FAULT : DUNE_TOUCH_LATER;
}

/* ---- beginning and end ---------------------------------------------------------------------- */

static void set_trap_flag(uint64_t *rflags, const struct dune_step *step)
{
    *rflags = (*rflags & ~DUNE_RFLAGS_TF) | step->flags;
}

/* Back to the page tables in use. The registers are the caller's business. */
static void leave_root(struct dune_vcpu *cpu)
{
    struct dune_root *slow = cpu->root;

    dune_vcpu_load_root(cpu, cpu->step.fast);
    cpu->step.fast = 0;
    cpu->step.go = 0;
    dune_lock(&cpu->vault->lock);
    dune_root_free(cpu->vault, slow);
    dune_unlock(&cpu->vault->lock);
}

/* The page at va becomes accessible in the step's page tables. flags: DUNE_PTE_*, added to those
 * there. False: no window or no table page is left. */
static bool add_page(struct dune_vcpu *cpu, uint64_t va, uint64_t source, uint32_t flags)
{
    struct dune_entry entry;
    int error = dune_window_open(cpu->vault, source);

    if (!dune_root_lookup(cpu->vault, cpu->root, va, &entry))
        flags |= entry.flags;
    dune_lock(&cpu->vault->lock);
    if (!error)
        error = dune_root_map(cpu->vault, cpu->root, PAGE_OF(va), PAGE_OF(source), DUNE_PAGE,
                              flags | DUNE_PTE_READ | DUNE_PTE_USER);
    dune_unlock(&cpu->vault->lock);
    return error == 0;
}

/* Where va leads in the page tables in use; NOWHERE: the program forbids it to be used so. */
static uint64_t source_of(struct dune_vcpu *cpu, uint64_t va, uint64_t error)
{
    uint64_t bytes, need = DUNE_ENTRY_PRESENT;
    uint64_t entry = dune_root_entry(cpu->vault, cpu->step.fast, va, &bytes);

    if (!(entry & DUNE_ENTRY_OWN))
        return va;
    need |= error & DUNE_FAULT_WRITE ? DUNE_ENTRY_WRITE : 0;
    need |= error & DUNE_FAULT_USER ? DUNE_ENTRY_USER : 0;
    if ((entry & need) != need || ((error & DUNE_FAULT_FETCH) && (entry & DUNE_ENTRY_NX)))
        return NOWHERE;
    return dune_hva(cpu->vault, (entry & DUNE_ENTRY_ADDRESS & ~(bytes - 1)) + (va & (bytes - 1)));
}

/* The first opcode byte of the instruction: PUSHF, POPF and IRET see or make RFLAGS.TF. */
static uint32_t opcode_at(struct dune_vcpu *cpu, uint64_t rip)
{
    uint8_t byte[8];

    if (dune_copy_in(cpu, byte, rip, sizeof(byte)) != 0 &&
        dune_copy_in(cpu, byte, rip, 1) != 0) /* the last bytes of a mapping */
        return 0;
    for (unsigned i = 0; i < sizeof(byte); i++)
        if (byte[i] != 0x66 && (byte[i] & 0xf0) != 0x40)
            return byte[i];
    return 0;
}

/* Ring 0's frames of exceptions go below the red zone of the stack in use: it must be in the step's
 * page tables before the first of them. False: the step is not to go on. */
static bool add_ring0_stack(struct dune_vcpu *cpu)
{
    uint64_t top = regs_of(cpu)->rsp - 1;

    for (uint64_t at = PAGE_OF(top - RED_ZONE_AND_FRAMES); at <= top; at += DUNE_PAGE) {
        uint64_t source = source_of(cpu, at, DUNE_FAULT_WRITE);
        enum dune_touched result = DUNE_TOUCH_LATER;

        if (source != NOWHERE && dune_range_is_free(cpu->vault, source, DUNE_PAGE))
            result = dune_touch(cpu, source, true);
        else
            dune_panic(cpu, "ring 0's stack is not where a stack can be", at);
        if (result != DUNE_TOUCHED) {
            cpu->step.go = 0;
            dune_step_check(cpu);
            if (result == DUNE_TOUCH_FAULT)
                dune_force_info(cpu, cpu->probed, NULL);
            return false;
        }
        if (!add_page(cpu, at, source, DUNE_PTE_WRITE))
            dune_panic(cpu, "no page tables left for ring 0's stack", at);
    }
    return true;
}

static void begin(struct dune_vcpu *cpu)
{
    struct dune_vault *vault = cpu->vault;
    struct dune_regs *regs = regs_of(cpu);
    struct dune_root *slow;
    uint64_t entry, bytes;

    dune_lock(&vault->lock);
    slow = dune_root_create(vault);
    dune_unlock(&vault->lock);
    if (!slow)
        dune_panic(cpu, "no page tables left", 0);
    if (cpu->step.rip != regs->rip)
        cpu->step.stuck = 0;
    cpu->step.fast = cpu->root;
    cpu->step.rip = regs->rip;
    cpu->step.flags = (uint32_t)(regs->rflags & DUNE_RFLAGS_TF);
    cpu->step.opcode = opcode_at(cpu, regs->rip);
    cpu->step.go = 1;
    dune_vcpu_load_root(cpu, slow);
    regs->rflags |= DUNE_RFLAGS_TF;
    cpu->run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
    if (dune_vcpu_get_ring(cpu) == 0 && !add_ring0_stack(cpu))
        return;
    /* Spares an exit where it holds: the instruction itself is seldom what is missing. */
    entry = dune_root_entry(vault, cpu->step.fast, regs->rip, &bytes);
    if ((entry & (DUNE_ENTRY_PRESENT | DUNE_ENTRY_NX | DUNE_ENTRY_OWN)) == DUNE_ENTRY_PRESENT &&
        dune_touch(cpu, regs->rip, false) == DUNE_TOUCHED)
        add_page(cpu, regs->rip, regs->rip, DUNE_PTE_EXEC);
}

void dune_step_check(struct dune_vcpu *cpu)
{
    struct dune_regs *regs = regs_of(cpu);

    if (cpu->step.go && !cpu->pending.recorded) {
        cpu->step.go = 0;
        return;
    }
    if (cpu->where == DUNE_IN_SHIM) /* on its way to an exit that leads here again */
        return;
    if (cpu->where == DUNE_AT_TRAP) {
        set_trap_flag(&cpu->trap->rflags, &cpu->step);
    } else {
        set_trap_flag(cpu->where == DUNE_AT_SYSCALL ? &regs->r11 : &regs->rflags, &cpu->step);
        cpu->run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
    }
    set_trap_flag(&cpu->tf.rflags, &cpu->step); /* where it is to become the state, in full */
    leave_root(cpu);
}

/* ---- what the instruction does -------------------------------------------------------------- */

/* The instruction is done. False: the debug exception is ring 3's own doing, too. */
static bool finish(struct dune_vcpu *cpu, struct dune_tf *tf)
{
    uint16_t pushed;

    cpu->step.rip = 0;
    if (cpu->step.opcode == 0x9c && !cpu->step.flags && /* PUSHF */
        dune_copy_in(cpu, &pushed, tf->rsp, sizeof(pushed)) == 0) {
        pushed &= (uint16_t)~DUNE_RFLAGS_TF;
        dune_copy_out(cpu, tf->rsp, &pushed, sizeof(pushed));
    }
    if (cpu->step.opcode != 0x9d && cpu->step.opcode != 0xcf) /* POPF, IRET: as popped */
        set_trap_flag(&tf->rflags, &cpu->step);
    leave_root(cpu);
    return cpu->step.flags == 0;
}

/* KVM reads what it maps. */
static void make_readable(struct dune_vcpu *cpu, uint64_t address)
{
    struct dune_vma vma;

    if (!dune_range_is_free(cpu->vault, address, 1) || dune_vma_at(cpu->vault, address, &vma) != 0)
        return;
    if ((vma.flags & DUNE_VMA_READ) || !vma.flags)
        return;
    dune_sys3(__NR_mprotect, PAGE_OF(address), DUNE_PAGE,
              PROT_READ | (vma.flags & DUNE_VMA_WRITE ? PROT_WRITE : 0) |
                  (vma.flags & DUNE_VMA_EXEC ? PROT_EXEC : 0));
}

/* The step ends where the native access did: by that signal. */
static void end_by_signal(struct dune_vcpu *cpu, struct dune_tf *tf, uint64_t source)
{
    siginfo_t *info = (siginfo_t *)cpu->probed;

    set_trap_flag(&tf->rflags, &cpu->step);
    leave_root(cpu);
    if (source != tf->cr2) { /* known to the program by another address */
        info->si_addr = (void *)tf->cr2;
        cpu->pending.cr2 = tf->cr2;
    }
    if (tf->error & DUNE_FAULT_FETCH)
        cpu->pending.error |= DUNE_FAULT_FETCH;
    dune_force_info(cpu, info, NULL);
}

/* The step is over, the instruction is not. */
static void give_up(struct dune_vcpu *cpu, struct dune_tf *tf)
{
    set_trap_flag(&tf->rflags, &cpu->step);
    leave_root(cpu);
}

/* One access of the instruction. */
static void touched(struct dune_vcpu *cpu, struct dune_tf *tf)
{
    bool fetch = tf->error & DUNE_FAULT_FETCH, write = tf->error & DUNE_FAULT_WRITE;
    const siginfo_t *info = (const siginfo_t *)cpu->probed;
    enum dune_touched result;
    uint64_t source = NOWHERE;
    int may_fetch = 0;

    if (dune_range_is_free(cpu->vault, tf->cr2, 1) && tf->cr2 < DUNE_USER_END)
        source = source_of(cpu, tf->cr2, tf->error);
    if (source == NOWHERE) { /* a fault by the page tables in use, too: there it is the program's */
        give_up(cpu, tf);
        return;
    }
    if (fetch && source == tf->cr2)
        may_fetch = dune_fault_may_fetch(cpu, source);
    if (may_fetch == -EACCES) {
        give_up(cpu, tf);
        dune_fault_no_fetch(cpu, tf);
        return;
    }
    result = dune_touch(cpu, source, write);
    if (result == DUNE_TOUCH_FAULT && fetch && info->si_code == SEGV_PKUERR) {
        make_readable(cpu, source); /* Linux keeps PROT_EXEC alone from reads by a key */
        result = dune_touch(cpu, source, write);
    }
    if (result == DUNE_TOUCH_LATER)
        return; /* dune_step_check() ends it, and it begins anew */
    if (result == DUNE_TOUCH_FAULT) {
        end_by_signal(cpu, tf, source);
        return;
    }
    cpu->step.address = tf->cr2;
    cpu->step.go = 1;
    if (may_fetch) /* the stack grew over it: what it is now, the next fetch will tell */
        return;
    if (!add_page(cpu, tf->cr2, source,
                  (fetch ? DUNE_PTE_EXEC : 0) | (write ? DUNE_PTE_WRITE : 0))) {
        give_up(cpu, tf);
        dune_force_signal(cpu, SIGBUS, BUS_ADRERR, tf->cr2, tf);
    }
}

bool dune_step_trap(struct dune_vcpu *cpu, struct dune_tf *tf)
{
    if (tf->vector == DEBUG_EXCEPTION)
        return finish(cpu, tf);
    if (tf->vector != PAGE_FAULT) {
        give_up(cpu, tf);
        return false;
    }
    touched(cpu, tf);
    return true;
}

/* ---- KVM's complaint ------------------------------------------------------------------------ */

/* In the middle of a step: each page that the instruction needs was there a moment ago. Another
 * thread changed that, or KVM can't map what Linux can. */
static void stuck(struct dune_vcpu *cpu)
{
    uint64_t rip = cpu->step.rip, address = cpu->step.address;

    cpu->step.go = 0;
    dune_step_check(cpu);
    make_readable(cpu, rip);
    make_readable(cpu, address);
    if (++cpu->step.stuck < STUCK_MAX)
        return;
    cpu->step.stuck = 0;
    cpu->pending.trapno = PAGE_FAULT;
    cpu->pending.error = DUNE_FAULT_USER;
    cpu->pending.cr2 = address;
    dune_force_signal(cpu, SIGBUS, BUS_ADRERR, address, NULL);
}

/* The stub copies an exception's frame to ring 0's stack, and trap.c runs on it. */
static void stack_of_shim(struct dune_vcpu *cpu)
{
    const struct dune_regs *regs = regs_of(cpu);
    uint64_t at[3] = {regs->rsp - 8, regs->rdi, regs->rdi + DUNE_TF_BYTES};

    if (cpu->step.shim_rip != regs->rip)
        cpu->step.shim_stuck = 0;
    cpu->step.shim_rip = regs->rip;
    if (cpu->step.shim_stuck++ >= STUCK_MAX)
        dune_panic(cpu, "memory that ring 0 needs is not there", regs->rip);
    if (dune_is_module(cpu->vault, regs->rip))
        return;
    for (unsigned i = 0; i < 3; i++)
        if (dune_range_is_free(cpu->vault, at[i], 1) &&
            dune_touch(cpu, at[i], true) == DUNE_TOUCH_FAULT && i == 0)
            dune_panic(cpu, "ring 0's stack is used up", regs->rsp);
}

/* An access outside of any slot: KVM would have it completed. It is, and then forgotten. */
static void forget_mmio(struct dune_vcpu *cpu)
{
    struct dune_regs regs = *regs_of(cpu);

    cpu->run->immediate_exit = 1;
    dune_sys3(__NR_ioctl, cpu->fd, KVM_RUN, 0);
    cpu->run->immediate_exit = cpu->pending.recorded != 0;
    cpu->run->exit_reason = KVM_EXIT_UNKNOWN;
    *regs_of(cpu) = regs;
    cpu->run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
}

void dune_memory_fault(struct dune_vcpu *cpu)
{
    cpu->counts.faults++;
    if (cpu->run->exit_reason == KVM_EXIT_MMIO)
        forget_mmio(cpu);
    if (cpu->where == DUNE_IN_SHIM)
        stack_of_shim(cpu);
    else if (cpu->step.fast)
        stuck(cpu);
    else
        begin(cpu);
}
