/* dune_init(): reserves the vault, puts the shim into it, makes the VM; and a thread's entry. */
#include "lib/dune_lib.h"
#include "shim/pagetable.h"
#include "shim/policy.h"

#include <cpuid.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#define GIB ((uint64_t)DUNE_WINDOW)
#define FD_TOP 65536      /* the shim's descriptors lie below this, or below the limit there is */
#define FD_RESERVED 4096
#define CPUID_ENTRIES 256
#define POLICY_AT (DUNE_VAULT_AT + 0xe0000)
#define CPUID_AT (DUNE_VAULT_AT + 0xf0000)
#define XFEATURE_PKRU (1ull << 9)
#define XFEATURE_TILES (3ull << 17)
#define XSAVE_MOST (DUNE_BLOCK_HOST - DUNE_BLOCK_XSAVE)
#define RSEQ_SIGNATURE 0x53053053

_Static_assert(DUNE_VAULT_AT + sizeof(struct dune_vault) <= POLICY_AT, "");
_Static_assert(POLICY_AT + sizeof(struct dune_policy) <= CPUID_AT, "");

extern const char dune_shim_image[], dune_shim_image_end[];
extern int dune_leave_guest(void), dune_user_from_ring0(void);
int dune_enter_ring(int ring, const struct dune_regs *regs);

struct dune_vault *dune_the_vault;
static char message[512] = "nothing has failed";
static bool took_signals;
static uint32_t asked_flags; /* ring 3 can't read the vault's */

int dune_fail(int error, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(message, sizeof(message), format, arguments);
    va_end(arguments);
    return error;
}

const char *dune_error(void)
{
    return message;
}

/* ---- the vault ------------------------------------------------------------------------------- */

static int load_image(uint64_t base)
{
    uint64_t bytes = (uint64_t)(dune_shim_image_end - dune_shim_image);

    if (bytes > DUNE_IMAGE_BYTES)
        return dune_fail(-E2BIG, "the shim's image doesn't fit its place");
    memcpy((void *)base, dune_shim_image, bytes);
    if (mprotect((void *)base, DUNE_IMAGE_BYTES, PROT_READ | PROT_EXEC) != 0)
        return dune_fail(-errno, "the shim can't be made executable: %s", strerror(errno));
    return 0;
}

/* ---- what the machine has -------------------------------------------------------------------- */

static bool kernel_is_at_least(unsigned major, unsigned minor)
{
    struct utsname name;
    unsigned is_major = 0, is_minor = 0;

    uname(&name);
    sscanf(name.release, "%u.%u", &is_major, &is_minor);
    return is_major > major || (is_major == major && is_minor >= minor);
}

static struct kvm_cpuid_entry2 *cpuid_leaf(const struct dune_vault *vault, uint32_t leaf,
                                           uint32_t index)
{
    for (uint32_t i = 0; i < vault->cpuid->nent; i++)
        if (vault->cpuid->entries[i].function == leaf && vault->cpuid->entries[i].index == index)
            return &vault->cpuid->entries[i];
    return NULL;
}

static uint64_t host_xcr0(void)
{
    uint32_t a, b, c, d;

    __cpuid(1, a, b, c, d);
    if (!(c & bit_OSXSAVE))
        return 0;
    __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return a | (uint64_t)d << 32;
}

