/* Robust futexes: ring 3's list of the mutexes that it holds, for when it ends holding them.
 *
 * Linux would walk the list itself when the thread ends, and change any word that a node points to
 * and that holds the thread's number, wherever it lies: the vault too. So in the sealed way the
 * list is never registered; the walk is made here, with every address checked, before
 * the thread exits. What this can't do is a process that others kill, or threads that a sibling's
 * exit_group() ends: their robust mutexes in shared memory stay locked. In the open way, where ring
 * 3 is trusted, Linux does it all.
 *
 * The order of things is that of Linux's futex documentation
 * (Documentation/locking/robust-futex-ABI.rst).
 */
#include "shim/sys.h"
#include "shim/thread.h"

#include <errno.h>
#include <linux/futex.h>

#define WAKE_ALL 0x7fffffff

/* As struct robust_list_head. */
struct robust_head {
    uint64_t next;    /* the first node, or the head itself; bit 0: the node's futex is a PI one */
    int64_t offset;   /* from a node to its futex word */
    uint64_t pending; /* the node of a lock or unlock under way, or 0 */
};

/* One atomic operation on a futex word by the kernel, which wakes `wake` waiters afterwards. A
 * fault of ring 3's memory is an error number there, and would be a signal here. */
static void change_word(uint64_t word, uint64_t op, unsigned bit, int wake)
{
    uint64_t encoded = (op | FUTEX_OP_OPARG_SHIFT) << 28 | (uint64_t)bit << 12;

    dune_sys6(__NR_futex, word, FUTEX_WAKE_OP, wake, 0, word, encoded);
}

/* True: go on with the next node. */
static bool owner_died(struct dune_vcpu *cpu, uint64_t word, bool pi, bool pending)
{
    uint32_t value;

    if (word % sizeof(value) || dune_copy_in(cpu, &value, word, sizeof(value)))
        return false;
    if (pending && !pi && value == 0) { /* it unlocked, and ended before it could wake the next */
        dune_sys6(__NR_futex, word, FUTEX_WAKE, 1, 0, 0, 0);
        return true;
    }
    if ((value & FUTEX_TID_MASK) != (uint32_t)cpu->tid)
        return true;
    /* Linux keeps FUTEX_WAITERS and wakes one. One atomic operation that the kernel offers can only
     * set the whole word, so that the mark is lost: all are woken, and those who don't get it set
     * the mark again. With PI waiters the kernel hands over the rest by itself. */
    if (pi && (value & FUTEX_WAITERS))
        change_word(word, FUTEX_OP_OR, 30, 0);
    else
        change_word(word, FUTEX_OP_SET, 30, pi ? 0 : WAKE_ALL);
    return true;
}

void dune_robust_release(struct dune_vcpu *cpu)
{
    uint64_t head_at = cpu->fork_scratch[DUNE_THREAD_ROBUST], node, next = 0;
    struct robust_head head;

    cpu->fork_scratch[DUNE_THREAD_ROBUST] = 0;
    if (!head_at || dune_copy_in(cpu, &head, head_at, sizeof(head)))
        return;
    node = head.next;
    for (int i = 0; (node & ~1ull) != head_at && i < ROBUST_LIST_LIMIT; i++) {
        bool pi = node & 1, there;

        node &= ~1ull;
        /* Read first: whoever takes the mutex next may change the node. */
        there = dune_copy_in(cpu, &next, node, sizeof(next)) == 0;
        if (node != (head.pending & ~1ull) &&
            !owner_died(cpu, node + (uint64_t)head.offset, pi, false))
            return;
        if (!there)
            return;
        node = next;
    }
    if (head.pending & ~1ull)
        owner_died(cpu, (head.pending & ~1ull) + (uint64_t)head.offset, head.pending & 1, true);
}

/* ---- the calls ------------------------------------------------------------------------------- */

long dune_do_set_robust_list(struct dune_vcpu *cpu, struct dune_call *call)
{
    uint64_t head = call->arg[0];

    if (call->arg[1] != DUNE_ROBUST_HEAD_BYTES)
        return -EINVAL;
    if (!(cpu->vault->flags & DUNE_SEALED))
        return dune_forward_raw(cpu, call->nr, call->arg);
    if (!dune_range_is_free(cpu->vault, head, DUNE_ROBUST_HEAD_BYTES))
        return dune_refuse(cpu, call, "the list lies in the vault", -EFAULT);
    cpu->fork_scratch[DUNE_THREAD_ROBUST] = head;
    return 0;
}

/* Another thread's list, or NULL. */
static struct dune_vcpu *find_thread(struct dune_vcpu *cpu, int32_t tid)
{
    struct dune_vault *vault = cpu->vault;

    if (tid == 0 || tid == cpu->tid)
        return cpu;
    for (uint32_t i = 0; i < vault->n_vcpus; i++) {
        struct dune_vcpu *other = (struct dune_vcpu *)(vault->base + DUNE_BLOCKS_AT +
                                                       (uint64_t)i * DUNE_BLOCK + DUNE_BLOCK_VCPU);

        if (other->tid == tid && other->state == DUNE_VCPU_RUNS && !other->vforked)
            return other;
    }
    return NULL;
}

long dune_do_get_robust_list(struct dune_vcpu *cpu, struct dune_call *call)
{
    uint64_t length = DUNE_ROBUST_HEAD_BYTES;
    struct dune_vcpu *other;

    if (!dune_range_is_free(cpu->vault, call->arg[1], sizeof(uint64_t)) ||
        !dune_range_is_free(cpu->vault, call->arg[2], sizeof(uint64_t)))
        return dune_refuse(cpu, call, "an argument lies in the vault", -EFAULT);
    if (!(cpu->vault->flags & DUNE_SEALED))
        return dune_forward_raw(cpu, call->nr, call->arg);
    other = find_thread(cpu, (int32_t)call->arg[0]);
    if (!other) /* another process's: Linux asks for ptrace's rights */
        return -EPERM;
    if (dune_copy_out(cpu, call->arg[2], &length, sizeof(length)))
        return -EFAULT;
    return dune_copy_out(cpu, call->arg[1], &other->fork_scratch[DUNE_THREAD_ROBUST],
                         sizeof(uint64_t));
}
