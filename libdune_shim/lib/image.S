/* The shim's image, which dune_init() copies into the vault. build.mk says where it is. */
    .section .rodata, "a", @progbits
    .balign 16
    .globl dune_shim_image, dune_shim_image_end
    .hidden dune_shim_image, dune_shim_image_end
dune_shim_image:
    .incbin DUNE_SHIM_BIN
dune_shim_image_end:
    .section .note.GNU-stack, "", @progbits
