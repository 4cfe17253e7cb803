/* The host side of libdune's own calls from ring 0. KVM's own counters (KVM_GET_STATS_FD,
 * Linux 5.14) include exits that never reach user space. */
#include "shim/ring0.h"
#include "shim/sys.h"

#define NAME_BYTES    64
#define MADV_DONTNEED 4

/* The value of the counter "exits" behind a statistics descriptor; 0: there is none. */
static uint64_t read_exits(int64_t fd)
{
    struct kvm_stats_header header;
    struct {
        struct kvm_stats_desc desc;
        char name[NAME_BYTES];
    } one;
    uint64_t value = 0;

    if (dune_sys4(__NR_pread64, fd, &header, sizeof(header), 0) != (long)sizeof(header))
        return 0;
    for (uint32_t i = 0; i < header.num_desc; i++) {
        uint64_t at = header.desc_offset + i * (sizeof(one.desc) + header.name_size);

        if (dune_sys4(__NR_pread64, fd, &one, sizeof(one.desc) + 8, at) < (long)sizeof(one.desc))
            return 0;
        if (__builtin_memcmp(one.name, "exits", 6) != 0)
            continue;
        at = header.data_offset + one.desc.offset;
        if (dune_sys4(__NR_pread64, fd, &value, sizeof(value), at) != (long)sizeof(value))
            return 0;
        return value;
    }
    return 0;
}

uint64_t dune_count_exits(struct dune_vault *vault)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < vault->n_vcpus; i++) {
        const struct dune_vcpu *cpu = dune_vcpu_at(vault, i);

        if (cpu->state != DUNE_VCPU_NONE && cpu->stats_fd >= 0)
            sum += read_exits(cpu->stats_fd);
    }
    return sum;
}

/* All vCPUs', those that run included: KVM does it when a page that the guest has touched goes
 * away, and waits for them. */
static uint64_t flush_all(struct dune_vcpu *cpu)
{
    uint8_t *page = cpu->scratch + DUNE_SCRATCH - DUNE_PAGE;

    return (uint64_t)dune_sys3(__NR_madvise, page, DUNE_PAGE, MADV_DONTNEED);
}

bool dune_ring0_own_call(struct dune_vcpu *cpu, uint64_t nr, uint64_t argument, uint64_t *result)
{
    switch (nr) {
    case DUNE_CALL_WINDOW:
        *result = (uint64_t)(int64_t)dune_window_open(cpu->vault, argument);
        return true;
    case DUNE_CALL_EXITS:
        *result = dune_count_exits(cpu->vault);
        return true;
    case DUNE_CALL_FLUSH:
        *result = flush_all(cpu);
        return true;
    default:
        return false;
    }
}
