/* Guest ring 0, the open way: handlers, ring 3 called from ring 0, page tables, counters.
 *
 * This is ordinary code of the process that happens to run in ring 0. It finds its vCPU by SIDT:
 * the IDT lies in the vCPU's block.
 */
#include "lib/dune_lib.h"
#include "shim/pagetable.h"
#include "shim/ring0.h"
#include "shim/trap.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define VECTOR_NMI           2
#define VECTOR_DOUBLE_FAULT  8
#define VECTOR_MACHINE_CHECK 18
#define RFLAGS_RING3         0x2
#define FLUSH_BY_PAGE        32          /* more pages than this: the whole TLB */
#define STACK_AHEAD          (12 * 1024) /* that the vault's code may use while it holds a lock */
#define WINDOWS_MOST         64          /* of one call's range that are opened on the way */

/* lib/ring0_entry.S */
long dune_ring0_run(uint64_t *user_return, struct dune_tf *tf, uint64_t become,
                    uint64_t *stack_top);
extern const char dune_ring3_ended[];

static uint64_t own_calls; /* exits that dune_stats() itself made */

int dune_ring(void)
{
    uint16_t cs;

    __asm__("mov %%cs, %0" : "=r"(cs));
    return cs == DUNE_KERNEL_CS ? 0 : cs == DUNE_USER_CS ? 3 : -1;
}

static struct dune_vcpu *this_cpu(void)
{
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) idt;

    __asm__("sidt %0" : "=m"(idt));
    return (struct dune_vcpu *)(idt.base - DUNE_BLOCK_IDT + DUNE_BLOCK_VCPU);
}

static int only_ring0(const char *name)
{
    if (dune_ring() == 0)
        return 0;
    return dune_fail(-EPERM, "%s() works in ring 0 only (cure: dune_enter() first)", name);
}

static long own_call(long nr, uint64_t argument)
{
    long result;

    __asm__ volatile("syscall" : "=a"(result) : "0"(nr), "D"(argument) : "rcx", "r11", "memory");
    return result;
}

/* Below the caller's frame the stack must be there before the vault's code runs on it. */
static void touch_stack(void)
{
    uint8_t *at = __builtin_frame_address(0);

    for (int below = DUNE_PAGE; below <= STACK_AHEAD; below += DUNE_PAGE)
        __asm__ volatile("orb $0, %0" : "+m"(at[-below]));
}

static long shim_call(struct dune_ring0_call *call)
{
    struct dune_vcpu *cpu = this_cpu();
    long (*function)(struct dune_vcpu *, struct dune_ring0_call *);

    function = (long (*)(struct dune_vcpu *, struct dune_ring0_call *))(
        cpu->vault->base + DUNE_IMAGE(cpu->vault)->ring0_call);
    touch_stack();
    return function(cpu, call);
}

/* ---- handlers ------------------------------------------------------------------------------ */

int dune_set_trap_handler(unsigned vector, dune_handler handler, uint32_t flags)
{
    struct dune_vault *vault = dune_the_vault;
    int error = only_ring0("dune_set_trap_handler");

    if (error != 0)
        return error;
    if (vector >= DUNE_VECTORS || vector == VECTOR_NMI || vector == VECTOR_DOUBLE_FAULT ||
        vector == VECTOR_MACHINE_CHECK || (flags & ~DUNE_HANDLER_NO_FPU))
        return dune_fail(-EINVAL, "vector %u can't be handled, or unknown flags 0x%x", vector,
                         flags);
    vault->handler_flags[vector] = flags;
    __atomic_store_n(&vault->handler[vector], handler, __ATOMIC_RELEASE);
    return 0;
}

int dune_set_syscall_handler(dune_handler handler, uint32_t flags)
{
    struct dune_ring0_call call = {.what = DUNE_RING0_HOOKS, .handler = handler, .flags = flags};
    int error = only_ring0("dune_set_syscall_handler");

    if (error != 0)
        return error;
    if (flags & ~DUNE_HANDLER_NO_FPU)
        return dune_fail(-EINVAL, "unknown flags 0x%x", flags);
    return (int)shim_call(&call);
}

