/* libdune: a thread of an ordinary process in guest mode, on stock KVM.
 *
 * What Dune (Belay et al., OSDI '12) gave a process by a kernel module of its own: exceptions, page
 * tables and privilege levels, in the process's own address space. Here by /dev/kvm alone.
 *
 *   int error = dune_init(NULL);          the vault, the VM, the self-test
 *   error = dune_enter();                 this thread goes on in guest ring 0
 *   dune_set_trap_handler(14, handler);   its page faults come to handler(), without an exit
 *   dune_leave();                         and is an ordinary thread again
 *
 * Two ways to use it:
 *
 * open     Ring 0 is the program's own code (dune_enter). It may handle exceptions and ring 3's
 *          system calls, and change page tables. It is trusted: it could reach the vault.
 * sealed   (DUNE_SEALED) Ring 0 is the shim alone. dune_enter_user() continues in ring 3 and
 *          there is no way back: nothing in the process can reach the vault any more, by memory
 *          or through the kernel. SMEP and SMAP are on. dune-sandbox and the protected
 *          dataplane use this.
 *
 * Functions return 0 or a negative errno unless they say otherwise; dune_error() has the reason
 * and the cure in words. All may be called from any thread outside; those marked "ring 0" only
 * from a thread that is in guest ring 0. Source: OSDI '12 sections 3 and 4.
 */
#ifndef DUNE_H
#define DUNE_H

#ifndef DUNE_CDEF
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#endif

/* ---- is this machine's KVM fit? -------------------------------------------------------------- */

enum dune_fitness {
    DUNE_FIT = 0,
    DUNE_NO_KVM,            /* /dev/kvm is not there or can't be opened */
    DUNE_KVM_TOO_OLD,       /* a capability is missing */
    DUNE_NO_NESTED_PAGING,  /* CR3 loads exit: no EPT or NPT */
    DUNE_SYSCALL_UNSOUND,   /* SYSCALL from ring 3 doesn't raise the privilege level */
    DUNE_PAGES_UNSOUND,     /* ring 3 reads or writes a supervisor page */
    DUNE_RING0_EMULATED,    /* ring 0's instructions don't run natively */
    DUNE_CPUID_MISMATCH,    /* the guest would lack a CPU feature that this process already uses */
    DUNE_TRAPS_UNSOUND,     /* an exception in ring 3 doesn't arrive in ring 0 as the CPU says */
};

/* What the start-up self-test found. A tiny guest of its own, about a millisecond natively. */
struct dune_report {
    uint32_t fitness;              /* enum dune_fitness: the first thing that is unfit */
    char reason[256];              /* in words, with the cure; "" when fit */
    char vendor[16];               /* CPUID's vendor */
    char kernel[64];               /* uname -r */
    uint32_t physical_bits;        /* of guest-physical addresses */
    bool syscall_raises_privilege;
    bool supervisor_pages_closed;
    bool ring0_native;
    bool traps_sound;
    bool fsgsbase, pcid, gigabyte_pages, xsave, smep, smap;
    bool protection_keys;          /* the vault's second wall can be used */
    bool memory_fault_info;        /* KVM_CAP_MEMORY_FAULT_INFO */
    uint64_t xcr0;                 /* state components that the guest may enable */
    uint64_t exit_ns;              /* median cost of one exit to user space and back */
    uint64_t ring_switch_ns;       /* median cost of ring 3 -> ring 0 -> ring 3 */
    uint64_t ring0_ps_per_instruction; /* picoseconds, of a plain loop in ring 0 */
};

/* Runs the self-test. 0: *report is filled, fit or not. */
int dune_probe(struct dune_report *report);

/* ---- entering and leaving -------------------------------------------------------------------- */

#define DUNE_SEALED 1u    /* see above */
#define DUNE_NO_PKEY 2u   /* no second wall, even where the CPU has protection keys */
#define DUNE_SKIP_SELF_TEST 4u /* for who just ran dune_probe() and found DUNE_FIT */

struct dune_policy; /* shim/policy.h */

