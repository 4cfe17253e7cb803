/* Linux's signal frame on the guest's stack: built for a handler, read back by rt_sigreturn().
 *
 * The layout is the kernel's (arch/x86/include/uapi/asm/sigcontext.h, ucontext.h): a handler, a
 * debugger and siglongjmp() see what they see outside. It is ring 3's memory: all of it is written
 * and read by checked copies, and nothing read back is believed.
 *
 *      sp before     red zone of 128 bytes, or the top of the alternate stack
 *      fpstate       XSAVE image, 64-byte aligned, FP_XSTATE_MAGIC2 behind it
 *      frame         struct dune_sigframe, 8 below a multiple of 16, as after a call
 */
#include "shim/signal.h"
#include "shim/sys.h"

#include <asm/errno.h>
#include <asm/sigcontext.h>

#define UC_FLAGS       7u /* UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS */
#define RED_ZONE       128
#define LOWER_HALF_END 0x7ffffffff000ull
#define SMALLEST_STACK 2048 /* MINSIGSTKSZ: the kernel's check */

/* What a program may set (FIX_EFLAGS of the kernel): AC RF OF DF TF SF ZF AF PF CF. */
#define USER_FLAGS 0x50dd5ull
#define FLAG_TF    (1ull << 8)
#define FLAG_IF    (1ull << 9)
#define FLAG_DF    (1ull << 10)
#define FLAG_RF    (1ull << 16)
#define LINUX_CS   0x33
#define LINUX_SS   0x2b

/* In an XSAVE image. */
#define XSAVE_LEGACY    512
#define XSAVE_FIXED     576 /* with the header */
#define XSAVE_SOFTWARE  464
#define X87_CONTROL     0x37f
#define MXCSR_AT        24
#define MXCSR_DEFAULT   0x1f80
#define XMM_AT          160
#define XMM_BYTES       256
#define FEATURES_LEGACY 3ull
#define FEATURE_PKRU    (1ull << 9)
#define PKRU_DEFAULT    0x55555554u /* the kernel's init_pkru: key 0 alone */

struct xsave_header {
    uint64_t features, compaction, reserved[6];
};

_Static_assert(sizeof(struct dune_sigframe) == 440, "the kernel's struct rt_sigframe");
_Static_assert(__builtin_offsetof(struct dune_sigframe, info) == 312, "its siginfo");
_Static_assert(__builtin_offsetof(struct dune_sigframe, r8) == 48, "its sigcontext");
_Static_assert(__builtin_offsetof(struct dune_sigframe, fpstate) == 48 + 184, "fpstate");
_Static_assert(sizeof(struct _fpx_sw_bytes) == XSAVE_LEGACY - XSAVE_SOFTWARE, "");

/* ---- FPU state ------------------------------------------------------------------------------- */

static uint8_t *image_of(struct dune_vcpu *cpu)
{
    return (uint8_t *)dune_block(cpu) + DUNE_BLOCK_XSAVE;
}

static struct xsave_header *header_of(uint8_t *image)
{
    return (struct xsave_header *)(image + XSAVE_LEGACY);
}

static const struct kvm_cpuid_entry2 *component(const struct dune_vault *vault, uint32_t number)
{
    const struct kvm_cpuid2 *cpuid = vault->cpuid;

    for (uint32_t i = 0; cpuid != NULL && i < cpuid->nent; i++)
        if (cpuid->entries[i].function == 0xd && cpuid->entries[i].index == number)
            return &cpuid->entries[i];
    return NULL;
}

/* Bytes of an image with all that the guest's XCR0 enables, as CPUID tells. */
static uint32_t image_bytes(const struct dune_vault *vault)
{
    uint32_t bytes = XSAVE_FIXED;

    for (uint32_t number = 2; number < 63; number++) {
        const struct kvm_cpuid_entry2 *entry;

        if (!(vault->xcr0 >> number & 1))
            continue;
        entry = component(vault, number);
        if (entry != NULL && entry->eax + entry->ebx > bytes)
            bytes = entry->eax + entry->ebx;
    }
    return bytes <= vault->xsave_bytes ? bytes : vault->xsave_bytes;
}

/* A handler starts with the initial state, as the kernel has it. */
static void make_initial(struct dune_vcpu *cpu, uint8_t *image)
{
    const struct kvm_cpuid_entry2 *pkru = component(cpu->vault, 9);

    __builtin_memset(image, 0, cpu->vault->xsave_bytes);
    *(uint16_t *)image = X87_CONTROL;
    *(uint32_t *)(image + MXCSR_AT) = MXCSR_DEFAULT;
    header_of(image)->features = FEATURES_LEGACY;
    if ((cpu->vault->xcr0 & FEATURE_PKRU) && pkru != NULL) {
        header_of(image)->features |= FEATURE_PKRU;
        *(uint32_t *)(image + pkru->ebx) = PKRU_DEFAULT;
    }
}

