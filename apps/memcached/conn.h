/* A worker's connections: what they sent and is not handled yet, the command under way, and what is
 * on its way to them.
 *
 * Input stays in the frames in which it was lent until it is handled; only a command that is split
 * between frames is put together in `line`. Answers are written into arena frames. A value that
 * doesn't fit into the frames that a connection may have is held, and goes out piece by piece.
 */
#ifndef IX_MC_CONN_H
#define IX_MC_CONN_H

#include "apps/memcached/store.h"
#include "native/app.h"

enum {
    IX_MC_NONE = UINT32_MAX,
    IX_MC_LINE_MAX = 2048,       /* of a command that isn't a get of many keys */
    IX_MC_GET_LINE_MAX = 16 << 20,
    IX_MC_TOKENS = 24,
    IX_MC_ROOM_MIN = 1024,       /* what any command may answer without asking for room */
    IX_MC_FRAME_BYTES = 1448,    /* of payload: a full segment with timestamps at an MTU of 1,500 */
    IX_MC_FRAMES_CONN = 256,     /* arena frames of one connection, while there are plenty */
    IX_MC_FRAMES_FAIR = 4,       /* ... and when there aren't */
    IX_MC_COPY_MAX = 16384,      /* larger values are held rather than copied under a lock */
    IX_MC_TURN_COMMANDS = 512,   /* of a connection in one turn */
    IX_MC_STASH_BYTES = 48,
    IX_MC_WATCHERS = 20,         /* of a worker */
    IX_MC_UDP_HEADER_BYTES = 8,
    IX_MC_DATAGRAM_BYTES = 1400 - IX_MC_UDP_HEADER_BYTES
};

enum ix_mc_conn_state {
    IX_MC_READ_COMMAND = 0,
    IX_MC_GET_KEYS,  /* within the line of a get */
    IX_MC_READ_DATA, /* into the item that the connection holds */
    IX_MC_SWALLOW,   /* so many bytes of input are of no use */
    IX_MC_DUMP,      /* a metadump is under way; more input waits */
    IX_MC_WATCH,     /* it is told what the server does; input is of no use */
    IX_MC_ENDED      /* nothing more is read */
};

enum ix_mc_protocol { IX_MC_ANY = 0, IX_MC_TEXT, IX_MC_BINARY };

enum ix_mc_mode {
    IX_MC_MODE_ADD = 1,
    IX_MC_MODE_SET,
    IX_MC_MODE_REPLACE,
    IX_MC_MODE_APPEND,
    IX_MC_MODE_PREPEND,
    IX_MC_MODE_CAS
};

enum ix_mc_stored {
    IX_MC_NOT_STORED = 0,
    IX_MC_STORED,
    IX_MC_EXISTS,
    IX_MC_NOT_FOUND,
    IX_MC_NO_MEMORY
};

enum ix_mc_todo { IX_MC_TODO_ACCEPT = 1, IX_MC_TODO_SEND = 2, IX_MC_TODO_CLOSE = 4 };

/* The version whose protocol this is; clients look at it. */
#define IX_MC_VERSION "1.6.18"

struct ix_mc_queue {
    uint32_t head, tail;
};

/* What was received in a frame of the pool. */
struct ix_mc_extent {
    uint64_t handle;
    uint32_t next, offset, bytes;
};

/* What is sent in a frame of the arena. */
struct ix_mc_frame {
    uint32_t next, bytes, taken; /* taken: by SENDV */
};

