/* Options, file status flags and ioctls. */
#include "posix/sock.h"

#include <asm/ioctls.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <string.h>

enum {
    KEEPIDLE_S = 7200, /* RFC 9293 3.8.4: at least two hours by default */
    KEEPINTVL_S = 75,  /* Linux: tcp_keepalive_intvl */
    KEEPCNT = 9,
    BUF_MIN = 4608,  /* Linux: SOCK_MIN_SNDBUF */
    SYN_RETRIES = 6, /* Linux: tcp_syn_retries */
    MSS_MIN = 88,    /* Linux: TCP_MIN_MSS */
    MSS_MAX = 32767, /* Linux: MAX_TCP_WINDOW */
};

void ix_sock_default_options(const struct ix_posix *p, struct ix_sock *s)
{
    s->opt = (struct ix_sock_options){.keepidle_s = KEEPIDLE_S,
                                      .keepintvl_s = KEEPINTVL_S,
                                      .keepcnt = KEEPCNT,
                                      .pmtudisc = IP_PMTUDISC_WANT,
                                      .pacing = UINT64_MAX,
                                      .sndbuf_bytes = p->cfg.sndbuf_bytes,
                                      .rcvbuf_bytes = p->cfg.rcvbuf_bytes};
}

/* ---- telling the core */

static int tell(struct ix_posix *p, struct ix_sock *s, uint32_t option, uint64_t value)
{
    if (s->state == IX_SOCK_LISTEN)
        return ix_sock_listen_option(p, s, option, value);
    struct ix_call call = {
        .op = IX_CALL_OPTION, .handle = s->handle, .bytes = option, .value = value};
    bool connection = s->kind == IX_SOCK_TCP && s->handle && s->state != IX_SOCK_KNOCKING;
    return connection ? ix_sock_call(p, &call) : 0;
}

static int tell_keepalive(struct ix_posix *p, struct ix_sock *s)
{
    uint64_t idle_ns = s->opt.keepalive ? s->opt.keepidle_s * 1000000000ull : 0;
    (void)tell(p, s, IX_OPT_KEEPALIVE_INTERVAL_NS, s->opt.keepintvl_s * 1000000000ull);
    (void)tell(p, s, IX_OPT_KEEPALIVE_PROBES, s->opt.keepcnt);
    return tell(p, s, IX_OPT_KEEPALIVE_NS, idle_ns);
}

void ix_sock_apply_options(struct ix_posix *p, struct ix_sock *s)
{
    /* The core's default is a datacentre's, without Nagle's algorithm; a socket's is with it. */
    (void)tell(p, s, IX_OPT_NODELAY, s->opt.nodelay);
    (void)tell(p, s, IX_OPT_QUICKACK, IX_SOCK_QUICK_ACKS);
    if (s->opt.keepalive)
        (void)tell_keepalive(p, s);
    if (s->opt.user_timeout_ms)
        (void)tell(p, s, IX_OPT_USER_TIMEOUT_NS, s->opt.user_timeout_ms * 1000000ull);
    if (s->opt.fin_wait_s)
        (void)tell(p, s, IX_OPT_FIN_WAIT_NS, s->opt.fin_wait_s * 1000000000ull);
    if (s->opt.tos)
        (void)tell(p, s, IX_OPT_TOS, s->opt.tos);
    if (s->opt.rcvbuf_set)
        (void)tell(p, s, IX_OPT_RCVBUF, s->opt.rcvbuf_bytes);
    if (s->opt.sndbuf_set)
        (void)tell(p, s, IX_OPT_SNDBUF, s->opt.sndbuf_bytes + SNDBUF_OVER);
    if (s->opt.pacing != UINT64_MAX)
        (void)tell(p, s, IX_OPT_PACING, s->opt.pacing);
}

int ix_sock_listen_option(struct ix_posix *p, const struct ix_sock *s, uint32_t option,
                          uint64_t value)
{
    bool known = option == IX_OPT_CONGESTION || option == IX_OPT_RCVBUF || option == IX_OPT_MSS ||
                 option == IX_OPT_BACKLOG || option == IX_OPT_PACING ||
                 option == IX_OPT_QUICKACK;
    return known ? ix_shard_listen_option(p->cfg.shard, s->local.ip, s->local.family, s->local.port,
                                          option, value)
                 : 0;
}

/* ---- setsockopt */

static int set_linger(struct ix_sock *s, const void *value, socklen_t len)
{
    struct linger linger;
    if (len < sizeof linger)
        return -EINVAL;
    memcpy(&linger, value, sizeof linger);
    s->opt.linger_on = linger.l_onoff;
    s->opt.linger_s = linger.l_linger < 0 ? INT32_MAX : linger.l_linger;
    return 0;
}

