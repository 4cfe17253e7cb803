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