struct ix_mc_conn {
    uint64_t handle;
    struct ix_mc_queue in;   /* frames with input, the oldest first */
    uint32_t in_at;          /* bytes of the oldest that are handled */
    uint32_t out_head, out_tail; /* arena frames: taken by SENDV, to be sent, being filled */
    uint32_t out_unsent;     /* the first of them that is not wholly taken, or NONE */
    uint32_t out_count;
    uint32_t acked;          /* bytes of out_head that the peer acknowledged */
    uint32_t next;           /* in a queue, or free */
    uint8_t *at;             /* where the answer goes on; in out_tail */
    uint32_t room;           /* bytes from there to the frame's end */
    uint8_t todo;            /* enum ix_mc_todo, of calls */
    uint8_t state, protocol;
    bool queued, called, open, closing, blocked, eof, starved, counted, datagram, idle;
    /* the command under way */
    bool noreply, with_cas, touch, set_stale, is_meta, quiet, pre_valid;
    uint8_t mode;            /* enum ix_mc_mode, of the data that is read */
    uint8_t stash_bytes;
    uint8_t opcode;          /* binary */
    uint32_t opaque;
    uint64_t new_cas;        /* what the item got */
    uint64_t given_cas;      /* meta E: what it is to get; 0: the next */
    uint32_t exptime;        /* gat */
    uint32_t command_bytes;  /* of input that the command under way takes up in its frame */
    const uint8_t *key_at, *keys_end; /* GET_KEYS */
    uint64_t left;           /* READ_DATA, SWALLOW: bytes; DUMP: classes, a bit each */
    uint32_t dump_page, dump_chunk; /* DUMP: where it is */
    struct ix_mc_cursor cursor; /* READ_DATA: where they go; or what is being sent */
    uint32_t emit_left;      /* bytes of the held value that are still to be sent */
    struct ix_mc_watcher *watcher; /* WATCH: heap memory */
    uint8_t *blob;           /* or of this text, heap memory */
    uint32_t blob_bytes, blob_at;
    uint8_t *line;           /* a command in more than one frame, heap memory */
    uint32_t line_bytes, line_room;
    /* the next command, a get of one key, where it lies: valid if pre_valid */
    uint32_t pre_hash, pre_nkey, pre_bytes; /* pre_bytes: of the whole line */
    const uint8_t *pre_key;
    uint64_t last_ns;        /* last command */
    uint8_t peer[16], local[16];
    uint16_t peer_port;
    uint8_t family;          /* 4 or 6 */
    uint8_t stash[IX_MC_STASH_BYTES];/* meta: what the answer is to repeat */
};

struct ix_mc_server {
    struct ix_app *app;
    struct ix_mc *mc;
    struct ix_mc_use use;
    struct ix_mc_extent *extents; /* [frames of the pool] */
    struct ix_mc_frame *frames;   /* [frames of the arena] */
    uint32_t *arena_free;         /* stack */
    uint32_t arena_free_count;
    struct ix_mc_conn *conns;
    uint32_t conn_count, conn_free;
    struct ix_mc_queue ready;     /* connections with input to handle */
    struct ix_mc_queue calling;   /* ... with calls to make; linked by call_next */
    struct ix_mc_queue starved;   /* ... that wait for frames of the arena; by call_next too */
    struct ix_mc_queue done;      /* extents to give back */
    uint32_t *call_next, *starve_next; /* [conns] */
    uint32_t *call_conn;          /* [max_calls] whose ACCEPT or SENDV it is, or NONE */
    uint64_t udp_handle;
    struct ix_mc_queue udp_out;   /* arena frames with datagrams to send */
    struct ix_mc_udp_to *udp_to;  /* [frames of the arena] */
    uint32_t ready_count;
    uint32_t watchers[IX_MC_WATCHERS], watcher_count; /* connections */
    uint32_t idle_at;             /* the next connection to be looked at for idleness */
};

/* ---- out.c: answers ----------------------------------------------------------- */

/* Bytes that can be put now. */
uint32_t ix_mc_room(struct ix_mc_server *s, struct ix_mc_conn *c);
/* Puts n bytes, at most the room. */
void ix_mc_put(struct ix_mc_server *s, struct ix_mc_conn *c, const void *data, uint32_t n);
/* n bytes that lie together in a frame, to be filled, or NULL: put them then. There is room for
 * them, as there is at the beginning of each command for IX_MC_ROOM_MIN. */
uint8_t *ix_mc_reserve(struct ix_mc_server *s, struct ix_mc_conn *c, uint32_t n);
/* Of which so many were filled. */
void ix_mc_filled(struct ix_mc_server *s, struct ix_mc_conn *c, uint32_t n);
/* Whether a command may be begun. */
static inline bool ix_mc_has_room(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    return c->room >= IX_MC_ROOM_MIN ||
           (c->out_count < IX_MC_FRAMES_FAIR && s->arena_free_count) ||
           ix_mc_room(s, c) >= IX_MC_ROOM_MIN;
}
/* A line, with \r\n; nothing if the client wants no reply. */
void ix_mc_say(struct ix_mc_server *s, struct ix_mc_conn *c, const char *text);
/* ... that the client gets in any case. */
void ix_mc_say_error(struct ix_mc_server *s, struct ix_mc_conn *c, const char *text);
/* Sends `bytes` bytes of heap memory, which becomes the connection's. */
void ix_mc_put_blob(struct ix_mc_server *s, struct ix_mc_conn *c, uint8_t *blob, uint32_t bytes);
/* The item's first `bytes` bytes of value: now, or held and sent later. The bucket is locked. */
void ix_mc_put_value(struct ix_mc_server *s, struct ix_mc_conn *c, struct ix_mc_item *item,
                     uint32_t bytes);
