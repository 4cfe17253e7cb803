/* The shim: what runs in the vault, on the host side of KVM_RUN and in guest ring 0.
 *
 * It is linked alone (image.ld), calls no libc, has no relocations and no variables: all state
 * hangs off struct dune_vault and struct dune_vcpu. The host side makes raw system calls (sys.h),
 * uses no thread-local storage and only general registers; a signal may interrupt it anywhere.
 *
 * Who runs what:
 *   host side  all else: as the process's ordinary user code, on the host stack of a vCPU's block
 *   ring 0     stub.S trap.c: in the guest, supervisor
 *   both       pagetable.c pagewalk.c memory.c
 */
#ifndef DUNE_SHIM_H
#define DUNE_SHIM_H

#include "dune.h"
#include "shim/layout.h"

#include <errno.h>

#include <linux/kvm.h>

/* Also what is declared here and defined in assembly: or the compiler would go through a table. */
#pragma GCC visibility push(hidden)

#define DUNE_KERNEL_SIGSET_BYTES 8
#define DUNE_SIGNALS 64

struct dune_policy;

/* One lock of the shim: a futex word. Never held over a forwarded call, KVM_RUN or a fault of
 * ring 3's memory. The holder has all signals blocked or records them only. */
struct dune_lock {
    uint32_t word; /* 0 free, 1 held, 2 held and waited for */
};

/* What sigaction() set, as the kernel's struct (rt_sigaction). */
struct dune_sigaction {
    uint64_t handler; /* 0 SIG_DFL, 1 SIG_IGN */
    uint64_t flags;
    uint64_t restorer;
    uint64_t mask;
};

struct dune_sighand {
    struct dune_lock lock;
    struct dune_sigaction action[DUNE_SIGNALS + 1]; /* by signal number */
};

/* A signal that the host's handler took down, until the loop delivers it. While one is recorded
 * every signal is blocked on the host thread. */
struct dune_pending {
    uint32_t recorded;  /* bool; at DUNE_VCPU_RECORDED */
    uint32_t forced;    /* bool: a fault of ring 3's own: block or ignore means death */
    uint32_t keyed;     /* what dune_forward_raw() does with PKRU: DUNE_VCPU_KEYED ... */
    uint32_t pkru_open;
    uint32_t pkru_closed;
    uint64_t mask;      /* what to restore when its handler returns */
    uint64_t blocked;   /* what was blocked when it came: mask, or what sigsuspend() and the like
                         * put in its place; its handler runs with this and its sa_mask */
    uint8_t info[128];  /* siginfo_t */
    uint64_t trapno, error, cr2; /* for the context, when forced */
};

struct dune_regs { /* struct kvm_regs' order */
    uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp;
    uint64_t r8, r9, r10, r11, r12, r13, r14, r15;
    uint64_t rip, rflags;
};

/* step.c: an instruction that touches memory which Linux doesn't map runs alone, on page tables
 * with nothing in them. */
struct dune_step {
    struct dune_root *fast; /* the page tables to go back to; NULL: no step under way */
    uint64_t rip;           /* the instruction's */
    uint64_t address;       /* what it touched last */
    uint32_t flags;         /* RFLAGS.TF as ring 3 had it */
    uint32_t go;            /* bool: the step goes on with the next KVM_RUN */
    uint32_t opcode;        /* its first byte behind the prefixes */
    uint32_t stuck;         /* how often KVM refused what Linux allows */
    uint32_t shim_stuck;    /* the same of the shim's own instruction at shim_rip */
    uint64_t shim_rip;
};

enum dune_vcpu_state {
    DUNE_VCPU_NONE = 0, /* no KVM vCPU yet */
    DUNE_VCPU_FREE,     /* made, and to be had */
    DUNE_VCPU_RUNS,     /* some thread's */
    DUNE_VCPU_LEFT,     /* its thread is ending: free once `tid` is gone */
};

struct dune_counts { /* as struct dune_stats begins */
    uint64_t exits, syscalls, windows, executable, faults, traps, interrupted, others, kicks,
        refused, module_calls;
};

