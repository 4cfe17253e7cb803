/* What libdune needs to know of the image: offsets from its start, in struct dune_image's order. */
    .section .text.table, "a", @progbits
    .globl dune_image_table
    .hidden dune_image_table
dune_image_table:
    .quad dune_stub_start - dune_image_table
    .quad dune_stub_vectors - dune_image_table
    .quad dune_stub_syscall - dune_image_table
    .quad dune_stub_become - dune_image_table
    .quad dune_ring0_trap - dune_image_table
    .quad dune_ring0_syscall - dune_image_table
    .quad dune_host_signal_entry - dune_image_table
    .quad dune_host_signal_entry_keyed - dune_image_table
    .quad dune_host_restorer - dune_image_table
    .quad dune_vault_open - dune_image_table
    .quad dune_thread_enter - dune_image_table
    .quad dune_signals_init - dune_image_table
    .quad dune_ring0_call - dune_image_table
    .quad dune_count_exits - dune_image_table
    .quad dune_ring0_module - dune_image_table
    .quad dune_ring0_kick - dune_image_table

    .section .note.GNU-stack, "", @progbits
