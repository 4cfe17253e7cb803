/* What fault.c, step.c, vma.c and mm.c have in common: how Linux sees ring 3's memory. */
#ifndef DUNE_FAULT_H
#define DUNE_FAULT_H

#include "shim/shim.h"

#pragma GCC visibility push(hidden)

#define DUNE_RFLAGS_TF 0x100ull

/* The page fault's error code. */
#define DUNE_FAULT_PRESENT  1u
#define DUNE_FAULT_WRITE    2u
#define DUNE_FAULT_USER     4u
#define DUNE_FAULT_RESERVED 8u
#define DUNE_FAULT_FETCH    16u

/* ---- vma.c ----------------------------------------------------------------------------------- */

#define DUNE_VMA_READ  1u
#define DUNE_VMA_WRITE 2u
#define DUNE_VMA_EXEC  4u

struct dune_vma { /* one mapping, as /proc/self/maps has it */
    uint64_t start, end;
    uint32_t flags; /* DUNE_VMA_* */
};

/* The mapping that address lies in. -ENOENT: none. -ENOSYS: there is no procfs to ask. */
int dune_vma_at(struct dune_vault *vault, uint64_t address, struct dune_vma *vma);
/* The same in two parts, for who holds mm_lock: the first takes it. -ENOSYS as above. */
int dune_vma_fd(struct dune_vault *vault);
int dune_vma_query(int fd, uint64_t address, struct dune_vma *vma);

/* ---- step.c ---------------------------------------------------------------------------------- */

enum dune_touched {
    DUNE_TOUCHED,     /* Linux has the page, and lets it be used so */
    DUNE_TOUCH_FAULT, /* cpu->probed is the siginfo, cpu->pending has the error code */
    DUNE_TOUCH_LATER, /* a signal came first */
};

/* Uses a byte of ring 3's memory as ring 3 would, without changing it: Linux maps the page, grows
 * the stack, or makes the signal. Not for the vault's addresses. */
enum dune_touched dune_touch(struct dune_vcpu *cpu, uint64_t address, bool write);

/* A trap while cpu->step.fast. False: the step is over, and the trap is ring 3's own. */
bool dune_step_trap(struct dune_vcpu *cpu, struct dune_tf *tf);
/* Before KVM_RUN, while cpu->step.fast: ends the step, unless it was to go on. */
void dune_step_check(struct dune_vcpu *cpu);

/* ---- fault.c --------------------------------------------------------------------------------- */

/* Opens address's window in the root in use. Negative errno: it can't be. */
int dune_fault_open(struct dune_vcpu *cpu, uint64_t address);
/* 0: Linux's mapping there is executable (or nobody can tell). -EACCES: it isn't. -ENOENT: there is
 * none. */
int dune_fault_may_fetch(struct dune_vcpu *cpu, uint64_t address);
/* The signal for a fetch from a mapping that isn't executable. */
void dune_fault_no_fetch(struct dune_vcpu *cpu, struct dune_tf *tf);

/* ---- mm.c ------------------------------------------------------------------------------------ */

/* True: no call of another thread is changing the range. Under vault->mm_lock. */
bool dune_mm_is_quiet(struct dune_vault *vault, uint64_t address, uint64_t end);

long dune_do_mmap(struct dune_vcpu *cpu, struct dune_call *call);
long dune_do_munmap(struct dune_vcpu *cpu, struct dune_call *call);
long dune_do_mprotect(struct dune_vcpu *cpu, struct dune_call *call);
long dune_do_pkey_mprotect(struct dune_vcpu *cpu, struct dune_call *call);
long dune_do_mremap(struct dune_vcpu *cpu, struct dune_call *call);
long dune_do_remap_file_pages(struct dune_vcpu *cpu, struct dune_call *call);
long dune_do_brk(struct dune_vcpu *cpu, struct dune_call *call);
long dune_do_shmat(struct dune_vcpu *cpu, struct dune_call *call);
long dune_do_shmdt(struct dune_vcpu *cpu, struct dune_call *call);

#pragma GCC visibility pop

#endif
