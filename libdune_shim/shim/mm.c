/* Calls that change what is mapped where. Linux does it all; here it is only seen to that none of
 * it is the vault, and that the guest's tables forget what is executable before it changes.
 *
 * Forgetting comes first, so that the call's own invalidation (KVM's MMU notifier) flushes the TLBs
 * of other vCPUs, which nothing else would do. Until the call is over, the range is listed as
 * changing: fault.c doesn't make anything in it executable meanwhile, as a page fault of Linux
 * waits for mmap_lock. No lock is held over the call itself, which may take its time.
 *
 * KVM reads all it maps, so a mapping for writing or executing alone becomes readable, too. Without
 * protection keys x86 does the same, only that /proc/self/maps tells.
 */
#include "shim/fault.h"
#include "shim/pagetable.h"
#include "shim/sys.h"

#include <asm/errno.h>
#include <asm/mman.h>

#define MAP_FIXED_NOREPLACE 0x100000
#define MREMAP_FIXED        2
#define SHM_RDONLY          010000
#define SHM_REMAP           040000
#define IPC_STAT            2
#define USER_BITS           47

static uint64_t round_up(uint64_t bytes)
{
    return (bytes + DUNE_PAGE - 1) & ~(uint64_t)(DUNE_PAGE - 1);
}

static uint64_t round_down(uint64_t address)
{
    return address & ~(uint64_t)(DUNE_PAGE - 1);
}

/* The pages of a range are none of the vault's. What overflows is not free either. */
static bool is_free(const struct dune_vcpu *cpu, uint64_t address, uint64_t bytes)
{
    if (bytes > ~0ull - DUNE_PAGE)
        return false;
    return dune_range_is_free(cpu->vault, round_down(address),
                              round_up(bytes + address % DUNE_PAGE));
}

/* Above what the guest's page tables and ring 3's pointers cover (57-bit hosts map there if asked).
 */
static bool is_beyond(uint64_t address, uint64_t bytes)
{
    return address > DUNE_USER_END || bytes > DUNE_USER_END - address;
}

static uint64_t forward(struct dune_vcpu *cpu, const struct dune_call *call)
{
    return (uint64_t)dune_forward_raw(cpu, call->nr, call->arg);
}

static bool failed(uint64_t result)
{
    return result > ~4095ull;
}

static uint64_t readable(uint64_t prot)
{
    return prot & (PROT_WRITE | PROT_EXEC) ? prot | PROT_READ : prot;
}

/* ---- ranges that are changing ---------------------------------------------------------------- */

static bool is_gone(const struct dune_vault *vault, const struct dune_changing *changing)
{
    return changing->pid != vault->pid || /* as it was when this process was forked */
           dune_sys2(__NR_tkill, changing->tid, 0) == -ESRCH;
}

bool dune_mm_is_quiet(struct dune_vault *vault, uint64_t address, uint64_t end)
{
    struct dune_tables *tables = dune_tables(vault);

    for (unsigned i = 0; i < DUNE_CHANGING; i++) {
        struct dune_changing *changing = &tables->changing[i];

        if (changing->address < end && address < changing->end) {
            if (!is_gone(vault, changing))
                return false;
            changing->end = 0; /* killed in the middle */
        }
    }
    return true;
}

static struct dune_changing *free_slot(struct dune_vault *vault)
{
    struct dune_tables *tables = dune_tables(vault);

    for (unsigned i = 0; i < DUNE_CHANGING; i++)
        if (!tables->changing[i].end || tables->changing[i].pid != vault->pid)
            return &tables->changing[i];
    return 0;
}

/* Nothing in the range is executable in the guest's tables, nor becomes so, until ends(). */
static struct dune_changing *begins(struct dune_vcpu *cpu, uint64_t address, uint64_t bytes)
{
    struct dune_vault *vault = cpu->vault;
    struct dune_changing *slot;

    dune_lock(&vault->mm_lock);
    while (!(slot = free_slot(vault))) {
        dune_unlock(&vault->mm_lock);
        dune_sys0(__NR_sched_yield);
        dune_lock(&vault->mm_lock);
    }
    slot->address = round_down(address);
    slot->end = round_up(address + bytes);
    slot->pid = vault->pid;
    slot->tid = (int32_t)dune_sys0(__NR_gettid);
    dune_lock(&vault->lock);
    dune_root_clear_exec(vault, slot->address, slot->end - slot->address);
    dune_unlock(&vault->lock);
    dune_unlock(&vault->mm_lock);
    return slot;
}

static void ends(struct dune_vcpu *cpu, struct dune_changing *slot)
{
    struct dune_vault *vault = cpu->vault;

    dune_lock(&vault->mm_lock);
    slot->end = 0;
    dune_unlock(&vault->mm_lock);
}