static void find_features(struct dune_vault *vault)
{
    const struct kvm_cpuid_entry2 *one = cpuid_leaf(vault, 1, 0), *seven = cpuid_leaf(vault, 7, 0);
    const struct kvm_cpuid_entry2 *xsave = cpuid_leaf(vault, 0xd, 0);
    const struct kvm_cpuid_entry2 *xsavec = cpuid_leaf(vault, 0xd, 1);
    const struct kvm_cpuid_entry2 *extended = cpuid_leaf(vault, 0x80000001, 0);

    if (one != NULL && one->ecx & 1u << 17)
        vault->features |= DUNE_HAS_PCID;
    if (one != NULL && one->ecx & bit_XSAVE && xsave != NULL && host_xcr0() != 0)
        vault->features |= DUNE_HAS_XSAVE;
    if (seven != NULL && seven->ebx & bit_FSGSBASE)
        vault->features |= DUNE_HAS_FSGSBASE;
    if (seven != NULL && seven->ebx & 1u << 7)
        vault->features |= DUNE_HAS_SMEP;
    if (seven != NULL && seven->ebx & 1u << 20)
        vault->features |= DUNE_HAS_SMAP;
    if (extended != NULL && extended->edx & 1u << 26)
        vault->features |= DUNE_HAS_GIGABYTES;
    if (vault->features & DUNE_HAS_XSAVE && xsavec != NULL && xsavec->eax & 2)
        vault->features |= DUNE_HAS_XSAVEC;
    if (vault->features & DUNE_HAS_XSAVE)
        vault->xcr0 = host_xcr0() & (xsave->eax | (uint64_t)xsave->edx << 32) &
                      ~(XFEATURE_PKRU | XFEATURE_TILES);
}

/* The guest's CPUID: what KVM supports, with the width of physical addresses that is in use. */
static int find_cpuid(struct dune_vault *vault, uint32_t physical_bits)
{
    struct kvm_cpuid_entry2 *size;

    vault->cpuid = (struct kvm_cpuid2 *)(vault->base + CPUID_AT);
    vault->cpuid->nent = CPUID_ENTRIES;
    if (ioctl(vault->kvm_fd, KVM_GET_SUPPORTED_CPUID, vault->cpuid) != 0)
        return dune_fail(-errno, "KVM doesn't tell the guest's CPUID: %s", strerror(errno));
    size = cpuid_leaf(vault, 0x80000008, 0);
    vault->physical_bits = size != NULL ? size->eax & 0xff : 36;
    if (size != NULL && (size->eax >> 16 & 0xff) != 0)
        vault->physical_bits = size->eax >> 16 & 0xff;
    if (physical_bits != 0 && physical_bits < vault->physical_bits)
        vault->physical_bits = physical_bits;
    if (vault->physical_bits > 46)
        vault->physical_bits = 46; /* what 4-level nested tables can hold, and more than enough */
    if (size != NULL && physical_bits != 0)
        size->eax = (size->eax & 0xff00ff00) | vault->physical_bits | vault->physical_bits << 16;
    find_features(vault);
    return 0;
}

