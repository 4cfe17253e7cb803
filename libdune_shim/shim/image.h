/* The start of the shim's image: where in it things are (table.S). Offsets in bytes. */
#ifndef DUNE_IMAGE_H
#define DUNE_IMAGE_H

#include "shim/shim.h"

struct dune_image {
    uint64_t stub;         /* the page of stubs that every vCPU gets a copy of */
    uint64_t stub_vectors; /* in it: entries of the exceptions, 16 bytes each */
    uint64_t stub_syscall; /* in it */
    uint64_t stub_become;  /* in it: RSP points to the RIP of a struct dune_tf */
    uint64_t ring0_trap, ring0_syscall;
    uint64_t signal_entry, signal_entry_keyed, restorer;
    uint64_t vault_open;   /* int (struct dune_vault *): makes the VM */
    uint64_t thread_enter; /* int (struct dune_vault *, const struct dune_entering *): no return */
    uint64_t signals_init; /* int (struct dune_vault *) */
    uint64_t ring0_call;   /* long (struct dune_vcpu *, struct dune_ring0_call *): ring0.c */
    uint64_t count_exits;  /* uint64_t (struct dune_vault *): KVM's own count; not in the guest */
    uint64_t ring0_module; /* long (struct dune_vcpu *, uint64_t, const uint64_t[5]) */
    uint64_t ring0_kick;   /* long (uint32_t, uint32_t) */
};

/* A thread of the process on its way into the guest. */
struct dune_entering {
    struct dune_regs regs; /* what it continues with */
    uint64_t fs_base, gs_base;
    uint32_t ring;
    const void *xsave;     /* its FPU state: 64-byte aligned, vault->xsave_bytes */
};

#define DUNE_IMAGE(vault) ((const struct dune_image *)((vault)->base + DUNE_IMAGE_AT))

#endif
