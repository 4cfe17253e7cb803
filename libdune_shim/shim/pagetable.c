#include "shim/pagetable.h"

#include <asm/errno.h>

#define USED_FLAGS   (DUNE_ENTRY_ACCESSED | DUNE_ENTRY_DIRTY)
#define TABLE_FLAGS  (DUNE_ENTRY_PRESENT | DUNE_ENTRY_WRITE | DUNE_ENTRY_ACCESSED)
#define FOLLOW_FLAGS (DUNE_ENTRY_PRESENT | DUNE_ENTRY_WRITE | DUNE_ENTRY_USER | DUNE_ENTRY_NX)
/* Not accessed by ring 3, so nobody counts: no locked update by the CPU at first use. */
#define VAULT_FLAGS \
    (DUNE_ENTRY_PRESENT | DUNE_ENTRY_ACCESSED | DUNE_ENTRY_DIRTY | DUNE_ENTRY_GLOBAL)

enum change {
    MAP,
    PROTECT,
    UNMAP,
    FOLLOW,
    OPEN,
    EXEC,
    NO_EXEC,
    VAULT, /* pages; not ring 3's */
};

/* What is to be done to [start, end). */
struct edit {
    struct dune_vault *vault;
    enum change change;
    uint64_t start, source; /* MAP */
    uint64_t flags;         /* of new entries: MAP, PROTECT */
    enum dune_vault_pages pages; /* VAULT */
    bool small;             /* 4 KiB entries only */
    bool changed;           /* a TLB may hold what was there before */
};

/* ---- the pool ------------------------------------------------------------------------------- */

static uint64_t vault_gpa(const struct dune_vault *vault, const void *page)
{
    return vault->window[0].gpa + ((uint64_t)page - vault->base);
}

static void *page_at(const struct dune_vault *vault, uint32_t index)
{
    return (void *)(vault->base + DUNE_TABLES_AT + (uint64_t)index * DUNE_PAGE);
}

/* A zeroed page. Never touched ones are zero as mapped. */
static void *take_page(struct dune_vault *vault)
{
    uint32_t index = vault->tables_free;

    if (index) {
        uint64_t *page = page_at(vault, index - 1);

        vault->tables_free = (uint32_t)page[0];
        page[0] = 0;
        return page;
    }
    if (vault->tables_used == 0)
        vault->tables_used = 1; /* struct dune_tables */
    if (vault->tables_used >= DUNE_TABLES_BYTES / DUNE_PAGE)
        return NULL;
    return page_at(vault, vault->tables_used++);
}

static void give_page(struct dune_vault *vault, void *page)
{
    uint64_t *word = page;

    for (unsigned i = 1; i < DUNE_ENTRIES; i++)
        word[i] = 0;
    word[0] = vault->tables_free;
    vault->tables_free =
        (uint32_t)(((uint64_t)page - vault->base - DUNE_TABLES_AT) / DUNE_PAGE) + 1;
}

/* ---- entries -------------------------------------------------------------------------------- */

static uint64_t flags_of_program(uint32_t flags)
{
    uint64_t entry = DUNE_ENTRY_OWN | DUNE_ENTRY_HELD;

    if (flags & DUNE_PTE_READ)
        entry |= DUNE_ENTRY_PRESENT;
    if (flags & DUNE_PTE_WRITE)
        entry |= DUNE_ENTRY_WRITE;
    if (flags & DUNE_PTE_USER)
        entry |= DUNE_ENTRY_USER;
    if (!(flags & DUNE_PTE_EXEC))
        entry |= DUNE_ENTRY_NX;
    if (flags & DUNE_PTE_ACCESSED)
        entry |= DUNE_ENTRY_ACCESSED;
    if (flags & DUNE_PTE_DIRTY)
        entry |= DUNE_ENTRY_DIRTY;
    return entry;
}

/* An entry that follows, for a page that its level can hold; 0: its window was never opened, or
 * Linux gives the page to nobody. */
static uint64_t following(const struct edit *edit, uint64_t va, unsigned level)
{
    uint64_t gpa = dune_gpa_of(edit->vault, va);

    if (gpa == DUNE_NO_GPA || va >= DUNE_USER_END)
        return 0;
    return gpa | FOLLOW_FLAGS | (level ? DUNE_ENTRY_LARGE : 0);
}