/* The closed range: no address in it can be named by ring 3, neither by an instruction nor in a
 * system call. A GiB of nothing, the vault (1 GiB), data windows, a GiB of nothing.
 *
 * The data windows are for what a module (below) works on. They hold what the program maps there
 * before dune_init(), by mmap(MAP_FIXED): that is the same at the same address in the program, in a
 * process that it forks, and in ring 0. Ring 3 may see some of it by another mapping elsewhere,
 * whose rights Linux enforces; no path leads ring 3 to the files that are mapped there, and
 * descriptors of them must be closed before dune_init(). (What a mapping may become, seals decide:
 * F_SEAL_FUTURE_WRITE before one that is to stay read-only.) */
struct dune_place {
    uint64_t base;       /* of the vault: a multiple of 1 GiB */
    uint64_t data;       /* of the data windows: base + 1 GiB */
    uint64_t data_bytes; /* whole GiB; 0: none */
};

/* Reserves a closed range with room for data_bytes (rounded up to GiB), PROT_NONE. Before
 * dune_init(), which takes it as dune_config.place; a process forked since may do so instead. */
int dune_reserve(uint64_t data_bytes, struct dune_place *place);
/* Unmaps all of it, and what was mapped into it. Not where dune_init() took it. */
void dune_unreserve(const struct dune_place *place);

struct dune_shared; /* below */

#define DUNE_MODULE_FDS 8

/* A module: code of the program's own for ring 0, in the sealed way. Ring 3 calls it like the
 * kernel; it shares nothing with ring 3 but what is mapped for both. See module/module.h. */
struct dune_module {
    const void *image;                   /* what build.mk's rule makes of objects; copied */
    uint64_t bytes;                      /* of it */
    uint64_t context;                    /* for the module: an address in the data windows, or 0 */
    int32_t descriptor[DUNE_MODULE_FDS]; /* for dune_module_kick(): moved to where ring 3 can't
                                          * name them, closed where they were */
    uint32_t n_descriptors;
    struct dune_shared *shared;          /* in the data windows, zeroed; NULL: none */
};

struct dune_config {
    uint32_t flags;                   /* DUNE_SEALED, ... */
    const struct dune_policy *policy; /* sealed only; copied; NULL: just the vault is protected */
    uint32_t physical_bits;           /* 0: what the CPU has; less: to test narrow machines */
    const struct dune_place *place;   /* NULL: one without data windows, of dune_init()'s own */
    const struct dune_module *module; /* sealed only; NULL: none */
};

/* Makes the vault, the VM and its page tables; once a process. config NULL: all zero (open).
 * -EOPNOTSUPP: this KVM is unfit. -EBUSY: other threads exist (sealed), or ring 3 would have a
 * descriptor that leads to the data windows or is another one of the module's. -EALREADY. -EINVAL:
 * no place, or no module. After a failure the place is as it was. */
int dune_init(const struct dune_config *config);

/* The calling thread continues in guest ring 0 behind this call: same stack, same memory, same
 * files. Open only. Returns 0 in ring 0. From ring 0: -EALREADY. */
int dune_enter(void);

/* As dune_enter(), but in ring 3. In the sealed way there is no way back. From ring 0 (open),
 * ring 0's code keeps getting ring 3's exceptions and system calls that it registered for. */
int dune_enter_user(void);

/* Ring 0: entry(arg) in ring 3 on the given stack (its top; 16-byte aligned). Returns to ring 0
 * when ring 3 makes the system call DUNE_CALL_RETURN (dune_return()) with what it passed, or when
 * a handler called dune_end_user(). */
long dune_run_user(void (*entry)(void *), void *arg, void *stack_top);
void dune_return(long result) __attribute__((noreturn)); /* ring 3, inside dune_run_user() */
void dune_end_user(long result); /* in a handler: on return from it dune_run_user() returns */

/* Back to an ordinary thread, at the next instruction. Open only. */
int dune_leave(void);

/* 0: ring 0. 3: ring 3. -1: not in the guest. */
int dune_ring(void);

/* Why the last call failed, and the cure. Never NULL. */
const char *dune_error(void);