/* The call has made all of the range executable: spares the exit that the first fetch would take.
 * Before ends(), so that nobody took the permission away since. */
static void permit(struct dune_vcpu *cpu, uint64_t address, uint64_t bytes)
{
    struct dune_vault *vault = cpu->vault;

    address = round_down(address);
    bytes = round_up(bytes);
    if (address >> DUNE_WINDOW_SHIFT != (address + bytes - 1) >> DUNE_WINDOW_SHIFT)
        return; /* what it may not, or need not, know about is left to the first fetch */
    dune_lock(&vault->lock);
    dune_root_set_exec(vault, cpu->root, address, bytes);
    dune_unlock(&vault->lock);
}

/* A new mapping at an address that Linux chose. The vault's guards are mapped, so it is never
 * there; but nothing else may depend on it. */
static long placed(struct dune_vcpu *cpu, struct dune_call *call, uint64_t result, uint64_t bytes)
{
    if (failed(result) || is_free(cpu, result, bytes))
        return (long)result;
    dune_panic(cpu, "Linux maps something into the vault", call->nr);
}

/* ---- mmap, munmap ---------------------------------------------------------------------------- */

long dune_do_mmap(struct dune_vcpu *cpu, struct dune_call *call)
{
    uint64_t bytes = call->arg[1], flags = call->arg[3], result;
    bool fixed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE);
    bool may_execute = call->arg[2] & PROT_EXEC;
    struct dune_changing *slot;

    if (!(flags & MAP_ANONYMOUS) && (int32_t)call->arg[4] >= cpu->vault->first_fd)
        return -EBADF;
    if (fixed && is_beyond(call->arg[0], bytes))
        return -ENOMEM;
    if (fixed && !is_free(cpu, call->arg[0], bytes))
        return dune_refuse(cpu, call, "a mapping over the vault", -ENOMEM);
    if (!fixed && call->arg[0] >> USER_BITS)
        call->arg[0] = 0; /* Linux would take it as the wish for a larger address space */
    call->arg[2] = readable(call->arg[2]);
    if (!fixed) /* where nothing is mapped nothing is executable */
        return placed(cpu, call, forward(cpu, call), bytes);
    slot = begins(cpu, call->arg[0], bytes);
    result = forward(cpu, call);
    if (may_execute && result == call->arg[0])
        permit(cpu, result, bytes);
    ends(cpu, slot);
    return placed(cpu, call, result, bytes);
}

long dune_do_munmap(struct dune_vcpu *cpu, struct dune_call *call)
{
    struct dune_changing *slot;
    long result;

    if (!is_free(cpu, call->arg[0], call->arg[1]))
        return dune_refuse(cpu, call, "the vault can't be unmapped", -EINVAL);
    slot = begins(cpu, call->arg[0], call->arg[1]);
    result = (long)forward(cpu, call);
    ends(cpu, slot);
    return result;
}

long dune_do_mremap(struct dune_vcpu *cpu, struct dune_call *call)
{
    uint64_t old = call->arg[0], old_bytes = call->arg[1], new_bytes = call->arg[2], result;
    struct dune_changing *slot, *other = 0;

    if (!is_free(cpu, old, old_bytes) || !is_free(cpu, old, new_bytes))
        return dune_refuse(cpu, call, "the vault can't be moved", -EFAULT);
    if ((call->arg[3] & MREMAP_FIXED) && is_beyond(call->arg[4], new_bytes))
        return -EINVAL;
    if ((call->arg[3] & MREMAP_FIXED) && !is_free(cpu, call->arg[4], new_bytes))
        return dune_refuse(cpu, call, "a mapping over the vault", -EINVAL);
    slot = begins(cpu, old, old_bytes > new_bytes ? old_bytes : new_bytes);
    if (call->arg[3] & MREMAP_FIXED)
        other = begins(cpu, call->arg[4], new_bytes);
    result = forward(cpu, call);
    if (other)
        ends(cpu, other);
    ends(cpu, slot);
    return placed(cpu, call, result, new_bytes);
}

long dune_do_remap_file_pages(struct dune_vcpu *cpu, struct dune_call *call)
{
    struct dune_changing *slot;
    long result;

    if (!is_free(cpu, call->arg[0], call->arg[1]))
        return dune_refuse(cpu, call, "a mapping over the vault", -EINVAL);
    slot = begins(cpu, call->arg[0], call->arg[1]);
    result = (long)forward(cpu, call);
    ends(cpu, slot);
    return result;
}

/* ---- mprotect -------------------------------------------------------------------------------- */

