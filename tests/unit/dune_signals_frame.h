/* dune_signals.c: frames, against the kernel's, and those that ring 3 made up. */

/* ---- the frame, against the kernel's
 * ---------------------------------------------------------------- */

static uint64_t native_flags;
static int compared;

static void registers_of(const struct dune_sigframe *frame, struct dune_tf *tf)
{
    *tf = (struct dune_tf){.r8 = frame->r8,
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
                           .rflags = frame->rflags,
                           .cs = DUNE_USER_CS,
                           .ss = DUNE_USER_DS};
}

/* What the kernel leaves as it finds it. */
static int is_padding(uint32_t at)
{
    uint32_t pad = __builtin_offsetof(struct dune_sigframe, stack_pad);
    uint32_t reserved = __builtin_offsetof(struct dune_sigframe, reserved);

    return at - pad < sizeof(uint32_t) || at - reserved < 8 * sizeof(uint64_t);
}

/* The kernel's frame against what is built from the same state. */
static void NO_REGISTERS compare(int number, siginfo_t *info, void *ucontext)
{
    struct dune_sigframe *frame = (struct dune_sigframe *)((char *)ucontext - 8);
    struct software *software = (struct software *)(frame->fpstate + 464);
    struct dune_sigaction action = {(uint64_t)compare, native_flags | SA_RESTORER | SA_SIGINFO,
                                    (uint64_t)restorer, 0};
    struct dune_context context = {.where = DUNE_AT_INTERRUPT};

    registers_of(frame, &context.tf);
    context.tf.rflags &= ~0x200ul; /* a guest has no interrupts of its own */
    memcpy(fpu, (void *)frame->fpstate, software->xstate_size);
    memset(fpu + 464, 0xee, 48);
    cpu->pending.error = frame->error;
    cpu->pending.trapno = frame->trapno;
    cpu->pending.cr2 = frame->cr2;
    cpu->altstack[0] = frame->stack_sp;
    cpu->altstack[1] = frame->stack_flags;
    cpu->altstack[2] = frame->stack_size;
    compares = 1;
    shadow_at = 0;
    CHECK(dune_frame_build(cpu, &context, &action, info, frame->mask) == 0);
    compares = 0;
    EQUAL(shadow_at, frame);
    EQUAL(shadow_end, frame->fpstate + software->extended_size);
    EQUAL(context.tf.rsp, frame);
    EQUAL(context.tf.rdi, number);
    EQUAL(context.tf.rsi, info);
    EQUAL(context.tf.rdx, ucontext);
    EQUAL(context.tf.rax, 0);
    EQUAL(context.tf.rip, action.handler);
    EQUAL(context.tf.rflags & 0x10500, 0);
    for (uint32_t i = 0; i < sizeof(*frame); i++)
        if (shadow[i] != ((uint8_t *)frame)[i] && !is_padding(i)) {
            fprintf(stderr, "byte %u: %x, the kernel's %x\n", i, shadow[i], ((uint8_t *)frame)[i]);
            fail("the frame is as the kernel's", __LINE__);
        }
    CHECK(memcmp(shadow + (frame->fpstate - shadow_at), (void *)frame->fpstate,
                 software->extended_size) == 0);
    EQUAL(frame->fpstate % 64, 0);
    compared++;
}

static void compare_nested(int number, siginfo_t *info, void *ucontext)
{
    (void)number, (void)info, (void)ucontext;
    send(SIGUSR1);
}

static void fill_registers_and_send(void)
{
    __asm__ volatile("vpcmpeqd %%ymm1, %%ymm1, %%ymm1\n"
                     "fldpi\n"
                     "std\n"
                     "mov $0x1111, %%r12\n mov $0x2222, %%r13\n mov $0x3333, %%rbx\n"
                     "mov $39, %%eax\n syscall\n mov %%eax, %%edi\n"
                     "mov $10, %%esi\n mov $62, %%eax\n syscall\n"
                     "cld\n fstp %%st(0)\n"
                     :
                     :
                     : "rax", "rcx", "r11", "rdi", "rsi", "r12", "r13", "rbx", "memory", "xmm1");
}

