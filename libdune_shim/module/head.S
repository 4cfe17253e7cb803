/* The start of a module's image: struct dune_module_head. */
    .section .head, "a", @progbits
    .globl dune_module_head
    .hidden dune_module_head
dune_module_head:
    .ascii "dmodule1"
    .quad dune_module_end - dune_module_head
    .quad dune_module_text - dune_module_head
    .quad dune_module_text_end - dune_module_head
    .quad dune_module_main - dune_module_head
    .quad dune_module_relative - dune_module_head
    .quad dune_module_relative_end - dune_module_head
kick:
    .quad 0

    .text
    .globl dune_module_kick
dune_module_kick:
    jmp *kick(%rip)

    .section .note.GNU-stack, "", @progbits