static int find_sizes(struct dune_vault *vault)
{
    int bytes = ioctl(vault->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    int xsave = ioctl(vault->kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);

    vault->run_bytes = (uint32_t)bytes;
    vault->xsave_bytes = xsave > 4096 ? (uint32_t)xsave : 4096;
    if (bytes <= 0 || bytes > DUNE_BLOCK_XSAVE - DUNE_BLOCK_RUN || vault->xsave_bytes > XSAVE_MOST)
        return dune_fail(-EOPNOTSUPP, "KVM's vCPU (%d bytes, FPU %u) doesn't fit the shim's place",
                         bytes, vault->xsave_bytes);
    return 0;
}

/* The shim's descriptors lie above what ring 3 can have. */
static int find_descriptors(struct dune_vault *vault, const struct dune_policy *policy)
{
    struct rlimit limit, wanted;
    int fd;

    getrlimit(RLIMIT_NOFILE, &limit);
    vault->nofile[0] = limit.rlim_cur;
    vault->nofile[1] = limit.rlim_max;
    if (policy != NULL && policy->nofile[1] != 0)
        memcpy(vault->nofile, policy->nofile, sizeof(vault->nofile));
    wanted = (struct rlimit){limit.rlim_max, limit.rlim_max};
    if (limit.rlim_max < FD_TOP) {
        wanted = (struct rlimit){FD_TOP, FD_TOP};
        if (setrlimit(RLIMIT_NOFILE, &wanted) != 0)
            wanted = (struct rlimit){limit.rlim_max, limit.rlim_max};
    }
    if (wanted.rlim_cur > FD_TOP)
        wanted.rlim_cur = FD_TOP;
    if (setrlimit(RLIMIT_NOFILE, &wanted) != 0 || wanted.rlim_cur < 64)
        return dune_fail(-EMFILE, "no room for descriptors (cure: ulimit -n 4096)");
    vault->first_fd = (int32_t)wanted.rlim_cur -
                      (wanted.rlim_cur >= 2 * FD_RESERVED ? FD_RESERVED : (int)wanted.rlim_cur / 2);
    fd = fcntl(vault->kvm_fd, F_DUPFD_CLOEXEC, vault->first_fd);
    if (fd < 0)
        return dune_fail(-errno, "no descriptor above %d: %s", vault->first_fd, strerror(errno));
    close(vault->kvm_fd);
    vault->kvm_fd = fd;
    return 0;
}

/* ---- the second wall ------------------------------------------------------------------------- */

/* Linux delivers signals onto a stack under a closed key since 6.12; before, it kills. */
static int find_key(struct dune_vault *vault)
{
    int key;

    vault->pkey = -1;
    if (vault->flags & DUNE_NO_PKEY || !(vault->flags & DUNE_SEALED) || !kernel_is_at_least(6, 12))
        return 0;
    key = (int)syscall(SYS_pkey_alloc, 0, 0);
    if (key < 0)
        return 0;
    if (syscall(SYS_pkey_mprotect, vault->base + DUNE_IMAGE_BYTES,
                DUNE_KEYED_BYTES - DUNE_IMAGE_BYTES, PROT_READ | PROT_WRITE, key) != 0 ||
        syscall(SYS_pkey_mprotect, vault->base, DUNE_IMAGE_BYTES, PROT_READ | PROT_EXEC, key) != 0)
        return dune_fail(-errno, "the vault's protection key: %s", strerror(errno));
    vault->pkey = key;
    return 0;
}

/* ---- dune_init ------------------------------------------------------------------------------- */

static int count_threads(void)
{
    DIR *tasks = opendir("/proc/self/task");
    struct dirent *entry;
    int n = 0;

    if (tasks == NULL)
        return -errno;
    while ((entry = readdir(tasks)) != NULL)
        n += entry->d_name[0] != '.';
    closedir(tasks);
    return n;
}

static int check_start(const struct dune_config *config)
{
    struct dune_report report;
    int threads = count_threads(), error;

    if (dune_the_vault != NULL)
        return dune_fail(-EALREADY, "dune_init() was called before");
    if (threads < 0)
        return dune_fail(threads, "/proc is not mounted (cure: mount -t proc proc /proc)");
    if (config->flags & DUNE_SEALED && threads > 1)
        return dune_fail(-EBUSY, "%d threads run already, outside of the guest (cure: seal first)",
                         threads);
    error = config->module != NULL ? dune_module_check(config) : 0;
    if (error == 0 && config->place != NULL)
        error = dune_place_check(config->place);
    if (error != 0)
        return error;
    if (config->flags & DUNE_SKIP_SELF_TEST)
        return 0;
    error = dune_probe_fitness(&report);
    if (error != 0)
        return dune_fail(error, "the self-test can't run: %s", strerror(-error));
    if (report.fitness != DUNE_FIT)
        return dune_fail(-EOPNOTSUPP, "this machine's KVM is unfit: %s", report.reason);
    return 0;
}

static void fill_vault(struct dune_vault *vault, const struct dune_config *config)
{
    const struct dune_image *image = DUNE_IMAGE(vault);
    struct dune_policy *policy = (struct dune_policy *)(vault->base + POLICY_AT);
    bool keyed = vault->pkey >= 0;

    vault->policy = policy;
    if (config->policy != NULL)
        *policy = *config->policy;
    else
        policy->log_fd = ~0u;
    vault->host_signal_entry =
        vault->base + (keyed ? image->signal_entry_keyed : image->signal_entry);
    vault->host_restorer = vault->base + image->restorer;
}

/* Ring 3's address space is limited with what the vault takes added. The hard limit stays, so that
 * a sandbox within can make room for a vault of its own; ring 3 can't change either. */
static int limit_memory(const struct dune_policy *policy, const struct dune_place *place)
{
    struct rlimit limit;

    if (policy == NULL || policy->memory_bytes == 0)
        return 0;
    getrlimit(RLIMIT_AS, &limit);
    limit.rlim_cur = policy->memory_bytes + 3 * GIB + place->data_bytes;
    if (limit.rlim_cur > limit.rlim_max)
        limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_AS, &limit) != 0)
        return dune_fail(-errno, "the limit of memory: %s", strerror(errno));
    return 0;
}

