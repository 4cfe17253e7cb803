# The fuzz targets. Included by the Makefile.
#
# The core's sources once more, compiled by clang for libFuzzer; a canary is such a build in which
# one line of one file is changed, and the fuzzer must find out.

FUZZ_TARGETS := packets calls
FUZZ_CORE := $(filter-out ixnet/dataplane/link/sim_link.c,$(CORE_SRC))
# trace-cmp would take a fifth of the time, and engine.c knows what is compared.
FUZZ_CFLAGS := -std=gnu11 -Wall -Wextra -Werror -O2 -g -fno-omit-frame-pointer -DIX_SANITIZED=1 \
	-D_GNU_SOURCE -Iixnet/dataplane -I. $(PATHS) -fno-sanitize-recover=all \
	-fsanitize=address,undefined -fsanitize-coverage=inline-8bit-counters,pc-table \
	-fsanitize-coverage-ignorelist=tests/fuzz/uncovered.txt \
	-fsanitize-ignorelist=tests/fuzz/unsanitized.txt
FUZZ_OBJ := $(FUZZ_CORE:%.c=$(B)/fuzz/%.o) $(B)/fuzz/tests/fuzz/world.o $(B)/fuzz/tests/fuzz/snapshots.o

$(B)/fuzz/%.o: %.c Makefile tests/fuzz/fuzz.mk $(wildcard tests/fuzz/*.txt)
	$(call say,FUZZ)
	$(Q)$(CLANG) $(FUZZ_CFLAGS) $(DEPS) -c $< -o $@

fuzz_link = $(CLANG) $(FUZZ_CFLAGS) -fsanitize=fuzzer -o $@ tests/fuzz/engine.c \
	-DFUZZ_TARGET=ix_fuzz_$(1) $(if $(filter calls,$(1)),-DFUZZ_CALLS) $(2)

$(FUZZ_TARGETS:%=$(B)/fuzz/%): $(B)/fuzz/%: $(FUZZ_OBJ) $(B)/fuzz/tests/fuzz/%.o tests/fuzz/engine.c
	$(call say,FUZZ)
	$(Q)$(call fuzz_link,$*,$(filter %.o,$^))

# name, target, file of the core, what is changed there (sed)
FUZZ_CANARIES := ack:packets:tcp/input.c option:packets:wire/tcp.c frame:calls:mem/frame.c
# RFC 5961 5.2: an ACK of what was never sent counts
FUZZ_SED_ack := s/if (ix_seq_gt(hdr->ack, tcb->snd_max) ||/if (false ||/
# an option of length 0 leads nowhere
FUZZ_SED_option := s/if (length < 2 || length > bytes - at)/if (length > bytes - at)/
# RECV_DONE may give back more than is out
FUZZ_SED_frame := s/ || bytes > m->lent_bytes//

FUZZ_CANARY_BIN := $(foreach c,$(FUZZ_CANARIES),$(B)/fuzz/canary-$(word 1,$(subst :, ,$(c))))

define fuzz_canary
$(B)/fuzz/canary-$(1): $$(FUZZ_OBJ) $(B)/fuzz/tests/fuzz/$(2).o tests/fuzz/engine.c
	$$(call say,FUZZ)
	$$(Q)sed '$$(FUZZ_SED_$(1))' ixnet/dataplane/$(3) >$(B)/fuzz/canary-$(1).c
	$$(Q)! cmp -s ixnet/dataplane/$(3) $(B)/fuzz/canary-$(1).c || \
		{ echo 'canary $(1): its line is not in $(3) any more'; exit 1; }
	$$(Q)$$(CLANG) $$(FUZZ_CFLAGS) -Wno-unused -c $(B)/fuzz/canary-$(1).c -o $(B)/fuzz/canary-$(1).o
	$$(Q)$$(call fuzz_link,$(2),$$(filter-out %/$(3:.c=.o),$$(filter %.o,$$^)) $(B)/fuzz/canary-$(1).o)
endef
$(foreach c,$(FUZZ_CANARIES),$(eval $(call fuzz_canary,$(word 1,$(subst :, ,$(c))),$(word 2,$(subst :, ,$(c))),$(word 3,$(subst :, ,$(c))))))

.PHONY: fuzz fuzz-locked fuzz-build
SECONDS := 60
fuzz: build
	@bash .ci/fuzz.sh
	@$(LOCKED) fuzz-build
	@$(PYTHON) -m tests.fuzz.run --seconds $(SECONDS)

fuzz-locked:
	@$(LOCKED) fuzz-build

fuzz-build: $(FUZZ_TARGETS:%=$(B)/fuzz/%) $(FUZZ_CANARY_BIN)
