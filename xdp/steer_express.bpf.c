/* The steering program that also sends (express_bpf.h), which needs CAP_PERFMON. */
#define IX_STEER_EXPRESS 1
#include "steer.bpf.c"
