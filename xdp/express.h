/* Frames sent without skbs, in copy mode on a veth; express_bpf.h has how. One bpf() call a burst,
 * in the process that runs the link.
 */
#ifndef IX_XDP_EXPRESS_H
#define IX_XDP_EXPRESS_H

#ifndef IX_CDEF
#include <stdint.h>
#endif

struct ix_express;
struct ix_steer;
struct ix_xsk_socket;

/* Prepares to send frames through interface ifindex, to which `steer` (of steer_express.bpf.o) is
 * attached in native mode. What is opened outlives `steer`, and is shared with forked children.
 * -ENOENT: another program. */
int ix_express_open(const struct ix_steer *steer, uint32_t ifindex, struct ix_express **out);

/* After every socket that uses it. NULL is fine. */
void ix_express_close(struct ix_express *express);

/* What whoever runs a link that uses it needs open. */
int ix_express_fd(const struct ix_express *express);

/* Frames that the program could not make, ever: lost, as on a wire. */
uint64_t ix_express_refused(const struct ix_express *express);

/* A socket's bursts of from_frames frames and more go this way from now on; 0: none. The socket is
 * in copy mode and the only one that uses `express`. The first time before anybody runs its link,
 * later from any process that has its memory. */
void ix_express_use(struct ix_express *express, struct ix_xsk_socket *socket, uint32_t from_frames);

#ifndef IX_CDEF
struct ix_desc;

/* ix_express_open() for a program of another object. map_fd, out_fd: express_bpf.h's maps `express`
 * and `express_out`. All descriptors stay the caller's. */
int ix_express_open_program(int prog_fd, int map_fd, int out_fd, uint32_t ifindex,
                            struct ix_express **out);

/* Sends frames of `umem`, at most IX_STEER_EXPRESS_FRAMES and
 * those before one that is too long. */
int ix_express_send(struct ix_express *express, const uint8_t *umem, const struct ix_desc *descs,
                    uint32_t n);
#endif

#endif