/* ---- exceptions and system calls (ring 0, open) ---------------------------------------------- */

/* The state that an exception or a system call interrupted; a handler may change it. */
struct dune_tf {
    uint64_t r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi;
    uint64_t cr2;    /* page faults: the address */
    uint64_t vector; /* DUNE_VECTOR_SYSCALL for a system call */
    uint64_t error;  /* the CPU's error code, else 0 */
    uint64_t rip, cs, rflags, rsp, ss;
};

#define DUNE_VECTOR_SYSCALL 0x100
#define DUNE_VECTORS 32

/* True: handled, go on with *tf. False: not mine; becomes the POSIX signal that Linux would send
 * (exceptions), or is forwarded to Linux (system calls). Runs on ring 0's stack when ring 3 was
 * interrupted, below the red zone of the interrupted stack when ring 0 was. FPU state is kept.
 * Ring 0's stack is that of dune_run_user()'s caller; otherwise (dune_enter_user(), threads that
 * ring 3 made) 16 KiB of the vault, of which kept FPU state takes some: no place for printf(). */
typedef bool (*dune_handler)(struct dune_tf *tf);

#define DUNE_HANDLER_NO_FPU 1u /* the handler uses no vector registers: don't save them */

int dune_set_trap_handler(unsigned vector, dune_handler handler, uint32_t flags); /* NULL: none */
int dune_set_syscall_handler(dune_handler handler, uint32_t flags); /* ring 3's system calls */

/* Ring 0: does ring 3's call as Linux would, one exit. The result is in tf->rax. */
void dune_forward(struct dune_tf *tf);

/* ---- a module in ring 0 (sealed) ------------------------------------------------------------- */

#define DUNE_CALL_MODULE 0xd100  /* ring 3: syscall(DUNE_CALL_MODULE + n, a0, a1, a2, a3, a4) */
#define DUNE_CALL_MODULES 0x100  /* n is less */

/* Ring 3: the module's dune_module_main(context, n, arg), and its result. No exit. All of ring 3's
 * registers but RAX, RCX and R11 are kept, vector registers too. Signals that come meanwhile are
 * handled when it returns. -EPERM: from a thread other than the one that entered first, or from a
 * forked child, which has neither the data windows nor the descriptors. -ENOSYS: no module. */
long dune_module_call(uint64_t n, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4);

/* ---- page tables (ring 0, open) -------------------------------------------------------------- */

#define DUNE_PTE_WRITE 1u
#define DUNE_PTE_EXEC 2u
#define DUNE_PTE_USER 4u    /* ring 3 may use it too */
#define DUNE_PTE_READ 8u    /* present; without it the page faults whatever else is set */
#define DUNE_PTE_ACCESSED 16u
#define DUNE_PTE_DIRTY 32u
#define DUNE_PTE_SMALL 64u /* to dune_map(), dune_protect(): 4 KiB entries, which are accessed and
                            * dirty page by page; else as large as alignment allows */

/* A set of page tables. The process's own is dune_root(). Fresh roots follow Linux's mappings
 * lazily as the first does; what dune_map() and dune_protect() set stays as set. root NULL is the
 * one in use. Changes take no exit, but one where other threads use the root too: they see it when
 * the call returns. */
struct dune_root;

struct dune_entry {      /* one page of a root */
    uint64_t va, source; /* guest address; the process's address whose memory appears there */
    uint64_t bytes;      /* 4 KiB, 2 MiB or 1 GiB */
    uint32_t flags;      /* DUNE_PTE_* */
};

struct dune_root *dune_root(void); /* the one in use */
/* The process's memory at source appears at va too. Both page aligned, both in the lower half. */
int dune_map(struct dune_root *root, uint64_t va, uint64_t source, uint64_t bytes, uint32_t flags);
int dune_protect(struct dune_root *root, uint64_t va, uint64_t bytes, uint32_t flags);
int dune_unmap(struct dune_root *root, uint64_t va, uint64_t bytes); /* accesses fault */
int dune_follow(struct dune_root *root, uint64_t va, uint64_t bytes); /* back to Linux's mapping */
int dune_lookup(struct dune_root *root, uint64_t va, struct dune_entry *entry); /* -ENOENT */
/* Calls each present page's entry in [va, va + bytes); true clears accessed and dirty bits. Stops
 * when visit returns not 0, and returns that. */
