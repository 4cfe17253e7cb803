/* See fibers.h. */
#include "native/fibers.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define STACK_BYTES ((size_t)8 << 20) /* Linux's own default; only what is used becomes memory */
#define GUARD_BYTES ((size_t)1 << 16)

struct ix_fiber {
    void *sp; /* where it stands, while another runs */
    struct ix_fibers *all;
    struct ix_app *app;
    char **argv;
    const void *stack; /* its lowest byte, above the guard */
    size_t stack_bytes;
    uint64_t wake_ns; /* until when it may sleep; 0: not at all */
    bool returned;    /* its ix_app_main() has */
    bool gone;        /* it runs no more */
    void *shadow;     /* AddressSanitizer's record of it, while another runs */
};

struct ix_fibers {
    struct ix_fiber main; /* the caller, which waits for the end */
    int (*app_main)(struct ix_app *, int, char **);
    int argc, status;
    uint32_t n, left; /* runs; those that have not returned */
    struct ix_fiber fiber[];
};

/* ---- the switch ------------------------------------------------------------------- */

/* Saves what a function must keep (System V ABI, 3.2.1), and where it is, in *from; goes on at
 * `to`. swapcontext() would ask Linux for the signal mask, which in a guest is an exit. */
void ix_fiber_switch(void **from, void *to);
void ix_fiber_first(void);

__asm__(".text\n"
        ".hidden ix_fiber_switch\n"
        ".globl ix_fiber_switch\n"
        ".type ix_fiber_switch, @function\n"
        "ix_fiber_switch:\n"
        "    endbr64\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    subq $8, %rsp\n"
        "    stmxcsr (%rsp)\n"
        "    fnstcw 4(%rsp)\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    ldmxcsr (%rsp)\n"
        "    fldcw 4(%rsp)\n"
        "    addq $8, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    ret\n"
        ".size ix_fiber_switch, . - ix_fiber_switch\n"
        /* Where a new stack begins: r12 has the argument, r13 the function, which does not return.
         * Unwinders stop here. */
        ".hidden ix_fiber_first\n"
        ".globl ix_fiber_first\n"
        ".type ix_fiber_first, @function\n"
        "ix_fiber_first:\n"
        "    .cfi_startproc\n"
        "    .cfi_undefined rip\n"
        "    endbr64\n"
        "    movq %r12, %rdi\n"
        "    call *%r13\n"
        "    ud2\n"
        "    .cfi_endproc\n"
        ".size ix_fiber_first, . - ix_fiber_first\n");

/* What ix_fiber_switch() pops. */
struct frame {
    uint32_t mxcsr;
    uint16_t fcw, pad;
    uint64_t r15, r14, r13, r12, rbx, rbp, rip;
    uint64_t align[2]; /* ix_fiber_first() begins on 16 bytes, and calls */
};

/* AddressSanitizer is told, or it takes another stack for a wild one. */
static void leaving(struct ix_fiber *from, const struct ix_fiber *to)
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(from->gone ? NULL : &from->shadow, to->stack, to->stack_bytes);
#else
    (void)from;
    (void)to;
#endif
}

static void arrived(struct ix_fiber *self)
{
#if defined(__SANITIZE_ADDRESS__)
    struct ix_fiber *caller = &self->all->main;
    const void *stack;
    size_t stack_bytes;
    __sanitizer_finish_switch_fiber(self->shadow, &stack, &stack_bytes);
    if (!caller->stack) { /* the first switch of all leaves it */
        caller->stack = stack;
        caller->stack_bytes = stack_bytes;
    }
#else
    (void)self;
#endif
}

static void go(struct ix_fiber *from, struct ix_fiber *to)
{
    if (from == to)
        return;
    leaving(from, to);
    ix_fiber_switch(&from->sp, to->sp);
    arrived(from);
}

/* ---- a run ------------------------------------------------------------------------ */

/* The next one that runs; the caller when there is none, or when it is over. */
static struct ix_fiber *next(const struct ix_fiber *f)
{
    struct ix_fibers *all = f->all;
    uint32_t at = (uint32_t)(f - all->fiber);
    for (uint32_t i = 1; i <= all->n && !all->status; i++) {
        struct ix_fiber *other = &all->fiber[(at + i) % all->n];
        if (!other->gone)
            return other;
    }
    return &all->main;
}