/* One vCPU, which is one thread: page DUNE_BLOCK_VCPU of its block. Asm uses the first part. */
struct dune_vcpu {
    uint8_t mode;      /* the ring whose code or system call is under way: 3 or 0 */
    uint8_t attention; /* DUNE_ATTENTION_* */
    uint8_t hooks;     /* DUNE_HOOK_*: who looks at ring 3's system calls first */
    uint8_t in_vault0; /* reserved */
    uint32_t reserved;
    uint64_t user_rsp;
    uint64_t saved[2];
    uint64_t stack_top;
    uint64_t syscall_entry;
    uint64_t trap_entry;
    struct dune_vcpu *self;
    uint64_t module_stack;
    struct dune_tf tf; /* at DUNE_VCPU_TF */
    struct dune_pending pending; /* its first field at DUNE_VCPU_RECORDED */

    struct dune_vault *vault;
    struct kvm_run *run;    /* in this block; its regs are current after each exit (SYNC_REGS) */
    int32_t fd;             /* the KVM vCPU's */
    int32_t stats_fd;       /* KVM's counters of it; negative: none (sealed, or an old kernel) */
    uint32_t index;         /* of the block, and of the scratch */
    uint32_t state;         /* enum dune_vcpu_state */
    int32_t tid;            /* the host thread's */
    uint8_t *scratch;       /* DUNE_SCRATCH bytes that a forwarded call may point into */
    uint32_t scratch_used;  /* of the call under way; reset by the dispatcher */
    uint32_t vforked;       /* bool: a vfork child, alone in its own process */
    struct dune_root *root; /* page tables in use */

    uint32_t where;         /* of the last exit: see struct dune_context */
    struct dune_tf *trap;   /* of the last exit, when DUNE_AT_TRAP */

    struct dune_sighand *sighand; /* the process's, or own_sighand of a vfork child */
    uint64_t altstack[3]; /* stack_t as the kernel has it: sp, flags, size */
    uint8_t probed[128];  /* siginfo_t of what dune_touch() met, see signal.h */
    uint64_t clear_tid;   /* set_tid_address */
    struct dune_step step;

    struct dune_counts counts;
    struct dune_counts published; /* of these: in the vault's `shared` already */
    uint64_t host_since;    /* RDTSC of the last exit; 0: not counted as the host side's */
    uint64_t fork_scratch[8]; /* thread.c's own */
    uint64_t user_return[8];  /* dune_run_user()'s saved ring-0 context */
    struct dune_sighand own_sighand;
};

struct dune_window {
    uint32_t used;  /* bool */
    uint32_t slot;  /* KVM memory slot */
    uint64_t gpa;   /* where the window lies in guest-physical space */
    uint64_t address; /* where it lies in the process */
};

#define DUNE_MAX_WINDOWS 1024 /* the vault's is number 0, then its data windows */
#define DUNE_FREE_TABLES 8192

/* The module in ring 0; main 0: there is none. */
struct dune_loaded {
    uint64_t main; /* address of its dune_module_main() */
    uint64_t context;
    uint64_t bytes; /* of its image, at DUNE_MODULES_AT */
    struct dune_shared *shared; /* NULL: none */
    uint32_t entered;           /* bool: the thread that may call it came in */
    uint32_t n_descriptors;
    int32_t descriptor[DUNE_MODULE_FDS];
};

/* A file whose memory is mapped in the data windows: no path may lead ring 3 to it. As struct
 * dune_resolved has it. */
struct dune_object {
    uint64_t device, inode;
};

#define DUNE_DATA_OBJECTS 64