/* What becomes of an entry whose whole page is changed. */
static uint64_t after(const struct edit *edit, uint64_t old, uint64_t va, unsigned level)
{
    uint64_t large = level ? DUNE_ENTRY_LARGE : 0;
    bool follows = (old & DUNE_ENTRY_PRESENT) && !(old & DUNE_ENTRY_OWN);

    switch (edit->change) {
    case MAP:
        return dune_gpa_of(edit->vault, edit->source + (va - edit->start)) | edit->flags | large;
    case PROTECT:
        if (!old)
            old = following(edit, va, level);
        return (old & (DUNE_ENTRY_ADDRESS | USED_FLAGS)) | edit->flags | large;
    case UNMAP:
        return DUNE_ENTRY_OWN;
    case FOLLOW:
        return follows ? old : following(edit, va, level);
    case OPEN:
        return old ? old : following(edit, va, level);
    case EXEC:
        if (!old)
            old = following(edit, va, level);
        return old & DUNE_ENTRY_OWN ? old : old & ~DUNE_ENTRY_NX;
    case NO_EXEC:
        return follows ? old | DUNE_ENTRY_NX : old;
    case VAULT:
        break;
    }
    if (edit->pages == DUNE_VAULT_NONE)
        return 0;
    return vault_gpa(edit->vault, (void *)va) | VAULT_FLAGS | large |
           (edit->pages == DUNE_VAULT_DATA ? DUNE_ENTRY_WRITE : 0) |
           (edit->pages == DUNE_VAULT_TEXT ? 0 : DUNE_ENTRY_NX);
}

/* True: an entry of this level may hold the page that after() makes for va. */
static bool fits(const struct edit *edit, uint64_t old, uint64_t va, unsigned level)
{
    uint64_t bytes = dune_level_bytes(level);

    if (level == 0 || (edit->change == UNMAP && level < DUNE_LEVELS - 1))
        return true;
    if (level > 2 || edit->small || (level == 2 && !(edit->vault->features & DUNE_HAS_GIGABYTES)))
        return false;
    if (edit->change == MAP)
        return (dune_gpa_of(edit->vault, edit->source + (va - edit->start)) & (bytes - 1)) == 0;
    return old || va + bytes <= DUNE_USER_END;
}

/* Replaces *slot's page, or nothing, by a table of smaller ones with the same content. */
static int split(struct edit *edit, uint64_t *slot, unsigned level)
{
    uint64_t *table = take_page(edit->vault);
    uint64_t old = __atomic_load_n(slot, __ATOMIC_RELAXED);
    uint64_t step = dune_level_bytes(level - 1);

    if (!table)
        return -ENOMEM;
    do { /* again where the CPU sets the accessed or dirty bit meanwhile */
        uint64_t first = level == 1 ? old & ~DUNE_ENTRY_LARGE : old;
        bool has_address = old & (DUNE_ENTRY_PRESENT | DUNE_ENTRY_HELD);

        for (unsigned i = 0; i < DUNE_ENTRIES; i++)
            table[i] = has_address ? first + i * step : old;
    } while (!__atomic_compare_exchange_n(slot, &old,
                                          vault_gpa(edit->vault, table) | TABLE_FLAGS |
                                              (edit->change != VAULT ? DUNE_ENTRY_USER : 0),
                                          false, __ATOMIC_RELEASE, __ATOMIC_RELAXED));
    return 0;
}

/* Changes one entry, or says that it must be split: 1. */
static int edit_page(struct edit *edit, uint64_t *slot, uint64_t va, unsigned level, bool whole)
{
    uint64_t old = __atomic_load_n(slot, __ATOMIC_RELAXED), new;

    do {
        new = after(edit, old, va, level);
        /* Nothing to do for any part of it. (MAP and PROTECT name new flags: never skipped.) */
        if (edit->change > PROTECT && old && (new & ~USED_FLAGS) == (old & ~USED_FLAGS))
            return 0;
        if (edit->change == NO_EXEC && !old)
            return 0;
        /* Never split to forbid: it can't fail then, and to forbid more than asked is harmless. */
        if (edit->change != NO_EXEC && (!whole || !fits(edit, old, va, level)))
            return 1;
        if (new == old)
            return 0;
    } while (
        !__atomic_compare_exchange_n(slot, &old, new, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED));
    if (old & DUNE_ENTRY_PRESENT) /* what was not there, no TLB holds */
        edit->changed = true;
    return 0;
}

static int edit_table(struct edit *edit, uint64_t *table, unsigned level, uint64_t va, uint64_t end)
{
    uint64_t bytes = dune_level_bytes(level);

    while (va < end) {
        uint64_t *slot = &table[dune_index_in(va, level)];
        uint64_t page = va & ~(bytes - 1), next = page + bytes < end ? page + bytes : end;
        int error = 0;

        if (!dune_is_table(*slot, level)) {
            error = edit_page(edit, slot, page, level, va == page && next == page + bytes);
            if (error > 0)
                error = split(edit, slot, level);
            if (error)
                return error;
        }
        if (dune_is_table(*slot, level))
            error = edit_table(edit, dune_table_at(edit->vault, *slot), level - 1, va, next);
        if (error)
            return error;
        va = next;
    }
    return 0;
}