/* PROT_GROWSDOWN: the change begins at the mapping's start. */
static uint64_t start_of(struct dune_vcpu *cpu, uint64_t address)
{
    struct dune_vma vma;

    return dune_vma_at(cpu->vault, address, &vma) == 0 ? vma.start : round_down(address);
}

long dune_do_mprotect(struct dune_vcpu *cpu, struct dune_call *call)
{
    uint64_t address = call->arg[0], bytes = call->arg[1];
    bool may_execute = call->arg[2] & PROT_EXEC;
    struct dune_changing *slot;
    long result;

    if (!is_free(cpu, address, bytes))
        return dune_refuse(cpu, call, "the vault can't be protected otherwise", -ENOMEM);
    call->arg[2] = readable(call->arg[2]);
    if (call->arg[2] & PROT_GROWSDOWN) {
        bytes += address - start_of(cpu, address);
        address = start_of(cpu, address);
    }
    slot = begins(cpu, address, bytes);
    result = (long)forward(cpu, call);
    if (result == 0 && may_execute && bytes)
        permit(cpu, address, bytes);
    ends(cpu, slot);
    return result;
}

/* Ring 3 has no protection keys: the guest's CPUID says so, pkey_alloc() is ENOSYS, and the only
 * one that the process has is the vault's. Key -1 means none, 0 is what everything has. */
long dune_do_pkey_mprotect(struct dune_vcpu *cpu, struct dune_call *call)
{
    struct dune_call plain = {.nr = __NR_mprotect,
                              .arg = {call->arg[0], call->arg[1], call->arg[2]}};
    int key = (int)call->arg[3];

    if (key != -1 && key != 0)
        return -EINVAL;
    return dune_do_mprotect(cpu, &plain);
}

/* ---- brk, System V shared memory --------------------------------------------------------------
 */

/* Never fails: what it can't do it answers with the break as it is. */
long dune_do_brk(struct dune_vcpu *cpu, struct dune_call *call)
{
    struct dune_call asks = {.nr = __NR_brk};
    uint64_t now = forward(cpu, &asks), wanted = call->arg[0];
    struct dune_changing *slot;
    long result;

    if (failed(now) || wanted == 0 || !dune_range_is_free(cpu->vault, wanted, 0) ||
        (wanted > now && !is_free(cpu, now, wanted - now)))
        return (long)now;
    if (wanted >= now)
        return (long)forward(cpu, call);
    slot = begins(cpu, wanted, now - wanted);
    result = (long)forward(cpu, call);
    ends(cpu, slot);
    return result;
}

/* The size of a segment: struct shmid64_ds begins with 48 bytes of permissions. */
static long segment_bytes(struct dune_vcpu *cpu, uint64_t id, uint64_t *bytes)
{
    uint64_t *status = dune_scratch(cpu, 256);
    long error;

    if (!status)
        return -ENOMEM;
    error = dune_sys3(__NR_shmctl, id, IPC_STAT, status);
    *bytes = status[6];
    return error < 0 ? error : 0;
}

/* SHM_REMAP replaces whatever is there, and how much that is can change until the call. So the
 * range is unmapped first, and the call then fails where it would have to replace anything. */
long dune_do_shmat(struct dune_vcpu *cpu, struct dune_call *call)
{
    uint64_t address = round_down(call->arg[1]), bytes = 0;
    struct dune_changing *slot = 0;
    uint64_t result;

    if (is_beyond(address, 1))
        return -EINVAL;
    if (!dune_range_is_free(cpu->vault, address, 1))
        return dune_refuse(cpu, call, "a mapping over the vault", -EINVAL);
    if (call->arg[2] & SHM_REMAP) {
        long error = segment_bytes(cpu, call->arg[0], &bytes);

        if (error)
            return error;
        if (!address || !is_free(cpu, address, bytes))
            return -EINVAL;
        call->arg[2] &= ~(uint64_t)SHM_REMAP;
        slot = begins(cpu, address, bytes);
        dune_sys2(__NR_munmap, address, round_up(bytes));
    }
    result = forward(cpu, call);
    if (slot)
        ends(cpu, slot);
    return placed(cpu, call, result, 1);
}

/* How much goes is not known here: all that is mapped without a gap from there on is forgotten, and
 * what stays is asked for again. */
long dune_do_shmdt(struct dune_vcpu *cpu, struct dune_call *call)
{
    uint64_t address = call->arg[0], end = address;
    struct dune_changing *slot;
    struct dune_vma vma;
    long result;

    if (!dune_range_is_free(cpu->vault, address, 1))
        return -EINVAL;
    for (unsigned i = 0; i < 64 && dune_vma_at(cpu->vault, end, &vma) == 0; i++)
        end = vma.end;
    slot = begins(cpu, address, end - address);
    result = (long)forward(cpu, call);
    ends(cpu, slot);
    return result;
}
