/* vCPUs: a block of the vault, a KVM vCPU and a thread each. KVM can't destroy one while the VM
 * lives, so they are kept and used again. */
#include "shim/image.h"
#include "shim/pagetable.h"
#include "shim/sys.h"

#define PROT_READ 1
#define PROT_WRITE 2
#define MAP_SHARED 1
#define MAP_FIXED 0x10
#define PR_NONE 0

#define CR0 0x80050033u /* PG WP NE ET MP PE, AM: as Linux sets it */
#define CR4_BASE 0x6a0u /* PAE, PGE, OSFXSR, OSXMMEXCPT */
#define CR4_FSGSBASE (1u << 16)
#define CR4_PCIDE (1u << 17)
#define CR4_OSXSAVE (1u << 18)
#define CR4_SMEP (1u << 20)
#define CR4_SMAP (1u << 21)
#define EFER_LONG 0xd01u /* NXE, LMA, LME, SCE */

#define MSR_STAR 0xc0000081u
#define MSR_LSTAR 0xc0000082u
#define MSR_FMASK 0xc0000084u
#define MSR_MISC_ENABLE 0x1a0u
#define FMASK 0x44700u /* AC, NT, DF, IF, TF */

_Static_assert(__builtin_offsetof(struct dune_vcpu, mode) == DUNE_VCPU_MODE, "stub.S");
_Static_assert(__builtin_offsetof(struct dune_vcpu, attention) == DUNE_VCPU_ATTENTION, "stub.S");
_Static_assert(__builtin_offsetof(struct dune_vcpu, hooks) == DUNE_VCPU_HOOKS, "stub.S");
_Static_assert(__builtin_offsetof(struct dune_vcpu, user_rsp) == DUNE_VCPU_USER_RSP, "stub.S");
_Static_assert(__builtin_offsetof(struct dune_vcpu, saved) == DUNE_VCPU_SAVED, "stub.S");
_Static_assert(__builtin_offsetof(struct dune_vcpu, stack_top) == DUNE_VCPU_STACK_TOP, "stub.S");
_Static_assert(__builtin_offsetof(struct dune_vcpu, syscall_entry) == DUNE_VCPU_SYSCALL, "stub.S");
_Static_assert(__builtin_offsetof(struct dune_vcpu, trap_entry) == DUNE_VCPU_TRAP, "stub.S");
_Static_assert(__builtin_offsetof(struct dune_vcpu, self) == DUNE_VCPU_SELF, "stub.S");
_Static_assert(__builtin_offsetof(struct dune_vcpu, tf) == DUNE_VCPU_TF, "stub.S");
_Static_assert(__builtin_offsetof(struct dune_vcpu, pending.recorded) == DUNE_VCPU_RECORDED, "");
_Static_assert(__builtin_offsetof(struct dune_vcpu, pending.keyed) == DUNE_VCPU_KEYED, "");
_Static_assert(__builtin_offsetof(struct dune_vcpu, pending.pkru_open) == DUNE_VCPU_PKRU_OPEN, "");
_Static_assert(__builtin_offsetof(struct dune_vcpu, pending.pkru_closed) == DUNE_VCPU_PKRU_CLOSED,
               "");
_Static_assert(DUNE_BLOCK_VCPU + sizeof(struct dune_vcpu) <= DUNE_BLOCK_GDT, "");
_Static_assert(DUNE_VAULT_AT + sizeof(struct dune_vault) <= DUNE_TABLES_AT, "");
_Static_assert(sizeof(struct dune_tf) == DUNE_TF_BYTES, "");
_Static_assert(__builtin_offsetof(struct dune_tf, rip) == DUNE_TF_RIP, "");

static long vcpu_ioctl(const struct dune_vcpu *cpu, uint64_t request, const void *argument)
{
    return dune_sys3(__NR_ioctl, cpu->fd, request, argument);
}

/* ---- what the CPU reads: descriptors, stubs -------------------------------------------------- */

static void set_gate(uint64_t *gate, uint64_t entry, uint64_t ist, uint64_t dpl)
{
    gate[0] = (entry & 0xffff) | (uint64_t)DUNE_KERNEL_CS << 16 | ist << 32 | 0x8e00ull << 32 |
              dpl << 45 | (entry >> 16 & 0xffff) << 48;
    gate[1] = entry >> 32;
}

