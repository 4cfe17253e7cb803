/* A connection with an input and an output buffer, in libevent's terms.
 *
 * All bookkeeping between dataplane and application is done here: what RECV lent is queued as
 * input, output is handed over by SENDV and kept until SENT covers it, consumed input is given back
 * by RECV_DONE. The application only hears that something is due (evloop.h).
 *
 *            RECV                                   application
 *   dataplane ---> backlog --(READ enabled, below the high watermark)--> input --> reads, moves
 *             <--- RECV_DONE when released
 *             <--- SENDV <-- output <-- writes, moves        SENT / DEAD: inflight is released
 *                    `- accepted: inflight -'
 */
#ifndef IX_NATIVE_BUFFEREVENT_H
#define IX_NATIVE_BUFFEREVENT_H

#include "native/evbuffer.h"
#include "native/evtimer.h"

struct ix_evloop;

/* libevent's BEV_EVENT_* and EV_* numbers. */
enum ix_bev_event {
    IX_BEV_READING = 0x01, /* with EOF, ERROR, TIMEOUT: found while reading */
    IX_BEV_WRITING = 0x02,
    IX_BEV_EOF = 0x10,
    IX_BEV_ERROR = 0x20,
    IX_BEV_TIMEOUT = 0x40,
    IX_BEV_CONNECTED = 0x80
};
enum ix_bev_direction { IX_BEV_READ = 0x02, IX_BEV_WRITE = 0x04 };

enum ix_bev_state {
    IX_BEV_FREE = 0,   /* on the loop's free list */
    IX_BEV_IDLE,       /* made by the application, not connected */
    IX_BEV_KNOCKED,    /* a peer's; ACCEPT not called yet */
    IX_BEV_CONNECTING, /* CONNECT was called */
    IX_BEV_OPEN,       /* SENDV is possible */
    IX_BEV_CLOSING,    /* CLOSE or ABORT was called: DEAD ends it */
    IX_BEV_DEAD        /* no connection (any more): the handle is void */
};

/* How ix_bev_close() ends the connection. */
enum ix_bev_ending {
    IX_BEV_FLUSH = 0, /* output is delivered first, then FIN */
    IX_BEV_DROP = 1,  /* output that the dataplane hasn't taken is dropped, then FIN */
    IX_BEV_ABORT = 2  /* reset at once */
};

/* What is to be asked of the dataplane when there is room for calls: bits of `todo`. */
enum ix_bev_todo {
    IX_BEV_TODO_ACCEPT = 1,
    IX_BEV_TODO_CONNECT = 2,
    IX_BEV_TODO_SHUTDOWN = 4, /* FIN once output is empty */
    IX_BEV_TODO_CLOSE = 8,    /* CLOSE once output is empty */
    IX_BEV_TODO_ABORT = 16
};

enum { IX_BEV_OPTIONS = 9 };

struct ix_bev {
    struct ix_evowner changed; /* first: the pool's queue of the changed leads here */
    struct ix_evloop *loop;
    struct ix_evbuffer input, output;
    struct ix_evbuffer backlog;   /* received and not to be seen yet: READ disabled or input full */
    struct ix_evbuffer inflight;  /* taken by SENDV and not yet covered by SENT */
    uint64_t inflight_acked;      /* bytes of inflight's first extent that SENT covered */
    uint64_t handle;              /* the dataplane's; meaningless unless connected */
    uint32_t index, generation;   /* this record's; together they are the cookie */
    uint32_t room;                /* bytes that SENDV takes, as far as is known; UINT32_MAX: try */
    uint64_t read_low, read_high; /* watermarks, bytes; high 0: none */
    uint64_t write_low;
    uint16_t todo;     /* bits of ix_bev_todo */
    uint16_t events;   /* bits of ix_bev_event that are due to be told */
    uint8_t state;     /* enum ix_bev_state */
    uint8_t enabled;   /* bits of ix_bev_direction */
    uint8_t wants;     /* bits of ix_bev_direction for which there is a callback */
    uint8_t due;       /* bits of ix_bev_direction, and 1 for events: is on the loop's list */
    uint8_t triggered; /* bits of ix_bev_direction: due whatever the buffers hold */
    uint8_t detached;  /* 1: the application gave it up; it ends by itself */
    uint8_t blocked;   /* 1: the dataplane took less than all: wait for SENT */
    uint8_t eof;       /* 1: FIN came; 2: and was told */
    uint8_t family;    /* 4, or 0 without addresses */
    uint16_t options;  /* bit n-1: option n is to be set */
    uint16_t peer_port, local_port;
    uint8_t peer[16], local[16]; /* network byte order, IPv4 in the first 4 bytes */
    int32_t error;               /* why it ended: errno, 0 for an orderly end */
    uint32_t free_next;          /* on the free list: the next one's index */
    uint64_t option_value[IX_BEV_OPTIONS];
    uint64_t read_timeout_ns, write_timeout_ns; /* 0: none */
    uint64_t last_read_ns, last_write_ns;       /* when there was progress */
    struct ix_evtimer timer;
};

