# ixnet. `make help` lists what there is to make. Every public target sets up what it
# needs first (.ci/setup.sh) and takes a lock, so that two of them may run at once.
MAKEFLAGS += --no-builtin-rules
SHELL := /bin/bash
.SUFFIXES:
.DELETE_ON_ERROR:

CC := gcc
CLANG := clang
PYTHON := .venv/bin/python
JOBS := $(shell nproc)
B := build
V ?=
Q := $(if $(V),,@)
# IX_PARTIAL=1: a file that doesn't compile, or a declared function that nobody defines, is
# left out with a message instead of ending the build. For work in progress only.
IX_PARTIAL ?=
SEEDS ?= 20000
FIRST ?= 1
SEED ?=
DEMO_ARGS ?=
PLACEMENT ?= inline
BENCH_ARGS ?=
LAB_ARGS ?=
PYTEST_ARGS ?=

LOCKED = mkdir -p $(B) && flock $(B)/.lock $(MAKE) --no-print-directory -j$(JOBS)

# ---- what the tree holds (globs: a new file needs no edit here) ----------------------

LAYERS := base wire mem link net tcp shard gate api
IN_CORE := $(foreach l,$(LAYERS),$(wildcard ixnet/dataplane/$(l)/*.c))
HOSTED_IN_CORE := $(filter %_hosted.c ixnet/dataplane/link/xsk_setup.c,$(IN_CORE))
CORE_SRC := $(filter-out $(HOSTED_IN_CORE),$(IN_CORE))
NATIVE_SRC := $(wildcard ixnet/native/*.c)
# Sockets over the batched API; packetdrill.c makes a shared object of its own of them.
POSIX_SRC := $(filter-out %/packetdrill.c,$(wildcard ixnet/posix/*.c))
PACKETDRILL_SRC := ixnet/posix/packetdrill.c
XDP_SRC := $(filter-out %.bpf.c,$(wildcard xdp/*.c))
HOSTED_SRC := $(HOSTED_IN_CORE) $(NATIVE_SRC) $(POSIX_SRC) $(XDP_SRC)
BPF_SRC := $(wildcard xdp/*.bpf.c)
# Programs for bcc, which compiles them where they run: the package carries their text.
TRACE_TEXT := $(patsubst xdp/trace/%,ixnet/xdp_objects/%,$(wildcard xdp/trace/*.[ch]))
# Each folder of apps/ is one application, which the package carries: ixnet/app_NAME.so.
APP_DIR_SRC := $(wildcard apps/*/*.c)
APP_DIR_HDR := $(wildcard apps/*/*.h)
APP_DIRS := $(sort $(patsubst apps/%/,%,$(dir $(APP_DIR_SRC))))
APP_SRC := $(wildcard apps/*.c) $(wildcard tests/dune/apps/*.c)
BENCH_SRC := $(wildcard bench/*.c)
LIMIT_SRC := $(filter-out %.bpf.c,$(wildcard bench/limit/*.c))
LIMIT_BPF := $(patsubst %.c,$(B)/%.o,$(wildcard bench/limit/*.bpf.c))
# ixnet bench's load generator: one engine, and a transport each for sockets and the dataplane.
LOAD_SRC := $(wildcard ixnet/bench/load/*.c)
LOAD_OBJ := $(LOAD_SRC:%.c=$(B)/hosted/%.o)
LOAD_PROGRAM := ixnet/bench/ixload
LOAD_APP := ixnet/bench/ixload.so
PING_OBJ := $(patsubst %.c,$(B)/hosted/%.o,$(wildcard ixnet/bench/ping/*.c))
PING_PROGRAM := ixnet/bench/ixping
PING_APP := ixnet/bench/ixping.so
BENCH_PARTS := $(LOAD_PROGRAM) $(LOAD_APP) $(PING_PROGRAM) $(PING_APP)
# Of the fuzz targets all but libFuzzer's side: their corpus is played without it.
TEST_NATIVE_SRC := $(wildcard tests/native/*.c) $(filter-out %/engine.c,$(wildcard tests/fuzz/*.c))

CORE_HDR := $(foreach l,$(LAYERS),$(wildcard ixnet/dataplane/$(l)/*.h))
NATIVE_HDR := $(wildcard ixnet/native/*.h)
# What ixnet._core declares to Python.
PUBLIC_HDR := $(wildcard ixnet/dataplane/api/*.h ixnet/dataplane/link/xsk_setup.h \
	ixnet/dataplane/gate/gate_hosted.h ixnet/dataplane/shard/farewell_hosted.h \
	xdp/loader.h xdp/express.h xdp/kernel_types.h) $(NATIVE_HDR)
# What tests/unit/_san_core declares: everything.
SAN_HDR := $(CORE_HDR) $(NATIVE_HDR) $(APP_DIR_HDR) $(wildcard tests/native/*.h) tests/fuzz/fuzz.h \
	xdp/loader.h xdp/express.h

# ---- flags ---------------------------------------------------------------------------

WARN := -std=gnu11 -Wall -Wextra -Werror
DEPS = -MMD -MP
OPT := -O2 -g -fno-omit-frame-pointer
# Objects name the tree's files relatively, wherever it lies.
PATHS := -ffile-prefix-map=$(CURDIR)/=
# The core calls no libc and may run where there is none (ring 0 of a guest): no stack
# protector (needs TLS), no red zone (an interrupt would overwrite it), no CET landing pads.
# -fno-tree-loop-distribute-patterns: or gcc makes base/memops.c's memcpy call memcpy.
FREESTANDING := -ffreestanding -fno-stack-protector -mno-red-zone -fcf-protection=none \
	-fno-common -fno-tree-loop-distribute-patterns -fno-asynchronous-unwind-tables
PIC := -fPIC -fno-semantic-interposition
# A message takes many small functions of many files: the core that is used is compiled as one
# program, with twice the limit for inlining that gcc has at -O3: a message takes 3 % fewer
# instructions, and the core 8 % more memory. `inline` before the definition of a function that
# other files call raises it for that one. Vectors where they are written, not for two or three
# fields that lie side by side: to put them together takes more than to store each.
LTO := -fno-tree-slp-vectorize -flto=$(JOBS) -fno-fat-lto-objects --param max-inline-insns-auto=60
CORE_CFLAGS := $(WARN) $(OPT) $(PIC) $(FREESTANDING) $(PATHS) -Iixnet/dataplane
HOSTED_CFLAGS := $(WARN) $(OPT) $(PIC) $(PATHS) -D_GNU_SOURCE -Iixnet/dataplane -Iixnet -Ixdp -I.
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all
SAN_OPT := -O1 -g -fno-omit-frame-pointer -DIX_SANITIZED=1
MULTIARCH := $(shell $(CC) -print-multiarch 2>/dev/null)
BPF_CFLAGS := -target bpf -mcpu=v3 -O2 -g -Wall -Wextra -Werror -I/usr/include/$(MULTIARCH) -Ixdp -I. \
	-fdebug-prefix-map=$(CURDIR)=.
LIBS := -lxdp -lbpf -lpthread

CORE_OBJ := $(CORE_SRC:%.c=$(B)/core/%.o)
# gcc itself calls memcpy and the like, and would find them gone from a program that didn't.
MEMOPS_OBJ := $(B)/core/ixnet/dataplane/base/memops.o
LTO_OBJ := $(patsubst %.c,$(B)/lto/%.o,$(filter-out %/memops.c,$(CORE_SRC)))
HOSTED_OBJ := $(HOSTED_SRC:%.c=$(B)/hosted/%.o)
SAN_CORE_OBJ := $(CORE_SRC:%.c=$(B)/san/core/%.o)
SAN_HOSTED_OBJ := $(patsubst %.c,$(B)/san/hosted/%.o,$(HOSTED_IN_CORE) $(NATIVE_SRC) $(APP_DIR_SRC) \
	$(XDP_SRC) $(TEST_NATIVE_SRC))
PACKETDRILL_OBJ := $(POSIX_SRC:%.c=%.o) $(PACKETDRILL_SRC:%.c=%.o)
PACKETDRILL := $(B)/ixnet-packetdrill.so
SAN_PACKETDRILL := $(B)/san/ixnet-packetdrill.so
BPF_OBJ := $(BPF_SRC:xdp/%.c=ixnet/xdp_objects/%.o)
APPS := $(patsubst %.c,$(B)/%.so,$(APP_SRC))
BENCHES := $(BENCH_SRC:%.c=$(B)/%)
LIMITS := $(LIMIT_SRC:%.c=$(B)/%)
MODULE := ixnet/_core.abi3.so
LIBRARY := ixnet/libixnet.so
APP_LIBRARIES := $(APP_DIRS:%=ixnet/app_%.so)
MEMCACHED_MODULE := ixnet/_memcached.abi3.so
SAN_MODULE := tests/unit/_san_core.abi3.so

include libdune_shim/build.mk
include tests/fuzz/fuzz.mk
include tests/sim/sim.mk

# The dataplane for guest ring 0: the core as it is, and what leads into it.
RING0_OBJ := $(patsubst %.c,$(B)/ring0/%.o,$(wildcard ixnet/ring0/*.c))
$(B)/ring0/%.o: %.c Makefile
	$(call say,CC  )
	$(Q)$(CC) $(CORE_CFLAGS) -fvisibility=hidden -Ilibdune_shim $(DEPS) -c $< -o $@
$(eval $(call dune_module,ixnet/ring0,$(RING0_OBJ) $(B)/core/ixcore.o))
# Two shards and a simulated wire there, for tests.
PAIR := $(B)/tests/dune/pair
PAIR_OBJ := $(B)/ring0/tests/dune/pair/module.o
$(eval $(call dune_module,$(PAIR),$(PAIR_OBJ) $(B)/core/ixcore.o))

# ---- public targets ------------------------------------------------------------------

.PHONY: memcached-soak memcached-clients help setup build build-san dune dune-build demo test tidy sim interop conformance lab lab-dune bench clean lib-locked all lib programs san FORCE
help:
	@echo 'make demo       set up, build, and run the demo: echo on the dataplane, checked and measured'
	@echo 'make test       set up, build, and run every test'
	@echo
	@echo 'Both need a Debian 12 machine and root, and nothing else: they install what is missing.'
	@echo 'DEMO_ARGS=..., PYTEST_ARGS=... are passed on. PLACEMENT=dune: the demo in a guest (needs a fit KVM).'
	@echo
	@echo 'make setup      only the set-up: Debian packages, .venv'
	@echo 'make build      core, BPF object, Python module, apps, bench programs'
	@echo 'make build-san  the test-only module with address and undefined-behaviour sanitizers'
	@echo 'make tidy       ruff, mypy, and the tests of the rules of style'
	@echo 'make sim        the simulation with 20,000 seeds (SEEDS=..., FIRST=...; SEED=n: that one, traced)'
	@echo 'make fuzz       libFuzzer on packets and on calls (SECONDS=60); installs its runtime'
	@echo 'make conformance  packet scripts and exchanges with Linux beside it, in the long form'
	@echo 'make interop    100 MiB each way over every bad wire, IPv4 and IPv6 (an hour)'
	@echo 'make memcached-soak  memaslap with verification over a bad wire, ten minutes'
	@echo 'make memcached-clients  the tests of pymemcache and aiomcache, with Debian'"'"'s memcached beside ours; fetches them'
	@echo 'make lab        the tests on real NIC drivers, in a virtual machine (LAB_ARGS=... for pytest)'
	@echo 'make lab-dune   libdune in that machine, with all of the CPython tests (half an hour)'
	@echo 'make bench      the benchmark tables (BENCH_ARGS=...)'
	@echo 'make clean      remove what build made (rm -r .venv removes what setup made)'

setup:
	@bash .ci/setup.sh

build: setup
	@$(LOCKED) all

# setup.py calls this, with the Python that it runs in.
lib-locked:
	@$(LOCKED) lib

dune-build: setup
	@$(LOCKED) dune

build-san: setup
	@$(LOCKED) san

demo: build
	@$(PYTHON) bench/demo.py --placement $(PLACEMENT) $(DEMO_ARGS)

bench: build
	@$(PYTHON) -m bench $(BENCH_ARGS)

# One pytest for everything. The sanitizers' runtime must be loaded before Python, and
# PYTHONMALLOC makes buffers of ffi.new() visible to it. tests/conftest.py takes these out of
# the environment again so that child processes run plain.
TEST_SECONDS := 14400
PYTEST = timeout --foreground -k 30 $(TEST_SECONDS) env LD_PRELOAD=$$(realpath $$($(CC) -print-file-name=libasan.so)) PYTHONMALLOC=malloc \
	ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:quarantine_size_mb=64:log_path=$(B)/sanitizer \
	UBSAN_OPTIONS=print_stacktrace=1:abort_on_error=1:log_path=$(B)/sanitizer \
	$(PYTHON) -m pytest $(PYTEST_ARGS)
# A sanitizer report ends pytest at once, with the report in a file: show it.
SHOW_REPORTS = status=$$?; cat $(B)/sanitizer.* 2>/dev/null; exit $$status

test: build build-san
	@rm -f $(B)/sanitizer.*
	@$(PYTEST) || { $(SHOW_REPORTS); }

# One seed is played with the sanitizers, and everything that it does goes to stderr.
sim: TEST_SECONDS := 0
sim: build build-san
ifneq ($(SEED),)
	@ASAN_OPTIONS=detect_leaks=0 $(SAN_SIM) -t $(SEED) $(SEED)
else
	@rm -f $(B)/sanitizer.*
	@IX_SIM_SEEDS=$(SEEDS) IX_SIM_FIRST=$(FIRST) $(PYTEST) --timeout=0 -s tests/sim || { $(SHOW_REPORTS); }
endif

conformance: TEST_SECONDS := 0
conformance: build build-san
	@rm -f $(B)/sanitizer.*
	@IX_CONFORMANCE=long $(PYTEST) -v tests/conformance || { $(SHOW_REPORTS); }

# Emulated: no KVM needed, nothing installed; what it fetches is kept in ~/.cache/ixnet-lab.
lab: build
	@$(PYTHON) tests/lab/lab.py setup --tracing
	@$(PYTHON) tests/lab/lab.py run --tracing --timeout 3600 --nic igb --nic virtio:2 -- $(PYTHON) -m pytest -s -v tests/lab $(LAB_ARGS)

# Also the CPython modules that take minutes each there.
lab-dune: build
	@IX_CPYTHON=all IX_DUNE_SECONDS=7200 $(PYTHON) -m pytest -v tests/lab/test_dune.py $(LAB_ARGS)

interop: build
	@IX_INTEROP=long $(PYTHON) -m pytest -v -s tests/interop/test_impaired.py

memcached-soak: build
	@IX_MEMCACHED_SOAK=600 $(PYTHON) -m pytest -v -s tests/memcached/test_soak.py

memcached-clients: build
	@IX_MEMCACHED_CLIENTS=1 $(PYTHON) -m pytest -v -s -rs tests/memcached/test_clients.py

tidy: build
	@status=0; set -x; $(PYTHON) -m ruff check . || status=1; \
	$(PYTHON) -m ruff format --check . || status=1; \
	$(PYTHON) -m mypy --strict -p ixnet || status=1; \
	$(PYTHON) -m pytest tests/tidy || status=1; \
	{ set +x; } 2>/dev/null; exit $$status

clean:
	rm -rf $(B) $(BENCH_PARTS) ixnet/xdp_objects ixnet/dune-sandbox ixnet/ring0.* ixnet/*.sym ixnet/*.so \
		tests/unit/_san_core*.so

# ---- building (run under the lock by the targets above) ------------------------------

all: lib programs dune
# What the installed package holds: setup.py makes this.
lib: $(MODULE) $(BENCH_PARTS) $(APP_LIBRARIES) $(MEMCACHED_MODULE) $(BPF_OBJ) $(TRACE_TEXT) $(DUNE_MODULE) ixnet/dune-sandbox ixnet/ring0.bin ixnet/ring0.sym ixnet/dune_shim.sym
programs: $(APPS) $(BENCHES) $(LIMITS) $(LIMIT_BPF) $(PACKETDRILL) $(PAIR).bin $(SIM)
san: $(SAN_MODULE) $(SAN_PACKETDRILL) $(SAN_SIM)

# With IX_PARTIAL a failure leaves an empty object that is older than anything, so that the next
# build tries again.
say = @echo "  $(1) $@"; mkdir -p $(@D)
orskip = $(if $(IX_PARTIAL),|| { echo "  *** LEFT OUT: $@ (IX_PARTIAL)"; $(1); })
# ... and calls of what nobody defines yet lead to a trap, or the whole module would not load.
stubs = { comm -23 <(nm -u -f posix $(1) | grep -o '^ix_\w*' | sort -u) \
	<(nm --defined-only -f posix $(1) | grep -o '^ix_\w*' | sort -u) | \
	sed 's/.*/void &(void) { __builtin_trap(); }/' | $(CC) -fPIC -x c -c - -o $(2); }
EMPTY_OBJECT = echo | $(CC) -x c -c - -o $@ && touch -d @1 $@

$(B)/core/%.o: %.c Makefile
	$(call say,CC  )
	$(Q)$(CC) $(CORE_CFLAGS) $(DEPS) -c $< -o $@ $(call orskip,$(EMPTY_OBJECT))

$(B)/lto/%.o: %.c Makefile
	$(call say,CC  )
	$(Q)$(CC) $(CORE_CFLAGS) $(LTO) $(DEPS) -c $< -o $@ $(call orskip,$(EMPTY_OBJECT))

$(B)/hosted/%.o: %.c Makefile
	$(call say,CC  )
	$(Q)$(CC) $(HOSTED_CFLAGS) $(DEPS) -c $< -o $@ $(call orskip,$(EMPTY_OBJECT))

$(B)/san/core/%.o: %.c Makefile
	$(call say,SAN )
	$(Q)$(CC) $(CORE_CFLAGS) $(SAN_OPT) $(SANITIZE) $(DEPS) -c $< -o $@ $(call orskip,$(EMPTY_OBJECT))

$(B)/san/hosted/%.o: %.c Makefile
	$(call say,SAN )
	$(Q)$(CC) $(HOSTED_CFLAGS) $(SAN_OPT) $(SANITIZE) $(DEPS) -c $< -o $@ $(call orskip,$(EMPTY_OBJECT))

# Changes when a source comes or goes: what is linked from all of them must then be linked anew.
$(B)/sources.list: FORCE
	@mkdir -p $(@D)
	@echo '$(CORE_SRC) $(HOSTED_SRC) $(APP_DIR_SRC) $(TEST_NATIVE_SRC)' | cmp -s - $@ || \
		echo '$(CORE_SRC) $(HOSTED_SRC) $(APP_DIR_SRC) $(TEST_NATIVE_SRC)' >$@
FORCE:

# The whole core as one object. Its own memcpy and the like are hidden, and become local here:
# they must not take the place of libc's in the hosted code it is linked with.
$(B)/core/ixcore.o: $(LTO_OBJ) $(MEMOPS_OBJ) $(B)/sources.list
	$(call say,LTO )
	$(Q)$(CC) $(CORE_CFLAGS) $(LTO) -r -flinker-output=nolto-rel -nostdlib -o $@ $(filter %.o,$^) && \
		objcopy --localize-hidden $@

$(B)/libixnet.a: $(B)/core/ixcore.o $(HOSTED_OBJ) $(B)/sources.list
	$(call say,AR  )
	$(Q)rm -f $@ && ar rcs $@ $(filter %.o,$^)

# One shared library for the Python module and for native apps, so that an app that the
# worker loads calls the same code. -Bsymbolic: calls inside it are direct.
$(LIBRARY): $(B)/core/ixcore.o $(HOSTED_OBJ) $(B)/sources.list
	$(call say,LD  )
	$(Q)echo '{ global: ix_*; local: *; };' >$(B)/libixnet.map
	$(Q)$(if $(IX_PARTIAL),$(call stubs,$(filter %.o,$^),$(B)/stubs.o))
	$(Q)$(CC) -shared -o $@ $(filter %.o,$^) $(if $(IX_PARTIAL),$(B)/stubs.o) -Wl,-soname=libixnet.so -Wl,-Bsymbolic \
		-Wl,--version-script=$(B)/libixnet.map -Wl,--no-undefined $(LIBS)

# packetdrill loads it (--so_filename), and so do the tests of the scripts, sanitized.
$(PACKETDRILL): $(B)/core/ixcore.o $(addprefix $(B)/hosted/,$(PACKETDRILL_OBJ)) $(B)/sources.list
	$(call say,LD  )
	$(Q)$(CC) -shared -o $@ $(filter %.o,$^) -Wl,-Bsymbolic -Wl,--no-undefined -lpthread

$(SAN_PACKETDRILL): $(SAN_CORE_OBJ) $(addprefix $(B)/san/hosted/,$(PACKETDRILL_OBJ)) $(B)/sources.list
	$(call say,LD  )
	$(Q)$(CC) -shared -o $@ $(filter %.o,$^) $(SANITIZE) -Wl,-Bsymbolic -lpthread

$(BPF_OBJ): ixnet/xdp_objects/%.o: xdp/%.c Makefile
	$(call say,BPF )
	@mkdir -p $(B)/bpf
	$(Q)$(CLANG) $(BPF_CFLAGS) $(DEPS) -MF $(B)/bpf/$*.d -c $< -o $@ $(call orskip,rm -f $@)

$(LIMIT_BPF): $(B)/%.o: %.c Makefile
	$(call say,BPF )
	$(Q)$(CLANG) $(BPF_CFLAGS) $(DEPS) -c $< -o $@ $(call orskip,rm -f $@)

$(TRACE_TEXT): ixnet/xdp_objects/%: xdp/trace/%
	$(call say,COPY)
	$(Q)cp $< $@

# The modules' C is generated anew whenever a header or a defined symbol may have changed, but
# keeps its date when that gave the same text.
PYTHON_INCLUDE = $$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')
MODULE_CFLAGS = $(filter-out -W%,$(HOSTED_CFLAGS)) -Wno-address-of-packed-member -I$(PYTHON_INCLUDE) $(DEPS)
BUILDER := ixnet/_build_core.py
GENERATE = $(PYTHON) $(BUILDER) $(if $(IX_PARTIAL),--partial)

GENERATE_SAN = $(GENERATE) --module tests.unit._san_core --out $(B)/cffi/_san_core.c \
	$(addprefix --defined-in ,$(SAN_CORE_OBJ) $(SAN_HOSTED_OBJ)) -- $(1)

$(B)/cffi/core.stamp: $(PUBLIC_HDR) $(B)/libixnet.a $(BUILDER) Makefile
	$(call say,GEN )
	$(Q)$(GENERATE) --module ixnet._core --out $(B)/cffi/_core.c --public \
		--defined-in $(B)/libixnet.a -- $(PUBLIC_HDR) && touch $@
$(B)/cffi/_core.c: $(B)/cffi/core.stamp
	@:

$(MODULE): $(B)/cffi/_core.c $(LIBRARY)
	$(call say,LD  )
	$(Q)$(CC) $(MODULE_CFLAGS) -MF $(B)/cffi/_core.d -shared -o $@ $< \
		-Lixnet -lixnet -Wl,-rpath,'$$ORIGIN'

$(B)/cffi/san.stamp: $(B)/sources.list $(SAN_HDR) $(SAN_CORE_OBJ) $(SAN_HOSTED_OBJ) $(BUILDER) Makefile
	$(call say,GEN )
	$(Q)$(call GENERATE_SAN,$(SAN_HDR)) $(if $(IX_PARTIAL),|| { \
		echo '  *** LEFT OUT: the headers of ixnet/native (IX_PARTIAL)'; \
		$(call GENERATE_SAN,$(filter-out $(NATIVE_HDR),$(SAN_HDR))); })
	@touch $@
$(B)/cffi/_san_core.c: $(B)/cffi/san.stamp
	@:

$(SAN_MODULE): $(B)/cffi/_san_core.c $(SAN_CORE_OBJ) $(SAN_HOSTED_OBJ) $(B)/sources.list
	$(call say,LD  )
	$(Q)$(if $(IX_PARTIAL),$(call stubs,$(filter %.o,$^),$(B)/san/stubs.o))
	$(Q)$(CC) $(MODULE_CFLAGS) $(SAN_OPT) $(SANITIZE) -MF $(B)/cffi/_san_core.d \
		-shared -o $@ $(filter %.c %.o,$^) $(if $(IX_PARTIAL),$(B)/san/stubs.o) -Wl,-Bsymbolic $(LIBS)

# Native apps are loaded by a worker that has libixnet.so already.
$(APPS): $(B)/%.so: %.c $(LIBRARY) Makefile
	$(call say,APP )
	$(Q)$(CC) $(HOSTED_CFLAGS) $(DEPS) -MF $(B)/$*.d -shared -o $@ $< -Lixnet -lixnet \
		-Wl,-rpath,'$$ORIGIN/../../ixnet' $(call orskip,rm -f $@)

$(LOAD_OBJ): HOSTED_CFLAGS += $(LTO)
$(LOAD_PROGRAM): $(filter-out %/dataplane.o,$(LOAD_OBJ))
$(LOAD_APP): $(filter-out %/kernel.o,$(LOAD_OBJ))
$(PING_PROGRAM): $(filter-out %/plane.o,$(PING_OBJ))
$(PING_APP): $(filter-out %/sockets.o,$(PING_OBJ))

$(LOAD_PROGRAM) $(PING_PROGRAM): Makefile
	$(call say,PROG)
	$(Q)$(CC) $(HOSTED_CFLAGS) $(LTO) -o $@ $(filter %.o,$^) -lm

$(LOAD_APP) $(PING_APP): $(LIBRARY) Makefile
	$(call say,APP )
	$(Q)$(CC) $(HOSTED_CFLAGS) $(LTO) -shared -o $@ $(filter %.o,$^) -Wl,-Bsymbolic -lm -Lixnet -lixnet -Wl,-rpath,'$$ORIGIN/..'

define app_library
ixnet/app_$(1).so: $(patsubst %.c,$(B)/hosted/%.o,$(wildcard apps/$(1)/*.c)) $(LIBRARY) $(B)/sources.list
	$$(call say,APP )
	$$(Q)$(CC) -shared -o $$@ $$(filter %.o,$$^) -Lixnet -lixnet -Wl,-soname=app_$(1).so -Wl,-Bsymbolic \
		-Wl,--no-undefined -Wl,-rpath,'$$$$ORIGIN'
endef
$(foreach d,$(APP_DIRS),$(eval $(call app_library,$(d))))

# What ixnet/memcached.py calls.
MEMCACHED_OBJ := $(patsubst %.c,$(B)/hosted/%.o,$(wildcard apps/memcached/*.c))
$(B)/cffi/memcached.stamp: apps/memcached/control.h $(MEMCACHED_OBJ) $(BUILDER) Makefile
	$(call say,GEN )
	$(Q)$(GENERATE) --module ixnet._memcached --out $(B)/cffi/_memcached.c --public \
		$(addprefix --defined-in ,$(MEMCACHED_OBJ)) -- apps/memcached/control.h && touch $@
$(B)/cffi/_memcached.c: $(B)/cffi/memcached.stamp
	@:

$(MEMCACHED_MODULE): $(B)/cffi/_memcached.c ixnet/app_memcached.so
	$(call say,LD  )
	$(Q)$(CC) $(MODULE_CFLAGS) -MF $(B)/cffi/_memcached.d -shared -o $@ $< \
		-Lixnet -l:app_memcached.so -Wl,-rpath,'$$ORIGIN'

# Programs carry the whole core in themselves.
$(BENCHES) $(LIMITS): $(B)/%: %.c $(B)/libixnet.a Makefile
	$(call say,PROG)
	$(Q)$(CC) $(filter-out -fPIC,$(HOSTED_CFLAGS)) $(DEPS) -MF $@.d -o $@ $< $(B)/libixnet.a $(LIBS) \
		$(call orskip,rm -f $@)

-include $(shell find $(B) -name '*.d' 2>/dev/null)