static int set_timeout(uint64_t *out, const void *value, socklen_t len)
{
    struct timeval tv;
    if (len < sizeof tv)
        return -EINVAL;
    memcpy(&tv, value, sizeof tv);
    if (tv.tv_usec < 0 || tv.tv_usec >= 1000000)
        return -EDOM;
    *out = tv.tv_sec < 0 ? 0 : (uint64_t)tv.tv_sec * 1000000000 + (uint64_t)tv.tv_usec * 1000;
    return 0;
}

/* Linux doubles what is asked for, and shows the double: half of it is for its own records. Ours
 * lie elsewhere, so all of it holds payload. */
static uint32_t buffer_bytes(int asked, uint32_t most)
{
    uint32_t bytes = asked < BUF_MIN / 2 ? BUF_MIN : (uint32_t)asked * 2;
    return bytes < most ? bytes : most;
}

/* SO_MAX_PACING_RATE: 4 or 8 bytes; all ones is no limit, and no pacing, as on Linux without fq. */
static int set_pacing(struct ix_posix *p, struct ix_sock *s, const void *value, socklen_t len)
{
    uint32_t rate;
    if (len < sizeof rate)
        return -EINVAL;
    memcpy(&rate, value, sizeof rate);
    s->opt.pacing = rate == UINT32_MAX ? UINT64_MAX : rate;
    if (len >= sizeof s->opt.pacing)
        memcpy(&s->opt.pacing, value, sizeof s->opt.pacing);
    return tell(p, s, IX_OPT_PACING, s->opt.pacing == UINT64_MAX ? 0 : s->opt.pacing);
}

static int set_socket(struct ix_posix *p, struct ix_sock *s, int name, int value)
{
    switch (name) {
    case SO_REUSEADDR:
        s->opt.reuseaddr = value;
        return 0;
    case SO_REUSEPORT:
        s->opt.reuseport = value;
        return 0;
    case SO_KEEPALIVE:
        s->opt.keepalive = value;
        return tell_keepalive(p, s);
    case SO_SNDBUF:
        s->opt.sndbuf_bytes = buffer_bytes(value, ix_sock_sndbuf_max(p));
        s->opt.sndbuf_set = true;
        return tell(p, s, IX_OPT_SNDBUF, s->opt.sndbuf_bytes + SNDBUF_OVER);
    case SO_RCVBUF:
        s->opt.rcvbuf_bytes = buffer_bytes(value, 1u << 30);
        s->opt.rcvbuf_set = true;
        return tell(p, s, IX_OPT_RCVBUF, s->opt.rcvbuf_bytes);
    default:
        return -ENOPROTOOPT;
    }
}

static int set_tcp(struct ix_posix *p, struct ix_sock *s, int name, int value)
{
    switch (name) {
    case TCP_NODELAY:
        s->opt.nodelay = value;
        return tell(p, s, IX_OPT_NODELAY, s->opt.nodelay);
    case TCP_CORK:
        s->opt.cork = value;
        return value ? 0 : tell(p, s, IX_OPT_NODELAY, s->opt.nodelay);
    case TCP_SYNCNT:
        if (value < 1 || value > 127)
            return -EINVAL;
        s->opt.syncnt = (uint8_t)value;
        return 0;
    case TCP_QUICKACK:
        s->opt.pingpong = !value;
        return tell(p, s, IX_OPT_QUICKACK, value ? IX_SOCK_QUICK_ACKS : 0);
    case TCP_KEEPIDLE:
        if (value < 1 || value > 32767)
            return -EINVAL;
        s->opt.keepidle_s = (uint32_t)value;
        return s->opt.keepalive ? tell_keepalive(p, s) : 0;
    case TCP_KEEPINTVL:
        if (value < 1 || value > 32767)
            return -EINVAL;
        s->opt.keepintvl_s = (uint32_t)value;
        return s->opt.keepalive ? tell_keepalive(p, s) : 0;
    case TCP_KEEPCNT:
        if (value < 1 || value > 127)
            return -EINVAL;
        s->opt.keepcnt = (uint32_t)value;
        return s->opt.keepalive ? tell_keepalive(p, s) : 0;
    case TCP_MAXSEG: /* for the handshake to come */
        if (value && (value < MSS_MIN || value > MSS_MAX))
            return -EINVAL;
        s->opt.maxseg = (uint32_t)value;
        return s->state == IX_SOCK_LISTEN ? tell(p, s, IX_OPT_MSS, s->opt.maxseg) : 0;
    case TCP_LINGER2:
        s->opt.fin_wait_s = value > 0 ? (uint32_t)(value < 120 ? value : 120) : 0;
        return tell(p, s, IX_OPT_FIN_WAIT_NS, s->opt.fin_wait_s * 1000000000ull);
    case TCP_INQ:
        if (value < 0 || value > 1)
            return -EINVAL;
        s->opt.inq = value;
        return 0;
    case TCP_NOTSENT_LOWAT:
        s->opt.notsent_lowat = (uint32_t)value;
        if (ix_sock_writable(p, s))
            ix_sock_wake(p, s, EPOLLOUT);
        return 0;
    case TCP_USER_TIMEOUT:
        if (value < 0)
            return -EINVAL;
        s->opt.user_timeout_ms = (uint32_t)value;
        return tell(p, s, IX_OPT_USER_TIMEOUT_NS, s->opt.user_timeout_ms * 1000000ull);
    default:
        return -ENOPROTOOPT;
    }
}

