#include "shim/pagetable.h"

#include <asm/errno.h>

#define USED_FLAGS (DUNE_ENTRY_ACCESSED | DUNE_ENTRY_DIRTY)

/* The process's address of what an entry for va leads to; 0: nowhere known. */
static uint64_t address_of(const struct dune_vault *vault, uint64_t gpa, uint64_t va)
{
    if (dune_gpa_of(vault, va) == gpa)
        return va;
    for (unsigned i = 0; i < vault->n_windows; i++) {
        const struct dune_window *window = &vault->window[i];

        if (gpa - window->gpa < DUNE_WINDOW)
            return window->address + (gpa - window->gpa);
    }
    return 0;
}

static uint32_t flags_for_program(uint64_t entry)
{
    uint32_t flags = 0;

    if (entry & DUNE_ENTRY_PRESENT)
        flags |= DUNE_PTE_READ;
    if (entry & DUNE_ENTRY_WRITE)
        flags |= DUNE_PTE_WRITE;
    if (entry & DUNE_ENTRY_USER)
        flags |= DUNE_PTE_USER;
    if (!(entry & DUNE_ENTRY_NX))
        flags |= DUNE_PTE_EXEC;
    if (entry & DUNE_ENTRY_ACCESSED)
        flags |= DUNE_PTE_ACCESSED;
    if (entry & DUNE_ENTRY_DIRTY)
        flags |= DUNE_PTE_DIRTY;
    return flags;
}

uint64_t dune_root_entry(const struct dune_vault *vault, const struct dune_root *root, uint64_t va,
                         uint64_t *page_bytes)
{
    const uint64_t *table = dune_table_at(vault, root->top);

    for (unsigned level = DUNE_LEVELS - 1;; level--) {
        uint64_t entry = __atomic_load_n(&table[dune_index_in(va, level)], __ATOMIC_ACQUIRE);

        if (!dune_is_table(entry, level)) {
            *page_bytes = dune_level_bytes(level);
            return entry;
        }
        table = dune_table_at(vault, entry);
    }
}

static void describe(const struct dune_vault *vault, struct dune_entry *entry, uint64_t value,
                     uint64_t va, uint64_t bytes)
{
    entry->va = va;
    entry->bytes = bytes;
    entry->flags = flags_for_program(value);
    entry->source = address_of(vault, value & DUNE_ENTRY_ADDRESS & ~(bytes - 1), va);
}

int dune_root_lookup(struct dune_vault *vault, struct dune_root *root, uint64_t va,
                     struct dune_entry *entry)
{
    uint64_t bytes, value;

    if (va >= DUNE_USER_END || !dune_range_is_free(vault, va, 0))
        return -ENOENT;
    value = dune_root_entry(vault, root, va, &bytes);
    if (!(value & (DUNE_ENTRY_PRESENT | DUNE_ENTRY_HELD)))
        return -ENOENT;
    describe(vault, entry, value, va & ~(bytes - 1), bytes);
    return 0;
}

struct walk {
    struct dune_vault *vault;
    struct dune_root *root;
    int (*visit)(const struct dune_entry *entry, void *arg);
    void *arg;
    bool clear;
};

static int walk_page(const struct walk *walk, uint64_t *slot, uint64_t va, uint64_t bytes)
{
    uint64_t value = __atomic_load_n(slot, __ATOMIC_RELAXED);
    struct dune_entry entry;

    if (!(value & DUNE_ENTRY_PRESENT))
        return 0;
    if (walk->clear && (value & USED_FLAGS)) {
        value = __atomic_fetch_and(slot, ~USED_FLAGS, __ATOMIC_SEQ_CST);
        dune_root_forget_clean(walk->root);
    }
    describe(walk->vault, &entry, value, va, bytes);
    return walk->visit(&entry, walk->arg);
}

static int walk_table(const struct walk *walk, uint64_t *table, unsigned level, uint64_t va,
                      uint64_t end)
{
    uint64_t bytes = dune_level_bytes(level);
    int result = 0;

    while (va < end && !result) {
        uint64_t *slot = &table[dune_index_in(va, level)];
        uint64_t entry = __atomic_load_n(slot, __ATOMIC_ACQUIRE);
        uint64_t page = va & ~(bytes - 1), next = page + bytes < end ? page + bytes : end;

        if (!dune_is_table(entry, level))
            result = walk_page(walk, slot, page, bytes);
        else if (!dune_is_vault_table(walk->vault, entry))
            result = walk_table(walk, dune_table_at(walk->vault, entry), level - 1, va, next);
        va = next;
    }
    return result;
}

int dune_root_walk(struct dune_vault *vault, struct dune_root *root, uint64_t va, uint64_t bytes,
                   int (*visit)(const struct dune_entry *entry, void *arg), void *arg, bool clear)
{
    struct walk walk = {vault, root, visit, arg, clear};
    uint64_t end;

    if (__builtin_add_overflow(va, bytes, &end) || end > DUNE_USER_END)
        return -EINVAL;
    return walk_table(&walk, dune_table_at(vault, root->top), DUNE_LEVELS - 1, va, end);
}
