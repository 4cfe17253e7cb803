/* For a module in guest ring 0: what it defines and what it may call.
 *
 * A module is freestanding code that build.mk's dune_module rule links alone: text, constants and
 * tables of addresses, but no variables. Its state lies where dune_module.context says. It runs on
 * a stack of 64 KiB, with interrupts off, and may use SSE and AVX, but neither the x87 nor MMX.
 * Whatever it is handed by ring 3 it copies before it checks: ring 3's other threads run meanwhile.
 * Ring 3's addresses it can't use (SMAP); what both are to see is mapped twice. An exception in it,
 * a failed assertion's UD2 too, ends the process with a message and a crash record (dune.h). */
#ifndef DUNE_MODULE_H
#define DUNE_MODULE_H

#include <stdint.h>

/* Defined by the module: ring 3's call number n. arg lies on this stack, not in ring 3's reach. */
long dune_module_main(void *context, uint64_t n, const uint64_t arg[5]);

#define DUNE_KICK_TX 1 /* sendto(descriptor, NULL, 0, MSG_DONTWAIT, NULL, 0) */
#define DUNE_KICK_RX 2 /* recvfrom(descriptor, NULL, 0, MSG_DONTWAIT, NULL, NULL) */

/* One exit: Linux looks at the AF_XDP socket dune_module.descriptor[descriptor]. The call's result,
 * or -errno; -EBADF: there is no such descriptor; -EINVAL: no such op. */
long dune_module_kick(uint32_t descriptor, uint32_t op);

/* How an image begins. All of it is the linker's but `kick`. */
struct dune_module_head {
    uint64_t magic;
    uint64_t bytes; /* of the image, whole pages; the file goes on with `relative` */
    uint64_t text, text_end;         /* offsets of whole pages; the rest is read only */
    uint64_t main;                   /* offset of dune_module_main() */
    uint64_t relative, relative_end; /* offsets of struct dune_module_relative, in the file */
    uint64_t kick;                   /* address of the shim's function, as dune_init() has it */
};

struct dune_module_relative { /* Elf64_Rela: the word at `at` becomes image + addend */
    uint64_t at, type, addend;
};

#define DUNE_MODULE_MAGIC 0x31656c75646f6d64 /* "dmodule1" */

#endif