static void fill_block(struct dune_vcpu *cpu)
{
    const struct dune_image *image = DUNE_IMAGE(cpu->vault);
    uint8_t *block = dune_block(cpu);
    uint64_t *gdt = (uint64_t *)(block + DUNE_BLOCK_GDT);
    uint64_t *idt = (uint64_t *)(block + DUNE_BLOCK_IDT);
    uint64_t tss = (uint64_t)block + DUNE_BLOCK_TSS, stack = (uint64_t)block + DUNE_BLOCK_RUN;
    uint64_t vectors = (uint64_t)block + image->stub_vectors - image->stub;
    uint64_t stacks[5] = {0, DUNE_BLOCK_IST2, DUNE_BLOCK_IST3, DUNE_BLOCK_IST4, DUNE_BLOCK_STACK};

    __builtin_memcpy(block, (const uint8_t *)image + image->stub, DUNE_PAGE);
    gdt[0] = 0;
    gdt[1] = 0x00af9b000000ffffull; /* code, ring 0 */
    gdt[2] = 0x00cf93000000ffffull; /* data, ring 0 */
    gdt[3] = 0x00cff3000000ffffull; /* data, ring 3 */
    gdt[4] = 0x00affb000000ffffull; /* code, ring 3 */
    gdt[5] = 0x67 | (tss & 0xffffff) << 16 | 0x8bull << 40 | (tss >> 24 & 0xff) << 56;
    gdt[6] = tss >> 32;
    /* The TSS: RSP0 at 4, IST 1 at 36, at 102 that the I/O bitmap lies beyond its end. */
    __builtin_memset(block + DUNE_BLOCK_TSS, 0, 104);
    __builtin_memcpy(block + DUNE_BLOCK_TSS + 4, &stack, 8);
    for (uint32_t ist = 1; ist <= 4; ist++) {
        uint64_t top = (uint64_t)block + stacks[ist];

        __builtin_memcpy(block + DUNE_BLOCK_TSS + 28 + ist * 8, &top, 8);
    }
    *(uint16_t *)(block + DUNE_BLOCK_TSS + 102) = 104;
    for (uint64_t vector = 0; vector < DUNE_VECTORS; vector++) {
        uint64_t ist = vector == 8 ? 2 : vector == 2 ? 3 : vector == 18 ? 4 : 1;
        uint64_t dpl = vector == 3 || vector == 4 ? 3 : 0; /* INT3 and INTO */

        set_gate(idt + 2 * vector, vectors + 16 * vector, ist, dpl);
    }
    cpu->self = cpu;
    cpu->stack_top = stack;
    cpu->trap_entry = (uint64_t)image + image->ring0_trap;
    cpu->syscall_entry = (uint64_t)image + image->ring0_syscall;
}

/* ---- KVM's state ----------------------------------------------------------------------------- */

static int set_msrs(struct dune_vcpu *cpu)
{
    const struct dune_image *image = DUNE_IMAGE(cpu->vault);
    uint64_t stub = (uint64_t)dune_block(cpu);
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry[3];
    } msrs = {
        .head.nmsrs = 3,
        .entry = {{.index = MSR_STAR, .data = 0x0013000800000000ull},
                  {.index = MSR_LSTAR, .data = stub + image->stub_syscall - image->stub},
                  {.index = MSR_FMASK, .data = FMASK}},
    };

    return vcpu_ioctl(cpu, KVM_SET_MSRS, &msrs) == 3 ? 0 : -EIO;
}

static int set_extended_state(struct dune_vcpu *cpu)
{
    const struct dune_vault *vault = cpu->vault;
    struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs[0] = {.xcr = 0, .value = vault->xcr0}};
    uint64_t offset = 0; /* so that RDTSC and the vDSO's clocks agree with the host's */
    struct kvm_device_attr attribute = {
        .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uint64_t)&offset};

    vcpu_ioctl(cpu, KVM_SET_DEVICE_ATTR, &attribute); /* since Linux 5.16 */
    return vault->features & DUNE_HAS_XSAVE ? (int)vcpu_ioctl(cpu, KVM_SET_XCRS, &xcrs) : 0;
}