/* TCP_CONGESTION: Linux's names of enum ix_congestion. */
static const char *const congestion_names[] = {
    [IX_CC_DEFAULT] = "cubic",
    [IX_CC_CUBIC] = "cubic",
    [IX_CC_NEWRENO] = "reno",
    [IX_CC_DCTCP] = "dctcp",
};

static int set_congestion(struct ix_posix *p, struct ix_sock *s, const void *value, socklen_t len)
{
    char name[16] = {0};
    uint32_t i = IX_CC_CUBIC;
    memcpy(name, value, len < sizeof name ? len : sizeof name - 1);
    while (i <= IX_CC_DCTCP && strcmp(name, congestion_names[i]) != 0)
        i++;
    if (i > IX_CC_DCTCP)
        return -ENOENT;
    s->opt.congestion = i;
    return tell(p, s, IX_OPT_CONGESTION, i);
}

/* Until it is bound: Linux refuses it later, too. */
static int set_v6only(struct ix_sock *s, int on)
{
    if (s->bound)
        return -EINVAL;
    s->opt.v6only = on;
    return 0;
}

/* Linux takes a byte or an int here. */
static int set_ip(struct ix_posix *p, struct ix_sock *s, int name, const void *value, socklen_t len)
{
    int number = 0;
    if (len >= sizeof number)
        memcpy(&number, value, sizeof number);
    else if (len)
        number = *(const uint8_t *)value;
    else
        return -EINVAL;
    switch (name) {
    case IP_TOS: /* a stream's ECN bits are TCP's own */
        s->opt.tos = (uint8_t)(s->kind == IX_SOCK_TCP ? number & ~3 : number);
        return tell(p, s, IX_OPT_TOS, s->opt.tos);
    case IP_MTU_DISCOVER: /* kept; the path's MTU is always discovered */
        if (number < IP_PMTUDISC_DONT || number > IP_PMTUDISC_PROBE)
            return -EINVAL;
        s->opt.pmtudisc = (uint8_t)number;
        return 0;
    case IP_FREEBIND: /* bind() takes any address as it is */
        return 0;
    default:
        return -ENOPROTOOPT;
    }
}

static int set_option(struct ix_posix *p, struct ix_sock *s, int level, int name, const void *value,
                      socklen_t len)
{
    int number;
    if (s->kind == IX_SOCK_EPOLL)
        return -ENOTSOCK;
    if (level == SOL_SOCKET && name == SO_LINGER)
        return set_linger(s, value, len);
    if (level == SOL_SOCKET && name == SO_RCVTIMEO)
        return set_timeout(&s->opt.rcvtimeo_ns, value, len);
    if (level == SOL_SOCKET && name == SO_SNDTIMEO)
        return set_timeout(&s->opt.sndtimeo_ns, value, len);
    if (level == SOL_SOCKET && name == SO_MAX_PACING_RATE)
        return set_pacing(p, s, value, len);
    if (level == IPPROTO_TCP && name == TCP_CONGESTION && s->kind == IX_SOCK_TCP)
        return set_congestion(p, s, value, len);
    if (level == IPPROTO_IP)
        return set_ip(p, s, name, value, len);
    if (len < sizeof number)
        return -EINVAL;
    memcpy(&number, value, sizeof number);
    if (level == SOL_SOCKET)
        return set_socket(p, s, name, number);
    if (level == IPPROTO_TCP && s->kind == IX_SOCK_TCP)
        return set_tcp(p, s, name, number);
    if (level == IPPROTO_IPV6 && name == IPV6_V6ONLY && s->family == 6)
        return set_v6only(s, number);
    return -ENOPROTOOPT;
}