struct dune_vault {
    uint64_t base;       /* of the vault's window */
    uint64_t data_bytes; /* of the data windows behind it */
    uint32_t flags; /* DUNE_SEALED, ... */
    int32_t pkey;   /* protection key of [base, base + DUNE_KEYED_BYTES), -1: none */
    int32_t kvm_fd, vm_fd;
    int32_t first_fd; /* descriptors from here up are the shim's: EBADF to ring 3 */
    int32_t proc_fd, misc_fd, devices_fd; /* path.c's: /proc (O_PATH), /proc/misc, /proc/devices */
    uint32_t fd_soft, fd_hard;            /* RLIMIT_NOFILE as ring 3 sees it, at most first_fd */
    uint64_t nofile[2]; /* RLIMIT_NOFILE, soft and hard, as it was before room was made above */
    uint32_t physical_bits;
    uint32_t run_bytes; /* of a vCPU's kvm_run mapping */
    uint32_t xsave_bytes;
    int32_t pid;        /* the process that the VM belongs to */
    uint32_t features;  /* DUNE_HAS_* */
    uint64_t xcr0;
    struct dune_lock lock;      /* vcpus, windows, page tables */
    struct dune_lock mm_lock;   /* calls that change executable mappings, see mm.c */
    struct dune_root *root;     /* the process's own */
    uint16_t window_of[1u << (47 - DUNE_WINDOW_SHIFT)]; /* by address >> 30: index + 1 or 0 */
    struct dune_window window[DUNE_MAX_WINDOWS];
    uint32_t n_windows;
    uint32_t n_vcpus;           /* blocks ever used */
    uint32_t tables_used;       /* pages ever taken */
    uint32_t tables_free;       /* head of the list of freed pages: index + 1, 0 none */
    struct dune_sighand sighand;
    dune_handler handler[DUNE_VECTORS];
    uint32_t handler_flags[DUNE_VECTORS];
    dune_handler syscall_handler;
    uint32_t syscall_handler_flags;
    uint64_t host_signal_entry, host_restorer; /* addresses of host.S's, for rt_sigaction */
    struct kvm_cpuid2 *cpuid;   /* in the vault */
    const struct dune_policy *policy; /* in the vault; never NULL */
    struct dune_counts counts;  /* of threads that ended */
    uint32_t exec_areas;        /* exec.c: a bit for each that is taken */
    struct dune_loaded module;
    uint32_t n_data_objects;
    struct dune_object data_object[DUNE_DATA_OBJECTS];
};

#define DUNE_HAS_FSGSBASE 1u
#define DUNE_HAS_PCID 2u
#define DUNE_HAS_GIGABYTES 4u
#define DUNE_HAS_SMEP 8u
#define DUNE_HAS_SMAP 16u
#define DUNE_HAS_XSAVE 32u
#define DUNE_HAS_STATS 64u
#define DUNE_HAS_XSAVEC 128u

/* The vCPU whose host stack this code runs on. */
static inline struct dune_vcpu *dune_this_vcpu(void)
{
    uint64_t rsp;

    __asm__("mov %%rsp, %0" : "=r"(rsp));
    return (struct dune_vcpu *)((rsp & ~(uint64_t)(DUNE_BLOCK - 1)) + DUNE_BLOCK_VCPU);
}

/* The image lies in the vault, so its code knows where that is. */
static inline struct dune_vault *dune_own_vault(void)
{
    uint64_t here;

    __asm__("lea 0(%%rip), %0" : "=r"(here));
    return (struct dune_vault *)((here & ~(uint64_t)(DUNE_WINDOW - 1)) + DUNE_VAULT_AT);
}

static inline struct dune_vcpu *dune_vcpu_at(const struct dune_vault *vault, uint32_t index)
{
    return (struct dune_vcpu *)(vault->base + DUNE_BLOCKS_AT + (uint64_t)index * DUNE_BLOCK +
                                DUNE_BLOCK_VCPU);
}

static inline void *dune_block(const struct dune_vcpu *cpu)
{
    return (uint8_t *)cpu - DUNE_BLOCK_VCPU;
}

/* True: ring 3 may name [address, address + bytes): none of it is the vault's or its guards', it
 * does not wrap, and it ends in the lower half. bytes 0: the address alone. */
static inline bool dune_range_is_free(const struct dune_vault *vault, uint64_t address,
                                      uint64_t bytes)
{
    uint64_t low = vault->base - DUNE_WINDOW, end;
    uint64_t high = vault->base + 2 * (uint64_t)DUNE_WINDOW + vault->data_bytes;

    if (__builtin_add_overflow(address, bytes, &end))
        return false;
    return end <= low || address >= high;
}

/* ---- loop.c ---------------------------------------------------------------------------------- */

/* Runs the vCPU until its thread leaves the guest or ends. Called on the block's host stack. */
void dune_loop(struct dune_vcpu *cpu) __attribute__((noreturn));
/* Ends the process with a message about the shim's own fault. */
void dune_panic(struct dune_vcpu *cpu, const char *what, uint64_t value) __attribute__((noreturn));
/* A line to the policy's log: printf's %s %d %u %x (64 bits each) and %% only. */
void dune_log(struct dune_vcpu *cpu, const char *format, ...);