/* Goes on with a value or blob. False: there is no room. */
bool ix_mc_emit(struct ix_mc_server *s, struct ix_mc_conn *c);
/* Gives one frame of the arena back. */
void ix_mc_frame_free(struct ix_mc_server *s, uint32_t frame);
/* Numbers as text; return the end. */
uint8_t *ix_mc_u64_text(uint8_t *to, uint64_t value);
static inline uint32_t ix_mc_hold_of(const struct ix_mc_server *s, const struct ix_mc_conn *c)
{
    return IX_MC_SPARE_HOLDS + (uint32_t)(c - s->conns);
}

/* ---- command.c: commands of every protocol ------------------------------------ */

/* Begins to read `nbytes` of data into a new item. False: there is no such item. too_large says
 * why. */
bool ix_mc_data_begin(struct ix_mc_server *s, struct ix_mc_conn *c, const uint8_t *key,
                      uint32_t nkey, uint32_t flags, uint32_t exptime, uint32_t nbytes,
                      bool *too_large);
/* The item that the connection holds was filled: stores it as c->mode says. */
enum ix_mc_stored ix_mc_store_held(struct ix_mc_server *s, struct ix_mc_conn *c);
/* Drops an item of that key, if there is one: its new value can't be stored. */
void ix_mc_forget(struct ix_mc_server *s, const uint8_t *key, uint32_t nkey);

enum ix_mc_delta { IX_MC_DELTA_OK = 0, IX_MC_DELTA_NAN, IX_MC_DELTA_MISS, IX_MC_DELTA_CAS,
                   IX_MC_DELTA_NOMEM };
/* incr and decr, under the bucket's lock. text: [24], the new number; *bytes its length. *item: the
 * one that has it. cas: 0 or what it must be. */
enum ix_mc_delta ix_mc_add_delta(struct ix_mc_server *s, const uint8_t *key, uint32_t nkey,
                                 uint32_t hash, bool incr, uint64_t delta, uint64_t cas,
                                 uint8_t *text, uint32_t *bytes, struct ix_mc_item **item);
/* A new item with a short value, linked; the bucket is locked. NULL: no memory. */
struct ix_mc_item *ix_mc_make(struct ix_mc_server *s, const uint8_t *key, uint32_t nkey,
                              uint32_t hash, uint32_t flags, uint32_t exptime, const void *value,
                              uint32_t bytes);
void ix_mc_flush(struct ix_mc_server *s, int64_t delay_s);

/* ---- number.c: as strtol and its kin take them -------------------------------- */

bool ix_mc_i32(const uint8_t *p, uint32_t n, int32_t *out);
bool ix_mc_u32(const uint8_t *p, uint32_t n, uint32_t *out);
bool ix_mc_u64(const uint8_t *p, uint32_t n, uint64_t *out);
bool ix_mc_fraction(const uint8_t *p, uint32_t n, double *out);
/* Both return 0 for what can't be. */
uint32_t ix_mc_base64_decode(const uint8_t *from, uint32_t n, uint8_t *to, uint32_t room);
uint32_t ix_mc_base64_encode(const uint8_t *from, uint32_t n, uint8_t *to);

/* ---- text.c, admin.c, meta.c, binary.c, stats.c, udp.c ------------------------ */

struct ix_mc_token {
    const uint8_t *at;
    uint32_t n;
};

struct ix_mc_words {
    struct ix_mc_token word[IX_MC_TOKENS];
    uint32_t count;       /* of words; word[count].n is 0 */
    const uint8_t *rest;  /* what was not split any more, or NULL */
    const uint8_t *end;
};

static inline bool ix_mc_is(const struct ix_mc_token *t, const char *word)
{
    return t->n == __builtin_strlen(word) && !__builtin_memcmp(t->at, word, t->n);
}

/* One line, without its end. */
void ix_mc_text_command(struct ix_mc_server *s, struct ix_mc_conn *c, const uint8_t *line,
                        uint32_t n);
