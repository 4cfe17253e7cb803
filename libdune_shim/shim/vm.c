/* The VM: its slots, which are windows of the process's own address space.
 *
 * Guest virtual is host virtual; guest-physical addresses are handed out a window at a time, from 0
 * upward, so that a CPU with few physical bits has room. Windows stay for the VM's lifetime. */
#include "shim/image.h"
#include "shim/pagetable.h"
#include "shim/path.h"
#include "shim/sys.h"

#define ADDRESS_BITS 47
#define NO_WINDOW (1u << (ADDRESS_BITS - DUNE_WINDOW_SHIFT))
#define F_DUPFD_CLOEXEC 1030
#define FUTEX_WAIT_PRIVATE 128
#define FUTEX_WAKE_PRIVATE 129

void dune_lock(struct dune_lock *lock)
{
    uint32_t was = 0;

    if (__atomic_compare_exchange_n(&lock->word, &was, 1, false, __ATOMIC_ACQUIRE,
                                    __ATOMIC_RELAXED))
        return;
    while (__atomic_exchange_n(&lock->word, 2, __ATOMIC_ACQUIRE) != 0)
        dune_sys4(__NR_futex, &lock->word, FUTEX_WAIT_PRIVATE, 2, 0);
}

void dune_unlock(struct dune_lock *lock)
{
    if (__atomic_exchange_n(&lock->word, 0, __ATOMIC_RELEASE) == 2)
        dune_sys3(__NR_futex, &lock->word, FUTEX_WAKE_PRIVATE, 1);
}

int dune_fd_up(struct dune_vault *vault, int fd)
{
    long up;

    if (fd < 0)
        return fd;
    up = dune_sys3(__NR_fcntl, fd, F_DUPFD_CLOEXEC, vault->first_fd);
    dune_sys1(__NR_close, fd);
    return (int)up;
}

uint64_t dune_gpa(const struct dune_vault *vault, uint64_t address)
{
    uint64_t number = address >> DUNE_WINDOW_SHIFT;
    uint32_t index = number < NO_WINDOW ? vault->window_of[number] : 0;

    if (index == 0)
        return ~(uint64_t)0;
    return vault->window[index - 1].gpa | (address & (DUNE_WINDOW - 1));
}

uint64_t dune_hva(const struct dune_vault *vault, uint64_t gpa)
{
    uint64_t index = gpa >> DUNE_WINDOW_SHIFT;

    if (index >= vault->n_windows)
        return 0;
    return vault->window[index].address | (gpa & (DUNE_WINDOW - 1));
}

static int set_slot(struct dune_vault *vault, uint32_t index)
{
    const struct dune_window *window = &vault->window[index];
    struct kvm_userspace_memory_region region = {
        .slot = index,
        .guest_phys_addr = window->gpa,
        .memory_size = DUNE_WINDOW,
        .userspace_addr = window->address,
    };

    /* A user address ends one page below the end of the lower half. */
    if (window->address >> DUNE_WINDOW_SHIFT == NO_WINDOW - 1)
        region.memory_size -= DUNE_PAGE;
    return (int)dune_sys3(__NR_ioctl, vault->vm_fd, KVM_SET_USER_MEMORY_REGION, &region);
}

static int open_window(struct dune_vault *vault, uint64_t number)
{
    uint32_t index = vault->n_windows;
    int error;

    if (index >= DUNE_MAX_WINDOWS ||
        ((uint64_t)index + 1) << DUNE_WINDOW_SHIFT > (uint64_t)1 << vault->physical_bits)
        return -ENOSPC;
    vault->window[index].address = number << DUNE_WINDOW_SHIFT;
    vault->window[index].gpa = (uint64_t)index << DUNE_WINDOW_SHIFT;
    error = set_slot(vault, index);
    if (error != 0)
        return error;
    vault->n_windows = index + 1;
    __atomic_store_n(&vault->window_of[number], (uint16_t)(index + 1), __ATOMIC_RELEASE);
    return 0;
}

int dune_window_open(struct dune_vault *vault, uint64_t address)
{
    uint64_t number = address >> DUNE_WINDOW_SHIFT;
    int error = 0;

    if (number >= NO_WINDOW || !dune_range_is_free(vault, address, 1))
        return -EFAULT;
    dune_lock(&vault->lock);
    if (vault->window_of[number] == 0)
        error = open_window(vault, number);
    dune_unlock(&vault->lock);
    return error;
}

int dune_vm_create(struct dune_vault *vault)
{
    uint64_t first = vault->base >> DUNE_WINDOW_SHIFT;
    int error = 0;

    vault->vm_fd = (int)dune_sys3(__NR_ioctl, vault->kvm_fd, KVM_CREATE_VM, 0);
    if (vault->vm_fd < 0)
        return vault->vm_fd;
    vault->vm_fd = dune_fd_up(vault, vault->vm_fd);
    if (vault->vm_fd < 0)
        return vault->vm_fd;
    vault->pid = (int32_t)dune_sys0(__NR_getpid);
    if (vault->n_windows == 0) { /* the data windows too: ring 0 doesn't fault on them */
        for (uint64_t n = 0; n <= vault->data_bytes >> DUNE_WINDOW_SHIFT && error == 0; n++)
            error = open_window(vault, first + n);
        return error;
    }
    for (uint32_t index = 0; index < vault->n_windows && error == 0; index++)
        error = set_slot(vault, index);
    return error;
}

/* For libdune: the VM, and the first root. */
int dune_vault_open(struct dune_vault *vault)
{
    int error = dune_path_init(vault); /* -ENOENT: procfs isn't mounted at /proc */

    if (error == 0)
        error = dune_vm_create(vault);
    if (error != 0)
        return error;
    vault->root = dune_root_create(vault);
    return vault->root == NULL ? -ENOMEM : 0;
}
