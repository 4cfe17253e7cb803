# libdune: the shim's image, the library, dune-sandbox, the programs of tests/dune. Included by the
# Makefile. The image is linked alone; what it must not have (variables, relocations, undefined
# symbols) fails its link.
D := $(B)/dune
SHIM_C := $(wildcard libdune_shim/shim/*.c)
SHIM_S := $(wildcard libdune_shim/shim/*.S)
DUNE_LIB_C := $(wildcard libdune_shim/lib/*.c) libdune_shim/shim/pagetable.c \
	libdune_shim/shim/pagewalk.c
DUNE_LIB_S := $(wildcard libdune_shim/lib/*.S)
SANDBOX_C := $(wildcard libdune_shim/sandbox/*.c)
SANDBOX_S := $(wildcard libdune_shim/sandbox/*.S)
DUNE_TEST_C := $(wildcard tests/dune/c/*.c)
DUNE_BENCH_C := $(wildcard bench/dune/*.c)

DUNE_INC := -Ilibdune_shim -I$(D)/gen -Iixnet/dataplane
# As the core's, and: no vector registers (they are ring 3's), no tables of addresses.
SHIM_CFLAGS := $(WARN) $(OPT) $(FREESTANDING) $(PATHS) -fPIC -fvisibility=hidden -mgeneral-regs-only \
	-fno-jump-tables $(DUNE_INC) -D_GNU_SOURCE
DUNE_CFLAGS := $(WARN) $(OPT) $(PIC) $(PATHS) -fvisibility=default $(DUNE_INC) -D_GNU_SOURCE

SHIM_OBJ := $(SHIM_C:%.c=$(D)/shim/%.o) $(SHIM_S:%.S=$(D)/shim/%.S.o)
DUNE_LIB_OBJ := $(DUNE_LIB_C:%.c=$(D)/lib/%.o) $(DUNE_LIB_S:%.S=$(D)/lib/%.S.o)
SANDBOX_OBJ := $(SANDBOX_C:%.c=$(D)/lib/%.o) $(SANDBOX_S:%.S=$(D)/lib/%.S.o)
DUNE_TESTS := $(DUNE_TEST_C:tests/dune/c/%.c=$(B)/tests/dune/%)
DUNE_BENCHES := $(DUNE_BENCH_C:%.c=$(B)/%)
DUNE_SO := ixnet/libdune.so
DUNE_MODULE := ixnet/_dune.abi3.so

# A module for guest ring 0 (module/module.h): $(call dune_module,PATH,OBJECTS) makes PATH.bin, which
# dune_init() takes, PATH.elf with its symbols, and PATH.sym, a line for each function.
DUNE_MODULE_CFLAGS := $(WARN) $(OPT) $(PIC) $(FREESTANDING) $(PATHS) -fvisibility=hidden $(DUNE_INC)
define dune_module
$(1).elf: $(2) $(D)/lib/libdune_shim/module/head.S.o libdune_shim/module/module.ld
	$$(call say,LD  )
	$$(Q)ld -pie --no-dynamic-linker -z text -z noexecstack --no-undefined --no-warn-rwx-segments \
		-T libdune_shim/module/module.ld -o $$@ $$(filter %.o,$$^)
$(1).bin: $(1).elf
	$$(call say,BIN )
	$$(Q)objcopy -O binary -j .head -j .text -j .rodata -j .relro -j .rela.dyn $$< $$@
$(1).sym: $(1).elf
	$$(Q)nm -n --defined-only $$< >$$@
endef

TEST_MODULE := $(B)/tests/dune/small

dune: $(D)/libdune.a $(DUNE_SO) $(DUNE_MODULE) $(DUNE_TESTS) $(TEST_MODULE).bin $(TEST_MODULE).sym $(DUNE_BENCHES) $(B)/dune-sandbox \
	ixnet/dune-sandbox ixnet/dune_shim.sym

$(D)/gen/stamp: libdune_shim/syscalls.toml libdune_shim/gen_syscalls.py
	$(call say,GEN )
	@mkdir -p $(D)/gen
	$(Q)$(PYTHON) libdune_shim/gen_syscalls.py libdune_shim/syscalls.toml $(D)/gen && touch $@

# What the generator makes is part of the image.
$(D)/shim/gen.o: $(D)/gen/stamp Makefile libdune_shim/build.mk
	$(call say,CC  )
	$(Q)cat $$(ls $(D)/gen/*.c 2>/dev/null) /dev/null | $(CC) $(SHIM_CFLAGS) -x c -c - -o $@

$(D)/shim/%.o: %.c $(D)/gen/stamp Makefile libdune_shim/build.mk
	$(call say,CC  )
	$(Q)$(CC) $(SHIM_CFLAGS) $(DEPS) -c $< -o $@

$(D)/shim/%.S.o: %.S Makefile libdune_shim/build.mk
	$(call say,AS  )
	$(Q)$(CC) $(DUNE_INC) $(DEPS) -g -c $< -o $@

$(D)/sources.list: FORCE
	@mkdir -p $(@D)
	@echo '$(SHIM_OBJ) $(DUNE_LIB_OBJ) $(SANDBOX_OBJ)' | cmp -s - $@ || \
		echo '$(SHIM_OBJ) $(DUNE_LIB_OBJ) $(SANDBOX_OBJ)' >$@

$(D)/shim.elf: libdune_shim/shim/image.ld $(SHIM_OBJ) $(D)/shim/gen.o $(D)/sources.list
	$(call say,LD  )
	$(Q)ld -pie --no-dynamic-linker -z text -z noexecstack --no-undefined -T libdune_shim/shim/image.ld \
		-o $@ $(filter %.o,$^) $(DUNE_EXTRA)

$(D)/shim.bin: $(D)/shim.elf
	$(call say,BIN )
	$(Q)objcopy -O binary -j .image $< $@

# The shim's functions, for who reads a crash record.
ixnet/dune_shim.sym: $(D)/shim.elf
	$(Q)nm -n --defined-only $< >$@

$(D)/lib/%.o: %.c $(D)/gen/stamp Makefile libdune_shim/build.mk
	$(call say,CC  )
	$(Q)$(CC) $(DUNE_CFLAGS) $(DEPS) -c $< -o $@

$(D)/lib/libdune_shim/lib/image.S.o: $(D)/shim.bin
$(D)/lib/%.S.o: %.S Makefile libdune_shim/build.mk
	$(call say,AS  )
	$(Q)$(CC) $(DUNE_INC) $(DEPS) -g -DDUNE_SHIM_BIN='"$(D)/shim.bin"' -c $< -o $@

$(D)/libdune.a: $(DUNE_LIB_OBJ) $(D)/sources.list
	$(call say,AR  )
	$(Q)rm -f $@ && ar rcs $@ $(filter %.o,$^)

$(DUNE_SO): $(DUNE_LIB_OBJ) $(D)/sources.list
	$(call say,LD  )
	$(Q)echo '{ global: dune_*; local: *; };' >$(D)/libdune.map
	$(Q)$(CC) -shared -o $@ $(filter %.o,$^) -Wl,-soname=libdune.so -Wl,-Bsymbolic \
		-Wl,--version-script=$(D)/libdune.map -Wl,--no-undefined -lpthread

# What ixnet/dune.py calls.
$(B)/cffi/dune.stamp: libdune_shim/dune.h $(D)/libdune.a ixnet/_build_core.py Makefile
	$(call say,GEN )
	$(Q)$(GENERATE) --module ixnet._dune --out $(B)/cffi/_dune.c --public \
		--defined-in $(D)/libdune.a -- libdune_shim/dune.h && touch $@
$(B)/cffi/_dune.c: $(B)/cffi/dune.stamp
	@:

$(DUNE_MODULE): $(B)/cffi/_dune.c $(DUNE_SO)
	$(call say,LD  )
	$(Q)$(CC) $(MODULE_CFLAGS) -MF $(B)/cffi/_dune.d -shared -o $@ $< -Lixnet -ldune \
		-Wl,-rpath,'$$ORIGIN'

# Static, so that nothing of the untrusted program's world is needed to start it.
$(B)/dune-sandbox: $(SANDBOX_OBJ) $(D)/libdune.a $(D)/sources.list
	$(call say,LD  )
	$(Q)$(CC) -static-pie -o $@ $(filter %.o,$^) $(D)/libdune.a -lpthread

# As the package has it.
ixnet/dune-sandbox: $(B)/dune-sandbox
	$(Q)cp $< $@

$(B)/tests/dune/%: tests/dune/c/%.c $(D)/libdune.a Makefile libdune_shim/build.mk
	$(call say,PROG)
	$(Q)$(CC) $(filter-out -fPIC,$(DUNE_CFLAGS)) $(DEPS) -MF $@.d -o $@ $< $(D)/libdune.a -lpthread

# The module that the tests load.
TEST_MODULE_OBJ := $(patsubst %.c,$(D)/module/%.o,$(wildcard tests/dune/c/module/*.c))
$(D)/module/%.o: %.c Makefile libdune_shim/build.mk
	$(call say,CC  )
	$(Q)$(CC) $(DUNE_MODULE_CFLAGS) $(DEPS) -c $< -o $@
$(eval $(call dune_module,$(TEST_MODULE),$(TEST_MODULE_OBJ)))

$(DUNE_BENCHES): $(B)/%: %.c $(D)/libdune.a Makefile libdune_shim/build.mk
	$(call say,PROG)
	$(Q)$(CC) $(filter-out -fPIC,$(DUNE_CFLAGS)) $(DEPS) -MF $@.d -o $@ $< $(D)/libdune.a -lpthread