static struct kvm_segment segment(uint16_t selector, uint8_t type, uint8_t l)
{
    return (struct kvm_segment){.limit = 0xffffffff, .selector = selector, .type = type,
                                .present = 1, .dpl = selector & 3, .db = !l, .s = 1, .l = l,
                                .g = 1};
}

static void set_ring(struct kvm_sregs *sregs, int ring)
{
    sregs->cs = segment(ring == 3 ? DUNE_USER_CS : DUNE_KERNEL_CS, 11, 1);
    sregs->ss = segment(ring == 3 ? DUNE_USER_DS : DUNE_KERNEL_DS, 3, 0);
}

static uint32_t cr4(const struct dune_vault *vault)
{
    uint32_t value = CR4_BASE;

    if (vault->features & DUNE_HAS_FSGSBASE)
        value |= CR4_FSGSBASE;
    if (vault->features & DUNE_HAS_PCID)
        value |= CR4_PCIDE;
    if (vault->features & DUNE_HAS_XSAVE)
        value |= CR4_OSXSAVE;
    if (!(vault->flags & DUNE_SEALED)) /* ring 0's own code is in pages of ring 3's kind */
        return value;
    if (vault->features & DUNE_HAS_SMEP)
        value |= CR4_SMEP;
    if (vault->features & DUNE_HAS_SMAP)
        value |= CR4_SMAP;
    return value;
}

static int set_sregs(struct dune_vcpu *cpu)
{
    uint64_t block = (uint64_t)dune_block(cpu);
    struct kvm_segment none = {.unusable = 1, .g = 1};
    struct kvm_sregs sregs;
    long error = vcpu_ioctl(cpu, KVM_GET_SREGS, &sregs);

    if (error != 0)
        return (int)error;
    set_ring(&sregs, 0);
    sregs.ds = sregs.es = sregs.fs = sregs.gs = none;
    sregs.ldt = (struct kvm_segment){.unusable = 1, .type = 2};
    sregs.tr = (struct kvm_segment){.base = block + DUNE_BLOCK_TSS, .limit = 0x67,
                                    .selector = DUNE_TSS, .type = 11, .present = 1};
    sregs.gdt = (struct kvm_dtable){.base = block + DUNE_BLOCK_GDT, .limit = 7 * 8 - 1};
    sregs.idt = (struct kvm_dtable){.base = block + DUNE_BLOCK_IDT, .limit = DUNE_VECTORS * 16 - 1};
    sregs.cr0 = CR0;
    sregs.cr3 = dune_root_cr3(cpu->vault, cpu->root);
    sregs.cr4 = cr4(cpu->vault);
    sregs.efer = EFER_LONG;
    return (int)vcpu_ioctl(cpu, KVM_SET_SREGS, &sregs);
}

static int map_run(struct dune_vcpu *cpu)
{
    const struct dune_vault *vault = cpu->vault;
    uint8_t *at = (uint8_t *)dune_block(cpu) + DUNE_BLOCK_RUN;
    long result = dune_sys6(__NR_mmap, at, vault->run_bytes, PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_FIXED, cpu->fd, 0);

    if (result != (long)at)
        return (int)result;
    if (vault->pkey >= 0)
        result = dune_sys4(__NR_pkey_mprotect, at, vault->run_bytes, PROT_READ | PROT_WRITE,
                           vault->pkey);
    cpu->run = (struct kvm_run *)at;
    cpu->run->kvm_valid_regs = KVM_SYNC_X86_REGS;
    return vault->pkey >= 0 ? (int)result : 0;
}

