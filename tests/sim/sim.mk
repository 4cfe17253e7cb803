# The simulation as a program. Included by the Makefile.
#
# Twice: with the core as it is built for use (`make sim`), and with the sanitizers (`make test`).

SIM_SRC := $(wildcard tests/native/sim_*.c) tests/sim/ixsim.c
SIM := $(B)/ixsim
SAN_SIM := $(B)/san/ixsim

$(SIM): $(B)/core/ixcore.o $(SIM_SRC:%.c=$(B)/hosted/%.o) $(B)/sources.list
	$(call say,PROG)
	$(Q)$(CC) -o $@ $(filter %.o,$^)

$(SAN_SIM): $(SAN_CORE_OBJ) $(SIM_SRC:%.c=$(B)/san/hosted/%.o) $(B)/sources.list
	$(call say,PROG)
	$(Q)$(CC) $(SANITIZE) -o $@ $(filter %.o,$^)

# Faults that the simulation must find, each a line of the core changed: name, file, sed.
SIM_CANARIES := old:tcp/recv.c csum:wire/tcp.c rtx:tcp/timer.c reuse:mem/frame.c armed:mem/wheel.c \
	hole:tcp/pmtu.c
# what was delivered already is cut off a segment's numbers, not off its bytes
SIM_SED_old := s/^        \*payload += cut;//
# whatever the checksum says
SIM_SED_csum := s/return IX_PARSE_CSUM;/{}/
# an ACK of a part disarms the timer of the rest
SIM_SED_rtx := s/^        ix_tcp_arm_rtx(tcp, tcb);/        ix_wheel_cancel(tcp->wheel, ix_tcb_timer(tcp, tcb, IX_TIMER_RTX));/
# a frame that is given back is free, though the link still sends it
SIM_SED_reuse := s/^    if (m->tx_refs > 0)$$/    if (false)/
# timers that are disarmed still count
SIM_SED_armed := s/^    w->armed--;//
# black holes swallow on
SIM_SED_hole := s/^    if (smaller >= bytes)/    if (true)/

SIM_CANARY_BIN := $(foreach c,$(SIM_CANARIES),$(B)/sim/$(word 1,$(subst :, ,$(c))))

define sim_canary
$(B)/sim/$(1): $$(CORE_OBJ) $$(SIM_SRC:%.c=$(B)/hosted/%.o) tests/sim/sim.mk
	$$(call say,SIM )
	$$(Q)sed '$$(SIM_SED_$(1))' ixnet/dataplane/$(2) >$(B)/sim/$(1).c
	$$(Q)! cmp -s ixnet/dataplane/$(2) $(B)/sim/$(1).c || \
		{ echo 'canary $(1): its line is not in $(2) any more'; exit 1; }
	$$(Q)$$(CC) $$(CORE_CFLAGS) -Wno-unused -c $(B)/sim/$(1).c -o $(B)/sim/$(1).o
	$$(Q)ld -r -o $(B)/sim/$(1)-core.o $$(filter-out %/ixnet/dataplane/$(2:.c=.o),$$(CORE_OBJ)) \
		$(B)/sim/$(1).o && objcopy --localize-hidden $(B)/sim/$(1)-core.o
	$$(Q)$$(CC) -o $$@ $(B)/sim/$(1)-core.o $$(SIM_SRC:%.c=$(B)/hosted/%.o)
endef
$(foreach c,$(SIM_CANARIES),$(eval $(call sim_canary,$(word 1,$(subst :, ,$(c))),$(word 2,$(subst :, ,$(c))))))

.PHONY: sim-canaries sim-canaries-locked
sim-canaries: $(SIM_CANARY_BIN)
sim-canaries-locked:
	@$(LOCKED) sim-canaries
