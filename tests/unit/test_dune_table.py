"""libdune_shim: syscalls.toml, gen_syscalls.py, call.c, nested*.c, without a guest.

dune_table.c holds the shim's code, compiled with sanitizers, in a vault of one vCPU. Calls that it
would forward are reported with all that they point to, or really made.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import random
import re
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIM = ROOT / "libdune_shim/shim"
TABLE = ROOT / "libdune_shim/syscalls.toml"
HARNESS = Path(__file__).with_name("dune_table.c")

WINDOW = 1 << 30
BASE = 0x2000_0000_0000
LOW, HIGH = BASE - WINDOW, BASE + 2 * WINDOW  # what ring 3 can't name
SCRATCH = BASE + 0x2000_0000
USER_BYTES = 0x10_0000
BELOW, ABOVE = LOW - USER_BYTES, HIGH  # user memory
FIRST_FD = 1000
RW_MAX = 0x7FFF_F000
ALL = 2**64 - 1
DENY, ALLOW, EMULATE = 1, 2, 3
CLASSES = {"net": 1, "exec": 2, "fork": 4, "admin": 8, "signal": 16, "ipc": 32}
RESTART = -512


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "gen_syscalls", ROOT / "libdune_shim/gen_syscalls.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gen_syscalls"] = module
    spec.loader.exec_module(module)
    return module


GEN = load_generator()
CALLS = GEN.parse(TABLE.read_text())
NR = {call.name: call.nr for call in CALLS}


@dataclass(frozen=True)
class Forwarded:
    """A call as the kernel would get it, and the scratch as it was then."""

    nr: int
    arg: tuple[int, ...]
    scratch: bytes

    def at(self, address: int, size: int) -> bytes:
        assert SCRATCH <= address <= address + size <= SCRATCH + len(self.scratch), hex(address)
        return self.scratch[address - SCRATCH : address - SCRATCH + size]


@dataclass(frozen=True)
class Done:
    result: int
    refused: int
    rcx: int
    forwarded: list[Forwarded]


class Shim:
    """The harness at work."""

    def __init__(self, program: Path) -> None:
        self.process = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask_all(self, lines: Sequence[str]) -> list[str]:
        """One answer for each line; in pieces that fit into pipes."""
        assert self.process.stdin is not None and self.process.stdout is not None
        answers = []
        for at in range(0, len(lines), 100):
            piece = lines[at : at + 100]
            self.process.stdin.write("".join(line + "\n" for line in piece))
            self.process.stdin.flush()
            for line in piece:
                answer = self.process.stdout.readline()
                assert answer.endswith("\n"), f"the harness died of {line!r}"
                answers.append(answer[:-1])
        return answers

    def ask(self, line: str) -> str:
        return self.ask_all([line])[0]

    def check(self, name: str, *arg: int) -> tuple[int, int, int]:
        """The error, the action, whether it is quiet."""
        error, action, quiet = self.ask(check_line(NR[name], arg)).split()
        return int(error), int(action), int(quiet)

    def do(self, nr: int | str, *arg: int) -> Done:
        number = NR[nr] if isinstance(nr, str) else nr
        answer = self.ask("do" + check_line(number, arg)[len("check") :])
        calls, _, rest = answer.partition(" # ")
        forwarded = []
        for text in calls.split(" | ")[1:]:
            *numbers, scratch = text.rstrip(".").split(" ")
            values = [int(number, 16) for number in numbers]
            forwarded.append(Forwarded(values[0], tuple(values[1:]), bytes.fromhex(scratch)))
        result, refused, rcx = rest.split()
        return Done(int(result), int(refused), int(rcx, 16), forwarded)

    def poke(self, address: int, data: bytes) -> int:
        self.ask(f"poke {address:x} {data.hex()}")
        return address

    def peek(self, address: int, size: int) -> bytes:
        return bytes.fromhex(self.ask(f"peek {address:x} {size:x}"))

    def set(self, name: str, value: int) -> None:
        self.ask(f"{name} {value:x}")


def check_line(nr: int, arg: Sequence[int]) -> str:
    values = [value & ALL for value in (nr, *arg, *[0] * (6 - len(arg)))]
    return "check " + " ".join(f"{value:x}" for value in values)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("table")
    assert GEN.main([str(TABLE), str(place)]) == 0
    made = place / "dune_table"
    flags = [
        "-std=gnu11",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-D_GNU_SOURCE",
        "-DDUNE_PARTIAL",
        "-O1",
        "-g",
    ]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    sources = [HARNESS, place / "dune_syscalls.c"]
    sources += [SHIM / f"{name}.c" for name in ("call", "nested", "nested_msg", "nested_sock")]
    include = [f"-I{ROOT / 'libdune_shim'}", f"-I{place}"]
    subprocess.run(["gcc", *flags, *sanitizers, *include, "-o", made, *sources], check=True)
    return made


@pytest.fixture
def shim(program: Path) -> Iterator[Shim]:
    made = Shim(program)
    yield made
    assert made.process.stdin is not None
    made.process.stdin.close()
    assert made.process.wait(30) == 0


# ---- the table against the kernel's ------------------------------------------------------------


def test_numbers_are_the_kernels() -> None:
    text = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h").read_text()
    header = {m[1]: int(m[2]) for m in re.finditer(r"#define __NR_(\w+) (\d+)", text)}
    assert len(header) > 350
    assert {name: NR.get(name) for name in header} == header


# What lets a process reach memory by other means than its own pointers.
NEVER = """ptrace process_vm_readv process_vm_writev process_madvise userfaultfd perf_event_open bpf
    io_uring_setup io_uring_enter io_uring_register io_setup io_submit pidfd_getfd kcmp seccomp rseq
    clone3 open_by_handle_at modify_ldt ioperm iopl init_module finit_module kexec_load swapon
    landlock_restrict_self mount move_mount keyctl restart_syscall""".split()  # noqa: SIM905


@pytest.mark.parametrize("name", NEVER)
def test_sealed_dangerous_call_is_refused(shim: Shim, name: str) -> None:
    done = shim.do(name, 1, 2, 3, 4, 5, 6)
    assert done.forwarded == []
    assert done.result < 0
    # What the kernel itself might say is not worth a line in the log.
    quiet = done.result in (-errno.ENOSYS, -errno.EINTR)
    assert done.refused == (not quiet)


def test_open_dangerous_call_is_the_programs_own_business(shim: Shim) -> None:
    shim.set("sealed", 0)
    assert len(shim.do("bpf", 1, 2, 3).forwarded) == 1
    assert shim.do("seccomp", 1, 2, 3).result == -errno.EINVAL
    assert shim.do("rseq", 1, 2, 3).result == -errno.ENOSYS


def test_unknown_number_is_enosys(shim: Shim) -> None:
    for nr in (337, 400, 423, 470, 500, 2**31, 0x40000000, 2**32 - 1):
        done = shim.do(nr)
        assert (done.result, done.forwarded) == (-errno.ENOSYS, []), nr


def test_number_is_taken_from_32_bits(shim: Shim) -> None:
    assert shim.do(0xDEAD_0000_0000 | NR["getpid"]).forwarded[0].nr == NR["getpid"]


@pytest.mark.parametrize("name", CLASSES)
def test_denied_class_is_refused_and_others_are_not(shim: Shim, name: str) -> None:
    shim.set("denied", CLASSES[name])
    seen = 0
    for call in CALLS:
        if call.action == "deny":
            continue
        error, _, _ = shim.check(call.name, *good_arguments(call))
        assert error == (-errno.EPERM if call.klass == name else 0), call.name
        seen += call.klass == name
    assert seen > 0 or name == "net"  # which is decided by the family


# ---- every argument of every call --------------------------------------------------------------


def expect(call: object, arg: Sequence[int], pointed: int) -> int:
    """What the check is to say, by the table's own text: the model."""
    for index, rule in enumerate(call.arguments):  # type: ignore[attr-defined]
        value = arg[index]
        if rule.kind == "fd":
            if FIRST_FD <= (value & 0xFFFF_FFFF) < 2**31:
                return -errno.EBADF
            continue
        if not rule.is_pointer or (value == 0 and rule.kind != "range"):
            continue
        size = length_of(rule, arg, pointed)
        if value + size > ALL or not (value + size <= LOW or value >= HIGH):
            return -errno.ENOMEM if rule.kind == "range" else -errno.EFAULT
    return 0


