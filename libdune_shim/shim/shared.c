/* What another process sees of the guest (dune.h's struct dune_shared): counters, cycles, and why
 * it ended. It lies in the data windows; a forked child has none. Host side. */
#include "shim/image.h"
#include "shim/sys.h"

#define PUBLISHED (__builtin_offsetof(struct dune_counts, module_calls) / sizeof(uint64_t))

_Static_assert(__builtin_offsetof(struct dune_counts, kicks) ==
                   __builtin_offsetof(struct dune_stats, kicks), "");
_Static_assert(__builtin_offsetof(struct dune_counts, module_calls) ==
                   __builtin_offsetof(struct dune_stats, module_calls), "");

/* ---- counters -------------------------------------------------------------------------------- */

/* Several threads' counts go into one: what is new of this one's. */
static void publish(struct dune_vcpu *cpu, struct dune_shared *shared)
{
    const uint64_t *now = (const uint64_t *)&cpu->counts;
    uint64_t *published = (uint64_t *)&cpu->published, *sum = (uint64_t *)&shared->counts;

    for (unsigned i = 0; i < PUBLISHED; i++) {
        if (now[i] == published[i])
            continue;
        __atomic_fetch_add(&sum[i], now[i] - published[i], __ATOMIC_RELAXED);
        published[i] = now[i];
    }
}

void dune_shared_before(struct dune_vcpu *cpu)
{
    struct dune_shared *shared = cpu->vault->module.shared;

    if (!shared)
        return;
    publish(cpu, shared);
    if (!cpu->host_since)
        return;
    __atomic_store_n(&shared->cycles_host,
                     shared->cycles_host + dune_cycles() - cpu->host_since, __ATOMIC_RELAXED);
    cpu->host_since = 0;
}

void dune_shared_behind(struct dune_vcpu *cpu)
{
    if (cpu->vault->module.shared && cpu->hooks & DUNE_HOOK_MODULE)
        cpu->host_since = dune_cycles();
}

/* ---- the crash record ------------------------------------------------------------------------ */

/* The vault's own memory can be read as it is, as far as it is mapped. */
static bool read_words(struct dune_vcpu *cpu, uint64_t from, uint64_t *words, uint64_t bytes)
{
    uint64_t offset = from - cpu->vault->base;

    if (offset < DUNE_EXEC_AT && bytes <= DUNE_EXEC_AT - offset) {
        __builtin_memcpy(words, (const void *)from, bytes);
        return true;
    }
    return dune_copy_in(cpu, words, from, bytes) == 0;
}

static void read_stack(struct dune_vcpu *cpu, struct dune_crash *crash)
{
    uint64_t at = crash->tf.rsp & ~7ull, word;

    while (crash->n_stack < DUNE_STACK_WORDS && read_words(cpu, at, &word, sizeof(word))) {
        crash->stack[crash->n_stack++] = word;
        at += sizeof(word);
    }
}

static bool is_vaults(const struct dune_vcpu *cpu, uint64_t address)
{
    return address - cpu->vault->base < DUNE_WINDOW;
}

/* Frames lie higher and higher, but where the module's lead to those of ring 3's caller. What that
 * goes on with is the first thing on the module's stack. */
static void trace(struct dune_vcpu *cpu, struct dune_crash *crash)
{
    uint64_t frame = crash->tf.rbp, word[2] = {0, crash->tf.rip};

    for (;;) {
        crash->trace[crash->n_trace++] = word[1];
        if (crash->n_trace == DUNE_TRACE_FRAMES || frame % 8 ||
            !read_words(cpu, frame, word, sizeof(word)) || !word[1])
            return;
        if (is_vaults(cpu, frame) && !is_vaults(cpu, word[0]) && cpu->module_stack &&
            crash->n_trace < DUNE_TRACE_FRAMES - 1) {
            crash->trace[crash->n_trace++] = word[1];
            word[1] = *(const uint64_t *)(cpu->module_stack - sizeof(uint64_t));
        } else if (word[0] <= frame) {
            word[0] = 1; /* no frame: the last one */
        }
        frame = word[0];
    }
}

void dune_shared_crash(struct dune_vcpu *cpu, const char *what, uint64_t value, int number,
                       const struct dune_context *context)
{
    const struct dune_vault *vault = cpu->vault;
    const struct dune_loaded *module = &vault->module;
    struct dune_crash *crash = module->shared ? &module->shared->crash : NULL;
    uint32_t none = DUNE_CRASH_NONE;

    if (!crash || cpu->vforked ||
        !__atomic_compare_exchange_n(&crash->state, &none, DUNE_CRASH_WRITING, false,
                                     __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        return;
    crash->signal = number;
    crash->tid = (int32_t)dune_sys0(__NR_gettid);
    crash->value = value;
    for (unsigned i = 0; i < sizeof(crash->what) - 1 && what[i]; i++)
        crash->what[i] = what[i];
    crash->shim = vault->base + DUNE_IMAGE_AT;
    crash->shim_bytes = DUNE_IMAGE_BYTES;
    crash->module = vault->base + DUNE_MODULES_AT;
    crash->module_bytes = module->bytes;
    if (context) {
        crash->tf = context->tf;
        crash->ring = (int32_t)(context->tf.cs & 3);
        read_stack(cpu, crash);
        trace(cpu, crash);
    }
    publish(cpu, module->shared);
    __atomic_store_n(&crash->state, DUNE_CRASH_WHOLE, __ATOMIC_RELEASE);
}