int ix_posix_setsockopt(struct ix_posix *p, int fd, int level, int name, const void *value,
                        socklen_t len)
{
    ix_posix_enter(p);
    struct ix_sock *s = ix_sock_of_fd(p, fd);
    int result = !s                           ? -EBADF
                 : len && !ix_posix_usable(value) ? -EFAULT
                                              : set_option(p, s, level, name, value, len);
    ix_posix_leave(p);
    return result;
}

/* ---- getsockopt */

static int get_socket(const struct ix_posix *p, struct ix_sock *s, int name, int *value)
{
    (void)p;
    switch (name) {
    case SO_TYPE:
        *value = s->kind == IX_SOCK_TCP ? SOCK_STREAM : SOCK_DGRAM;
        return 0;
    case SO_DOMAIN:
        *value = s->family == 4 ? AF_INET : AF_INET6;
        return 0;
    case SO_PROTOCOL:
        *value = s->kind == IX_SOCK_TCP ? IPPROTO_TCP : IPPROTO_UDP;
        return 0;
    case SO_ERROR:
        *value = -ix_sock_take_error(s);
        return 0;
    case SO_ACCEPTCONN:
        *value = s->state == IX_SOCK_LISTEN;
        return 0;
    case SO_REUSEADDR:
        *value = s->opt.reuseaddr;
        return 0;
    case SO_REUSEPORT:
        *value = s->opt.reuseport;
        return 0;
    case SO_KEEPALIVE:
        *value = s->opt.keepalive;
        return 0;
    case SO_SNDBUF:
        *value = (int)s->opt.sndbuf_bytes;
        return 0;
    case SO_RCVBUF:
        *value = (int)s->opt.rcvbuf_bytes;
        return 0;
    case SO_MAX_PACING_RATE:
        *value = (int)(s->opt.pacing < UINT32_MAX ? s->opt.pacing : UINT32_MAX);
        return 0;
    default:
        return -ENOPROTOOPT;
    }
}

static int get_tcp(const struct ix_posix *p, const struct ix_sock *s, int name, int *value)
{
    struct ix_conn_info info;
    switch (name) {
    case TCP_NOTSENT_LOWAT:
        *value = (int)s->opt.notsent_lowat;
        return 0;
    case TCP_NODELAY:
        *value = s->opt.nodelay;
        return 0;
    case TCP_CORK:
        *value = s->opt.cork;
        return 0;
    case TCP_KEEPIDLE:
        *value = (int)s->opt.keepidle_s;
        return 0;
    case TCP_KEEPINTVL:
        *value = (int)s->opt.keepintvl_s;
        return 0;
    case TCP_KEEPCNT:
        *value = (int)s->opt.keepcnt;
        return 0;
    case TCP_SYNCNT:
        *value = s->opt.syncnt ? s->opt.syncnt : SYN_RETRIES;
        return 0;
    case TCP_QUICKACK:
        *value = !s->opt.pingpong;
        return 0;
    case TCP_USER_TIMEOUT:
        *value = (int)s->opt.user_timeout_ms;
        return 0;
    case TCP_MAXSEG:
        (void)ix_sock_info(p, s, &info);
        *value = info.mss ? (int)info.mss : s->opt.maxseg ? (int)s->opt.maxseg : 536;
        return 0;
    case TCP_LINGER2:
        *value = s->opt.fin_wait_s ? (int)s->opt.fin_wait_s : 60;
        return 0;
    case TCP_INQ:
        *value = s->opt.inq;
        return 0;
    default:
        return -ENOPROTOOPT;
    }
}

static int get_ip(const struct ix_sock *s, int name, int *value)
{
    if (name != IP_TOS && name != IP_MTU_DISCOVER)
        return -ENOPROTOOPT;
    *value = name == IP_TOS ? s->opt.tos : s->opt.pmtudisc;
    return 0;
}

