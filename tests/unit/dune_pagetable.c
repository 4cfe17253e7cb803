/* The shim's page tables on the host: a vault with nothing in it but the pool, and a table of what
 * test_dune_pagetable.py calls (everything in the shim is hidden). Compiled by that test. */
#define _GNU_SOURCE
#include "shim/pagetable.h"

#include <stdlib.h>
#include <sys/mman.h>

struct api {
    struct dune_root *(*create)(struct dune_vault *);
    int (*clone)(struct dune_vault *, const struct dune_root *, struct dune_root **);
    int (*free)(struct dune_vault *, struct dune_root *);
    uint64_t (*cr3)(const struct dune_vault *, const struct dune_root *);
    uint64_t (*switch_cr3)(const struct dune_vault *, struct dune_root *, uint32_t);
    int (*open_window)(struct dune_vault *, struct dune_root *, uint64_t);
    int (*vault_pages)(struct dune_vault *, uint64_t, uint64_t, uint32_t);
    int (*block_stub)(struct dune_vault *, struct dune_root *, uint64_t);
    int (*map)(struct dune_vault *, struct dune_root *, uint64_t, uint64_t, uint64_t, uint32_t);
    int (*protect)(struct dune_vault *, struct dune_root *, uint64_t, uint64_t, uint32_t);
    int (*unmap)(struct dune_vault *, struct dune_root *, uint64_t, uint64_t);
    int (*follow)(struct dune_vault *, struct dune_root *, uint64_t, uint64_t);
    int (*lookup)(struct dune_vault *, struct dune_root *, uint64_t, struct dune_entry *);
    int (*walk)(struct dune_vault *, struct dune_root *, uint64_t, uint64_t,
                int (*)(const struct dune_entry *, void *), void *, bool);
    int (*set_exec)(struct dune_vault *, struct dune_root *, uint64_t, uint64_t);
    int (*clear_exec)(struct dune_vault *, uint64_t, uint64_t);
};

static const struct api api = {
    dune_root_create,     dune_root_clone,       dune_root_free,       dune_root_cr3,
    dune_root_switch_cr3, dune_root_open_window, dune_root_vault, dune_root_block_stub,
    dune_root_map,        dune_root_protect,     dune_root_unmap,      dune_root_follow,
    dune_root_lookup,     dune_root_walk,        dune_root_set_exec,   dune_root_clear_exec};

const struct api *test_api(void)
{
    return &api;
}

/* The window of a process address, as vm.c would open it. */
void test_open(struct dune_vault *vault, uint64_t address)
{
    uint64_t number = address >> DUNE_WINDOW_SHIFT;
    struct dune_window *window = &vault->window[vault->n_windows];

    if (vault->window_of[number])
        return;
    window->gpa = (uint64_t)vault->n_windows << DUNE_WINDOW_SHIFT;
    window->address = number << DUNE_WINDOW_SHIFT;
    vault->window_of[number] = (uint16_t)++vault->n_windows;
}

/* Three windows of address space of which the pool and one vCPU's block can be touched. */
struct dune_vault *test_vault(uint32_t features)
{
    struct dune_vault *vault = calloc(1, sizeof(*vault));
    uint8_t *space =
        mmap(0, 4ul * DUNE_WINDOW, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    vault->base = (((uint64_t)space + DUNE_WINDOW - 1) & ~(DUNE_WINDOW - 1ul)) + DUNE_WINDOW;
    vault->features = features;
    mprotect((void *)(vault->base + DUNE_TABLES_AT), DUNE_TABLES_BYTES, PROT_READ | PROT_WRITE);
    mprotect((void *)(vault->base + DUNE_BLOCKS_AT), DUNE_BLOCK, PROT_READ | PROT_WRITE);
    test_open(vault, vault->base);
    return vault;
}

void test_vault_free(struct dune_vault *vault)
{
    munmap((void *)(vault->base - DUNE_WINDOW), 3ul * DUNE_WINDOW); /* its alignment stays mapped */
    free(vault);
}

uint64_t test_base(const struct dune_vault *vault)
{
    return vault->base;
}

/* Pages of the pool that are taken. */
uint32_t test_taken(const struct dune_vault *vault)
{
    uint32_t taken = vault->tables_used;

    for (uint32_t at = vault->tables_free; at; taken--)
        at = (uint32_t) * (uint64_t *)(vault->base + DUNE_TABLES_AT + (at - 1) * 4096ul);
    return taken;
}

/* Leaves the pool this many pages that were never taken. */
void test_leave(struct dune_vault *vault, uint32_t pages)
{
    vault->tables_used = DUNE_TABLES_BYTES / DUNE_PAGE - pages;
}

/* A vCPU in use with these page tables. */
void test_use(struct dune_vault *vault, struct dune_root *root)
{
    struct dune_vcpu *cpu = (struct dune_vcpu *)(vault->base + DUNE_BLOCKS_AT + DUNE_BLOCK_VCPU);

    vault->n_vcpus = 1;
    cpu->root = root;
    cpu->state = root ? DUNE_VCPU_RUNS : DUNE_VCPU_FREE;
}

/* What the CPU does, by a walk of its own: the entry for va, its bits ORed in when present. The
 * size of its page goes to *bytes, the AND of all levels' user bits to *user. */
uint64_t test_access(const struct dune_vault *vault, uint64_t cr3, uint64_t va, uint64_t bits,
                     uint64_t *bytes, bool *user)
{
    uint64_t *table = (uint64_t *)(vault->base + (cr3 & 0xffffffffff000));

    *user = true;
    for (int shift = 39;; shift -= 9) {
        uint64_t *entry = &table[va >> shift & 511];

        *bytes = 1ul << shift;
        if (!(*entry & 1))
            return *entry;
        *user = *user && (*entry & 4);
        if (shift == 12 || (*entry & 0x80)) {
            *entry |= bits;
            return *entry;
        }
        table = (uint64_t *)(vault->base + (*entry & 0xffffffffff000));
    }
}