void dune_forward(struct dune_tf *tf)
{
    if (dune_ring() == 0)
        __asm__ volatile("out %%al, %0" : : "i"(DUNE_PORT_FORWARD), "D"(tf), "a"(0) : "memory");
    else
        tf->rax = (uint64_t)(int64_t)only_ring0("dune_forward");
}

/* ---- ring 3, called from ring 0 ------------------------------------------------------------ */

long dune_run_user(void (*entry)(void *), void *arg, void *stack_top)
{
    uint64_t outer[sizeof(((struct dune_vcpu *)0)->user_return) / sizeof(uint64_t)], outer_stack;
    uint64_t *rsp = (uint64_t *)((uint64_t)stack_top & ~15ull) - 1;
    struct dune_tf tf = {.rip = (uint64_t)entry,
                         .cs = DUNE_USER_CS,
                         .rflags = RFLAGS_RING3,
                         .rsp = (uint64_t)rsp,
                         .ss = DUNE_USER_DS,
                         .rdi = (uint64_t)arg};
    const struct dune_image *image;
    struct dune_vcpu *cpu;
    uint8_t outer_hooks;
    long result = only_ring0("dune_run_user");

    if (result != 0)
        return result;
    cpu = this_cpu();
    image = DUNE_IMAGE(cpu->vault);
    *rsp = (uint64_t)dune_ring3_ended;
    memcpy(outer, cpu->user_return, sizeof(outer));
    outer_stack = cpu->stack_top;
    outer_hooks = cpu->hooks;
    cpu->user_return[DUNE_RETURN_ENDING] = 0;
    cpu->hooks |= DUNE_HOOK_RUN_USER;
    result = dune_ring0_run(cpu->user_return, &tf,
                            (uint64_t)dune_block(cpu) + image->stub_become - image->stub,
                            &cpu->stack_top);
    if (!(outer_hooks & DUNE_HOOK_RUN_USER))
        __atomic_fetch_and(&cpu->hooks, (uint8_t)~DUNE_HOOK_RUN_USER, __ATOMIC_RELAXED);
    cpu->stack_top = outer_stack;
    memcpy(cpu->user_return, outer, sizeof(outer));
    return result;
}

void dune_end_user(long result)
{
    uint64_t *saved;

    if (dune_ring() != 0)
        return;
    saved = this_cpu()->user_return;
    if (saved[DUNE_RETURN_RSP] == 0)
        return;
    saved[DUNE_RETURN_RESULT] = (uint64_t)result;
    saved[DUNE_RETURN_ENDING] = 1;
}

/* ---- page tables --------------------------------------------------------------------------- */

void dune_flush_tlb(void)
{
    uint64_t cr3;

    if (dune_ring() != 0)
        return;
    __asm__ volatile("mov %%cr3, %0\n\tmov %0, %%cr3" : "=r"(cr3) : : "memory");
}

void dune_flush_page(uint64_t va)
{
    if (dune_ring() == 0)
        __asm__ volatile("invlpg (%0)" : : "r"(va) : "memory");
}

/* Whether another thread's vCPU may have entries of this root cached. */
static bool is_shared(const struct dune_vcpu *self, const struct dune_root *root)
{
    const struct dune_vault *vault = self->vault;

    for (uint32_t i = 0; i < vault->n_vcpus; i++) {
        const struct dune_vcpu *cpu = dune_vcpu_at(vault, i);

        if (cpu != self && cpu->state == DUNE_VCPU_RUNS && cpu->root == root)
            return true;
    }
    return false;
}

/* One exit, only where threads share the root. */
static void flush_others(const struct dune_root *root)
{
    struct dune_vcpu *cpu = this_cpu();

    if (!is_shared(cpu, root))
        return;
    *(volatile uint8_t *)(cpu->scratch + DUNE_SCRATCH - DUNE_PAGE) = 0; /* see flush_all() */
    own_call(DUNE_CALL_FLUSH, 0);
}