int dune_walk(struct dune_root *root, uint64_t va, uint64_t bytes,
              int (*visit)(const struct dune_entry *entry, void *arg), void *arg, bool clear);
int dune_clone_root(struct dune_root *from, struct dune_root **made);
int dune_free_root(struct dune_root *root); /* -EBUSY: in use */
int dune_switch_root(struct dune_root *root); /* this vCPU; by PCID without a flush if it can */
void dune_flush_tlb(void);                    /* this vCPU */
void dune_flush_page(uint64_t va);

/* ---- counters -------------------------------------------------------------------------------- */

struct dune_stats {            /* sums over all vCPUs since dune_init() */
    uint64_t exits;            /* returns of KVM_RUN to user space */
    uint64_t syscalls;         /* of these: forwarded system calls */
    uint64_t windows;          /* of these: first touches of a GiB */
    uint64_t executable;       /* of these: first fetches from executable memory */
    uint64_t faults;           /* of these: memory that Linux doesn't map */
    uint64_t traps;            /* of these: exceptions that nobody in ring 0 handled */
    uint64_t interrupted;      /* of these: signals */
    uint64_t others;
    uint64_t kicks;            /* of these: a module's dune_module_kick() */
    uint64_t refused;          /* system calls refused to protect the vault or by policy */
    uint64_t module_calls;     /* ring 3's calls of the module: no exits */
    uint64_t kvm_exits;        /* all exits, those that KVM handled included; 0 where not counted */
    uint64_t vcpus;            /* in use */
};
int dune_stats(struct dune_stats *stats); /* anywhere, ring 3 excepted */

#define DUNE_STACK_WORDS 64
#define DUNE_TRACE_FRAMES 32

enum dune_crash_state { DUNE_CRASH_NONE = 0, DUNE_CRASH_WRITING, DUNE_CRASH_WHOLE };

/* Why the guest ended, for another process to read and to put names to (ELF files that build.mk
 * keeps: the addresses in them begin at 0). Not written where the kernel ends the process without
 * asking: SIGKILL, or another signal than a fault's that has no handler. */
struct dune_crash {
    uint32_t state;         /* enum dune_crash_state */
    int32_t signal;         /* that the process ends by; SIGABRT where ring 0 is at fault */
    int32_t tid;
    int32_t ring;           /* that tf is of: 0 or 3 */
    char what[96];          /* in words */
    uint64_t value;         /* the words' number: vector, address, error ... */
    struct dune_tf tf;      /* registers; where KVM shut the guest down they may be a reset CPU's */
    uint64_t shim, shim_bytes;     /* where ring 0's own code lies */
    uint64_t module, module_bytes; /* where the module lies; 0, 0: there is none */
    uint32_t n_stack, n_trace;
    uint64_t stack[DUNE_STACK_WORDS];  /* from tf.rsp up */
    uint64_t trace[DUNE_TRACE_FRAMES]; /* tf.rip, and return addresses by frame pointers: ring 0's
                                        * lead on to ring 3's */
};

/* What another process may see of a guest while it runs. Cycles are the CPU's (RDTSC), of the
 * thread that may call the module. What is left of them since `began` is ring 3's, and KVM's share
 * of exits other than kicks. */
struct dune_shared {
    struct dune_stats counts; /* kvm_exits and vcpus excepted, which stay 0 */
    uint64_t began;           /* RDTSC when the first thread entered; 0: not yet */
    uint64_t cycles_ring0;    /* in the module, without the next two */
    uint64_t cycles_kick;     /* in dune_module_kick(): an exit, Linux, and the entry */
    uint64_t cycles_host;     /* between other exits and the next entry: Linux and libdune */
    struct dune_crash crash;
};
uint64_t dune_now(void); /* RDTSC */

#endif