/* The registers of what the guest was doing when it exited, whichever way: in the tf of a trap, in
 * the system-call registers, or KVM's. Valid until the next KVM_RUN. */
struct dune_context {
    struct dune_tf tf; /* cs tells the ring */
    enum dune_where { DUNE_AT_SYSCALL, DUNE_AT_TRAP, DUNE_AT_INTERRUPT, DUNE_IN_SHIM } where;
    struct dune_tf *trap; /* DUNE_AT_TRAP: ring 0's own, which it resumes from */
};
void dune_get_context(struct dune_vcpu *cpu, struct dune_context *context);
/* Makes the guest go on with context->tf (not possible where it is DUNE_IN_SHIM). */
void dune_set_context(struct dune_vcpu *cpu, const struct dune_context *context);

/* ---- vm.c, vcpu.c ---------------------------------------------------------------------------- */

int dune_vm_create(struct dune_vault *vault); /* the VM and its slots; also in a fork's child */
/* The window of an address gets its slot, unless it has it. Takes vault->lock. */
int dune_window_open(struct dune_vault *vault, uint64_t address);
/* Guest-physical address of a process address. Its window must be open. */
uint64_t dune_gpa(const struct dune_vault *vault, uint64_t address);
uint64_t dune_hva(const struct dune_vault *vault, uint64_t gpa); /* and back; 0: no window */

/* A vCPU for a new thread: reset, not yet placed. NULL: none left. Takes vault->lock. */
struct dune_vcpu *dune_vcpu_take(struct dune_vault *vault);
void dune_vcpu_give(struct dune_vcpu *cpu);          /* its thread will never use it again */
/* Makes the KVM vCPU (again) of a block after dune_vm_create(): fd, kvm_run, CPUID, MSRs, SREGS. */
int dune_vcpu_create(struct dune_vcpu *cpu);
/* To run with these registers, in this ring, with this FS and GS base and this FPU state (xsave
 * image of vault->xsave_bytes; NULL: leave). */
int dune_vcpu_place(struct dune_vcpu *cpu, const struct dune_regs *regs, int ring, uint64_t fs_base,
                    uint64_t gs_base, const void *xsave);
int dune_vcpu_get_fpu(struct dune_vcpu *cpu, void *xsave);  /* 64-byte aligned, xsave_bytes */
int dune_vcpu_set_fpu(struct dune_vcpu *cpu, const void *xsave);
void dune_vcpu_get_bases(struct dune_vcpu *cpu, uint64_t *fs_base, uint64_t *gs_base);
void dune_vcpu_set_bases(struct dune_vcpu *cpu, uint64_t fs_base, uint64_t gs_base);
int dune_vcpu_get_ring(struct dune_vcpu *cpu);
void dune_vcpu_set_ring(struct dune_vcpu *cpu, int ring); /* stopped between instructions */
/* Page tables: root for the next entry (also flushes this vCPU's TLB). */
void dune_vcpu_load_root(struct dune_vcpu *cpu, struct dune_root *root);

void dune_lock(struct dune_lock *lock);
void dune_unlock(struct dune_lock *lock);
/* Moves a descriptor up to where ring 3 can't name it; closes fd. The new one or -errno. */
int dune_fd_up(struct dune_vault *vault, int fd);

/* ---- system calls: call.c, nested.c, and one function for each that is emulated -------------- */

struct dune_call {
    uint64_t nr;
    uint64_t arg[6];
};

/* What a dune_do_*() returns instead of a result when it replaced the whole state (sigreturn). */
#define DUNE_NO_RESULT (-4096L)
/* The call was interrupted before it did anything, and the kernel would restart it if the handler
 * has SA_RESTART. The dispatcher does that. */
#define DUNE_RESTART (-512L)

/* The whole of a forwarded call: checks, does, delivers the result to the guest's registers. */
void dune_call_dispatch(struct dune_vcpu *cpu);

/* host.S. The host's signal handler redirects a RIP in [dune_forward_check, dune_forward_syscall]
 * to dune_forward_restart. */
