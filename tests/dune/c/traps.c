/* Exceptions, and what Linux makes of them. PROGRAM bare|dune CASE, see both.h. */
#include "tell.h"

#include <sys/time.h>
#include <time.h>

static void divide(int by)
{
    int low = 1, high = 0;

    __asm__ volatile("idivl %2" : "+a"(low), "+d"(high) : "r"(by));
}

static void x87(void)
{
    uint16_t control = 0x37b; /* division by zero raises */

    __asm__ volatile("fninit; fldcw %0; fldz; fld1; fdiv %%st(1), %%st; fwait" : : "m"(control));
}

static void sse(uint32_t unmasked)
{
    uint32_t mxcsr = 0x1f80 & ~unmasked;
    float one = 1, zero = 0, huge = 3e38f;

    __asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
    if (unmasked & 0x80)
        __asm__ volatile("divss %1, %0" : "+x"(zero) : "x"(zero));
    if (unmasked & 0x200)
        __asm__ volatile("divss %1, %0" : "+x"(one) : "x"(zero));
    __asm__ volatile("mulss %0, %0" : "+x"(huge));
}

static void misaligned(void)
{
    uint64_t words[2] = {0, 0};

    __asm__ volatile("pushfq; orl $0x40000, (%%rsp); popfq; movl 1(%0), %%eax; "
                     "pushfq; andl $~0x40000, (%%rsp); popfq"
                     :
                     : "r"(words)
                     : "eax", "memory");
}

static void exceptions(void)
{
    catch (tell);
    TRY(divide(0));
    TRY(__asm__ volatile("int3"));
    TRY(__asm__ volatile("int1"));
    TRY(__asm__ volatile("int $4"));
    TRY(__asm__ volatile("int $0x42"));
    TRY(__asm__ volatile("ud2"));
    TRY(__asm__ volatile("hlt"));
    TRY(__asm__ volatile("cli"));
    TRY(__asm__ volatile("outb %al, $0x11"));
    TRY(__asm__ volatile("mov %%cr3, %%rax" : : : "rax"));
    TRY(__asm__ volatile("mov %0, %%ss" : : "r"(0x60)));
    TRY(__asm__ volatile("mov %%rsp, %%rbx; mov %0, %%rsp; push %%rax; mov %%rbx, %%rsp"
                         :
                         : "r"(0x900000000000ul)
                         : "rbx", "memory"));
    TRY(x87());
    TRY(sse(0x80));
    TRY(sse(0x200));
    TRY(sse(0x400));
    __asm__ volatile("ldmxcsr %0" : : "m"((uint32_t){0x1f80}));
}

static void aligned(void) /* alone: TCG doesn't check */
{
    catch (tell);
    TRY(misaligned());
}

/* ---- a program that steps itself ---------------------------------------------------------------
 */

static volatile uint64_t steps;

static void stepped(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    CHECK(info->si_code == TRAP_TRACE);
    steps++;
}

static void stepping(void)
{
    struct sigaction action = {.sa_sigaction = stepped, .sa_flags = SA_SIGINFO};
    uint64_t flags, at = AT + 64 * MIB;

    sigaction(SIGTRAP, &action, NULL);
    map(at, PAGE, RW, MAP_GROWSDOWN);
    /* The stack grows under PUSHF and under CALL's like: neither may show whose step it was. */
    __asm__ volatile("mov %%rsp, %%rbx; mov %1, %%rsp; pushfq; pop %0; mov %%rbx, %%rsp"
                     : "=r"(flags)
                     : "r"(at)
                     : "rbx", "memory");
    printf("flags %lx\n", flags & 0x100);
    at -= 8 * PAGE;
    __asm__ volatile("mov %%rsp, %%rbx\n"
                     "pushfq; orl $0x100, (%%rsp); popfq\n"
                     "mov %1, %%rsp\n"
                     "push %%rax\n" /* grows */
                     "pop %%rax\n"
                     "mov %%rbx, %%rsp\n"
                     "nop\n"
                     "pushfq; pop %0\n"
                     "pushfq; andl $~0x100, (%%rsp); popfq\n"
                     : "=r"(flags)
                     : "r"(at - 16 * PAGE)
                     : "rax", "rbx", "memory");
    printf("flags %lx steps %lu\n", flags & 0x100, steps);
}

static void vsyscalls(void)
{
    time_t now = time(NULL), seen = 0;
    struct timeval clock = {0};

    seen = ((time_t(*)(time_t *))0xffffffffff600400)(NULL);
    CHECK(seen - now <= 1);
    CHECK(((long (*)(struct timeval *, void *))0xffffffffff600000)(&clock, NULL) == 0);
    CHECK(clock.tv_sec - now <= 1);
    printf("the time is told\n");
    catch (tell);
    /* Back to where no address is. */
    TRY(__asm__ volatile("push %0; jmp *%1" : : "r"(0x900000000000ul), "r"(0xffffffffff600400ul)));
}

int main(int argc, char **argv)
{
    static const struct both_case cases[] = {
        {"exceptions", exceptions}, {"aligned", aligned}, {"stepping", stepping},
        {"vsyscall", vsyscalls},    {NULL, NULL},
    };

    return tell_main(argc, argv, cases);
}
