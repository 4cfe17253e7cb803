/* By the calls that change what is mapped. */
#ifndef ESCAPE_MAPPINGS_H
#define ESCAPE_MAPPINGS_H

#include "kit.h"

#include <sys/ipc.h>
#include <sys/prctl.h>
#include <sys/shm.h>

static void mappings_over(const char *name, uint64_t at, uint64_t bytes)
{
    char what[96];

#define AT(call) (snprintf(what, sizeof what, "%s %s", call, name), what)
    group = "mapping";
    fails(AT("mmap FIXED over"), CALL(SYS_mmap, at, bytes, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
    fails(AT("mmap FIXED of a file over"),
          CALL(SYS_mmap, at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, a_file, 0));
    fails(AT("mmap FIXED_NOREPLACE over"),
          CALL(SYS_mmap, at, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
               -1, 0));
    fails(AT("munmap"), CALL(SYS_munmap, at, bytes));
    fails(AT("mprotect"), CALL(SYS_mprotect, at, bytes, PROT_READ | PROT_WRITE | PROT_EXEC));
    fails(AT("pkey_mprotect"), CALL(SYS_pkey_mprotect, at, bytes, PROT_READ | PROT_WRITE, 0));
    fails(AT("mremap away"), CALL(SYS_mremap, at, bytes, bytes, MREMAP_MAYMOVE, 0));
    fails(AT("mremap a copy"), CALL(SYS_mremap, at, 0, bytes, MREMAP_MAYMOVE, 0));
    fails(AT("mremap away, leaving it"), CALL(SYS_mremap, at, bytes, bytes, MREMAP_MAYMOVE | 4, 0));
    fails(AT("mremap onto"),
          CALL(SYS_mremap, good + 8 * PAGE, PAGE, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, at));
    fails(AT("madvise DONTNEED"), CALL(SYS_madvise, at, bytes, MADV_DONTNEED));
    fails(AT("madvise FREE"), CALL(SYS_madvise, at, bytes, MADV_FREE));
    fails(AT("madvise REMOVE"), CALL(SYS_madvise, at, bytes, MADV_REMOVE));
    fails(AT("madvise WIPEONFORK"), CALL(SYS_madvise, at, bytes, 18));
    fails(AT("madvise DODUMP"), CALL(SYS_madvise, at, bytes, MADV_DODUMP));
    fails(AT("madvise HWPOISON"), CALL(SYS_madvise, at, bytes, 100));
    fails(AT("madvise POPULATE_WRITE"), CALL(SYS_madvise, at, bytes, 23));
    fails(AT("madvise GUARD_INSTALL"), CALL(SYS_madvise, at, bytes, 102));
    fails(AT("mlock"), CALL(SYS_mlock, at, bytes));
    fails(AT("munlock"), CALL(SYS_munlock, at, bytes));
    fails(AT("msync INVALIDATE"), CALL(SYS_msync, at, bytes, MS_INVALIDATE));
    fails(AT("mincore"), CALL(SYS_mincore, at, bytes & ~GIB, good));
    fails(AT("mbind"), CALL(SYS_mbind, at, bytes, 0, 0, 0, 0));
    fails(AT("remap_file_pages"), CALL(SYS_remap_file_pages, at, bytes, 0, 0, 0));
    fails(AT("mseal"), CALL(SYS_mseal, at, bytes, 0));
    fails(AT("map_shadow_stack"), CALL(SYS_map_shadow_stack, at, bytes, 1));
    fails(AT("prctl PR_SET_VMA"), CALL(SYS_prctl, PR_SET_VMA, 0, at, bytes, "x"));
    fails(AT("shmat onto"),
          CALL(SYS_shmat, CALL(SYS_shmget, IPC_PRIVATE, 4096, 0600 | IPC_CREAT), at, SHM_REMAP));
#undef AT
}

static void mappings_crossing(void)
{
    uint64_t low = given.vault - GIB;
    long at;

    group = "mapping";
    fails("munmap of half of everything", CALL(SYS_munmap, 0x10000, 0x7fffffff0000 - 0x10000));
    fails("mprotect that wraps", CALL(SYS_mprotect, given.target, ~0ull & ~(PAGE - 1), PROT_READ));
    fails("madvise that wraps", CALL(SYS_madvise, given.target, -PAGE, MADV_DONTNEED));
    fails("mmap FIXED across the guard's edge",
          CALL(SYS_mmap, low - PAGE, 2 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
               -1, 0));
    fails("munmap across the guard's edge", CALL(SYS_munmap, low - PAGE, 2 * PAGE));
    at = CALL(SYS_mmap, given.target, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    say(at < 0 || U(at) < low || U(at) >= given.vault + 2 * GIB, "mmap with a hint in it",
        at < 0 ? "error" : "elsewhere");
    at = CALL(SYS_brk, given.target);
    say(U(at) < low || U(at) >= given.vault + 2 * GIB, "brk into it", "the break stays");
    fails("PR_SET_MM brk into it", CALL(SYS_prctl, PR_SET_MM, PR_SET_MM_BRK, given.target, 0, 0));
    fails("PR_SET_MM's map", CALL(SYS_prctl, PR_SET_MM, PR_SET_MM_MAP, good, 104, 0));
    fails("PR_SET_MM exe file", CALL(SYS_prctl, PR_SET_MM, PR_SET_MM_EXE_FILE, a_file, 0, 0));
    fails("grow a mapping into the guard",
          CALL(SYS_mremap, good, 16 * PAGE, given.vault - U(good), 0, 0) < 0
              ? -EFAULT
              : CALL(SYS_mmap, 0, 0, 0, 0, -1, 0));
}

/* Pages of others die with a page that is shared with them: of a file, or of memory. */
static void mappings_poison(void)
{
    long file = CALL(SYS_mmap, 0, PAGE, PROT_READ, MAP_SHARED, a_file, 0);

    group = "mapping";
    fails("madvise HWPOISON of memory", CALL(SYS_madvise, good, PAGE, 100));
    fails("madvise SOFT_OFFLINE of memory", CALL(SYS_madvise, good, PAGE, 101));
    fails("madvise HWPOISON of a file", CALL(SYS_madvise, file, PAGE, 100));
    fails("madvise HWPOISON, the high word set", CALL(SYS_madvise, good, PAGE, 1ull << 32 | 100));
}

static void mappings_keys(void)
{
    group = "mapping";
    for (int key = 0; key < 16; key++) {
        long result = CALL(SYS_pkey_free, key);

        if (result >= 0) {
            say(false, "pkey_free", "key %d was freed", key);
            return;
        }
    }
    say(true, "pkey_free of every key", "error");
    TRY(__asm__ volatile("wrpkru" ::"a"(0), "c"(0), "d"(0)));
    say(true, "wrpkru", "%s",
        caught ? sigabbrev_np(caught) : "of no use: see the loads that follow");
    FAULTS("load of the secret after wrpkru", *(volatile char *)given.target);
}

static void mappings_all(void)
{
    mappings_over("the secret", given.target, PAGE);
    mappings_over("the guard below", given.vault - PAGE, PAGE);
    mappings_over("the whole vault", given.vault, GIB);
    mappings_crossing();
    mappings_poison();
    mappings_keys();
}

#endif
