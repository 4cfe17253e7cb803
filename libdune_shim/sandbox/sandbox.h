/* dune-sandbox: an unmodified program in guest ring 3, under a policy.
 *
 * The order of things (main.c): read the policy; open the program and what it needs (program.c);
 * check and map it as the kernel would (elf.c); make the vault; build its stack (stack.c); enter
 * ring 3 and jump (start.c). All of this is trusted and runs before the first instruction of the
 * program; nothing of it is called afterwards.
 */
#ifndef DUNE_SANDBOX_H
#define DUNE_SANDBOX_H

#include "shim/policy.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Exit statuses of dune-sandbox itself, as of env(1) and timeout(1). */
#define SANDBOX_FAILED         125 /* the policy, the machine, or dune-sandbox is at fault */
#define SANDBOX_NOT_EXECUTABLE 126 /* the program is there and can't be run */
#define SANDBOX_NOT_FOUND      127

#define SANDBOX_LOG_NONE UINT32_MAX

/* "dune-sandbox: MESSAGE" to standard error, and exits. */
void sandbox_fail(int status, const char *format, ...)
    __attribute__((noreturn, format(printf, 2, 3)));

/* ---- policy_file.c -------------------------------------------------------------------------- */

/* A policy as written: what dune_init() takes, and what dune-sandbox does itself. */
struct sandbox_policy {
    struct dune_policy policy;       /* log_fd, self and sandbox are filled in later */
    bool exec_outside;               /* `exec yes`: children leave the sandbox */
    char log_file[DUNE_POLICY_PATH]; /* "": standard error, or none */
    bool log_none;
};

/* Parses text[0, bytes); name is for messages. False: error[0, error_bytes) says "NAME:LINE: why".
 * missing_ok: paths that don't exist are left out (for the policies built in). */
bool sandbox_policy_parse(const char *text, size_t bytes, const char *name, bool missing_ok,
                          struct sandbox_policy *policy, char *error, size_t error_bytes);
/* The text of a policy built in, or NULL. */
const char *sandbox_policy_builtin(const char *name);
/* DUNE_MAY_* that the policy grants for a canonical path: the longest rule that holds it. */
uint32_t sandbox_policy_access(const struct dune_policy *policy, const char *path);
/* One more rule, its access on top of what the path has already. False: no room. */
bool sandbox_policy_grant(struct dune_policy *policy, const char *path, uint32_t access);
/* As the lines of a policy file; for --dry-run. */
void sandbox_policy_print(const struct sandbox_policy *policy, FILE *to);
extern const char sandbox_policy_help[];

/* ---- elf.c ---------------------------------------------------------------------------------- */

#define SANDBOX_SEGMENTS 128

struct sandbox_segment {
    uint64_t vaddr, mem_bytes;   /* as the file says: not page-aligned */
    uint64_t offset, file_bytes; /* congruent to vaddr modulo the page; inside the file */
    int prot;                    /* PROT_* */
};

/* An ELF file, checked: mapping it needs no further check. */
struct sandbox_elf {
    bool fixed;          /* ET_EXEC: vaddr are addresses. Else they are relative to a base */
    uint64_t entry;      /* as the file says, like vaddr */
    uint64_t phdr;       /* where the program headers will lie, 0: nowhere */
    uint64_t phdr_bytes; /* of one */
    uint64_t phdr_count;
    uint64_t low, high; /* of all segments, page-aligned */
    uint64_t align;     /* of the base, a power of two of at least a page */
    bool exec_stack;
    char interpreter[4096]; /* PT_INTERP; "": none */
    unsigned n_segments;
    struct sandbox_segment segment[SANDBOX_SEGMENTS];
};

/* Checks the ELF file behind fd. NULL: *elf is filled. Else why it can't be run. */
const char *sandbox_elf_read(int fd, struct sandbox_elf *elf);

enum sandbox_place {
    SANDBOX_PLACE_PROGRAM,  /* where the kernel puts position-independent programs */
    SANDBOX_PLACE_ANYWHERE, /* among the mappings, like an interpreter */
};

/* Maps it. NULL: *base is what to add to vaddr. Else why not. */
const char *sandbox_elf_map(int fd, const struct sandbox_elf *elf, enum sandbox_place place,
                            uint64_t *base);

/* ---- program.c ------------------------------------------------------------------------------ */

#define SANDBOX_ARGUMENTS_MAX 0x7ffffff

/* What is to run: the file that the kernel would map for it, and the arguments that it gets. */
struct sandbox_program {
    int fd, interpreter_fd;      /* -1: no interpreter (PT_INTERP) */
    char path[DUNE_POLICY_PATH]; /* canonical, of fd */
    char *exec_path;             /* AT_EXECFN: as it was named, a script too */
    char *name;                  /* of the task: the last part of exec_path */
    char **argv;                 /* NULL-terminated */
    int argc;
    struct sandbox_elf elf, interpreter;
    uint64_t base, interpreter_base;
};

/* Finds, opens and checks. `search`: a name without a slash is looked for in PATH. `inherited`:
 * the program itself needs DUNE_MAY_EXEC too. Ends the process with a message if it can't be. */
void sandbox_program_open(struct sandbox_program *program, struct dune_policy *policy, char *path,
                          char **argv, bool search, bool inherited);
void sandbox_program_map(struct sandbox_program *program);

/* ---- stack.c, start.c ----------------------------------------------------------------------- */

/* Builds what the kernel leaves on a new program's stack, below this function's caller's frame.
 * Returns the stack pointer for the entry point. */
uint64_t sandbox_stack_build(const struct sandbox_program *program, char **envp);
/* Makes /proc/self/{cmdline,environ,auxv,stat} and brk() those of the program. As far as the
 * kernel lets an ordinary process (CONFIG_CHECKPOINT_RESTORE). */
void sandbox_stack_announce(const struct sandbox_program *program);

/* In ring 3: the registers of a fresh program, and its first instruction. */
void sandbox_start(uint64_t stack, uint64_t entry) __attribute__((noreturn));

#endif
