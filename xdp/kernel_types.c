/* See kernel_types.h. */
#include "kernel_types.h"

#include <bpf/btf.h>
#include <errno.h>
#include <string.h>

/* Structures inside structures without a name are this deep at most. */
#define DEPTH_MAX 8

static int offset_bits(const struct btf *btf, const struct btf_type *type, const char *name,
                       int depth)
{
    const struct btf_member *m = btf_members(type);

    for (unsigned i = 0; i < btf_vlen(type) && depth < DEPTH_MAX; i++, m++) {
        const char *own = btf__name_by_offset(btf, m->name_off);
        int at = (int)btf_member_bit_offset(type, i);

        if (own && !strcmp(own, name))
            return at;
        if (own && *own)
            continue;
        const struct btf_type *inner = btf__type_by_id(btf, m->type);
        if (inner && (btf_is_struct(inner) || btf_is_union(inner))) {
            int found = offset_bits(btf, inner, name, depth + 1);
            if (found >= 0)
                return at + found;
        }
    }
    return -ENOENT;
}

int ix_kernel_offsets(struct ix_kernel_member *members, size_t n)
{
    struct btf *btf = btf__load_vmlinux_btf();

    if (!btf)
        return -errno;
    for (size_t i = 0; i < n; i++) {
        int id = btf__find_by_name_kind(btf, members[i].type, BTF_KIND_STRUCT);
        int bits = -ENOENT;

        if (id > 0)
            bits = offset_bits(btf, btf__type_by_id(btf, (uint32_t)id), members[i].member, 0);
        members[i].offset = bits < 0 ? bits : bits / 8;
    }
    btf__free(btf);
    return 0;
}
