/* Loads the steering program, attaches it, and changes what it steers.
 *
 * Hosted C over libbpf, called from the control plane only. Functions return 0
 * (or a descriptor) or -errno; where they take `err`, it gets a sentence that
 * says what was tried and what libbpf and the verifier had to say ("" on success).
 *
 * A struct ix_steer is one thread's at a time. The program is attached through a
 * bpf_link, which the kernel removes when its last descriptor is closed, so the
 * host gets its network back however the process ends. A forked child holds that
 * descriptor too: it must call ix_steer_forget().
 */
#ifndef IX_XDP_LOADER_H
#define IX_XDP_LOADER_H

#ifndef IX_CDEF
#include <stddef.h>
#include <stdint.h>
#endif

struct ix_steer;

/* Ways to attach; also what ix_steer_query() reports. */
enum ix_steer_mode {
    IX_STEER_MODE_NONE = 0,
    IX_STEER_MODE_NATIVE = 1,  /* in the driver, before an skb exists */
    IX_STEER_MODE_GENERIC = 2, /* in the network stack; works with every driver */
    IX_STEER_MODE_OFFLOAD = 3  /* in the NIC (reported only) */
};

/* What holds an interface's XDP hook. */
struct ix_steer_attached {
    uint32_t mode;    /* enum ix_steer_mode */
    uint32_t prog_id; /* 0: nothing attached */
    char name[16];    /* the program's name, "" if the kernel doesn't tell */
};

/* Loads the program from the object file at `path` into the kernel, unattached.
 * -ENOENT, -EPERM, or what the verifier returned. */
int ix_steer_open(const char *path, struct ix_steer **out, char *err, size_t err_bytes);

/* The same for a program that calls functions of the interface's driver (steer_hwstamp.bpf.c): it
 * is bound to that device, can be attached to no other one, and in native mode only. -EOPNOTSUPP:
 * the driver has no XDP metadata, or the kernel is older than 6.3. */
int ix_steer_open_bound(const char *path, uint32_t ifindex, struct ix_steer **out, char *err,
                        size_t err_bytes);

/* Detaches and unloads. NULL is fine. */
void ix_steer_close(struct ix_steer *steer);

/* In a forked child: closes this process's descriptors of the program, link and maps,
 * which stay as they are for the parent. `steer` is freed. */
void ix_steer_forget(struct ix_steer *steer);

/* Attaches to an interface in one of the two modes. -EBUSY: it has an XDP program
 * already, which is left alone; `err` names it. -EOPNOTSUPP: the driver can't.
 * -EALREADY: this steer is attached. */
int ix_steer_attach(struct ix_steer *steer, uint32_t ifindex, uint32_t mode, char *err,
                    size_t err_bytes);
int ix_steer_detach(struct ix_steer *steer);

/* What is attached to an interface now, by anybody. */
int ix_steer_query(uint32_t ifindex, struct ix_steer_attached *out);

/* The steering program's own id. */
int ix_steer_prog_id(const struct ix_steer *steer, uint32_t *id);

/* Descriptor of a map by name (steer.bpf.c), -ENOENT. Stays the steer's. */
int ix_steer_map_fd(const struct ix_steer *steer, const char *name);

/* The program's descriptor. Stays the steer's. */
int ix_steer_prog_fd(const struct ix_steer *steer);

/* Enters an AF_XDP socket for a queue; fd < 0 takes it out (-ENOENT if none was in). */
int ix_steer_set_socket(struct ix_steer *steer, uint32_t queue, int fd);

/* Endpoints. family is 4 or 6, proto 6 (TCP) or 17 (UDP), port in host byte order, addr
 * 16 bytes with IPv4 in the first 4 and 0 after; all 0 means every local address.
 * Adding twice is -EEXIST, deleting what is not there -ENOENT, a full table -E2BIG. */
int ix_steer_add_claim(struct ix_steer *steer, uint8_t family, uint8_t proto, const uint8_t *addr,
                       uint16_t port);
int ix_steer_del_claim(struct ix_steer *steer, uint8_t family, uint8_t proto, const uint8_t *addr,
                       uint16_t port);

/* Local ports lo..hi, both included, of outgoing flows. At most 16 ranges (-ENOSPC). */
int ix_steer_add_range(struct ix_steer *steer, uint8_t family, uint8_t proto, const uint8_t *addr,
                       uint16_t lo, uint16_t hi);
int ix_steer_del_range(struct ix_steer *steer, uint8_t family, uint8_t proto, const uint8_t *addr,
                       uint16_t lo, uint16_t hi);

/* The host's addresses, which claims of every local address cover. */
int ix_steer_add_local_addr(struct ix_steer *steer, uint8_t family, const uint8_t *addr);
int ix_steer_del_local_addr(struct ix_steer *steer, uint8_t family, const uint8_t *addr);

/* Addresses that only the dataplane has: everything sent to them is redirected, ARP and
 * neighbour discovery of them too. */
int ix_steer_add_own_addr(struct ix_steer *steer, uint8_t family, const uint8_t *addr);
int ix_steer_del_own_addr(struct ix_steer *steer, uint8_t family, const uint8_t *addr);

/* Frames by verdict, summed over the CPUs: fills at most n values and returns how
 * many verdicts there are. */
int ix_steer_verdicts(const struct ix_steer *steer, uint64_t *frames, uint32_t n);
/* A verdict's name and meaning; NULL past the end. */
const char *ix_steer_verdict_name(uint32_t verdict);
const char *ix_steer_verdict_text(uint32_t verdict);

/* Runs the program `times` times over `frame` as if it came in on queue 0 of the loopback
 * interface (BPF_PROG_TEST_RUN). *ns: of one run, with what the kernel does around it. Returns the
 * XDP action (2 pass, 4 redirect) or -errno; the kernel refuses frames of less than 14 bytes
 * (-EINVAL). */
int ix_steer_test_run(struct ix_steer *steer, const uint8_t *frame, uint32_t bytes, uint32_t times,
                      uint32_t *ns);

#endif
