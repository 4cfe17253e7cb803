/* libdune_shim's signal.c and frame.c without KVM: a vault that holds one vCPU, whose guest is a
 * set of registers. Each case is a word on the command line; it ends with status 0, or says where
 * not.
 *
 * The kernel of this machine is the reference: a frame that it built is compared byte by byte with
 * the one built here, and what it would return to with what is returned to here.
 */
#include "shim/signal.h"
#include "shim/sys.h"

#include <cpuid.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef SA_RESTORER
#define SA_RESTORER 0x04000000
#endif
#define BASE         0x200000000000ull
#define GUEST_STACK  0x100000000000ull
#define GUEST_BYTES  0x40000
#define NO_REGISTERS __attribute__((target("general-regs-only")))
#define MASK(number) (1ull << ((number)-1))

struct software { /* struct _fpx_sw_bytes of the kernel */
    uint32_t magic1, extended_size;
    uint64_t xfeatures;
    uint32_t xstate_size;
};

static struct dune_vault *vault = (struct dune_vault *)(BASE + DUNE_VAULT_AT);
static struct dune_vcpu *cpu = (struct dune_vcpu *)(BASE + DUNE_BLOCKS_AT + DUNE_BLOCK_VCPU);
static struct kvm_run run;
static struct dune_context guest;   /* what dune_get_context() tells */
static uint8_t fpu[16384];          /* the guest's */
static uint8_t shadow[GUEST_BYTES]; /* of what is "written" while `compares` */
static uint64_t shadow_at, shadow_end;
static int compares;

static void fail(const char *what, int line)
{
    fprintf(stderr, "line %d: %s\n", line, what);
    _exit(1);
}
#define CHECK(x) \
    do { \
        if (!(x)) \
            fail(#x, __LINE__); \
    } while (0)
#define EQUAL(x, y) \
    do { \
        uint64_t is_ = (uint64_t)(x), due_ = (uint64_t)(y); \
        if (is_ != due_) \
            fprintf(stderr, "%lx is not %lx\n", is_, due_), fail(#x " == " #y, __LINE__); \
    } while (0)

/* ---- what the rest of the shim would be ---------------------------------------------------------
 */

void dune_shared_crash(struct dune_vcpu *in, const char *what, uint64_t value, int number,
                       const struct dune_context *context)
{
    (void)in, (void)what, (void)value, (void)number, (void)context;
}

void dune_panic(struct dune_vcpu *in, const char *what, uint64_t value)
{
    (void)in;
    fprintf(stderr, "panic: %s %lx\n", what, value);
    _exit(99);
}
void dune_loop(struct dune_vcpu *in)
{
    dune_panic(in, "loop", 0);
}
void dune_lock(struct dune_lock *lock)
{
    CHECK(lock->word++ == 0);
}
void dune_unlock(struct dune_lock *lock)
{
    CHECK(--lock->word == 0);
}
void dune_get_context(struct dune_vcpu *in, struct dune_context *context)
{
    (void)in;
    *context = guest;
}
void dune_set_context(struct dune_vcpu *in, const struct dune_context *context)
{
    (void)in;
    CHECK(context->where != DUNE_IN_SHIM);
    guest = *context;
}
int dune_vcpu_get_fpu(struct dune_vcpu *in, void *xsave)
{
    memcpy(xsave, fpu, in->vault->xsave_bytes);
    return 0;
}
int dune_vcpu_set_fpu(struct dune_vcpu *in, const void *xsave)
{
    if (*(const uint32_t *)((const uint8_t *)xsave + 24) & 0xffff0000)
        return -EINVAL; /* as KVM: MXCSR */
    memcpy(fpu, xsave, in->vault->xsave_bytes);
    return 0;
}
int dune_copy_in(struct dune_vcpu *in, void *to, uint64_t from, uint64_t bytes)
{
    uint64_t local[2] = {(uint64_t)to, bytes}, remote[2] = {from, bytes};

    if (!dune_range_is_free(in->vault, from, bytes))
        return -EFAULT;
    return dune_sys6(__NR_process_vm_readv, getpid(), local, 1, remote, 1, 0) == (long)bytes
               ? 0
               : -EFAULT;
}
int dune_copy_out(struct dune_vcpu *in, uint64_t to, const void *from, uint64_t bytes)
{
    uint64_t local[2] = {(uint64_t)from, bytes}, remote[2] = {to, bytes};

    if (!dune_range_is_free(in->vault, to, bytes))
        return -EFAULT;
    if (compares) {
        if (shadow_at == 0 || to < shadow_at)
            shadow_at = to;
        CHECK(to - shadow_at + bytes <= sizeof(shadow));
        memcpy(shadow + (to - shadow_at), from, bytes);
        shadow_end = to + bytes;
        return 0;
    }
    return dune_sys6(__NR_process_vm_writev, getpid(), local, 1, remote, 1, 0) == (long)bytes
               ? 0
               : -EFAULT;
}
long dune_refuse(struct dune_vcpu *in, const struct dune_call *call, const char *why, long error)
{
    (void)call, (void)why;
    in->counts.refused++;
    return error;
}

/* ---- set-up
 * -------------------------------------------------------------------------------------- */

static void fill_cpuid(void)
{
    struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + 64 * sizeof(cpuid->entries[0]));

    for (uint32_t i = 0; i < 20; i++) {
        struct kvm_cpuid_entry2 *entry = &cpuid->entries[cpuid->nent++];

        entry->function = 0xd;
        entry->index = i;
        __cpuid_count(0xd, i, entry->eax, entry->ebx, entry->ecx, entry->edx);
    }
    vault->cpuid = cpuid;
}

/* The features that the kernel puts into frames: what it says in one. */
static void learn(int number, siginfo_t *info, void *ucontext)
{
    struct dune_sigframe *frame = (struct dune_sigframe *)((char *)ucontext - 8);
    struct software *software = (struct software *)(frame->fpstate + 464);

    (void)number, (void)info;
    vault->xcr0 = software->xfeatures;
    vault->xsave_bytes = sizeof(fpu) > software->xstate_size ? 12288 : 0;
}

extern const char restorer[];
__asm__("restorer: mov $15, %eax\n syscall\n");

static void native_action(int number, void (*handler)(int, siginfo_t *, void *), uint64_t flags,
                          uint64_t mask)
{
    struct dune_sigaction action = {(uint64_t)handler, flags | SA_RESTORER | SA_SIGINFO,
                                    (uint64_t)restorer, mask};

    CHECK(dune_sys4(__NR_rt_sigaction, number, &action, 0, 8) == 0);
}

static void send(int number)
{
    dune_sys3(__NR_tgkill, getpid(), dune_sys0(__NR_gettid), number);
}

static uint64_t host_mask(void)
{
    uint64_t mask;

    dune_sys4(__NR_rt_sigprocmask, SIG_BLOCK, 0, &mask, 8);
    return mask;
}

static void set_up(void)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;

    CHECK(mmap((void *)(BASE - DUNE_WINDOW), 3ul * DUNE_WINDOW, PROT_NONE, flags | MAP_NORESERVE,
               -1, 0) != MAP_FAILED);
    mprotect((void *)(BASE + DUNE_VAULT_AT), 0x100000, PROT_READ | PROT_WRITE);
    mprotect((void *)(BASE + DUNE_BLOCKS_AT), 2 * DUNE_BLOCK, PROT_READ | PROT_WRITE);
    mprotect((void *)(BASE + DUNE_SCRATCH_AT), DUNE_SCRATCH, PROT_READ | PROT_WRITE);
    CHECK(mmap((void *)GUEST_STACK, GUEST_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0) !=
          MAP_FAILED);
    vault->base = BASE;
    vault->host_signal_entry = (uint64_t)dune_host_signal_entry;
    vault->host_restorer = (uint64_t)dune_host_restorer;
    vault->pkey = -1;
    cpu->vault = vault;
    cpu->run = &run;
    cpu->state = DUNE_VCPU_RUNS;
    cpu->sighand = &vault->sighand;
    cpu->scratch = (uint8_t *)BASE + DUNE_SCRATCH_AT;
    fill_cpuid();
    native_action(SIGUSR1, learn, 0, 0);
    send(SIGUSR1);
    CHECK(vault->xsave_bytes);
    native_action(SIGUSR1, (void *)SIG_DFL, 0, 0);
    *(uint16_t *)fpu = 0x37f;
    *(uint32_t *)(fpu + 24) = 0x1f80;
    fpu[512] = 3;
    guest.where = DUNE_AT_INTERRUPT;
    guest.tf = (struct dune_tf){.r15 = 15,
                                .r14 = 14,
                                .r13 = 13,
                                .r12 = 12,
                                .rbp = 5,
                                .rbx = 3,
                                .r11 = 11,
                                .r10 = 10,
                                .r9 = 9,
                                .r8 = 8,
                                .rax = 1,
                                .rcx = 2,
                                .rdx = 4,
                                .rsi = 6,
                                .rdi = 7,
                                .rip = 0x401000,
                                .rflags = 0x246,
                                .rsp = GUEST_STACK + GUEST_BYTES / 2,
                                .cs = DUNE_USER_CS,
                                .ss = DUNE_USER_DS};
}