/* The guest's state in an image as it lies in a frame; its bytes, MAGIC2 included, in *bytes. */
static int get_image(struct dune_vcpu *cpu, uint8_t *image, uint32_t *bytes)
{
    uint32_t size = image_bytes(cpu->vault);
    struct _fpx_sw_bytes software = {
        .magic1 = FP_XSTATE_MAGIC1,
        .extended_size = size + FP_XSTATE_MAGIC2_SIZE,
        .xfeatures = cpu->vault->xcr0 | FEATURES_LEGACY,
        .xstate_size = size,
    };
    uint32_t magic2 = FP_XSTATE_MAGIC2;

    if (dune_vcpu_get_fpu(cpu, image) != 0)
        dune_panic(cpu, "KVM doesn't tell the FPU state", 0);
    /* KVM adds PKRU even where the guest's XCR0 has it not; rt_sigreturn() would refuse that. */
    header_of(image)->features &= cpu->vault->xcr0;
    header_of(image)->features |= FEATURES_LEGACY;
    __builtin_memcpy(image + XSAVE_SOFTWARE, &software, sizeof(software));
    __builtin_memcpy(image + size, &magic2, sizeof(magic2));
    *bytes = size + FP_XSTATE_MAGIC2_SIZE;
    return 0;
}

/* True: a whole image follows the legacy part that was read; else that part is all. */
static bool is_extended(struct dune_vcpu *cpu, uint64_t fpstate, const uint8_t *image,
                        struct _fpx_sw_bytes *software)
{
    uint32_t magic2;

    __builtin_memcpy(software, image + XSAVE_SOFTWARE, sizeof(*software));
    if (software->magic1 != FP_XSTATE_MAGIC1 || software->xstate_size < XSAVE_FIXED ||
        software->xstate_size > image_bytes(cpu->vault) ||
        software->xstate_size > software->extended_size)
        return false;
    return dune_copy_in(cpu, &magic2, fpstate + software->xstate_size, sizeof(magic2)) == 0 &&
           magic2 == FP_XSTATE_MAGIC2;
}

/* What XRSTOR would take for the initial state is written out, because KVM ignores MXCSR in an
 * image that has neither SSE nor AVX. */
static void fill_legacy(uint8_t *image, uint64_t features)
{
    if (!(features & 1)) {
        uint32_t mxcsr[2];

        __builtin_memcpy(mxcsr, image + MXCSR_AT, sizeof(mxcsr));
        __builtin_memset(image, 0, XMM_AT);
        *(uint16_t *)image = X87_CONTROL;
        __builtin_memcpy(image + MXCSR_AT, mxcsr, sizeof(mxcsr));
    }
    if (!(features & 2))
        __builtin_memset(image + XMM_AT, 0, XMM_BYTES);
}

/* The FPU becomes what lies at fpstate. KVM itself refuses MXCSR's reserved bits. */
static int restore_fpu(struct dune_vcpu *cpu, uint64_t fpstate)
{
    uint8_t *image = image_of(cpu);
    struct xsave_header *header = header_of(image);
    struct _fpx_sw_bytes software;
    uint64_t features = FEATURES_LEGACY;

    make_initial(cpu, image);
    if (fpstate != 0) {
        if (dune_copy_in(cpu, image, fpstate, XSAVE_LEGACY) != 0)
            return -EFAULT;
        header->features = FEATURES_LEGACY;
        if (is_extended(cpu, fpstate, image, &software)) {
            if (dune_copy_in(cpu, header, fpstate + XSAVE_LEGACY,
                             software.xstate_size - XSAVE_LEGACY) != 0)
                return -EFAULT;
            features = header->features;
            if ((features & ~(cpu->vault->xcr0 | FEATURES_LEGACY)) != 0 ||
                header->compaction != 0 || header->reserved[0] != 0)
                return -EFAULT; /* XRSTOR would be a #GP */
            features &= software.xfeatures;
        }
        fill_legacy(image, features);
        __builtin_memset(header, 0, sizeof(*header));
        header->features = features | FEATURES_LEGACY;
    }
    return dune_vcpu_set_fpu(cpu, image) == 0 ? 0 : -EFAULT;
}

/* ---- the alternate stack --------------------------------------------------------------------- */

static bool lies_on(const uint64_t stack[3], uint64_t sp)
{
    return sp > stack[0] && sp - stack[0] <= stack[2];
}