extern const char dune_forward_check[], dune_forward_syscall[], dune_forward_restart[];
extern const char dune_host_signal_entry[], dune_host_signal_entry_keyed[], dune_host_restorer[];

/* The raw call on behalf of ring 3: protection key closed, interruptible. Returns its result, or
 * DUNE_RESTART. Arguments must have been checked. */
long dune_forward_raw(struct dune_vcpu *cpu, uint64_t nr, const uint64_t arg[6]);

/* Ring 3's memory: 0, or -EFAULT (not mapped, or the vault's). Never faults here. */
int dune_copy_in(struct dune_vcpu *cpu, void *to, uint64_t from, uint64_t bytes);
int dune_copy_out(struct dune_vcpu *cpu, uint64_t to, const void *from, uint64_t bytes);
/* A string with its NUL: its length, or -EFAULT, -ENAMETOOLONG when it takes more than limit. */
long dune_copy_string(struct dune_vcpu *cpu, char *to, uint64_t from, uint64_t limit);
/* Memory that the call under way may point into; 16-byte aligned; NULL: used up. */
void *dune_scratch(struct dune_vcpu *cpu, uint64_t bytes);

/* One log line and a count for a call that is refused; returns error. */
long dune_refuse(struct dune_vcpu *cpu, const struct dune_call *call, const char *why, long error);

/* ---- fault.c, mm.c --------------------------------------------------------------------------- */

/* KVM_RUN returned EFAULT or an MMIO exit: memory that Linux doesn't map as asked. */
void dune_memory_fault(struct dune_vcpu *cpu);
/* DUNE_PORT_TRAP: opens windows, permits executable pages, or makes it a signal. */
void dune_handle_trap(struct dune_vcpu *cpu, struct dune_tf *tf);

/* ---- signal.c, frame.c ----------------------------------------------------------------------- */

/* Takes over the handlers that exist. At the first entry. */
int dune_signals_init(struct dune_vault *vault);
/* Called by host.S on the host stack, all signals blocked: see signal.c. */
void dune_host_signal(int number, void *info, void *ucontext);
/* Before each KVM_RUN: delivers what was recorded, if the guest is where it can be delivered. */
void dune_deliver(struct dune_vcpu *cpu);
/* A fault of the guest's own becomes a signal: siginfo's first fields. */
void dune_force_signal(struct dune_vcpu *cpu, int number, int code, uint64_t address,
                       const struct dune_tf *tf);

/* ---- module.c, shared.c ---------------------------------------------------------------------- */

/* Ring 0, from stub.S: ring 3's call number n of the module. */
long dune_ring0_module(struct dune_vcpu *cpu, uint64_t n, const uint64_t arg[5]);
/* Ring 0, called by the module: dune_module_kick(). */
long dune_ring0_kick(uint32_t descriptor, uint32_t op);
/* DUNE_PORT_KICK. */
long dune_kick(struct dune_vcpu *cpu, uint32_t descriptor, uint32_t op);
/* This vCPU's thread is the first: it may call the module. */
void dune_module_enter(struct dune_vcpu *cpu);
/* A forked child: it has neither module nor data windows, and their place stays closed. 0 or
 * -errno. */
int dune_module_forget(struct dune_vcpu *cpu);
/* True: the address lies in the module's image. */
bool dune_is_module(const struct dune_vault *vault, uint64_t address);

/* Before KVM_RUN and behind it: counts and cycles become visible outside. */
void dune_shared_before(struct dune_vcpu *cpu);
void dune_shared_behind(struct dune_vcpu *cpu);
/* The crash record, unless there is one. *context: the guest's registers. */
void dune_shared_crash(struct dune_vcpu *cpu, const char *what, uint64_t value, int number,
                       const struct dune_context *context);

static inline uint64_t dune_cycles(void)
{
    uint32_t low, high;

    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return low | (uint64_t)high << 32;
}

/* ---- thread.c -------------------------------------------------------------------------------- */

/* host.S: raw clone(); the child continues on `stack` (its block's host stack) in entry(child). */
long dune_host_clone(uint64_t flags, void *stack, uint64_t parent_tid, uint64_t child_tid,
                     uint64_t tls, void (*entry)(struct dune_vcpu *), struct dune_vcpu *child);

#pragma GCC visibility pop

#endif
