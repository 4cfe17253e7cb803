/* The shim's table of system calls, its check and its dispatcher, without a guest: a vault with one
 * vCPU, user memory right below and right above its guards, and lines of commands.
 *
 *   check NR A0 .. A5   -> ERROR ACTION QUIET
 *   do NR A0 .. A5      -> RESULT REFUSED RCX, then NR A0 .. A5 and the scratch of each call
 * forwarded result N            what a forwarded call returns;  real: it is really made poke
 * ADDRESS HEX, peek ADDRESS BYTES, denied MASK, sealed 0|1, policy paths don't apply
 *
 * All numbers are hexadecimal.
 */
#include "shim/call.h"
#include "shim/path.h"
#include "shim/policy.h"
#include "shim/sys.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BASE       0x200000000000ull
#define USER_BYTES 0x100000ull
#define FIRST_FD   1000
#define LINE_BYTES (1 << 20)

static struct dune_vcpu *cpu;
static struct dune_policy policy;
static long forced_result;
static int is_real;

/* ---- what the image has elsewhere ------------------------------------------------------------ */

long dune_forward_raw(struct dune_vcpu *of, uint64_t nr, const uint64_t arg[6])
{
    long result = forced_result;

    if (is_real)
        result = dune_sys6((long)nr, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]);
    printf(" | %lx", nr);
    for (int i = 0; i < 6; i++)
        printf(" %lx", arg[i]);
    printf(" ");
    for (uint32_t i = 0; i < of->scratch_used; i++)
        printf("%02x", of->scratch[i]);
    printf(".");
    return result;
}

long dune_fd_result(struct dune_vcpu *of, long fd)
{
    if (fd < of->vault->first_fd)
        return fd;
    if (is_real)
        close((int)fd);
    return -EMFILE;
}

void dune_log(struct dune_vcpu *of, const char *format, ...)
{
    (void)of, (void)format;
}

long dune_path_sockaddr(struct dune_vcpu *of, const struct dune_call *call, const void *address,
                        uint64_t bytes, bool make, void **to, int *fd)
{
    (void)call, (void)make;
    *fd = -1;
    *to = dune_scratch(of, bytes);
    if (*to == NULL)
        return -ENOMEM;
    memcpy(*to, address, bytes);
    return (long)bytes;
}

/* ---- the vault ------------------------------------------------------------------------------- */

static void map(uint64_t at, uint64_t bytes, int protection)
{
    void *made = mmap((void *)at, bytes, protection,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);

    if (made != (void *)at) {
        perror("mmap");
        exit(1);
    }
}

static void make_vault(void)
{
    struct dune_vault *vault = (struct dune_vault *)(BASE + DUNE_VAULT_AT);
    uint64_t block = BASE + DUNE_BLOCKS_AT;

    map(BASE - DUNE_WINDOW, DUNE_WINDOW, PROT_NONE);
    map(BASE, DUNE_WINDOW, PROT_READ | PROT_WRITE);
    map(BASE + DUNE_WINDOW, DUNE_WINDOW, PROT_NONE);
    map(BASE - DUNE_WINDOW - USER_BYTES, USER_BYTES, PROT_READ | PROT_WRITE);
    map(BASE + 2ull * DUNE_WINDOW, USER_BYTES, PROT_READ | PROT_WRITE);
    cpu = (struct dune_vcpu *)(block + DUNE_BLOCK_VCPU);
    cpu->vault = vault;
    cpu->run = (struct kvm_run *)(block + DUNE_BLOCK_RUN);
    cpu->tid = (int)syscall(SYS_gettid);
    cpu->scratch = (uint8_t *)(BASE + DUNE_SCRATCH_AT);
    mprotect(cpu->scratch + DUNE_SCRATCH, DUNE_PAGE, PROT_NONE);
    vault->base = BASE;
    vault->flags = DUNE_SEALED;
    vault->first_fd = FIRST_FD;
    vault->policy = &policy;
}

/* ---- commands -------------------------------------------------------------------------------- */

static struct dune_call parse_call(const char *text)
{
    struct dune_call call = {0};

    sscanf(text, "%lx %lx %lx %lx %lx %lx %lx", &call.nr, &call.arg[0], &call.arg[1], &call.arg[2],
           &call.arg[3], &call.arg[4], &call.arg[5]);
    return call;
}

static void check(const char *text)
{
    struct dune_call call = parse_call(text);
    struct dune_verdict verdict;
    long error = dune_check_call(cpu, &call, &verdict);

    printf("%ld %u %u\n", error, verdict.action, verdict.quiet);
}

static void dispatch(const char *text)
{
    struct kvm_regs *regs = &cpu->run->s.regs.regs;
    struct dune_call call = parse_call(text);
    uint64_t refused = cpu->counts.refused;

    memset(cpu->scratch, 0xee, DUNE_SCRATCH);
    *regs = (struct kvm_regs){.rax = call.nr, .rdi = call.arg[0], .rsi = call.arg[1]};
    regs->rdx = call.arg[2];
    regs->r10 = call.arg[3];
    regs->r8 = call.arg[4];
    regs->r9 = call.arg[5];
    regs->rcx = 0x1000;
    dune_call_dispatch(cpu);
    printf(" # %ld %ld %llx\n", (long)regs->rax, (long)(cpu->counts.refused - refused), regs->rcx);
}

static void poke(const char *text)
{
    char *at;
    uint8_t *to = (uint8_t *)strtoul(text, &at, 16);

    while (*at == ' ')
        at++;
    for (unsigned byte; sscanf(at, "%2x", &byte) == 1; at += 2)
        *to++ = (uint8_t)byte;
    printf("ok\n");
}

static void peek(const char *text)
{
    uint64_t at = 0, bytes = 0;

    sscanf(text, "%lx %lx", &at, &bytes);
    for (uint64_t i = 0; i < bytes; i++)
        printf("%02x", ((const uint8_t *)at)[i]);
    printf("\n");
}

static void set(const char *text)
{
    char name[16] = "";
    long value = 0;

    sscanf(text, "%15s %lx", name, &value);
    if (strcmp(name, "result") == 0)
        forced_result = value;
    else if (strcmp(name, "real") == 0)
        is_real = (int)value;
    else if (strcmp(name, "denied") == 0)
        policy.denied = (uint32_t)value;
    else if (strcmp(name, "sealed") == 0)
        cpu->vault->flags = value ? DUNE_SEALED : 0;
    else
        exit(2);
    printf("ok\n");
}

int main(void)
{
    static char line[LINE_BYTES];

    make_vault();
    while (fgets(line, sizeof(line), stdin) != NULL) {
        if (strncmp(line, "check ", 6) == 0)
            check(line + 6);
        else if (strncmp(line, "do ", 3) == 0)
            dispatch(line + 3);
        else if (strncmp(line, "poke ", 5) == 0)
            poke(line + 5);
        else if (strncmp(line, "peek ", 5) == 0)
            peek(line + 5);
        else
            set(line);
        fflush(stdout);
    }
    return 0;
}