static bool is_on_altstack(const struct dune_vcpu *cpu, uint64_t sp)
{
    return !(cpu->altstack[1] & DUNE_SS_AUTODISARM) && lies_on(cpu->altstack, sp);
}

void dune_altstack_get(const struct dune_vcpu *cpu, uint64_t stack[3], uint64_t sp)
{
    uint32_t state = is_on_altstack(cpu, sp) ? DUNE_SS_ONSTACK : 0;

    stack[0] = cpu->altstack[0];
    stack[1] =
        (cpu->altstack[2] == 0 ? DUNE_SS_DISABLE : state) | (cpu->altstack[1] & DUNE_SS_AUTODISARM);
    stack[2] = cpu->altstack[2];
}

long dune_altstack_set(struct dune_vcpu *cpu, const uint64_t stack[3], uint64_t sp)
{
    uint32_t flags = (uint32_t)stack[1], mode = flags & ~DUNE_SS_AUTODISARM;

    if (is_on_altstack(cpu, sp))
        return -EPERM;
    if (mode != DUNE_SS_DISABLE && mode != DUNE_SS_ONSTACK && mode != 0)
        return -EINVAL;
    if (mode == DUNE_SS_DISABLE) {
        cpu->altstack[0] = cpu->altstack[2] = 0;
        cpu->altstack[1] = flags;
        return 0;
    }
    if (stack[2] < SMALLEST_STACK)
        return -ENOMEM;
    if (!dune_range_is_free(cpu->vault, stack[0], stack[2]))
        return -EFAULT;
    cpu->altstack[0] = stack[0];
    cpu->altstack[1] = flags;
    cpu->altstack[2] = stack[2];
    return 0;
}

/* ---- building -------------------------------------------------------------------------------- */

/* Where the handler's frame may begin. In ring 0 a trap's own state lies below the stack that it
 * interrupted, and must stay until the guest left the stub. */
static uint64_t stack_of(const struct dune_vcpu *cpu, const struct dune_context *context)
{
    uint64_t sp = context->tf.rsp, low = (uint64_t)context->trap;

    if (context->where != DUNE_AT_TRAP || (context->tf.cs & 3) != 0)
        return sp;
    return low < sp && sp - low < DUNE_PAGE ? cpu->run->s.regs.regs.rsp : sp;
}

/* The kernel's get_sigframe(): the frame's address, the FPU image's in *fpstate; 0: the alternate
 * stack is too small for it. */
static uint64_t place(const struct dune_vcpu *cpu, const struct dune_context *context,
                      const struct dune_sigaction *action, uint32_t image_bytes, uint64_t *fpstate)
{
    uint64_t sp = stack_of(cpu, context);
    bool on_altstack = is_on_altstack(cpu, sp);

    sp -= RED_ZONE;
    if ((action->flags & SA_ONSTACK) && cpu->altstack[2] != 0 && !is_on_altstack(cpu, sp)) {
        sp = cpu->altstack[0] + cpu->altstack[2];
        on_altstack = true;
    }
    *fpstate = (sp - image_bytes) & ~(uint64_t)63;
    sp = ((*fpstate - sizeof(struct dune_sigframe)) & ~(uint64_t)15) - 8;
    return on_altstack && !lies_on(cpu->altstack, sp) ? 0 : sp;
}

static void fill(struct dune_sigframe *frame, const struct dune_vcpu *cpu, const struct dune_tf *tf,
                 const struct dune_sigaction *action, const void *info, uint64_t mask)
{
    *frame = (struct dune_sigframe){
        .pretcode = action->restorer,
        .uc_flags = UC_FLAGS,
        .stack_sp = cpu->altstack[0],
        .stack_flags = (uint32_t)cpu->altstack[1],
        .stack_size = cpu->altstack[2],
        .r8 = tf->r8,
        .r9 = tf->r9,
        .r10 = tf->r10,
        .r11 = tf->r11,
        .r12 = tf->r12,
        .r13 = tf->r13,
        .r14 = tf->r14,
        .r15 = tf->r15,
        .rdi = tf->rdi,
        .rsi = tf->rsi,
        .rbp = tf->rbp,
        .rbx = tf->rbx,
        .rdx = tf->rdx,
        .rax = tf->rax,
        .rcx = tf->rcx,
        .rsp = tf->rsp,
        .rip = tf->rip,
        .rflags = tf->rflags | FLAG_IF,
        .cs = LINUX_CS,
        .ss = LINUX_SS,
        .error = cpu->pending.error,
        .trapno = cpu->pending.trapno,
        .oldmask = mask,
        .cr2 = cpu->pending.cr2,
        .mask = mask,
    };
    __builtin_memcpy(frame->info, info, sizeof(frame->info));
}

