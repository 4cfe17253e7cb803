/* A module: its image put into the vault, and sealed. And ring 3's call of it. */
#include "module/module.h"
#include "lib/dune_lib.h"
#include "shim/pagetable.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static bool is_within(uint64_t at, uint64_t bytes, uint64_t whole)
{
    return at <= whole && bytes <= whole - at;
}

/* What stands in the file is its maker's, who is trusted; but it may be another file. */
static bool is_image(const struct dune_module *module)
{
    const struct dune_module_head *head = module->image;

    return module->bytes >= sizeof(*head) && head->magic == DUNE_MODULE_MAGIC &&
           head->bytes <= DUNE_MODULE_BYTES && head->bytes <= module->bytes &&
           ((head->bytes | head->text | head->text_end) & (DUNE_PAGE - 1)) == 0 &&
           head->text < head->text_end && head->text_end <= head->bytes &&
           head->main - head->text < head->text_end - head->text &&
           head->relative <= head->relative_end && head->relative_end <= module->bytes;
}

int dune_module_check(const struct dune_config *config)
{
    const struct dune_module *module = config->module;
    const struct dune_place *place = config->place;
    uint64_t shared = (uint64_t)module->shared;

    if (!(config->flags & DUNE_SEALED))
        return dune_fail(-EINVAL, "a module needs the sealed way (cure: ask for DUNE_SEALED)");
    if (module->image == NULL || !is_image(module))
        return dune_fail(-EINVAL, "that is no image of a module (cure: make it by build.mk)");
    if (module->n_descriptors > DUNE_MODULE_FDS)
        return dune_fail(-EINVAL, "a module has %u descriptors at most", DUNE_MODULE_FDS);
    if (shared != 0 && (place == NULL || shared % 8 != 0 || shared < place->data ||
                        !is_within(shared - place->data, sizeof(*module->shared),
                                   place->data_bytes)))
        return dune_fail(-EINVAL, "struct dune_shared lies outside of the data windows");
    return 0;
}

static int relocate(uint8_t *at, const struct dune_module *module)
{
    const struct dune_module_head *head = module->image;
    const struct dune_module_relative *relative =
        (const void *)((const uint8_t *)module->image + head->relative);
    uint64_t n = (head->relative_end - head->relative) / sizeof(*relative);

    for (uint64_t i = 0; i < n; i++) {
        uint64_t word = (uint64_t)at + relative[i].addend;

        if (relative[i].type != R_X86_64_RELATIVE ||
            !is_within(relative[i].at, sizeof(word), head->bytes))
            return dune_fail(-EINVAL, "the module needs a relocation of type %llu",
                             (unsigned long long)relative[i].type);
        memcpy(at + relative[i].at, &word, sizeof(word));
    }
    return 0;
}

/* For the guest by its page tables, for the host side by Linux's. */
static int seal(struct dune_vault *vault, const struct dune_module_head *head)
{
    uint64_t at = vault->base + DUNE_MODULES_AT;
    uint64_t guard = vault->base + DUNE_MODULE_STACK_AT - DUNE_PAGE;
    int error = dune_root_vault(vault, at, head->bytes, DUNE_VAULT_CONST);

    if (error == 0)
        error = dune_root_vault(vault, at + head->text, head->text_end - head->text,
                                DUNE_VAULT_TEXT);
    if (error == 0)
        error = dune_root_vault(vault, guard, DUNE_PAGE, DUNE_VAULT_NONE);
    if (error == 0 && mprotect((void *)at, head->bytes, PROT_READ) != 0) /* keeps the key */
        error = -errno;
    return error == 0 ? 0 : dune_fail(error, "the module can't be sealed: %s", strerror(-error));
}

int dune_module_load(struct dune_vault *vault, const struct dune_module *module)
{
    uint8_t *at = (uint8_t *)vault->base + DUNE_MODULES_AT;
    struct dune_module_head *head = (struct dune_module_head *)at;
    int error;

    memcpy(at, module->image, ((const struct dune_module_head *)module->image)->bytes);
    error = relocate(at, module);
    if (error != 0)
        return error;
    head->kick = vault->base + DUNE_IMAGE(vault)->ring0_kick;
    vault->module.main = (uint64_t)at + head->main;
    vault->module.context = module->context;
    vault->module.bytes = head->bytes;
    vault->module.shared = module->shared;
    return seal(vault, head);
}

int dune_module_take_descriptors(struct dune_vault *vault, const struct dune_module *module)
{
    struct dune_loaded *loaded = &vault->module;

    for (uint32_t i = 0; i < module->n_descriptors; i++) {
        int fd = fcntl(module->descriptor[i], F_DUPFD_CLOEXEC, vault->first_fd);

        if (fd < 0) {
            int error = -errno;

            dune_fail(error, "the module's descriptor %d: %s", module->descriptor[i],
                      strerror(-error));
            while (i-- > 0)
                close(loaded->descriptor[i]);
            return error;
        }
        loaded->descriptor[i] = fd;
    }
    loaded->n_descriptors = module->n_descriptors;
    for (uint32_t i = 0; i < module->n_descriptors; i++)
        close(module->descriptor[i]);
    return 0;
}

uint64_t dune_now(void)
{
    return dune_cycles();
}

long dune_module_call(uint64_t n, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4)
{
    register uint64_t r10 __asm__("r10") = a3, r8 __asm__("r8") = a4;
    long result;

    if (n >= DUNE_CALL_MODULES)
        return -ENOSYS;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"(DUNE_CALL_MODULE + n), "D"(a0), "S"(a1), "d"(a2), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}