void dune_root_forget_clean(struct dune_root *root)
{
    for (unsigned i = 0; i < DUNE_MAX_VCPUS / 64; i++)
        __atomic_store_n(&root->clean[i], 0, __ATOMIC_SEQ_CST);
}

static int edit_root(struct edit *edit, struct dune_root *root, uint64_t va, uint64_t bytes)
{
    int error =
        edit_table(edit, dune_table_at(edit->vault, root->top), DUNE_LEVELS - 1, va, va + bytes);

    if (edit->changed)
        dune_root_forget_clean(root);
    return error;
}

/* ---- roots ---------------------------------------------------------------------------------- */

/* The vault window's table, made once: the image is text, the rest data. */
static int make_vault_directory(struct dune_vault *vault)
{
    struct edit text = {.vault = vault, .change = VAULT, .pages = DUNE_VAULT_TEXT};
    struct edit data = {.vault = vault, .change = VAULT, .pages = DUNE_VAULT_DATA};
    uint64_t *directory = take_page(vault);
    uint64_t image = vault->base + DUNE_IMAGE_AT;
    int error;

    if (!directory)
        return -ENOMEM;
    for (unsigned i = 0; i < DUNE_ENTRIES; i++)
        directory[i] = after(&data, 0, vault->base + i * dune_level_bytes(1), 1);
    error = edit_table(&text, directory, 1, image, image + DUNE_IMAGE_BYTES);
    if (!error)
        dune_tables(vault)->vault_directory = vault_gpa(vault, directory);
    return error;
}

static uint32_t take_pcid(struct dune_vault *vault)
{
    uint64_t *used = dune_tables(vault)->pcids;

    if (!(vault->features & DUNE_HAS_PCID))
        return 0;
    used[0] |= 1;
    for (unsigned i = 0; i < 4096 / 64; i++) {
        if (used[i] != ~0ull) {
            unsigned bit = (unsigned)__builtin_ctzll(~used[i]);

            used[i] |= 1ull << bit;
            return i * 64 + bit;
        }
    }
    return 0;
}

/* The topmost entry that va lies under: ring 3's windows will lie there, too. */
static int open_top(struct dune_vault *vault, struct dune_root *root, uint64_t va)
{
    uint64_t *slot = &dune_table_at(vault, root->top)[dune_index_in(va, 3)];
    uint64_t *pointers;

    if (*slot)
        return 0;
    pointers = take_page(vault);
    if (!pointers)
        return -ENOMEM;
    *slot = vault_gpa(vault, pointers) | TABLE_FLAGS | DUNE_ENTRY_USER;
    return 0;
}

/* The vault's window, and its data windows, which are there before anyone touches them. */
static int close_windows(struct dune_vault *vault, struct dune_root *root)
{
    struct edit edit = {.vault = vault, .change = VAULT, .pages = DUNE_VAULT_DATA};
    uint64_t data = vault->base + DUNE_WINDOW, end = data + vault->data_bytes;
    uint64_t *pointers;
    int error = open_top(vault, root, vault->base);

    if (!error)
        error = open_top(vault, root, end - 1);
    if (error)
        return error;
    pointers = dune_table_at(vault, dune_table_at(vault, root->top)[dune_index_in(vault->base, 3)]);
    pointers[dune_index_in(vault->base, 2)] = dune_tables(vault)->vault_directory | TABLE_FLAGS;
    return edit_table(&edit, dune_table_at(vault, root->top), DUNE_LEVELS - 1, data, end);
}

static void free_table(struct dune_vault *vault, uint64_t *table, unsigned level)
{
    for (unsigned i = 0; level && i < DUNE_ENTRIES; i++)
        if (dune_is_table(table[i], level) && !dune_is_vault_table(vault, table[i]))
            free_table(vault, dune_table_at(vault, table[i]), level - 1);
    give_page(vault, table);
}

static void remove_root(struct dune_vault *vault, struct dune_root *root)
{
    struct dune_root **link = &dune_tables(vault)->roots;

    while (*link != root)
        link = &(*link)->next;
    *link = root->next;
    /* Whoever gets the PCID next starts with no clean vCPU, so what is stale under it is flushed.
     */
    if (root->pcid)
        dune_tables(vault)->pcids[root->pcid / 64] &= ~(1ull << (root->pcid % 64));
    free_table(vault, dune_table_at(vault, root->top), DUNE_LEVELS - 1);
    give_page(vault, root);
}