static void unlimit_memory(void)
{
    struct rlimit limit;

    getrlimit(RLIMIT_AS, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_AS, &limit);
}

static int open_kvm(struct dune_vault *vault)
{
    vault->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (vault->kvm_fd < 0)
        return dune_fail(-errno, "/dev/kvm can't be opened: %s (cure: be in the group kvm)",
                         strerror(errno));
    return 0;
}

static int keep_log(struct dune_vault *vault)
{
    struct dune_policy *policy = (struct dune_policy *)(vault->base + POLICY_AT);
    int fd;

    if (policy->log_fd == ~0u)
        return 0;
    fd = fcntl((int)policy->log_fd, F_DUPFD_CLOEXEC, vault->first_fd);
    if (fd < 0)
        return dune_fail(-errno, "the log's descriptor: %s", strerror(errno));
    policy->log_fd = (uint32_t)fd;
    return 0;
}

/* The vault at its place, up to the VM. */
static int make_vault(struct dune_vault *vault, const struct dune_config *config,
                      const struct dune_place *place)
{
    int (*vault_open)(struct dune_vault *);
    int error;

    vault->base = place->base;
    vault->data_bytes = place->data_bytes;
    vault->flags = config->flags;
    error = load_image(place->base);
    if (error == 0)
        error = open_kvm(vault);
    if (error == 0)
        error = find_descriptors(vault, config->policy);
    if (error == 0)
        error = find_cpuid(vault, config->physical_bits);
    if (error == 0)
        error = find_sizes(vault);
    if (error == 0)
        error = find_key(vault);
    if (error == 0)
        error = dune_place_take(vault, place);
    if (error == 0)
        error = dune_place_check_descriptors(vault, config->module);
    if (error != 0)
        return error;
    fill_vault(vault, config);
    error = keep_log(vault);
    if (error != 0)
        return error;
    vault_open = (int (*)(struct dune_vault *))(place->base + DUNE_IMAGE(vault)->vault_open);
    error = vault_open(vault);
    if (error != 0)
        return dune_fail(error, "no VM, or no procfs at /proc: %s", strerror(-error));
    return 0;
}

int dune_init(const struct dune_config *config)
{
    static const struct dune_config nothing;
    const struct dune_config *asked = config != NULL ? config : &nothing;
    struct dune_vault *vault;
    struct dune_place place;
    int error = check_start(asked);

    if (error != 0)
        return error;
    if (asked->policy != NULL && asked->policy->memory_bytes != 0)
        unlimit_memory();
    if (asked->place != NULL)
        place = *asked->place;
    else
        error = dune_reserve(0, &place);
    if (error != 0)
        return error;
    vault = (struct dune_vault *)(place.base + DUNE_VAULT_AT);
    error = dune_place_open(&place);
    if (error == 0)
        error = make_vault(vault, asked, &place);
    if (error == 0 && asked->module != NULL)
        error = dune_module_load(vault, asked->module);
    if (error == 0)
        error = limit_memory(asked->policy, &place);
    if (error == 0 && asked->module != NULL)
        error = dune_module_take_descriptors(vault, asked->module);
    if (error != 0) {
        if (asked->place != NULL)
            dune_place_close(&place);
        else
            dune_unreserve(&place);
        return error;
    }
    dune_the_vault = vault;
    asked_flags = asked->flags;
    return 0;
}