int dune_vcpu_create(struct dune_vcpu *cpu)
{
    struct dune_vault *vault = cpu->vault;
    int error;

    cpu->fd = dune_fd_up(vault, (int)dune_sys3(__NR_ioctl, vault->vm_fd, KVM_CREATE_VCPU,
                                               cpu->index));
    if (cpu->fd < 0)
        return cpu->fd;
    cpu->stats_fd = -1;
    if (!(vault->flags & DUNE_SEALED))
        cpu->stats_fd = dune_fd_up(vault, (int)vcpu_ioctl(cpu, KVM_GET_STATS_FD, NULL));
    error = map_run(cpu);
    if (error == 0)
        error = (int)vcpu_ioctl(cpu, KVM_SET_CPUID2, vault->cpuid);
    if (error == 0)
        error = set_extended_state(cpu);
    if (error == 0)
        error = set_msrs(cpu);
    if (error == 0)
        error = set_sregs(cpu);
    return error;
}

int dune_vcpu_place(struct dune_vcpu *cpu, const struct dune_regs *regs, int ring, uint64_t fs_base,
                    uint64_t gs_base, const void *xsave)
{
    struct kvm_sregs sregs;
    long error = vcpu_ioctl(cpu, KVM_GET_SREGS, &sregs);

    if (error != 0)
        return (int)error;
    set_ring(&sregs, ring);
    sregs.fs.base = fs_base;
    sregs.gs.base = gs_base;
    sregs.cr3 = dune_root_cr3(cpu->vault, cpu->root);
    error = vcpu_ioctl(cpu, KVM_SET_SREGS, &sregs);
    if (error == 0 && xsave != NULL)
        error = dune_vcpu_set_fpu(cpu, xsave);
    __builtin_memcpy(&cpu->run->s.regs.regs, regs, sizeof(*regs));
    cpu->run->kvm_dirty_regs = KVM_SYNC_X86_REGS;
    cpu->run->immediate_exit = 0;
    cpu->mode = (uint8_t)ring;
    cpu->attention = 0;
    return (int)error;
}

int dune_vcpu_get_fpu(struct dune_vcpu *cpu, void *xsave)
{
    bool large = cpu->vault->xsave_bytes > sizeof(struct kvm_xsave);

    return (int)vcpu_ioctl(cpu, large ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, xsave);
}

int dune_vcpu_set_fpu(struct dune_vcpu *cpu, const void *xsave)
{
    return (int)vcpu_ioctl(cpu, KVM_SET_XSAVE, xsave);
}

void dune_vcpu_get_bases(struct dune_vcpu *cpu, uint64_t *fs_base, uint64_t *gs_base)
{
    struct kvm_sregs sregs;

    if (vcpu_ioctl(cpu, KVM_GET_SREGS, &sregs) != 0)
        dune_panic(cpu, "KVM doesn't tell a vCPU's segments", 0);
    *fs_base = sregs.fs.base;
    *gs_base = sregs.gs.base;
}

void dune_vcpu_set_bases(struct dune_vcpu *cpu, uint64_t fs_base, uint64_t gs_base)
{
    struct kvm_sregs sregs;
    long error = vcpu_ioctl(cpu, KVM_GET_SREGS, &sregs);

    sregs.fs.base = fs_base;
    sregs.gs.base = gs_base;
    if (error != 0 || vcpu_ioctl(cpu, KVM_SET_SREGS, &sregs) != 0)
        dune_panic(cpu, "KVM doesn't take a vCPU's segments", fs_base);
}

int dune_vcpu_get_ring(struct dune_vcpu *cpu)
{
    struct kvm_sregs sregs;

    if (vcpu_ioctl(cpu, KVM_GET_SREGS, &sregs) != 0)
        dune_panic(cpu, "KVM doesn't tell a vCPU's segments", 0);
    return sregs.cs.selector & 3;
}

void dune_vcpu_set_ring(struct dune_vcpu *cpu, int ring)
{
    struct kvm_sregs sregs;
    long error = vcpu_ioctl(cpu, KVM_GET_SREGS, &sregs);

    set_ring(&sregs, ring);
    if (error != 0 || vcpu_ioctl(cpu, KVM_SET_SREGS, &sregs) != 0)
        dune_panic(cpu, "KVM doesn't take a vCPU's segments", (uint64_t)ring);
    cpu->mode = (uint8_t)ring;
}

/* KVM flushes a guest's TLB when it is given another CR4. Global pages aren't used, so that PGE
 * makes no difference else. */