static void flush_range(const struct dune_root *root, uint64_t va, uint64_t bytes)
{
    flush_others(root);
    if (root != this_cpu()->root)
        return; /* dune_root_switch_cr3() flushes where something changed */
    if (bytes / DUNE_PAGE > FLUSH_BY_PAGE) {
        dune_flush_tlb();
        return;
    }
    for (uint64_t at = va; at < va + bytes; at += DUNE_PAGE)
        dune_flush_page(at);
}

/* Opens the windows of a range that nobody has touched. */
static int open_windows(uint64_t address, uint64_t bytes)
{
    uint64_t first = address >> DUNE_WINDOW_SHIFT,
             last = (address + bytes - 1) >> DUNE_WINDOW_SHIFT;
    const struct dune_vault *vault = dune_the_vault;

    if (bytes == 0 || last < first || last >= 1u << (47 - DUNE_WINDOW_SHIFT) ||
        last - first >= WINDOWS_MOST)
        return -EINVAL;
    for (uint64_t window = first; window <= last; window++) {
        long error = 0;

        if (vault->window_of[window] == 0)
            error = own_call(DUNE_CALL_WINDOW, window << DUNE_WINDOW_SHIFT);
        if (error != 0)
            return (int)error;
    }
    return 0;
}

/* A change of page tables. -ENXIO tells of a window that was never open. */
static int change(const char *name, struct dune_ring0_call *call)
{
    int error = only_ring0(name);

    if (error != 0)
        return error;
    if (call->root == NULL)
        call->root = this_cpu()->root;
    error = (int)shim_call(call);
    if (error == -ENXIO) {
        error = open_windows(call->va, call->bytes);
        if (error == 0 && call->what == DUNE_RING0_MAP)
            error = open_windows(call->source, call->bytes);
        if (error == 0)
            error = (int)shim_call(call);
    }
    if (error != 0)
        return dune_fail(error, "%s(0x%llx, 0x%llx bytes): %s", name, (unsigned long long)call->va,
                         (unsigned long long)call->bytes, strerror(-error));
    flush_range(call->root, call->va, call->bytes);
    return 0;
}

struct dune_root *dune_root(void)
{
    return dune_ring() == 0 ? this_cpu()->root : NULL;
}

int dune_map(struct dune_root *root, uint64_t va, uint64_t source, uint64_t bytes, uint32_t flags)
{
    struct dune_ring0_call call = {.what = DUNE_RING0_MAP,
                                   .root = root,
                                   .va = va,
                                   .source = source,
                                   .bytes = bytes,
                                   .flags = flags};

    return change("dune_map", &call);
}

int dune_protect(struct dune_root *root, uint64_t va, uint64_t bytes, uint32_t flags)
{
    struct dune_ring0_call call = {
        .what = DUNE_RING0_PROTECT, .root = root, .va = va, .bytes = bytes, .flags = flags};

    return change("dune_protect", &call);
}

int dune_unmap(struct dune_root *root, uint64_t va, uint64_t bytes)
{
    struct dune_ring0_call call = {
        .what = DUNE_RING0_UNMAP, .root = root, .va = va, .bytes = bytes};

    return change("dune_unmap", &call);
}

int dune_follow(struct dune_root *root, uint64_t va, uint64_t bytes)
{
    struct dune_ring0_call call = {
        .what = DUNE_RING0_FOLLOW, .root = root, .va = va, .bytes = bytes};

    return change("dune_follow", &call);
}

int dune_lookup(struct dune_root *root, uint64_t va, struct dune_entry *entry)
{
    struct dune_ring0_call call = {
        .what = DUNE_RING0_LOOKUP, .root = root, .va = va, .entry = entry};
    int error = only_ring0("dune_lookup");

    if (error != 0)
        return error;
    if (call.root == NULL)
        call.root = this_cpu()->root;
    return (int)shim_call(&call);
}