static void frame_as_kernel(uint64_t flags, uint32_t stack_flags)
{
    static uint8_t room[65536];
    uint64_t stack[3] = {(uint64_t)room, stack_flags, sizeof(room)};

    native_flags = flags;
    if (flags & SA_ONSTACK)
        CHECK(dune_sys2(__NR_sigaltstack, stack, 0) == 0);
    native_action(SIGUSR1, compare, flags, 0);
    native_action(SIGUSR2, compare_nested, flags, 0);
    fill_registers_and_send();
    EQUAL(compared, 1);
    send(SIGUSR2);
    EQUAL(compared, 2);
}

static void case_frame(void)
{
    frame_as_kernel(0, 0);
}
static void case_frame_altstack(void)
{
    frame_as_kernel(SA_ONSTACK, 0);
}
static void case_frame_autodisarm(void)
{
    frame_as_kernel(SA_ONSTACK, DUNE_SS_AUTODISARM);
}

/* ---- returning, against the kernel
 * ------------------------------------------------------------------ */

/* From a frame of the kernel's: the state that it holds. */
static void NO_REGISTERS restore_kernels(int number, siginfo_t *info, void *ucontext)
{
    struct dune_sigframe *frame = (struct dune_sigframe *)((char *)ucontext - 8);
    struct software *software = (struct software *)(frame->fpstate + 464);
    struct dune_context context = guest;
    struct dune_tf due;
    uint64_t mask = 0;

    (void)number, (void)info;
    registers_of(frame, &due);
    context.tf.rsp = (uint64_t)frame + 8;
    memset(fpu, 0xee, sizeof(fpu));
    EQUAL(dune_frame_restore(cpu, &context, &mask), 0);
    EQUAL(mask, frame->mask);
    due.rflags = (due.rflags & 0x50dd5) | (guest.tf.rflags & ~0x50dd5ul);
    CHECK(memcmp(&due, &context.tf, sizeof(due)) == 0);
    CHECK(memcmp(fpu, (void *)frame->fpstate, 464) == 0);
    EQUAL(*(uint64_t *)(fpu + 512), *(uint64_t *)(frame->fpstate + 512) | 3);
    CHECK(memcmp(fpu + 576, (void *)(frame->fpstate + 576), software->xstate_size - 576) == 0);
    compared++;
}

static void case_restore_kernels(void)
{
    native_action(SIGUSR1, restore_kernels, 0, 0);
    fill_registers_and_send();
    EQUAL(compared, 1);
}

/* And the kernel returns to what is built here: RIP, all registers, vectors. */
extern const char landed[];
static uint64_t back[17], ymm[4];
__asm__(".data\n.balign 32\nlanding_save: .zero 136\n.text\n"
        "landed: mov %rax, landing_save+0(%rip)\n mov %rbx, landing_save+8(%rip)\n"
        "mov %rcx, landing_save+16(%rip)\n mov %rdx, landing_save+24(%rip)\n"
        "mov %rsi, landing_save+32(%rip)\n mov %rdi, landing_save+40(%rip)\n"
        "mov %rbp, landing_save+48(%rip)\n mov %rsp, landing_save+56(%rip)\n"
        "mov %r8, landing_save+64(%rip)\n mov %r9, landing_save+72(%rip)\n"
        "mov %r10, landing_save+80(%rip)\n mov %r11, landing_save+88(%rip)\n"
        "mov %r12, landing_save+96(%rip)\n mov %r13, landing_save+104(%rip)\n"
        "mov %r14, landing_save+112(%rip)\n mov %r15, landing_save+120(%rip)\n"
        "cld\n call landed_c\n");
extern uint64_t landing_save[];