/* Does not return. The application is done with this shard; its cycles go on until it is with the
 * others, so that what it left is sent and the control plane is heard. */
static void run(struct ix_fiber *f)
{
    struct ix_fibers *all = f->all;
    arrived(f);
    int status = all->app_main(f->app, all->argc, f->argv);
    f->returned = true;
    all->left--;
    if (status)
        all->status = status;
    else if (all->left && !ix_app_abort_all(f->app))
        while (all->left && ix_app_poll(f->app, UINT64_MAX) >= 0)
            ;
    f->gone = true;
    go(f, next(f));
    __builtin_unreachable();
}

static bool make(struct ix_fibers *all, struct ix_fiber *f, struct ix_app *app, char **argv)
{
    f->all = all;
    f->app = app;
    f->argv = calloc((size_t)all->argc + 1, sizeof *f->argv);
    if (!f->argv)
        return false;
    memcpy(f->argv, argv, (size_t)all->argc * sizeof *f->argv);
    uint8_t *map = mmap(NULL, GUARD_BYTES + STACK_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (map == MAP_FAILED)
        return false;
    f->stack = map + GUARD_BYTES;
    f->stack_bytes = STACK_BYTES;
    if (mprotect(map, GUARD_BYTES, PROT_NONE))
        return false;
    struct frame *frame = (struct frame *)(map + GUARD_BYTES + STACK_BYTES - sizeof *frame);
    *frame = (struct frame){
        .r12 = (uint64_t)(uintptr_t)f,
        .r13 = (uint64_t)(uintptr_t)run,
        .rip = (uint64_t)(uintptr_t)ix_fiber_first,
    };
    __asm__("stmxcsr %0\n\tfnstcw %1" : "=m"(frame->mxcsr), "=m"(frame->fcw));
    f->sp = frame;
    app->fiber = f;
    return true;
}

static void unmake(struct ix_fiber *f)
{
    if (f->stack)
        munmap((uint8_t *)(uintptr_t)f->stack - GUARD_BYTES, GUARD_BYTES + STACK_BYTES);
    free(f->argv);
    if (f->app)
        f->app->fiber = NULL;
}

int ix_fibers_run(struct ix_app *app, int (*app_main)(struct ix_app *, int, char **), int argc,
                  char **argv)
{
    uint32_t n = app->n_siblings;
    struct ix_fibers *all = calloc(1, sizeof *all + n * sizeof all->fiber[0]);
    bool made = all != NULL;
    if (!all)
        return -ENOMEM;
    all->main.all = all;
    all->app_main = app_main;
    all->argc = argc;
    all->n = all->left = n;
    for (uint32_t i = 0; i < n && made; i++)
        made = make(all, &all->fiber[i], app->siblings[i], argv);
    if (made)
        go(&all->main, &all->fiber[0]);
    int status = made ? all->status : -ENOMEM;
    for (uint32_t i = 0; i < n; i++)
        unmake(&all->fiber[i]);
    free(all);
    return status;
}

uint64_t ix_fibers_pass(struct ix_app *app, uint64_t max_wait_ns)
{
    struct ix_fiber *f = app->fiber;
    const struct ix_fibers *all = f->all;
    uint64_t now_ns = app->now_ns, wake_ns = UINT64_MAX;
    f->wake_ns = max_wait_ns < UINT64_MAX - now_ns ? now_ns + max_wait_ns : UINT64_MAX;
    if (!max_wait_ns)
        f->wake_ns = 0;
    go(f, next(f));
    for (uint32_t i = 0; i < all->n; i++) {
        const struct ix_fiber *other = &all->fiber[i];
        now_ns = other->app->now_ns > now_ns ? other->app->now_ns : now_ns;
        if (!other->gone && other->wake_ns < wake_ns)
            wake_ns = other->wake_ns;
    }
    return wake_ns > now_ns ? wake_ns - now_ns : 0;
}