/* Answers the get that ix_mc_look() found. False: it must be done the long way. */
bool ix_mc_text_quick(struct ix_mc_server *s, struct ix_mc_conn *c);
/* Answers the next key of a get. False: that was the last. */
bool ix_mc_text_key(struct ix_mc_server *s, struct ix_mc_conn *c);
/* The data of a store command was read. */
void ix_mc_text_data(struct ix_mc_server *s, struct ix_mc_conn *c);
/* False: no such command. */
bool ix_mc_admin_command(struct ix_mc_server *s, struct ix_mc_conn *c, struct ix_mc_words *w);
void ix_mc_meta_command(struct ix_mc_server *s, struct ix_mc_conn *c, struct ix_mc_words *w);
void ix_mc_meta_data(struct ix_mc_server *s, struct ix_mc_conn *c, enum ix_mc_stored stored,
                     const struct ix_mc_token *key, bool binary_key);
/* Handles one request, if it is there as a whole (but for its data). False: it isn't. */
bool ix_mc_binary_command(struct ix_mc_server *s, struct ix_mc_conn *c);
void ix_mc_binary_data(struct ix_mc_server *s, struct ix_mc_conn *c);
void ix_mc_text_stats(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_words *w);
/* The statistics of a group as one text, in heap memory: NAME VALUE lines with `prefix`. NULL: no
 * such group. */
char *ix_mc_stats_text(struct ix_mc_server *s, const uint8_t *group, uint32_t n,
                       uint32_t *bytes);
void ix_mc_stats_reset(struct ix_mc_server *s);

int ix_mc_udp_open(struct ix_mc_server *s, const char *ip, uint16_t port, char *why,
                   size_t why_bytes);
void ix_mc_udp_recv(struct ix_mc_server *s, const struct ix_event *ev);
bool ix_mc_udp_calls(struct ix_mc_server *s);

/* ---- dump.c ------------------------------------------------------------------- */

/* Bytes of a key as a URI has them: to must have room for 3 n. Returns how many there are. */
uint32_t ix_mc_uri_text(uint8_t *to, const uint8_t *from, uint32_t n);
/* The text of `stats cachedump`, heap memory; NULL: no memory. */
uint8_t *ix_mc_cachedump(struct ix_mc_server *s, uint32_t number, uint32_t limit, uint32_t *bytes);
void ix_mc_dump_begin(struct ix_mc_conn *c, uint64_t classes);
void ix_mc_dump_step(struct ix_mc_server *s, struct ix_mc_conn *c);

/* ---- watch.c ------------------------------------------------------------------ */

void ix_mc_watch(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_words *w);
/* Passes on one line. False: there is none. */
bool ix_mc_watch_step(struct ix_mc_server *s, struct ix_mc_conn *c);
/* Watchers for whom there are lines become ready. */
void ix_mc_watch_wake(struct ix_mc_server *s);
void ix_mc_watch_end(struct ix_mc_server *s, struct ix_mc_conn *c);
void ix_mc_tell_line(struct ix_mc_use *use, const uint8_t *line, uint32_t n);
/* reason: why it ends; NULL: it begins. */
void ix_mc_tell_conn(struct ix_mc_server *s, const struct ix_mc_conn *c, const char *reason);

/* ---- input.c ------------------------------------------------------------------ */

/* n bytes of input that lie together, taken up to now only by looking, or NULL: they aren't there
 * yet. At most IX_MC_LINE_MAX. */
const uint8_t *ix_mc_peek(struct ix_mc_server *s, struct ix_mc_conn *c, uint32_t n);
/* Input that was looked at is handled. */
void ix_mc_consume(struct ix_mc_server *s, struct ix_mc_conn *c, uint32_t n);
/* Handles input as far as there is room for answers. */
void ix_mc_input(struct ix_mc_server *s, struct ix_mc_conn *c);
/* Is the next command a get of one key, whole in its frame? Then c->pre_* have it, and its bucket
 * is being fetched into the cache. */
bool ix_mc_look(struct ix_mc_server *s, struct ix_mc_conn *c);
void ix_mc_input_drop(struct ix_mc_server *s, struct ix_mc_conn *c);

/* ---- server.c ----------------------------------------------------------------- */

struct ix_mc_server *ix_mc_server_new(struct ix_app *app, struct ix_mc *mc);
void ix_mc_server_free(struct ix_mc_server *s);
/* One cycle of the dataplane and what follows from it. -1: it is time to stop. */
int ix_mc_server_turn(struct ix_mc_server *s, uint64_t max_wait_ns);
void ix_mc_push(struct ix_mc_queue *q, uint32_t *next, uint32_t index);
/* The connection has calls to make. */
void ix_mc_call_soon(struct ix_mc_server *s, struct ix_mc_conn *c, uint8_t todo);
void ix_mc_ready(struct ix_mc_server *s, struct ix_mc_conn *c);

#endif