/* ---- for the application. On NULL (a closed bufferevent) they return -EBADF. ---- */

struct ix_evbuffer *ix_bev_input(struct ix_bev *bev);
struct ix_evbuffer *ix_bev_output(struct ix_bev *bev);
/* Opens a connection; the end is an event, CONNECTED or ERROR. peer: network byte order. Returns 0,
 * -EISCONN. */
int ix_bev_connect(struct ix_bev *bev, uint8_t family, const uint8_t *peer, uint16_t peer_port);
/* Turns directions on or off; bits of ix_bev_direction. */
int ix_bev_enable(struct ix_bev *bev, uint32_t directions);
int ix_bev_disable(struct ix_bev *bev, uint32_t directions);
/* For which directions there is a callback: the others are never listed as due. */
int ix_bev_want(struct ix_bev *bev, uint32_t directions);
/* Read callback from `low` input bytes on; no more into input once it holds `high` (0: no limit).
 * Write callback when output has fallen to `low`. */
int ix_bev_set_watermark(struct ix_bev *bev, uint32_t directions, uint64_t low, uint64_t high);
/* Event TIMEOUT after so long without progress; 0: never. */
int ix_bev_set_timeouts(struct ix_bev *bev, uint64_t read_ns, uint64_t write_ns);
/* Sets enum ix_option `which` once connected; IX_OPT_CONGESTION with the CONNECT already. Returns 0
 * or -EINVAL. */
int ix_bev_option(struct ix_bev *bev, uint32_t which, uint64_t value);
/* Makes callbacks due in the next turn, whatever the buffers hold. */
int ix_bev_trigger(struct ix_bev *bev, uint32_t directions);
/* Ends the outgoing direction once output is delivered; reading goes on. Returns 0 or -ENOTCONN. */
int ix_bev_shutdown(struct ix_bev *bev);
/* Gives the bufferevent up: the pointer is void. `how`: enum ix_bev_ending. Unread input is
 * dropped. */
int ix_bev_close(struct ix_bev *bev, uint32_t how);

/* ---- for the loop -------------------------------------------------------- */

/* Puts what is to be asked of the dataplane into the array of calls. Returns false when that is
 * full: ask again after a poll. */
bool ix_bev_flush(struct ix_bev *bev);
/* What became of SENDV call number `call`. */
void ix_bev_sent_to_dataplane(struct ix_bev *bev, const struct ix_call *call);
/* What became of other calls: `result` is negative. */
void ix_bev_call_failed(struct ix_bev *bev, const struct ix_call *call);
/* Events of the connection. */
void ix_bev_on_recv(struct ix_bev *bev, const struct ix_event *ev);
void ix_bev_on_sent(struct ix_bev *bev, uint64_t bytes, uint32_t window);
void ix_bev_on_end(struct ix_bev *bev, int32_t status);
void ix_bev_on_connected(struct ix_bev *bev, const struct ix_event *ev);
void ix_bev_on_timer(struct ix_bev *bev);
/* NULL, or which invariant does not hold. */
const char *ix_bev_check(const struct ix_bev *bev);

#endif