int dune_walk(struct dune_root *root, uint64_t va, uint64_t bytes,
              int (*visit)(const struct dune_entry *entry, void *arg), void *arg, bool clear)
{
    struct dune_ring0_call call = {.what = DUNE_RING0_WALK,
                                   .root = root,
                                   .va = va,
                                   .bytes = bytes,
                                   .visit = visit,
                                   .arg = arg,
                                   .flags = clear};
    int result = only_ring0("dune_walk");

    if (result != 0)
        return result;
    if (call.root == NULL)
        call.root = this_cpu()->root;
    result = (int)shim_call(&call);
    if (clear) /* the CPU sets the bits again only where it walks again */
        flush_range(call.root, va, bytes);
    return result;
}

int dune_clone_root(struct dune_root *from, struct dune_root **made)
{
    struct dune_ring0_call call = {.what = DUNE_RING0_CLONE, .root = from};
    int error = only_ring0("dune_clone_root");

    if (error != 0)
        return error;
    if (call.root == NULL)
        call.root = this_cpu()->root;
    error = (int)shim_call(&call);
    if (error != 0)
        return dune_fail(error, "no more page tables: %s", strerror(-error));
    *made = call.made;
    return 0;
}

int dune_free_root(struct dune_root *root)
{
    struct dune_ring0_call call = {.what = DUNE_RING0_FREE, .root = root};
    int error = only_ring0("dune_free_root");

    if (error != 0)
        return error;
    error = (int)shim_call(&call);
    return error == 0 ? 0 : dune_fail(error, "the root can't be freed: %s", strerror(-error));
}

int dune_switch_root(struct dune_root *root)
{
    struct dune_ring0_call call = {.what = DUNE_RING0_SWITCH,
                                   .root = root,
                                   .va = (uint64_t)__builtin_frame_address(0),
                                   .source = (uint64_t)__builtin_return_address(0)};
    int error = only_ring0("dune_switch_root");

    if (error != 0)
        return error;
    error = (int)shim_call(&call);
    return error == 0 ? 0 : dune_fail(error, "no room for page tables: %s", strerror(-error));
}

/* ---- counters ------------------------------------------------------------------------------ */

static void add_counts(struct dune_stats *stats, const struct dune_counts *counts)
{
    stats->exits += counts->exits;
    stats->syscalls += counts->syscalls;
    stats->windows += counts->windows;
    stats->executable += counts->executable;
    stats->faults += counts->faults;
    stats->traps += counts->traps;
    stats->interrupted += counts->interrupted;
    stats->others += counts->others;
    stats->kicks += counts->kicks;
    stats->refused += counts->refused;
    stats->module_calls += counts->module_calls;
}

static uint64_t kvm_exits(struct dune_vault *vault)
{
    uint64_t (*function)(struct dune_vault *);

    if (dune_ring() == 0) {
        __atomic_fetch_add(&own_calls, 1, __ATOMIC_RELAXED);
        return (uint64_t)own_call(DUNE_CALL_EXITS, 0);
    }
    function = (uint64_t(*)(struct dune_vault *))(vault->base + DUNE_IMAGE(vault)->count_exits);
    return function(vault);
}

int dune_stats(struct dune_stats *stats)
{
    struct dune_vault *vault = dune_the_vault;
    uint64_t own;

    memset(stats, 0, sizeof(*stats));
    if (vault == NULL)
        return dune_fail(-EINVAL, "dune_init() comes first");
    if (dune_ring() == 3)
        return dune_fail(-EPERM,
                         "ring 3 can't see the counters (cure: ask from ring 0 or outside)");
    stats->kvm_exits = kvm_exits(vault);
    add_counts(stats, &vault->counts);
    for (uint32_t i = 0; i < vault->n_vcpus; i++) {
        const struct dune_vcpu *cpu = dune_vcpu_at(vault, i);

        add_counts(stats, &cpu->counts);
        stats->vcpus += cpu->state == DUNE_VCPU_RUNS;
    }
    /* Asking takes an exit in ring 0; what it costs is left out, so that differences are the
     * program's. */
    own = __atomic_load_n(&own_calls, __ATOMIC_RELAXED);
    stats->exits -= own;
    stats->syscalls -= own;
    stats->kvm_exits -= stats->kvm_exits > own ? own : 0;
    return 0;
}