struct dune_root *dune_root_create(struct dune_vault *vault)
{
    struct dune_root *root = take_page(vault);
    uint64_t *top = take_page(vault);
    struct dune_tables *tables = dune_tables(vault);

    if (!root || !top || (!tables->vault_directory && make_vault_directory(vault) < 0)) {
        if (root)
            give_page(vault, root);
        if (top)
            give_page(vault, top);
        return NULL;
    }
    root->top = vault_gpa(vault, top);
    root->pcid = take_pcid(vault);
    root->next = tables->roots;
    tables->roots = root;
    if (close_windows(vault, root)) {
        remove_root(vault, root);
        return NULL;
    }
    return root;
}

int dune_root_free(struct dune_vault *vault, struct dune_root *root)
{
    if (root == vault->root)
        return -EBUSY;
    for (uint32_t i = 0; i < vault->n_vcpus; i++) {
        const struct dune_vcpu *cpu =
            (const struct dune_vcpu *)(vault->base + DUNE_BLOCKS_AT + (uint64_t)i * DUNE_BLOCK +
                                       DUNE_BLOCK_VCPU);

        if (cpu->root == root && cpu->state == DUNE_VCPU_RUNS)
            return -EBUSY;
    }
    remove_root(vault, root);
    return 0;
}

static int clone_table(struct dune_vault *vault, uint64_t *to, const uint64_t *from, unsigned level)
{
    for (unsigned i = 0; i < DUNE_ENTRIES; i++) {
        uint64_t entry = __atomic_load_n(&from[i], __ATOMIC_ACQUIRE);
        uint64_t *table;
        int error;

        if (dune_is_vault_table(vault, entry))
            continue;
        if (!dune_is_table(entry, level)) {
            to[i] = entry;
            continue;
        }
        table = dune_is_table(to[i], level) ? dune_table_at(vault, to[i]) : take_page(vault);
        if (!table)
            return -ENOMEM;
        to[i] = vault_gpa(vault, table) | (entry & ~DUNE_ENTRY_ADDRESS);
        error = clone_table(vault, table, dune_table_at(vault, entry), level - 1);
        if (error)
            return error;
    }
    return 0;
}

int dune_root_clone(struct dune_vault *vault, const struct dune_root *from, struct dune_root **made)
{
    struct dune_root *root = dune_root_create(vault);

    if (!root)
        return -ENOMEM;
    if (clone_table(vault, dune_table_at(vault, root->top), dune_table_at(vault, from->top),
                    DUNE_LEVELS - 1)) {
        remove_root(vault, root);
        return -ENOMEM;
    }
    *made = root;
    return 0;
}

uint64_t dune_root_cr3(const struct dune_vault *vault, const struct dune_root *root)
{
    return root->top | (vault->features & DUNE_HAS_PCID ? root->pcid : 0);
}

uint64_t dune_root_switch_cr3(const struct dune_vault *vault, struct dune_root *root,
                              uint32_t vcpu_index)
{
    uint64_t bit = 1ull << (vcpu_index % 64);

    if (!(vault->features & DUNE_HAS_PCID) || !root->pcid)
        return root->top;
    /* Set before CR3 is loaded: a change that comes later takes it away again, one that came before
     * is seen by the flush. */
    if (__atomic_fetch_or(&root->clean[vcpu_index / 64], bit, __ATOMIC_SEQ_CST) & bit)
        return root->top | root->pcid | 1ull << 63;
    return root->top | root->pcid;
}

/* ---- changes -------------------------------------------------------------------------------- */

int dune_root_open_window(struct dune_vault *vault, struct dune_root *root, uint64_t address)
{
    struct edit edit = {.vault = vault, .change = OPEN};

    address &= ~(uint64_t)(DUNE_WINDOW - 1);
    if (dune_gpa_of(vault, address) == DUNE_NO_GPA)
        return -ENXIO;
    if (!dune_range_is_free(vault, address, DUNE_WINDOW) || address >= DUNE_USER_END)
        return -EPERM;
    return edit_root(&edit, root, address, DUNE_WINDOW);
}

int dune_root_vault(struct dune_vault *vault, uint64_t address, uint64_t bytes,
                    enum dune_vault_pages pages)
{
    struct edit edit = {.vault = vault, .change = VAULT, .pages = pages};

    if ((address | bytes) & (DUNE_PAGE - 1) || address < vault->base ||
        bytes > DUNE_WINDOW - (address - vault->base))
        return -EINVAL;
    return edit_table(&edit, dune_table_at(vault, dune_tables(vault)->vault_directory), 1, address,
                      address + bytes);
}

