/* The guest's page tables: trees of 4 KiB pages from the vault's pool, linked by guest-physical
 * addresses. Runs on the host side and in ring 0; has no state but the pool.
 *
 * A root starts with the vault's window alone. A window that is touched becomes one user entry of
 * 1 GiB (2 MiB each where the CPU has no larger ones) which grants everything but execution: what
 * Linux really maps there is decided by Linux's own tables underneath. Such entries *follow*.
 * Smaller entries come about by splitting, where a page is executable or the program set it.
 *
 *   entry        empty          follows, nothing touched it yet
 *                present        follows
 *                OWN, present   as dune_map() or dune_protect() set it
 *                OWN, HELD      the same, without DUNE_PTE_READ: it keeps its memory, but faults
 *                OWN            dune_unmap()
 *
 * Following entries change on their own (windows open, executable memory comes and goes); OWN ones
 * never do. Table pages of a root are given back with the root, not before: another vCPU may
 * have the way through them cached.
 *
 * Changes are made under vault->lock; dune_root_lookup() and dune_root_walk() need no lock. Each
 * entry is changed in one piece, accessed and dirty bits that the CPU sets meanwhile included.
 * Nothing here flushes a TLB: what was empty needs no flush, and for the rest the caller knows
 * which vCPUs use the root.
 */
#ifndef DUNE_PAGETABLE_H
#define DUNE_PAGETABLE_H

#include "shim/shim.h"

#pragma GCC visibility push(hidden)

/* The first address that Linux gives to nobody: its window ends a page early. */
#define DUNE_USER_END 0x7ffffffff000ull

struct dune_root {
    uint64_t top;  /* guest-physical address of the topmost table */
    uint32_t pcid; /* 0: none to be had, every load flushes */
    uint32_t reserved;
    struct dune_root *next;              /* all of the vault's roots, from dune_tables.roots */
    uint64_t clean[DUNE_MAX_VCPUS / 64]; /* by vCPU: it has nothing stale under our PCID */
};

/* A range of addresses that a call of another thread is changing: see mm.c. */
struct dune_changing {
    uint64_t address, end; /* end 0: a free slot */
    int32_t pid, tid;
};

#define DUNE_CHANGING 32

/* The first page of the pool. */
struct dune_tables {
    struct dune_root *roots;
    uint64_t vault_directory;  /* guest-physical: the vault window's table, the same in all roots */
    uint64_t pcids[4096 / 64]; /* in use */
    struct dune_changing changing[DUNE_CHANGING]; /* under vault->mm_lock */
    int32_t maps_fd, maps_pid; /* vma.c's: /proc/self/maps of that process; under vault->mm_lock */
};

static inline struct dune_tables *dune_tables(const struct dune_vault *vault)
{
    return (struct dune_tables *)(vault->base + DUNE_TABLES_AT);
}

/* A root that follows everywhere; NULL: the pool is used up. The windows of the vault and its data
 * must be open. */
struct dune_root *dune_root_create(struct dune_vault *vault);
int dune_root_clone(struct dune_vault *vault, const struct dune_root *from,
                    struct dune_root **made);
/* -EBUSY: a vCPU uses it, or it is the process's. */
int dune_root_free(struct dune_vault *vault, struct dune_root *root);

/* For CR3. The second makes no change visible that the vCPU doesn't see yet without saying so in
 * bit 63 (clear: flush): only for a vCPU's own `mov cr3`, not for KVM_SET_SREGS. */
uint64_t dune_root_cr3(const struct dune_vault *vault, const struct dune_root *root);
uint64_t dune_root_switch_cr3(const struct dune_vault *vault, struct dune_root *root,
                              uint32_t vcpu_index);

/* Fills the empty entries of address's window, which must be open (dune_window_open()). */
int dune_root_open_window(struct dune_vault *vault, struct dune_root *root, uint64_t address);
/* The vault's own pages, for all roots. At first the image is text, everything else data. */
enum dune_vault_pages {
    DUNE_VAULT_DATA,  /* not executable */
    DUNE_VAULT_TEXT,  /* not to be written */
    DUNE_VAULT_CONST, /* neither */
    DUNE_VAULT_NONE,  /* not there */
};
int dune_root_vault(struct dune_vault *vault, uint64_t address, uint64_t bytes,
                    enum dune_vault_pages pages);