void __attribute__((used)) landed_c(void)
{
    struct dune_tf *tf = &guest.tf;
    uint64_t due[] = {tf->rax, tf->rbx, tf->rcx, tf->rdx, tf->rsi, tf->rdi, tf->rbp, tf->rsp,
                      tf->r8,  tf->r9,  tf->r10, tf->r11, tf->r12, tf->r13, tf->r14, tf->r15};

    __asm__ volatile("vmovdqu %%ymm7, %0" : "=m"(ymm));
    memcpy(back, landing_save, sizeof(due));
    CHECK(memcmp(back, due, sizeof(due)) == 0);
    for (int i = 0; i < 32; i++)
        EQUAL(((uint8_t *)ymm)[i], 0x70 + i);
    EQUAL(host_mask(), MASK(SIGHUP));
    _exit(0);
}

static void case_kernel_restores(void)
{
    struct dune_sigaction action = {0x402000, SA_RESTORER | SA_SIGINFO, (uint64_t)restorer, 0};
    struct dune_context context;
    siginfo_t info = {.si_signo = SIGUSR1};

    if (!(vault->xcr0 & 4))
        _exit(77);
    for (int i = 0; i < 16; i++) { /* ymm7 */
        fpu[160 + 16 * 7 + i] = (uint8_t)(0x70 + i);
        fpu[576 + 16 * 7 + i] = (uint8_t)(0x80 + i);
    }
    *(uint64_t *)(fpu + 512) = 7;
    guest.tf.rip = (uint64_t)landed;
    context = guest;
    CHECK(dune_frame_build(cpu, &context, &action, &info, MASK(SIGHUP)) == 0);
    __asm__ volatile("mov %0, %%rsp\n ret" : : "r"(context.tf.rsp));
}

/* ---- frames that ring 3 made up
 * ---------------------------------------------------------------------- */

static struct dune_sigframe *made_up(void)
{
    struct dune_sigaction action = {0x402000, SA_RESTORER | SA_SIGINFO, (uint64_t)restorer, 0};
    struct dune_context context = guest;
    siginfo_t info = {.si_signo = SIGUSR1};

    fpu[160] = 0x55;
    CHECK(dune_frame_build(cpu, &context, &action, &info, 0) == 0);
    return (struct dune_sigframe *)context.tf.rsp;
}

static int restored(struct dune_sigframe *frame, struct dune_context *context)
{
    uint64_t mask;

    *context = guest;
    context->where = DUNE_AT_SYSCALL;
    context->tf.rsp = (uint64_t)frame + 8;
    return dune_frame_restore(cpu, context, &mask);
}

static void case_made_up_registers(void)
{
    struct dune_context context;
    struct dune_sigframe *frame = made_up();

    frame->cs = DUNE_KERNEL_CS;
    frame->ss = DUNE_KERNEL_DS;
    frame->rflags = ~0ull;
    EQUAL(restored(frame, &context), 0);
    EQUAL(context.tf.cs, DUNE_USER_CS);
    EQUAL(context.tf.ss, DUNE_USER_DS);
    EQUAL(context.tf.rflags, 0x50dd5 | 0x246);
    EQUAL(fpu[160], 0x55);
    frame->rip = 0x800000000000;
    EQUAL(restored(frame, &context), -EFAULT);
    frame->rip = ~0ull;
    EQUAL(restored(frame, &context), -EFAULT);
    frame->rip = 0x401000;
    frame->stack_sp = BASE; /* an alternate stack in the vault is not taken */
    frame->stack_size = 65536;
    EQUAL(restored(frame, &context), 0);
    EQUAL(cpu->altstack[0], 0);
    EQUAL(restored((struct dune_sigframe *)(BASE + DUNE_VAULT_AT), &context), -EFAULT);
    EQUAL(restored((struct dune_sigframe *)8, &context), -EFAULT);
}