/* ---- entering and leaving -------------------------------------------------------------------- */

extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned int __rseq_size __attribute__((weak));

/* Linux may redirect a thread that was preempted in what its rseq area calls a critical section:
 * the host side too. So the thread's registration ends. */
static int end_rseq(void)
{
    static const uint32_t lengths[] = {32, 33, 64};
    char *area;

    if (&__rseq_size == NULL || __rseq_size == 0)
        return 0;
    area = (char *)__builtin_thread_pointer() + __rseq_offset;
    for (unsigned i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++)
        if (syscall(SYS_rseq, area, lengths[i], 1, RSEQ_SIGNATURE) == 0)
            return 0;
    if (errno == EINVAL && *(volatile int32_t *)(area + 4) < 0)
        return 0; /* -1: it is no more; -2: never was, as with threads of such a thread */
    return dune_fail(-errno, "the thread's rseq registration can't be ended: %s", strerror(errno));
}

static void save_fpu(const struct dune_vault *vault, void *xsave)
{
    memset(xsave, 0, vault->xsave_bytes);
    if (vault->features & DUNE_HAS_XSAVE)
        __asm__ volatile("xsave64 %0"
                         : "+m"(*(char *)xsave)
                         : "a"((uint32_t)vault->xcr0), "d"((uint32_t)(vault->xcr0 >> 32))
                         : "memory");
    else
        __asm__ volatile("fxsave64 %0" : "+m"(*(char *)xsave) : : "memory");
}

static int take_signals(struct dune_vault *vault)
{
    uint64_t at = vault->base + DUNE_IMAGE(vault)->signals_init;

    return ((int (*)(struct dune_vault *))at)(vault);
}

/* From entry.S, outside or in the guest. Returns only when the thread stays where it is. */
int dune_enter_ring(int ring, const struct dune_regs *regs)
{
    struct dune_vault *vault = dune_the_vault;
    uint8_t room[XSAVE_MOST + 64];
    void *xsave = (void *)(((uint64_t)room + 63) & ~(uint64_t)63);
    struct dune_entering entering = {.regs = *regs, .ring = (uint32_t)ring, .xsave = xsave};
    int (*enter)(struct dune_vault *, const struct dune_entering *);
    int error, kept = errno;

    if (vault == NULL)
        return dune_fail(-EINVAL, "dune_init() comes first");
    if (dune_ring() == 0 && ring == 3)
        return dune_user_from_ring0();
    if (dune_ring() >= 0)
        return dune_fail(-EALREADY, "this thread is in ring %d already", dune_ring());
    if (ring == 0 && asked_flags & DUNE_SEALED)
        return dune_fail(-EPERM, "ring 0 is the shim's alone (cure: don't ask for DUNE_SEALED)");
    error = end_rseq();
    if (error == 0 && !took_signals) {
        error = take_signals(vault);
        if (error != 0)
            return dune_fail(error, "the signal handlers: %s", strerror(-error));
        took_signals = true;
    }
    if (error != 0)
        return error;
    syscall(SYS_arch_prctl, 0x1003, &entering.fs_base); /* ARCH_GET_FS */
    syscall(SYS_arch_prctl, 0x1004, &entering.gs_base); /* ARCH_GET_GS */
    save_fpu(vault, xsave);
    enter = (int (*)(struct dune_vault *, const struct dune_entering *))(
        vault->base + DUNE_IMAGE(vault)->thread_enter);
    errno = kept;
    error = enter(vault, &entering);
    return dune_fail(error, "KVM makes no vCPU: %s", strerror(-error));
}

int dune_leave(void)
{
    if (dune_ring() < 0)
        return dune_fail(-EINVAL, "this thread is not in the guest");
    if (asked_flags & DUNE_SEALED)
        return dune_fail(-EPERM, "there is no way back");
    return dune_leave_guest();
}