/* Runs f on the vCPU's host stack, as the loop runs. */
static void on_host_stack(void (*f)(void))
{
    uint64_t top = (uint64_t)dune_block(cpu) + DUNE_BLOCK_TOP;

    __asm__ volatile("mov %%rsp, %%rbx\n mov %0, %%rsp\n call *%1\n mov %%rbx, %%rsp"
                     :
                     : "r"(top), "r"(f)
                     : "rbx", "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory",
                       "cc");
}

#include "dune_signals_frame.h"

#include "dune_signals_flow.h"

#include "dune_signals_calls.h"

static const struct {
    const char *name;
    void (*run)(void);
} cases[] = {
#define CASE(name) \
    { \
#name, case_##name \
    }
    CASE(frame),
    CASE(frame_altstack),
    CASE(frame_autodisarm),
    CASE(restore_kernels),
    CASE(kernel_restores),
    CASE(made_up_registers),
    CASE(made_up_fpu),
    CASE(build_refused),
    CASE(stack_grows),
    CASE(recorded),
    CASE(nested),
    CASE(raced),
    CASE(resethand),
    CASE(nodefer),
    CASE(in_shim),
    CASE(forced),
    CASE(forced_while_recorded),
    CASE(forced_blocked),
    CASE(bad_stack),
    CASE(sigaction),
    CASE(sigreturn),
    CASE(altstack),
    CASE(forward),
    CASE(forward_restart),
    CASE(forward_waits),
    CASE(outside),
    CASE(inherits),
    CASE(touch),
    CASE(host_fault),
    CASE(stopped),
};

int main(int argc, char **argv)
{
    if (argc != 2) {
        for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++)
            puts(cases[i].name);
        return 0;
    }
    set_up();
    for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++)
        if (strcmp(cases[i].name, argv[1]) == 0) {
            cases[i].run();
            _exit(0);
        }
    return 2;
}