def length_of(rule: object, arg: Sequence[int], pointed: int) -> int:
    if rule.kind == "string":  # type: ignore[attr-defined]
        return 1
    count = arg[rule.count]  # type: ignore[attr-defined]
    width = rule.width  # type: ignore[attr-defined]
    if width in ("u32", "i32"):
        count &= 0xFFFF_FFFF
    if width == "i32" and count >= 2**31:
        count = 0
    if width == "rw":
        count = min(count, RW_MAX)
    base, size = rule.base, rule.size  # type: ignore[attr-defined]
    sizes = {
        "fixed": base,
        "times": base + count * size,
        "bits": -(-count // 64) * 8,
        "pages": -(-count // 4096),
        "pointed": pointed,
    }
    return sizes[rule.unit]  # type: ignore[attr-defined]


def good_arguments(call: object) -> list[int]:
    """Pointers into user memory, lengths of 64, descriptor 0."""
    arg = []
    for index, rule in enumerate(call.arguments):  # type: ignore[attr-defined]
        if rule.is_pointer:
            arg.append(BELOW + 0x1000 * (index + 1))
        else:
            arg.append({"fd": 0, "int": 1, "nested": 0}.get(rule.kind, 64))
    return arg + [0] * (6 - len(arg))


def addresses(size: int) -> Iterator[tuple[int, bool]]:
    """Where a pointer to `size` bytes may lead; True: ring 3 may name that."""
    for good in (BELOW, LOW - size, HIGH, HIGH + 4096, 0x1000, ALL - size):
        yield good, True
    for bad in (LOW + 1, LOW + WINDOW // 2, BASE - 1, BASE, BASE + 1, BASE + WINDOW // 2):
        yield bad, False
    for bad in (BASE + WINDOW - 1, BASE + WINDOW, HIGH - 1, LOW - size + 1, ALL - size + 1, ALL):
        yield bad, False


@pytest.mark.parametrize("call", [c for c in CALLS if c.action != "deny"], ids=lambda c: c.name)
def test_pointer_into_the_vault_is_refused(shim: Shim, call: object) -> None:
    lines, expected = [], []
    good = good_arguments(call)
    number = call.nr  # type: ignore[attr-defined]
    lines.append(check_line(number, good))
    expected.append(0)
    for index, rule in enumerate(call.arguments):  # type: ignore[attr-defined]
        if rule.kind == "fd":
            for fd in (FIRST_FD, FIRST_FD + 1, 2**31 - 1, FIRST_FD | 0xABCD_0000_0000):
                lines.append(check_line(number, [*good[:index], fd, *good[index + 1 :]]))
                expected.append(-errno.EBADF)
            for fd in (0, FIRST_FD - 1, -1, -100):
                lines.append(check_line(number, [*good[:index], fd, *good[index + 1 :]]))
                expected.append(0)
        if not rule.is_pointer:
            continue
        # A pointer to a length is null below; this one leads to 100.
        if rule.unit == "pointed":
            shim.poke(good[rule.count], struct.pack("<I", 100))
        size = length_of(rule, good, 100)
        refused = -errno.ENOMEM if rule.kind == "range" else -errno.EFAULT
        for address, is_free in addresses(size):
            if rule.name == "length" and is_free and address != BELOW:
                continue  # read by the check itself: nothing is mapped there
            lines.append(check_line(number, [*good[:index], address, *good[index + 1 :]]))
            expected.append(0 if is_free else refused)
    got = [int(answer.split()[0]) for answer in shim.ask_all(lines)]
    wrong = [(line, g, e) for line, g, e in zip(lines, got, expected, strict=True) if g != e]
    assert wrong == []


def test_random_arguments_agree_with_the_model(shim: Shim) -> None:
    pick = random.Random(20)
    edges = [0, 1, 8, 64, 4096, LOW, LOW - 1, LOW - 64, BASE, BASE - 1, HIGH, HIGH - 1, ALL, 2**63]
    edges += [BELOW, ABOVE, 2**32, 2**32 - 1, 2**31, 2**31 - 1, FIRST_FD, FIRST_FD - 1, RW_MAX]
    calls = [
        c for c in CALLS
        if c.action != "deny" and not any(a.unit == "pointed" for a in c.arguments)
    ]  # fmt: skip
    lines, expected = [], []
    for _ in range(40_000):
        call = pick.choice(calls)
        arg = [(pick.choice(edges) + pick.choice((0, 0, 1, -1, 16, -4096))) & ALL for _ in range(6)]
        lines.append(check_line(call.nr, arg))
        expected.append(expect(call, arg, 0))
    got = [int(answer.split()[0]) for answer in shim.ask_all(lines)]
    wrong = [(line, g, e) for line, g, e in zip(lines, got, expected, strict=True) if g != e]
    assert wrong == []
    assert 1000 < sum(e == 0 for e in expected) < 39_000


# Calls that succeed when their last argument given here is a buffer as long as the table says, and
# that fail when it is a byte shorter: the kernel is asked where its structures end.
EXACT = [
    ("fstat", (0,)), ("fstatfs", (0,)), ("uname", ()), ("sysinfo", ()), ("times", ()), ("time", ()),
    ("getrusage", (0,)), ("getitimer", (0,)), ("gettimeofday", ()), ("clock_gettime", (1,)),
    ("clock_getres", (1,)), ("pipe", ()), ("wait4", (-1,)), ("adjtimex", ()),
    ("rt_sigprocmask", (0, 0, "buf", 8)), ("rt_sigaction", (10, 0, "buf", 8)),
    ("sigaltstack", (0,)),
    ("sched_getparam", (0,)), ("sched_rr_get_interval", (0,)),
    ("nanosleep", ()), ("prlimit64", (0, 7, 0)), ("getrlimit", (7,)), ("getcpu", ()),
    ("statx", (0, "", 0x1000, 0x7FF)), ("timerfd_gettime", ("timerfd",)),
    ("capget", ("capability",)), ("timer_create", (1, 0)), ("shmctl", ("shm", 2)),
    ("msgctl", ("queue", 2)), ("statfs", ("/",)), ("newfstatat", (0, "", "buf", 0x1000)),
    ("mq_getsetattr", ("mq", 0)),
]  # fmt: skip


def probe_kernel(name: str, given: tuple[object, ...], size: int) -> int:
    """The errno (0: none) of the call in a child, with `size` bytes before a hole."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    page = libc.mmap(None, 8192, 3, 0x22, -1, 0)
    libc.mprotect(ctypes.c_void_p(page + 4096), 4096, 0)
    buf = page + 4096 - size
    kept = []
    arg: list[int] = []
    for value in given:
        if value == "timerfd":
            value = libc.timerfd_create(1, 0)
        elif value == "capability":
            kept.append(ctypes.create_string_buffer(struct.pack("<Ii", 0x20080522, 0), 8))
            value = ctypes.addressof(kept[-1])
        elif value == "shm":
            value = libc.shmget(0, 4096, 0o600)
        elif value == "queue":
            value = libc.msgget(0, 0o600)
        elif value == "mq":
            value = libc.mq_open(b"/ix-table", os.O_CREAT | os.O_RDWR, 0o600, None)
            libc.mq_unlink(b"/ix-table")
        elif value == "buf":
            value = buf
        elif isinstance(value, str):
            kept.append(ctypes.create_string_buffer(value.encode()))
            value = ctypes.addressof(kept[-1])
        assert isinstance(value, int)
        arg.append(value)
    if "buf" not in given:
        arg.append(buf)
    failed = libc.syscall(NR[name], *[ctypes.c_long(value) for value in (*arg, 0, 0, 0)]) < 0
    error = ctypes.get_errno() if failed else 0
    if "shm" in given or "queue" in given:
        control = libc.shmctl if "shm" in given else libc.msgctl
        control(arg[0], 0, None)
    return error


def in_child(name: str, given: tuple[object, ...], size: int) -> int:
    child = os.fork()
    if child == 0:
        status = 255
        try:
            if name == "wait4" and os.fork() == 0:
                os._exit(0)
            status = probe_kernel(name, given, size)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize(("name", "given"), EXACT, ids=[name for name, _ in EXACT])
def test_lengths_are_the_kernels(name: str, given: tuple[object, ...]) -> None:
    call = next(call for call in CALLS if call.name == name)
    index = given.index("buf") if "buf" in given else len(given)
    rule = call.arguments[index]
    assert rule.unit == "fixed", rule
    error = in_child(name, given, rule.base)
    if error in (errno.ENOSYS, errno.EBADF, errno.EINVAL):
        pytest.skip(f"not on this machine: {os.strerror(error)}")
    assert error == 0
    assert in_child(name, given, rule.base - 1) == errno.EFAULT


# ---- the dispatcher ----------------------------------------------------------------------------


def test_interrupted_call_is_made_again(shim: Shim) -> None:
    shim.set("result", RESTART & ALL)
    done = shim.do("read", 0, BELOW, 16)
    assert (done.result, done.rcx) == (NR["read"], 0x1000 - 2)


def test_result_is_delivered(shim: Shim) -> None:
    shim.set("result", 7)
    done = shim.do("read", 0, BELOW, 16)
    assert (done.result, done.rcx, done.refused) == (7, 0x1000, 0)
    assert done.forwarded == [Forwarded(NR["read"], (0, BELOW, 16, 0, 0, 0), b"")]


def test_descriptor_beyond_ring_3s_is_taken_back(shim: Shim) -> None:
    shim.set("result", FIRST_FD)
    for name in ("eventfd2", "epoll_create1", "memfd_create", "pidfd_open", "accept4"):
        assert shim.do(name).result == -errno.EMFILE, name


# ---- nested pointers ---------------------------------------------------------------------------


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *(value & ALL for value in values))


VECTORS = ["readv", "writev", "preadv", "pwritev", "preadv2", "pwritev2", "vmsplice"]


@pytest.mark.parametrize("name", VECTORS)
def test_vector_is_copied_and_every_piece_checked(shim: Shim, name: str) -> None:
    good = words(BELOW, 16, ABOVE, 32, 0, 0)
    where = shim.poke(BELOW + 0x4000, good)
    done = shim.do(name, 3, where, 3)
    (call,) = done.forwarded
    assert call.arg[0] == 3 and call.arg[2] == 3
    assert call.at(call.arg[1], len(good)) == good
    for bad in (BASE, LOW - 15, HIGH - 1, BASE + WINDOW - 16, ALL - 8, SCRATCH):
        shim.poke(where + 16, words(bad))
        done = shim.do(name, 3, where, 3)
        assert (done.result, done.refused, done.forwarded) == (-errno.EFAULT, 1, []), hex(bad)


def test_vector_limits(shim: Shim) -> None:
    where = shim.poke(BELOW + 0x4000, words(BELOW, 16) * 1024)
    assert len(shim.do("readv", 3, where, 1024).forwarded) == 1
    assert shim.do("readv", 3, where, 1025).result == -errno.EINVAL
    assert shim.do("readv", 3, where, ALL).result == -errno.EINVAL
    assert shim.do("readv", 3, 0, 0).forwarded[0].arg[1] == 0
    shim.poke(where, words(BELOW, 2**63))
    assert shim.do("readv", 3, where, 1).result == -errno.EINVAL
    # More than the kernel moves at once isn't looked at: the vault may well lie that far above.
    shim.poke(where, words(0x10000, 2**46))
    (call,) = shim.do("readv", 3, where, 1).forwarded
    assert call.at(call.arg[1], 16) == words(0x10000, RW_MAX)
    for bad in (LOW - 8, BASE, 0x10):
        done = shim.do("readv", 3, bad, 1)
        assert (done.result, done.forwarded) == (-errno.EFAULT, [])


def header(
    name: int = 0, name_bytes: int = 0, iov: int = 0, n: int = 0, control: int = 0, bytes_: int = 0
) -> bytes:
    return struct.pack("<QIIQQQQII", name, name_bytes, 0, iov, n, control, bytes_, 0, 0)


def control_data(*fds: int, level: int = 1, kind: int = 1, length: int | None = None) -> bytes:
    size = 16 + 4 * len(fds) if length is None else length
    data = struct.pack("<Qii", size, level, kind) + struct.pack(f"<{len(fds)}i", *fds)
    return data + b"\0" * (-len(data) % 8)


def test_sent_message_is_copied_whole(shim: Shim) -> None:
    iov = shim.poke(BELOW + 0x1000, words(BELOW, 5))
    name = shim.poke(BELOW + 0x2000, b"\x02\x00\x00\x50" + bytes(12))
    control = shim.poke(BELOW + 0x3000, control_data(0, 1, 2))
    size = len(control_data(0, 1, 2))
    where = shim.poke(BELOW + 0x4000, header(name, 16, iov, 1, control, size))
    (call,) = shim.do("sendmsg", 4, where, 0x40).forwarded
    assert (call.nr, call.arg[0], call.arg[2]) == (NR["sendmsg"], 4, 0x40)
    fields = struct.unpack("<QIIQQQQII", call.at(call.arg[1], 56))
    assert call.at(fields[0], 16) == b"\x02\x00\x00\x50" + bytes(12)
    assert call.at(fields[3], 16) == words(BELOW, 5)
    assert call.at(fields[5], size) == control_data(0, 1, 2)
    assert (fields[1], fields[4], fields[6]) == (16, 1, size)


@pytest.mark.parametrize(
    "data",
    [
        control_data(FIRST_FD),
        control_data(0, 1, FIRST_FD + 5),
        control_data(0, level=0, kind=8) + control_data(FIRST_FD),
        control_data(*range(200)) + control_data(2**31 - 1),
    ],
)
def test_shims_descriptors_are_not_sent(shim: Shim, data: bytes) -> None:
    control = shim.poke(BELOW + 0x3000, data)
    where = shim.poke(BELOW + 0x5000, header(control=control, bytes_=len(data)))
    done = shim.do("sendmsg", 4, where)
    assert (done.result, done.refused, done.forwarded) == (-errno.EBADF, 1, [])
    many = shim.poke(BELOW + 0x6000, shim.peek(where, 56) + bytes(8))
    done = shim.do("sendmmsg", 4, many, 1)
    assert (done.result, done.forwarded) == (-errno.EBADF, [])


@pytest.mark.parametrize("field", ["header", "name", "iov", "piece", "control"])
@pytest.mark.parametrize("name", ["sendmsg", "recvmsg", "sendmmsg", "recvmmsg"])
def test_message_that_leads_into_the_vault_is_refused(shim: Shim, name: str, field: str) -> None:
    for bad in (BASE, BASE + WINDOW - 8, LOW - 4, HIGH - 1, ALL - 2):
        at = {"name": BELOW + 0x100, "control": BELOW + 0x200, "piece": BELOW}
        at[field] = bad
        shim.poke(BELOW + 0x1000, words(at["piece"], 64))
        iov = bad if field == "iov" else BELOW + 0x1000
        where = BELOW + 0x4000
        shim.poke(where, header(at["name"], 16, iov, 1, at["control"], 64) + bytes(8))
        done = shim.do(name, 4, bad if field == "header" else where, 1)
        assert (done.result, done.forwarded) == (-errno.EFAULT, []), hex(bad)


def test_rds_addresses_are_refused(shim: Shim) -> None:
    data = control_data(0, level=276, kind=1)
    control = shim.poke(BELOW + 0x3000, data)
    where = shim.poke(BELOW + 0x5000, header(control=control, bytes_=len(data)))
    assert shim.do("sendmsg", 4, where).result == -errno.EINVAL


def test_denied_net_address_is_refused(shim: Shim) -> None:
    shim.set("denied", CLASSES["net"])
    name = shim.poke(BELOW + 0x2000, bytes(16))
    where = shim.poke(BELOW + 0x4000, header(name, 16))
    assert shim.do("sendmsg", 4, where).result == -errno.EPERM
    assert shim.do("sendto", 4, BELOW, 5, 0, name, 16).result == -errno.EPERM
    assert len(shim.do("sendto", 4, BELOW, 5).forwarded) == 1


def test_pselect_mask_is_checked(shim: Shim) -> None:
    where = shim.poke(BELOW + 0x1000, words(BELOW + 0x2000, 8))
    (call,) = shim.do("pselect6", 3, 0, 0, 0, 0, where).forwarded
    assert call.at(call.arg[5], 16) == words(BELOW + 0x2000, 8)
    shim.poke(where, words(BASE, 8))
    assert shim.do("pselect6", 3, 0, 0, 0, 0, where).result == -errno.EFAULT


@pytest.mark.parametrize("name", ["poll", "ppoll"])
def test_polled_descriptor_of_the_shims_is_as_if_closed(shim: Shim, name: str) -> None:
    shim.set("real", 1)
    assert shim.do("pipe", BELOW).result == 0
    reader, writer = struct.unpack("<2i", shim.peek(BELOW, 8))
    fds = [(writer, 4), (FIRST_FD, 1), (reader, 1), (2**31 - 1, 1), (-1, 1)]
    where = shim.poke(BELOW + 0x100, b"".join(struct.pack("<ihh", *fd, 0) for fd in fds))
    forever = 0xFFFF_FFFF if name == "poll" else 0
    done = shim.do(name, where, len(fds), forever)
    assert done.result == 3
    (call,) = done.forwarded
    assert all(fd < FIRST_FD for fd, _ in struct.iter_unpack("<iI", call.at(call.arg[0], 40)))
    got = list(struct.iter_unpack("<ihH", shim.peek(where, 40)))
    assert [fd for fd, _, _ in got] == [fd for fd, _ in fds]
    assert [revents for _, _, revents in got] == [4, 0x20, 0, 0x20, 0]
    # None of the shim's: as it is, however long it waits.
    assert shim.do(name, where, 1, forever).forwarded[0].arg[:3] == (where, 1, forever)


def test_select_ends_before_the_shims_descriptors(shim: Shim) -> None:
    assert shim.do("select", 100_000).forwarded[0].arg[0] == FIRST_FD
    assert shim.do("select", -1).forwarded[0].arg[0] == ALL


# Operation: is the fourth argument a pointer, is the fifth?
FUTEX = {
    0: "t", 1: "", 3: "2", 4: "2", 5: "2", 6: "t", 7: "", 8: "", 9: "t", 10: "", 11: "t2", 12: "2",
    13: "t",
}  # fmt: skip


@pytest.mark.parametrize("op", FUTEX)
@pytest.mark.parametrize("flags", [0, 128, 256, 384])
def test_futex_pointers_by_operation(shim: Shim, op: int, flags: int) -> None:
    word = BELOW + 0x100
    assert shim.do("futex", BASE, op | flags, 1).result == -errno.EFAULT
    assert shim.do("futex", LOW - 2, op | flags, 1).result == -errno.EFAULT
    timed = shim.do("futex", word, op | flags, 1, BASE, word)
    assert (timed.result == -errno.EFAULT) == ("t" in FUTEX[op])
    second = shim.do("futex", word, op | flags, 1, 0, BASE)
    assert (second.result == -errno.EFAULT) == ("2" in FUTEX[op])
    assert len(shim.do("futex", word, op | flags, 1, 0, word).forwarded) == 1


def test_futex_unknown_operation_is_enosys(shim: Shim) -> None:
    for op in (2, 14, 64, 127, 1 << 9, 1 << 31):
        assert shim.do("futex", BELOW, op).result == -errno.ENOSYS


@pytest.mark.parametrize(("name", "n"), [("futex_waitv", 3), ("futex_requeue", 2)])
def test_futex_vector_words_are_checked(shim: Shim, name: str, n: int) -> None:
    waiters = b"".join(struct.pack("<QQII", 1, BELOW + 8 * i, 2, 0) for i in range(n))
    where = shim.poke(BELOW + 0x1000, waiters)
    (call,) = shim.do(name, where, n).forwarded
    assert call.at(call.arg[0], len(waiters)) == waiters
    shim.poke(where + 24 + 8, words(BASE))
    assert shim.do(name, where, n).result == -errno.EFAULT


def test_options_that_lead_to_memory_are_refused(shim: Shim) -> None:
    refused = [(1, 26), (1, 50), (1, 51), (1, 52), (6, 35), (0, 64), (0, 65), (41, 64), (41, 68),
               (263, 22), (284, 4), (276, 1), (132, 111), (999, 1)]  # fmt: skip
    for level, option in refused:
        for name in ("setsockopt", "getsockopt"):
            length = shim.poke(BELOW + 0x100, struct.pack("<I", 16)) if name[0] == "g" else 16
            done = shim.do(name, 3, level, option, BELOW, length)
            assert (done.result, done.forwarded) == (-errno.ENOPROTOOPT, []), (level, option)
    for level, option in [(1, 2), (1, 9), (6, 1), (6, 13), (0, 1), (41, 26), (41, 67), (17, 103)]:
        assert len(shim.do("setsockopt", 3, level, option, BELOW, 4).forwarded) == 1


def test_umem_must_not_be_the_vault(shim: Shim) -> None:
    where = shim.poke(BELOW + 0x100, words(ABOVE, 4096, 0, 0))
    (call,) = shim.do("setsockopt", 3, 283, 4, where, 32).forwarded
    assert call.at(call.arg[3], 32) == words(ABOVE, 4096, 0, 0)
    for address, size in [(BASE, 4096), (0, ALL), (BELOW, 4 * WINDOW), (LOW - 1, 2)]:
        shim.poke(where, words(address, size))
        assert shim.do("setsockopt", 3, 283, 4, where, 32).result == -errno.EFAULT


def test_mq_notify_cookie_is_checked(shim: Shim) -> None:
    for value, fd, expected in [
        (BELOW, 3, 0), (BASE, 3, -errno.EFAULT), (LOW - 31, 3, -errno.EFAULT),
        (BELOW, FIRST_FD, -errno.EBADF),
    ]:  # fmt: skip
        where = shim.poke(BELOW + 0x100, struct.pack("<Qii", value, fd, 2) + bytes(48))
        assert shim.do("mq_notify", 3, where).result == expected


def test_semctl_argument_by_command(shim: Shim) -> None:
    for command, pointer in [
        (0, False),
        (2, True),
        (12, False),
        (13, True),
        (16, False),
        (17, True),
    ]:
        done = shim.do("semctl", 1, 0, command, BASE)
        assert (done.result == -errno.EFAULT) == pointer, command
    assert shim.do("semctl", 1, 0, 99, BASE).result == -errno.EINVAL


def test_denied_signals_reach_only_oneself(shim: Shim) -> None:
    own = shim.process.pid
    shim.set("denied", CLASSES["signal"])
    for name in ("kill", "tgkill"):
        assert shim.do(name, 1, 9, 9).result == -errno.EPERM
        assert shim.do(name, -1, 9, 9).result == -errno.EPERM
        assert len(shim.do(name, own, 1, 1).forwarded) == 1
    assert shim.do("tkill", 1, 9).forwarded[0].arg[:3] == (own, 1, 9)


def test_mlockall_leaves_untouched_memory_alone(shim: Shim) -> None:
    assert shim.do("mlockall", 1).forwarded[0].arg[0] == 5
    assert shim.do("mlockall", 2).forwarded[0].arg[0] == 2


# ---- really made: what is copied behaves as what is passed -------------------------------------


def test_real_messages_arrive(shim: Shim) -> None:
    shim.set("real", 1)
    assert shim.do("socketpair", 1, 2, 0, BELOW).result == 0
    one, other = struct.unpack("<2i", shim.peek(BELOW, 8))
    shim.poke(BELOW + 0x100, b"hello, ")
    shim.poke(BELOW + 0x200, b"world")
    iov = shim.poke(BELOW + 0x1000, words(BELOW + 0x100, 7, BELOW + 0x200, 5))
    rights = shim.poke(BELOW + 0x2000, control_data(one))
    where = shim.poke(BELOW + 0x3000, header(iov=iov, n=2, control=rights, bytes_=20))
    assert shim.do("sendmsg", one, where).result == 12
    assert shim.do("writev", one, iov, 2).result == 12

    into = shim.poke(BELOW + 0x4000, words(ABOVE, 100))
    name = shim.poke(BELOW + 0x4100, b"\xff" * 16)
    where = shim.poke(BELOW + 0x5000, header(name, 16, into, 1, BELOW + 0x6000, 64))
    assert shim.do("recvmsg", other, where).result == 12
    assert shim.peek(ABOVE, 12) == b"hello, world"
    fields = struct.unpack("<QIIQQQQII", shim.peek(where, 56))
    assert fields[0] == name and fields[1] == 0  # a pair has no names
    assert fields[3:6] == (into, 1, BELOW + 0x6000)
    assert fields[6] == 24  # SCM_RIGHTS, with its padding
    received = struct.unpack("<Qiii", shim.peek(BELOW + 0x6000, 20))
    assert received[:3] == (20, 1, 1) and received[3] > other
    assert shim.do("readv", other, into, 1).result == 12


def test_real_many_messages_arrive(shim: Shim) -> None:
    shim.set("real", 1)
    assert shim.do("socketpair", 1, 2, 0, BELOW).result == 0
    one, other = struct.unpack("<2i", shim.peek(BELOW, 8))
    sent = b""
    for i in range(5):
        shim.poke(BELOW + 0x100 + 16 * i, b"x" * (i + 1))
        iov = shim.poke(BELOW + 0x1000 + 16 * i, words(BELOW + 0x100 + 16 * i, i + 1))
        sent += header(iov=iov, n=1) + bytes(8)
    where = shim.poke(BELOW + 0x3000, sent)
    assert shim.do("sendmmsg", one, where, 5).result == 5
    lengths = [struct.unpack("<I", shim.peek(where + 64 * i + 56, 4))[0] for i in range(5)]
    assert lengths == [1, 2, 3, 4, 5]

    taken = b""
    for i in range(8):
        iov = shim.poke(BELOW + 0x5000 + 16 * i, words(ABOVE + 16 * i, 16))
        taken += header(iov=iov, n=1) + bytes(8)
    where = shim.poke(BELOW + 0x6000, taken)
    wait = shim.poke(BELOW + 0x7000, words(5, 0))
    assert shim.do("recvmmsg", other, where, 8, 0x10000, wait).result == 5  # MSG_WAITFORONE
    lengths = [struct.unpack("<I", shim.peek(where + 64 * i + 56, 4))[0] for i in range(5)]
    assert lengths == [1, 2, 3, 4, 5]
    seconds, ns = struct.unpack("<2Q", shim.peek(wait, 16))
    assert seconds == 4 and ns < 10**9
    assert shim.do("recvmmsg", other, where, 8, 0x40).result == -errno.EAGAIN
    shim.poke(wait, words(0, 10**9))
    assert shim.do("recvmmsg", other, where, 8, 0x40, wait).result == -errno.EINVAL


def test_real_pipe_and_select(shim: Shim) -> None:
    shim.set("real", 1)
    assert shim.do("pipe2", BELOW, os.O_NONBLOCK).result == 0
    reader, writer = struct.unpack("<2i", shim.peek(BELOW, 8))
    sets = shim.poke(BELOW + 0x100, words(1 << reader))
    mask = shim.poke(BELOW + 0x200, words(BELOW + 0x300, 8))
    wait = shim.poke(BELOW + 0x400, words(0, 1000))
    assert shim.do("pselect6", reader + 1, sets, 0, 0, wait, mask).result == 0
    shim.poke(BELOW + 0x500, b"x")
    assert shim.do("write", writer, BELOW + 0x500, 1).result == 1
    shim.poke(sets, words(1 << reader))
    assert shim.do("select", 5000, sets).result == 1
    assert shim.peek(sets, 8) == words(1 << reader)


def test_real_copies_fail_where_nothing_is_mapped(shim: Shim) -> None:
    shim.set("real", 1)
    for hole in (0x1000, ABOVE + USER_BYTES, ABOVE + USER_BYTES - 8):
        assert shim.do("readv", 0, hole, 1).result == -errno.EFAULT
        assert shim.do("pipe", hole).result == (-errno.EFAULT if hole % 16 == 0 else 0)


def test_model_has_pointers_of_every_unit() -> None:
    units = {a.unit for c in CALLS for a in c.arguments if a.is_pointer}
    assert units == {"fixed", "times", "bits", "pages", "pointed"}


# ---- the generator -----------------------------------------------------------------------------


def entry(text: str) -> str:
    """A table whose read() is another."""
    return re.sub(r"(?m)^read = .*$", lambda _: text, TABLE.read_text())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no entry for 0"),
        ("read = 1", "not 'NAME"),
        ("read = { nr = 0 }", "needs one of"),
        ('read = { nr = 0, allow = [], deny = "EPERM", why = "x" }', "needs one of"),
        ("read = { nr = 1, allow = [] }", "write: 1 is read's number"),
        ("read = { nr = 480, allow = [] }", "no entry for 0"),
        ("read = { nr = -1, allow = [] }", "nr is missing"),
        ("read = { allow = [] }", "nr is missing"),
        ("read = { nr = 0, allow = [], colour = 1 }", "unknown: colour"),
        ('read = { nr = 0, allow = [], class = "fun" }', "unknown class"),
        ('read = { nr = 0, allow = [], why = "x" }', "for what is denied"),
        ('read = { nr = 0, deny = "EPERM" }', "says why"),
        ('read = { nr = 0, deny = "EHUH", why = "x" }', "unknown errno"),
        ('read = { nr = 0, allow = "int a" }', "takes a list"),
        ('read = { nr = 0, allow = ["int"] }', "not 'KIND NAME'"),
        ('read = { nr = 0, allow = ["float a"] }', "unknown kind"),
        ('read = { nr = 0, allow = ["in a"] }', "goes with a length"),
        ('read = { nr = 0, allow = ["int a[4]"] }', "goes without a length"),
        ('read = { nr = 0, allow = ["in a[n]"] }', "no argument 'n'"),
        ('read = { nr = 0, allow = ["in a[n]", "int n"] }', "n is int"),
        ('read = { nr = 0, allow = ["in a[0]"] }', "a length of nothing"),
        ('read = { nr = 0, allow = ["in a[n-1]", "u64 n"] }', "not a length"),
        ('read = { nr = 0, allow = ["in a[*n]", "u64 n"] }', "n is u64"),
        ('read = { nr = 0, allow = ["in a[*n]", "inout n[8]"] }', "is not 32 bits"),
        ('read = { nr = 0, allow = ["u64 n"] }', "no length depends on it"),
        ('read = { nr = 0, allow = ["int a", "int a"] }', "two arguments of one name"),
        ('read = { nr = 0, allow = ["nested a"] }', "only an emulated call"),
        ('read = { nr = 0, allow = ["int a","int b","int c","int d","int e","int f","int g"] }',
         "more than 6"),
        ("read = { nr = 0, allow = [] }\nread = { nr = 0, allow = [] }", "overwrite"),
        ("read = {", ""),
    ],
)  # fmt: skip
def test_wrong_table_is_refused_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, reason: str
) -> None:
    table = tmp_path / "syscalls.toml"
    table.write_text(entry(text))
    assert GEN.main([str(table), str(tmp_path / "out")]) == 1
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_generated_table_has_no_relocations(tmp_path: Path) -> None:
    assert GEN.main([str(TABLE), str(tmp_path)]) == 0
    made = tmp_path / "table.o"
    flags = ["-ffreestanding", "-fPIC", "-fvisibility=hidden", "-fno-jump-tables", "-O2"]
    subprocess.run(
        ["gcc", *flags, f"-I{ROOT / 'libdune_shim'}", f"-I{tmp_path}", "-c",
         tmp_path / "dune_syscalls.c", "-o", made], check=True,
    )  # fmt: skip
    sections = subprocess.run(
        ["readelf", "-SW", made], capture_output=True, text=True, check=True
    ).stdout
    assert ".rodata" in sections
    assert ".rela.rodata" not in sections and ".rela.data" not in sections