/* The stack may have to grow for the frame. Copies don't make it do so, but a native write of the
 * kernel's does: this one writes 8 bytes at the frame's lowest address. */
static int put(struct dune_vcpu *cpu, uint64_t at, const struct dune_sigframe *frame,
               uint64_t fpstate, const uint8_t *image, uint32_t bytes)
{
    if (!dune_range_is_free(cpu->vault, at, fpstate + bytes - at))
        return -EFAULT;
    if (dune_copy_out(cpu, at, frame, sizeof(*frame)) != 0 &&
        (dune_sys4(__NR_rt_sigprocmask, SIG_BLOCK, NULL, at, DUNE_KERNEL_SIGSET_BYTES) != 0 ||
         dune_copy_out(cpu, at, frame, sizeof(*frame)) != 0))
        return -EFAULT;
    return dune_copy_out(cpu, fpstate, image, bytes);
}

int dune_frame_build(struct dune_vcpu *cpu, struct dune_context *context,
                     const struct dune_sigaction *action, const void *info, uint64_t mask)
{
    uint8_t *image = image_of(cpu);
    struct dune_tf *tf = &context->tf;
    struct dune_sigframe frame;
    uint64_t fpstate, at;
    uint32_t bytes;

    if (!(action->flags & SA_RESTORER) || action->handler >= LOWER_HALF_END)
        return -EFAULT;
    get_image(cpu, image, &bytes);
    at = place(cpu, context, action, bytes, &fpstate);
    if (at == 0)
        return -EFAULT;
    fill(&frame, cpu, tf, action, info, mask);
    frame.fpstate = fpstate;
    if (put(cpu, at, &frame, fpstate, image, bytes) != 0)
        return -EFAULT;
    make_initial(cpu, image);
    if (dune_vcpu_set_fpu(cpu, image) != 0)
        dune_panic(cpu, "KVM doesn't take the initial FPU state", 0);
    tf->rdi = ((const siginfo_t *)info)->si_signo;
    tf->rsi = at + __builtin_offsetof(struct dune_sigframe, info);
    tf->rdx = at + __builtin_offsetof(struct dune_sigframe, uc_flags);
    tf->rax = 0;
    tf->rip = action->handler;
    tf->rsp = at;
    tf->rflags &= ~(FLAG_DF | FLAG_TF | FLAG_RF);
    if (cpu->altstack[1] & DUNE_SS_AUTODISARM) {
        cpu->altstack[0] = cpu->altstack[2] = 0;
        cpu->altstack[1] = DUNE_SS_DISABLE;
    }
    return 0;
}

/* ---- returning ------------------------------------------------------------------------------- */

static void restore_registers(struct dune_tf *tf, const struct dune_sigframe *frame)
{
    uint64_t flags = (tf->rflags & ~USER_FLAGS) | (frame->rflags & USER_FLAGS);

    *tf = (struct dune_tf){
        .r8 = frame->r8,
        .r9 = frame->r9,
        .r10 = frame->r10,
        .r11 = frame->r11,
        .r12 = frame->r12,
        .r13 = frame->r13,
        .r14 = frame->r14,
        .r15 = frame->r15,
        .rdi = frame->rdi,
        .rsi = frame->rsi,
        .rbp = frame->rbp,
        .rbx = frame->rbx,
        .rdx = frame->rdx,
        .rax = frame->rax,
        .rcx = frame->rcx,
        .rsp = frame->rsp,
        .rip = frame->rip,
        .rflags = flags,
        .cs = tf->cs,
        .ss = tf->ss, /* the ring is the thread's, whatever the frame says */
    };
}

int dune_frame_restore(struct dune_vcpu *cpu, struct dune_context *context, uint64_t *mask)
{
    struct dune_sigframe frame;
    uint64_t stack[3];

    /* The handler's RET took pretcode from the stack. */
    if (dune_copy_in(cpu, &frame, context->tf.rsp - 8, sizeof(frame)) != 0)
        return -EFAULT;
    *mask = frame.mask;
    if (frame.rip >= LOWER_HALF_END) /* IRETQ in the stub must not fault */
        return -EFAULT;
    if (restore_fpu(cpu, frame.fpstate) != 0)
        return -EFAULT;
    restore_registers(&context->tf, &frame);
    stack[0] = frame.stack_sp;
    stack[1] = frame.stack_flags;
    stack[2] = frame.stack_size;
    dune_altstack_set(cpu, stack, frame.rsp); /* the kernel ignores what is wrong with it, too */
    return 0;
}