static void case_made_up_fpu(void)
{
    struct dune_context context;
    struct dune_sigframe *frame = made_up();
    uint8_t *image = (uint8_t *)frame->fpstate, keep[576];
    struct software *software = (struct software *)(image + 464);

    memcpy(keep, image, sizeof(keep));
    frame->fpstate = 0; /* the initial state */
    EQUAL(restored(frame, &context), 0);
    EQUAL(fpu[160], 0);
    EQUAL(*(uint16_t *)fpu, 0x37f);
    EQUAL(*(uint32_t *)(fpu + 24), 0x1f80);
    frame->fpstate = BASE + DUNE_BLOCKS_AT;
    EQUAL(restored(frame, &context), -EFAULT);
    frame->fpstate = (uint64_t)image;
    *(uint64_t *)(image + 512) = 1ull << 62 | 3; /* a component that there is not */
    EQUAL(restored(frame, &context), -EFAULT);
    memcpy(image, keep, sizeof(keep));
    image[520 + 7] = 0x80; /* the compacted form */
    EQUAL(restored(frame, &context), -EFAULT);
    memcpy(image, keep, sizeof(keep));
    *(uint32_t *)(image + 24) = ~0u; /* MXCSR */
    EQUAL(restored(frame, &context), -EFAULT);
    memcpy(image, keep, sizeof(keep));
    image[512] = 0; /* everything in its initial state, whatever the image has */
    EQUAL(restored(frame, &context), 0);
    EQUAL(fpu[160], 0);
    EQUAL(fpu[512], 3);
    memcpy(image, keep, sizeof(keep));
    software->magic1 = 0; /* FXSAVE's part alone */
    *(uint64_t *)(image + 512) = ~0ull;
    EQUAL(restored(frame, &context), 0);
    EQUAL(fpu[160], 0x55);
    EQUAL(*(uint64_t *)(fpu + 512), 3);
    memcpy(image, keep, sizeof(keep));
    software->xstate_size = software->extended_size = 0x7fffffff;
    EQUAL(restored(frame, &context), 0);
    EQUAL(fpu[160], 0x55);
}

static void case_build_refused(void)
{
    struct dune_sigaction action = {0x402000, SA_RESTORER | SA_SIGINFO, (uint64_t)restorer, 0};
    struct dune_context context = guest;
    siginfo_t info = {.si_signo = SIGUSR1};
    uint64_t in_vault[] = {BASE + 0x1000,
                           BASE + DUNE_BLOCKS_AT + 0x10000,
                           BASE - 4096,
                           BASE - DUNE_WINDOW + 64,
                           BASE + 2ull * DUNE_WINDOW - 8,
                           BASE + 2ull * DUNE_WINDOW + 256,
                           0,
                           100,
                           0x7ffffffff000,
                           ~0ull};

    for (unsigned i = 0; i < sizeof(in_vault) / sizeof(*in_vault); i++) {
        context = guest;
        context.tf.rsp = in_vault[i];
        EQUAL(dune_frame_build(cpu, &context, &action, &info, 0), -EFAULT);
        EQUAL(context.tf.rip, guest.tf.rip);
    }
    context = guest;
    action.flags = SA_SIGINFO; /* x86-64 has no default restorer */
    EQUAL(dune_frame_build(cpu, &context, &action, &info, 0), -EFAULT);
    action.flags |= SA_RESTORER | SA_ONSTACK;
    cpu->altstack[0] = GUEST_STACK + 0x1000; /* too small for the FPU's state: overflow */
    cpu->altstack[2] = 0x300;
    EQUAL(dune_frame_build(cpu, &context, &action, &info, 0), -EFAULT);
}

/* A stack that has not grown yet: below what is mapped, but a stack's mapping. */
static void case_stack_grows(void)
{
    struct dune_sigaction action = {0x402000, SA_RESTORER | SA_SIGINFO, (uint64_t)restorer, 0};
    struct dune_context context = guest;
    siginfo_t info = {.si_signo = SIGUSR1};
    uint64_t at = GUEST_STACK + 0x10000000;

    CHECK(mmap((void *)at, 4096, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1,
               0) != MAP_FAILED);
    context.tf.rsp = at + 512;
    EQUAL(dune_frame_build(cpu, &context, &action, &info, 0), 0);
    CHECK(context.tf.rsp < at);
    EQUAL(((struct dune_sigframe *)context.tf.rsp)->rsp, at + 512);
}
