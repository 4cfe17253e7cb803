/* The module in ring 0: ring 3's calls of it, and its kicks.
 *
 * One thread may call it, on one vCPU: its stack, its FPU area and the counters are that one's
 * alone. The module is trusted as the shim is, and like it never runs with ring 3's memory in reach
 * (SMAP, where the CPU has it). A signal that stops the vCPU in here waits for the way out: the
 * stub's, as with the shim's own code. */
#include "module/module.h"
#include "shim/fpu.h"
#include "shim/image.h"
#include "shim/sys.h"

#define PROT_NONE     0
#define MAP_PRIVATE   2
#define MAP_FIXED     0x10
#define MAP_ANONYMOUS 0x20
#define MAP_NORESERVE 0x4000
#define MSG_DONTWAIT  0x40

typedef long (*module_main)(uint64_t context, uint64_t n, const uint64_t arg[5]);

_Static_assert(DUNE_CALL_MODULE == DUNE_CALL_MODULE_FIRST, "dune.h");
_Static_assert(DUNE_CALL_MODULE + DUNE_CALL_MODULES - 1 == DUNE_CALL_MODULE_LAST, "dune.h");

bool dune_is_module(const struct dune_vault *vault, uint64_t address)
{
    return address - (vault->base + DUNE_MODULES_AT) < vault->module.bytes;
}

/* ---- ring 0 ---------------------------------------------------------------------------------- */

/* Kicks and exits that happen meanwhile count for themselves. */
static uint64_t counted_elsewhere(const struct dune_shared *shared)
{
    return shared->cycles_kick + __atomic_load_n(&shared->cycles_host, __ATOMIC_RELAXED);
}

long dune_ring0_module(struct dune_vcpu *cpu, uint64_t n, const uint64_t arg[5])
{
    struct dune_vault *vault = cpu->vault;
    struct dune_shared *shared = vault->module.shared;
    void *fpu = (void *)(vault->base + DUNE_MODULE_FPU_AT);
    uint64_t begins = 0, before = 0;
    long result;

    if (shared) {
        before = counted_elsewhere(shared);
        begins = dune_cycles();
    }
    dune_fpu_save(vault, fpu);
    dune_fpu_plain_sse();
    result = ((module_main)vault->module.main)(vault->module.context, n, arg);
    dune_fpu_restore(vault, fpu);
    cpu->counts.module_calls++;
    if (shared) {
        shared->counts.module_calls++;
        shared->cycles_ring0 += dune_cycles() - begins - (counted_elsewhere(shared) - before);
    }
    return result;
}

long dune_ring0_kick(uint32_t descriptor, uint32_t op)
{
    struct dune_shared *shared = dune_own_vault()->module.shared;
    uint64_t begins = dune_cycles(), host = 0;
    long result;

    if (shared)
        host = __atomic_load_n(&shared->cycles_host, __ATOMIC_RELAXED);
    __asm__ volatile("out %%al, %1"
                     : "=a"(result)
                     : "i"(DUNE_PORT_KICK), "D"(descriptor), "S"(op), "0"(0L)
                     : "memory");
    if (shared)
        shared->cycles_kick += dune_cycles() - begins -
                               (__atomic_load_n(&shared->cycles_host, __ATOMIC_RELAXED) - host);
    return result;
}

/* ---- the host side --------------------------------------------------------------------------- */

long dune_kick(struct dune_vcpu *cpu, uint32_t descriptor, uint32_t op)
{
    const struct dune_loaded *module = &cpu->vault->module;

    cpu->counts.kicks++;
    if (descriptor >= module->n_descriptors)
        return -EBADF;
    if (op != DUNE_KICK_TX && op != DUNE_KICK_RX)
        return -EINVAL;
    return dune_sys6(op == DUNE_KICK_TX ? __NR_sendto : __NR_recvfrom,
                     module->descriptor[descriptor], 0, 0, MSG_DONTWAIT, 0, 0);
}

void dune_module_enter(struct dune_vcpu *cpu)
{
    struct dune_vault *vault = cpu->vault;
    struct dune_loaded *module = &vault->module;

    if (!module->main || __atomic_exchange_n(&module->entered, 1, __ATOMIC_RELAXED))
        return;
    cpu->syscall_entry = vault->base + DUNE_IMAGE(vault)->ring0_module;
    cpu->module_stack = vault->base + DUNE_MODULE_STACK_AT + DUNE_MODULE_STACK_BYTES;
    cpu->hooks = DUNE_HOOK_MODULE;
    if (module->shared)
        __atomic_store_n(&module->shared->began, dune_cycles(), __ATOMIC_RELEASE);
}

int dune_module_forget(struct dune_vcpu *cpu)
{
    struct dune_vault *vault = cpu->vault;
    struct dune_loaded *module = &vault->module;
    uint64_t data = vault->base + DUNE_WINDOW;
    long result;

    module->shared = NULL;
    cpu->hooks &= (uint8_t)~DUNE_HOOK_MODULE;
    for (uint32_t i = 0; i < module->n_descriptors; i++)
        dune_sys1(__NR_close, module->descriptor[i]);
    module->n_descriptors = 0;
    if (!vault->data_bytes)
        return 0;
    result = dune_sys6(__NR_mmap, data, vault->data_bytes, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    return result == (long)data ? 0 : (int)result;
}
