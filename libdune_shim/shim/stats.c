/* KVM's own counters (KVM_GET_STATS_FD, Linux 5.14): exits that never reach user space included. */
#include "shim/ring0.h"
#include "shim/sys.h"

#define NAME_BYTES 64

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
        const struct dune_vcpu *cpu =
            (struct dune_vcpu *)(vault->base + DUNE_BLOCKS_AT + (uint64_t)i * DUNE_BLOCK +
                                 DUNE_BLOCK_VCPU);
        long fd = cpu->fd < 0 ? -1 : dune_sys3(__NR_ioctl, cpu->fd, KVM_GET_STATS_FD, 0);

        if (fd < 0)
            continue;
        sum += read_exits(fd);
        dune_sys1(__NR_close, fd);
    }
    return sum;
}