int dune_root_block_stub(struct dune_vault *vault, struct dune_root *root, uint64_t block)
{
    (void)root; /* all roots share the vault's entries */
    return dune_root_vault(vault, block + DUNE_BLOCK_STUB, DUNE_PAGE, DUNE_VAULT_TEXT);
}

static int check_range(const struct dune_vault *vault, uint64_t va, uint64_t bytes)
{
    uint64_t end;

    if ((va | bytes) & (DUNE_PAGE - 1))
        return -EINVAL;
    if (__builtin_add_overflow(va, bytes, &end) || end > DUNE_USER_END)
        return -EINVAL;
    return dune_range_is_free(vault, va, bytes) ? 0 : -EPERM;
}

/* -ENXIO: a window in the range was never opened. */
static int check_windows(const struct dune_vault *vault, uint64_t address, uint64_t bytes)
{
    for (uint64_t at = address & ~(uint64_t)(DUNE_WINDOW - 1); at < address + bytes;
         at += DUNE_WINDOW)
        if (dune_gpa_of(vault, at) == DUNE_NO_GPA)
            return -ENXIO;
    return 0;
}

/* -ENOENT: part of the range is unmapped. -ENXIO: it is not known where it would lead. */
static int check_mapped(const struct dune_vault *vault, const struct dune_root *root, uint64_t va,
                        uint64_t bytes)
{
    uint64_t page;

    for (uint64_t at = va; at < va + bytes; at = (at & ~(page - 1)) + page) {
        uint64_t entry = dune_root_entry(vault, root, at, &page);

        if ((entry & (DUNE_ENTRY_OWN | DUNE_ENTRY_HELD)) == DUNE_ENTRY_OWN)
            return -ENOENT;
        if (page > DUNE_WINDOW)
            page = DUNE_WINDOW;
        if (!entry && dune_gpa_of(vault, at) == DUNE_NO_GPA)
            return -ENXIO;
    }
    return 0;
}

int dune_root_map(struct dune_vault *vault, struct dune_root *root, uint64_t va, uint64_t source,
                  uint64_t bytes, uint32_t flags)
{
    struct edit edit = {.vault = vault,
                        .change = MAP,
                        .start = va,
                        .source = source,
                        .flags = flags_of_program(flags),
                        .small = flags & DUNE_PTE_SMALL};
    int error = check_range(vault, va, bytes);

    if (!error)
        error = check_range(vault, source, bytes);
    if (!error)
        error = check_windows(vault, source, bytes);
    return error ? error : edit_root(&edit, root, va, bytes);
}

int dune_root_protect(struct dune_vault *vault, struct dune_root *root, uint64_t va, uint64_t bytes,
                      uint32_t flags)
{
    struct edit edit = {.vault = vault,
                        .change = PROTECT,
                        .flags = flags_of_program(flags),
                        .small = flags & DUNE_PTE_SMALL};
    int error = check_range(vault, va, bytes);

    if (!error)
        error = check_mapped(vault, root, va, bytes);
    return error ? error : edit_root(&edit, root, va, bytes);
}

int dune_root_unmap(struct dune_vault *vault, struct dune_root *root, uint64_t va, uint64_t bytes)
{
    struct edit edit = {.vault = vault, .change = UNMAP};
    int error = check_range(vault, va, bytes);

    return error ? error : edit_root(&edit, root, va, bytes);
}

int dune_root_follow(struct dune_vault *vault, struct dune_root *root, uint64_t va, uint64_t bytes)
{
    struct edit edit = {.vault = vault, .change = FOLLOW};
    int error = check_range(vault, va, bytes);

    return error ? error : edit_root(&edit, root, va, bytes);
}

int dune_root_set_exec(struct dune_vault *vault, struct dune_root *root, uint64_t va,
                       uint64_t bytes)
{
    struct edit edit = {.vault = vault, .change = EXEC};
    int error = check_range(vault, va, bytes);

    if (!error)
        error = check_windows(vault, va, bytes);
    return error ? error : edit_root(&edit, root, va, bytes);
}

int dune_root_clear_exec(struct dune_vault *vault, uint64_t va, uint64_t bytes)
{
    struct edit edit = {.vault = vault, .change = NO_EXEC};
    uint64_t end;

    if (__builtin_add_overflow(va, bytes, &end) || end > DUNE_USER_END)
        end = DUNE_USER_END;
    if (va >= end || !dune_range_is_free(vault, va, end - va))
        return 0;
    for (struct dune_root *root = dune_tables(vault)->roots; root; root = root->next)
        edit_root(&edit, root, va, end - va);
    return edit.changed;
}
