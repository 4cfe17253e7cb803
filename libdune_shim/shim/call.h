/* The table of system calls as it is compiled in, and the check of a call against it.
 *
 * syscalls.toml says what is in the table, gen_syscalls.py makes dune_syscalls.c of it.
 */
#ifndef DUNE_CALL_H
#define DUNE_CALL_H

#include "shim/shim.h"

enum dune_call_action {
    DUNE_CALL_NONE = 0, /* a number without an entry: ENOSYS */
    DUNE_CALL_DENY,
    DUNE_CALL_ALLOW,
    DUNE_CALL_EMULATE,
};

#define DUNE_CALL_OPEN     1u /* denied only where the process is sealed */
#define DUNE_CALL_MAKES_FD 2u /* its result is a descriptor */

enum dune_arg_kind {
    DUNE_ARG_NONE = 0,
    DUNE_ARG_INT,
    DUNE_ARG_FD,
    DUNE_ARG_POINTER,
    DUNE_ARG_STRING,
    DUNE_ARG_RANGE,
    DUNE_ARG_NESTED,
};

/* How a length follows from the argument `count`. */
enum dune_arg_unit {
    DUNE_UNIT_FIXED = 0, /* base */
    DUNE_UNIT_TIMES,     /* base + it * size */
    DUNE_UNIT_BITS,      /* a bit each, in words of 64 */
    DUNE_UNIT_PAGES,     /* a byte for each page of it */
    DUNE_UNIT_POINTED,   /* the 32 bits that it points to */
};

/* What the kernel makes of an argument that it takes as a length. */
enum dune_arg_width {
    DUNE_WIDTH_U64 = 0,
    DUNE_WIDTH_U32,
    DUNE_WIDTH_I32, /* negative: nothing (the kernel says EINVAL) */
    DUNE_WIDTH_RW,  /* at most DUNE_RW_MAX */
};

#define DUNE_RW_MAX 0x7ffff000u /* MAX_RW_COUNT: what one read() or write() moves */

struct dune_arg_rule {
    uint8_t kind, unit, count, width;
    uint16_t base, size;
};

struct dune_call_rule {
    uint8_t action;
    uint8_t classes;    /* DUNE_CLASS_* */
    uint8_t flags;      /* DUNE_CALL_OPEN, ... */
    uint8_t error;      /* denied: the errno */
    uint16_t name, why; /* offsets in dune_call_texts */
    struct dune_arg_rule arg[6];
};

/* What is to be done with a call. */
struct dune_verdict {
    uint32_t action; /* DUNE_CALL_ALLOW, DUNE_CALL_EMULATE; else it is refused */
    uint32_t quiet;  /* bool: refused, but nothing to be told: the kernel might say the same */
    const char *why;
    const struct dune_call_rule *rule; /* NULL: no such number */
};

#pragma GCC visibility push(hidden)

extern const struct dune_call_rule dune_call_rules[];
extern const char dune_call_texts[];

/* dune_syscalls.c: the dune_do_NAME() of an emulated call. */
long dune_emulate(struct dune_vcpu *cpu, struct dune_call *call);

/* 0: the call may be made, as the verdict says. Else the negative errno to refuse it with. Reads
 * ring 3's memory only for pointed-to lengths, and changes nothing. */
long dune_check_call(struct dune_vcpu *cpu, const struct dune_call *call,
                     struct dune_verdict *verdict);

/* nested.c, for nested*.c: an iovec array is copied to scratch and every piece checked. *copy
 * is it (NULL for n 0). 0 or -EINVAL, -EFAULT, -ENOMEM. */
struct dune_iovec {
    uint64_t base, bytes;
};
long dune_copy_iov(struct dune_vcpu *cpu, const struct dune_call *call, uint64_t from, uint64_t n,
                   struct dune_iovec **copy);

/* dune_refuse() with EFAULT unless ring 3 may name the range. */
long dune_check_range(struct dune_vcpu *cpu, const struct dune_call *call, uint64_t address,
                      uint64_t bytes);

#pragma GCC visibility pop

#endif
