/* The steering program that also writes down when a frame arrived by the NIC's own clock. It must
 * be bound to the device: ix_steer_open_bound(). */
#define IX_STEER_STAMPS 2
#include "steer.bpf.c"