void dune_vcpu_load_root(struct dune_vcpu *cpu, struct dune_root *root)
{
    struct kvm_sregs sregs;
    long error = vcpu_ioctl(cpu, KVM_GET_SREGS, &sregs);

    cpu->root = root;
    sregs.cr3 = dune_root_cr3(cpu->vault, root);
    sregs.cr4 ^= 1u << 7;
    if (error != 0 || vcpu_ioctl(cpu, KVM_SET_SREGS, &sregs) != 0)
        dune_panic(cpu, "KVM doesn't take page tables", sregs.cr3);
}

/* ---- the pool -------------------------------------------------------------------------------- */

/* A thread that left still uses its block's stack until the kernel is done with it. */
static bool is_free(const struct dune_vault *vault, const struct dune_vcpu *cpu)
{
    if (cpu->state != DUNE_VCPU_LEFT)
        return cpu->state == DUNE_VCPU_FREE || cpu->state == DUNE_VCPU_NONE;
    return dune_sys3(__NR_tgkill, vault->pid, cpu->tid, 0) == -ESRCH;
}

static void reset(struct dune_vault *vault, struct dune_vcpu *cpu, uint32_t index)
{
    int32_t fd = cpu->fd, stats_fd = cpu->stats_fd;
    bool made = cpu->state != DUNE_VCPU_NONE;
    struct kvm_run *run = cpu->run;

    __builtin_memset(cpu, 0, sizeof(*cpu));
    cpu->vault = vault;
    cpu->index = index;
    cpu->fd = made ? fd : -1;
    cpu->stats_fd = made ? stats_fd : -1;
    cpu->run = made ? run : NULL;
    cpu->scratch = (uint8_t *)vault->base + DUNE_SCRATCH_AT + (uint64_t)index * DUNE_SCRATCH;
    cpu->root = vault->root;
    cpu->sighand = &vault->sighand;
    cpu->altstack[1] = 2; /* SS_DISABLE */
    cpu->pending.keyed = vault->pkey >= 0;
    if (vault->pkey >= 0) {
        uint32_t open;

        __asm__("rdpkru" : "=a"(open) : "c"(0) : "rdx");
        open &= ~(3u << 2 * vault->pkey);
        cpu->pending.pkru_open = open;
        cpu->pending.pkru_closed = open | 3u << 2 * vault->pkey;
    }
}

/* The counts of threads that ended stay in the vault's. */
static void keep_counts(struct dune_vault *vault, const struct dune_vcpu *cpu)
{
    const uint64_t *from = (const uint64_t *)&cpu->counts;
    uint64_t *to = (uint64_t *)&vault->counts;

    for (uint32_t i = 0; i < sizeof(cpu->counts) / sizeof(uint64_t); i++)
        to[i] += from[i];
}

struct dune_vcpu *dune_vcpu_take(struct dune_vault *vault)
{
    struct dune_vcpu *cpu = NULL;
    uint32_t index;
    int error = 0;

    dune_lock(&vault->lock);
    for (index = 0; index < DUNE_MAX_VCPUS; index++) {
        cpu = dune_vcpu_at(vault, index);
        if (index >= vault->n_vcpus || is_free(vault, cpu))
            break;
    }
    if (index < DUNE_MAX_VCPUS) {
        bool made = index < vault->n_vcpus && cpu->state != DUNE_VCPU_NONE;

        if (made)
            keep_counts(vault, cpu);
        reset(vault, cpu, index);
        fill_block(cpu);
        dune_root_block_stub(vault, vault->root, (uint64_t)dune_block(cpu));
        error = made ? set_sregs(cpu) : dune_vcpu_create(cpu);
        if (error == 0) {
            cpu->state = DUNE_VCPU_RUNS;
            if (index >= vault->n_vcpus)
                vault->n_vcpus = index + 1;
        }
    }
    dune_unlock(&vault->lock);
    return index < DUNE_MAX_VCPUS && error == 0 ? cpu : NULL;
}

void dune_vcpu_give(struct dune_vcpu *cpu)
{
    __atomic_store_n(&cpu->state, DUNE_VCPU_LEFT, __ATOMIC_RELEASE);
}