/* The stub page of the vCPU block at this address becomes text. */
int dune_root_block_stub(struct dune_vault *vault, struct dune_root *root, uint64_t block);

/* dune.h's functions without the word root. Also: -ENXIO: a window of the range (of source's, for
 * map) was never opened. -EPERM: the vault or its guards. */
int dune_root_map(struct dune_vault *vault, struct dune_root *root, uint64_t va, uint64_t source,
                  uint64_t bytes, uint32_t flags);
int dune_root_protect(struct dune_vault *vault, struct dune_root *root, uint64_t va, uint64_t bytes,
                      uint32_t flags);
int dune_root_unmap(struct dune_vault *vault, struct dune_root *root, uint64_t va, uint64_t bytes);
int dune_root_follow(struct dune_vault *vault, struct dune_root *root, uint64_t va, uint64_t bytes);
int dune_root_lookup(struct dune_vault *vault, struct dune_root *root, uint64_t va,
                     struct dune_entry *entry);
int dune_root_walk(struct dune_vault *vault, struct dune_root *root, uint64_t va, uint64_t bytes,
                   int (*visit)(const struct dune_entry *entry, void *arg), void *arg, bool clear);

/* Following entries of the range become executable, or not any more. Whole pages. The second does
 * it in every root and returns 1 if any entry changed: the caller then has the TLBs flushed. */
int dune_root_set_exec(struct dune_vault *vault, struct dune_root *root, uint64_t va,
                       uint64_t bytes);
int dune_root_clear_exec(struct dune_vault *vault, uint64_t va, uint64_t bytes);

/* The entry that translates va as the CPU has it, and the size of its page; 0: empty. */
uint64_t dune_root_entry(const struct dune_vault *vault, const struct dune_root *root, uint64_t va,
                         uint64_t *page_bytes);

#define DUNE_ENTRY_PRESENT  1ull
#define DUNE_ENTRY_WRITE    2ull
#define DUNE_ENTRY_USER     4ull
#define DUNE_ENTRY_ACCESSED 0x20ull
#define DUNE_ENTRY_DIRTY    0x40ull
#define DUNE_ENTRY_LARGE    0x80ull /* a page, above the lowest level */
#define DUNE_ENTRY_GLOBAL   0x100ull
#define DUNE_ENTRY_OWN      0x200ull /* the program set it */
#define DUNE_ENTRY_HELD     0x400ull /* it has an address, present or not */
#define DUNE_ENTRY_NX       (1ull << 63)
#define DUNE_ENTRY_ADDRESS  0x000ffffffffff000ull

/* ---- inside of pagetable.c and pagewalk.c ---------------------------------------------------- */

/* The next load of root flushes, on every vCPU. */
void dune_root_forget_clean(struct dune_root *root);

enum { DUNE_LEVELS = 4, DUNE_ENTRIES = 512 };

#define DUNE_NO_GPA (~0ull)

static inline uint64_t *dune_table_at(const struct dune_vault *vault, uint64_t entry)
{
    return (uint64_t *)(vault->base + ((entry & DUNE_ENTRY_ADDRESS) - vault->window[0].gpa));
}

static inline uint64_t dune_level_bytes(unsigned level)
{
    return 1ull << (12 + 9 * level);
}

static inline unsigned dune_index_in(uint64_t va, unsigned level)
{
    return (unsigned)(va >> (12 + 9 * level)) & (DUNE_ENTRIES - 1);
}

static inline bool dune_is_table(uint64_t entry, unsigned level)
{
    return level > 0 && (entry & DUNE_ENTRY_PRESENT) && !(entry & DUNE_ENTRY_LARGE);
}

static inline uint64_t dune_gpa_of(const struct dune_vault *vault, uint64_t address)
{
    uint64_t number = address >> DUNE_WINDOW_SHIFT;
    uint16_t window;

    if (number >= sizeof vault->window_of / sizeof vault->window_of[0])
        return DUNE_NO_GPA;
    window = __atomic_load_n(&vault->window_of[number], __ATOMIC_ACQUIRE);
    if (!window)
        return DUNE_NO_GPA;
    return vault->window[window - 1].gpa + (address & (DUNE_WINDOW - 1));
}

static inline bool dune_is_vault_table(const struct dune_vault *vault, uint64_t entry)
{
    return (entry & DUNE_ENTRY_ADDRESS) == dune_tables(vault)->vault_directory;
}

#pragma GCC visibility pop

#endif