static int get_option(const struct ix_posix *p, struct ix_sock *s, int level, int name, void *value,
                      socklen_t *len)
{
    struct linger linger = {.l_onoff = s->opt.linger_on, .l_linger = s->opt.linger_s};
    struct timeval tv;
    struct tcp_info info;
    int number = 0, err = 0;
    const void *from = &number;
    socklen_t size = sizeof number;
    if (s->kind == IX_SOCK_EPOLL)
        return -ENOTSOCK;
    if (level == SOL_SOCKET && name == SO_LINGER) {
        from = &linger;
        size = sizeof linger;
    } else if (level == SOL_SOCKET && (name == SO_RCVTIMEO || name == SO_SNDTIMEO)) {
        uint64_t ns = name == SO_RCVTIMEO ? s->opt.rcvtimeo_ns : s->opt.sndtimeo_ns;
        tv = (struct timeval){.tv_sec = (time_t)(ns / 1000000000),
                              .tv_usec = (suseconds_t)(ns / 1000 % 1000000)};
        from = &tv;
        size = sizeof tv;
    } else if (level == SOL_SOCKET && name == SO_MAX_PACING_RATE && *len >= sizeof s->opt.pacing) {
        from = &s->opt.pacing;
        size = sizeof s->opt.pacing;
    } else if (level == SOL_SOCKET) {
        err = get_socket(p, s, name, &number);
    } else if (level == IPPROTO_IPV6 && name == IPV6_V6ONLY && s->family == 6) {
        number = s->opt.v6only;
    } else if (level == IPPROTO_IP) {
        err = get_ip(s, name, &number);
    } else if (level != IPPROTO_TCP || s->kind != IX_SOCK_TCP) {
        err = -ENOPROTOOPT;
    } else if (name == TCP_CONGESTION) {
        from = congestion_names[s->opt.congestion];
        size = (socklen_t)strlen(from) + 1;
    } else if (name == TCP_INFO) {
        ix_sock_tcp_info(p, s, &info);
        from = &info;
        size = sizeof info;
    } else {
        err = get_tcp(p, s, name, &number);
    }
    if (err)
        return err;
    *len = *len < size ? *len : size;
    memcpy(value, from, *len);
    return 0;
}

int ix_posix_getsockopt(struct ix_posix *p, int fd, int level, int name, void *value,
                        socklen_t *len)
{
    ix_posix_enter(p);
    struct ix_sock *s = ix_sock_of_fd(p, fd);
    int result = !s ? -EBADF
                 : !ix_posix_usable(value) || !ix_posix_usable(len)
                     ? -EFAULT
                     : get_option(p, s, level, name, value, len);
    ix_posix_leave(p);
    return result;
}

/* ---- fcntl, ioctl */

static int control(struct ix_sock *s, int command, long arg)
{
    switch (command) {
    case F_GETFL:
        return O_RDWR | (s->nonblock ? O_NONBLOCK : 0);
    case F_SETFL:
        s->nonblock = arg & O_NONBLOCK;
        return 0;
    case F_GETFD: /* descriptors of this layer end with the process's image anyway */
        return FD_CLOEXEC;
    case F_SETFD:
        return 0;
    default:
        return -EINVAL;
    }
}

int ix_posix_fcntl(struct ix_posix *p, int fd, int command, long arg)
{
    ix_posix_enter(p);
    struct ix_sock *s = ix_sock_of_fd(p, fd);
    int result = s ? control(s, command, arg) : -EBADF;
    ix_posix_leave(p);
    return result;
}

enum { FIN_WAIT1 = 4, LAST_ACK = 9, CLOSING = 11 }; /* net/tcp_states.h */

/* The kernel counts the FIN that is queued or under way as a byte (tcp_ioctl()). */
static int queued(const struct ix_posix *p, const struct ix_sock *s, bool unsent, int *out)
{
    struct ix_conn_info info;
    if (s->kind != IX_SOCK_TCP || s->state == IX_SOCK_LISTEN)
        return -EINVAL;
    uint8_t state = ix_sock_info(p, s, &info);
    bool fin = state == FIN_WAIT1 || state == CLOSING || state == LAST_ACK;
    uint32_t sent = info.unacked_bytes < s->tx_bytes ? info.unacked_bytes : s->tx_bytes;
    uint32_t waits = s->tx_bytes - sent;
    *out = (int)(unsent ? waits + (waits && fin) : s->tx_bytes + fin);
    return 0;
}

int ix_posix_ioctl(struct ix_posix *p, int fd, unsigned long request, void *arg)
{
    ix_posix_enter(p);
    struct ix_sock *s = ix_sock_of_fd(p, fd);
    int result = -ENOTTY;
    if (!s) {
        result = -EBADF;
    } else if (request == FIONBIO) {
        s->nonblock = *(int *)arg;
        result = 0;
    } else if (request == SIOCINQ && s->kind != IX_SOCK_EPOLL) {
        bool datagram = s->kind == IX_SOCK_UDP && s->rx_head != IX_SOCK_NONE;
        *(int *)arg = (int)(datagram ? p->rx[s->rx_head].bytes : s->rx_bytes);
        result = s->state == IX_SOCK_LISTEN ? -EINVAL : 0;
    } else if (request == SIOCOUTQ || request == SIOCOUTQNSD) {
        result = queued(p, s, request == SIOCOUTQNSD, arg);
    }
    ix_posix_leave(p);
    return result;
}
