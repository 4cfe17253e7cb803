"""Debian's own binaries in ring 3: their output is what it is outside.

Each row of PROGRAMS runs twice in the same directory, made afresh: as it is, and under
`dune-sandbox permissive`. Standard output, standard error, exit status or signal, and every file
left behind must be the same. What a program starts is sandboxed too.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.dune import kit

TIMEOUT_S = 600.0
WORDS = 12000
BINARY_BYTES = 300_000
POLICY = "permissive"


@dataclass(frozen=True)
class Program:
    """A run. group: what the closing report counts it under. name: of a script."""

    group: str
    argv: tuple[str, ...]
    stdin: str = ""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.group}: {self.name or ' '.join(self.argv)}"


def lines(group: str, text: str) -> list[Program]:
    """A program a line, words apart by blanks."""
    return [Program(group, tuple(line.split())) for line in text.strip().splitlines()]


BUSYBOX_SCRIPT = """
set -e
for n in 1 2 3; do echo "line $n" >>made; done
cat made | sed 's/line/row/' | awk '{ s += $2; print $0 } END { print "sum", s }'
sort -r made | head -n 2 | tr a-z A-Z
(cd tree && find . -type f | sort | xargs wc -c)
gzip -c words >w.gz && gunzip -c w.gz | cmp - words && rm w.gz
tar cf - tree | tar tf - | sort
dd if=binary bs=1000 count=3 2>/dev/null | md5sum
echo $((6 * 7)) $(expr 6 + 7) | cut -d' ' -f2
f() { return 3; }; f || echo "status $?"
printf '%05d|%s\\n' 42 end
false | true; echo $?
"""

SHELL_SCRIPT = """
echo start; x=$(echo sub; (echo subsub; exit 4); echo $?); echo "$x"
seq 1 2000 | while read n; do [ $((n % 500)) -eq 0 ] && echo "n $n"; done
trap 'echo trapped; exit 7' TERM
( sleep 0.1; echo child ) & wait $!; echo "waited $?"
cat <<END | tr a-z A-Z
here document $((1 + 2))
END
{ echo out; echo err >&2; } 2>&1 | sort
grep -c e words; head -c 1000 binary | sha256sum
umask 027; echo made >made; ls -l made | cut -c1-10
i=0; while [ $i -lt 300 ]; do i=$((i + 1)); done; echo $i
kill -TERM $$; echo never
"""

BASH_SCRIPT = r"""
declare -A map=([one]=1 [two]=2); for k in one two; do echo "$k=${map[$k]}"; done
diff <(seq 5) <(seq 2 6); mapfile -t rows < <(head -3 words); echo "${#rows[@]} ${rows[0]@Q}"
coproc { read line; echo "got $line"; }; echo hello >&${COPROC[1]}; read reply <&${COPROC[0]}
echo "$reply"; wait; (ulimit -n 64; ulimit -n)
for i in 1 2 3; do (exit $i) & pids[$i]=$!; done
for i in 1 2 3; do wait ${pids[$i]}; echo "child $?"; done
yes | head -2; echo "${PIPESTATUS[*]}"; [[ abc =~ ^a(.)c$ ]] && echo "${BASH_REMATCH[1]}"
printf '%(%Y)T\n' 0
exec 5<words; read -u 5 first; echo "$first"; exec 5<&-
trap 'echo usr1' USR1; kill -USR1 $$
trap 'echo exit' EXIT; { bash -c 'kill -SEGV $$'; } 2>made; echo $?; rm made
"""

PERL_SCRIPT = r"""
use strict; use Socket; use IO::Socket::INET; use POSIX ":sys_wait_h"; $| = 1;
pipe(my $r, my $w); my $pid = fork; die unless defined $pid;
if (!$pid) { close $r; print $w "from the child\n"; close $w; exit 5 }
close $w; print "read: ", <$r>; waitpid $pid, 0; print "child ", $? >> 8, "\n";
socketpair(my $s, my $t, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or die; syswrite $s, "pair";
sysread $t, my $got, 10; print "$got\n";
my $server = IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1") or die $@;
if (!fork) { my $c = IO::Socket::INET->new(PeerAddr => "127.0.0.1", PeerPort => $server->sockport);
  print $c "over TCP\n"; exit 0 }
my $peer = $server->accept; print "got: ", scalar <$peer>;
wait; print "ended $?\n";
local $SIG{ALRM} = sub { print "alarm\n" }; alarm 1; select undef, undef, undef, 5;
local $SIG{USR1} = sub { print "usr1\n" }; kill USR1 => $$; print `echo from a shell`;
my %n; open my $f, "<", "words"; while (<$f>) { $n{length $_}++ } print "$_ $n{$_}\n" for sort
  { $a <=> $b } keys %n;
system "sh -c 'exit 9'"; print $? >> 8, "\n"; print STDERR "to stderr\n"; exit 3;
"""

PYTHON_THREADS = """
import queue, threading, time, concurrent.futures, hashlib
work, done = queue.Queue(), []
def run():
    while (n := work.get()) is not None: done.append(n * n)
threads = [threading.Thread(target=run) for _ in range(20)]
for t in threads: t.start()
for n in range(2000): work.put(n)
for t in threads: work.put(None)
for t in threads: t.join()
print(sum(done), threading.active_count())
lock, count = threading.Lock(), 0
def add():
    global count
    for _ in range(500):
        with lock: count += 1
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for _ in range(8): pool.submit(add)
    print(list(pool.map(lambda n: hashlib.sha256(bytes([n]) * 100000).hexdigest()[:8], range(8))))
print(count); event = threading.Event(); print(event.wait(0.05))
local = threading.local(); local.x = 1
t = threading.Timer(0.01, lambda: print(hasattr(local, 'x')))
t.start(); t.join()
"""

PYTHON_CTYPES = """
import ctypes, ctypes.util
libc = ctypes.CDLL(None, use_errno=True)
print(libc.strlen(b'hello'), libc.abs(-5), libc.getpid() == __import__('os').getpid())
compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
array = (ctypes.c_int * 6)(5, 1, 4, 2, 3, 0)
libc.qsort(array, 6, ctypes.sizeof(ctypes.c_int), compare(lambda a, b: a[0] - b[0]))
print(list(array)); print(libc.open(b'/no/such', 0), ctypes.get_errno())
libm = ctypes.CDLL('libm.so.6'); libm.cos.restype = ctypes.c_double
libm.cos.argtypes = [ctypes.c_double]; print(libm.cos(0.0))
class S(ctypes.Structure): _fields_ = [('a', ctypes.c_int), ('b', ctypes.c_double)]
print(ctypes.sizeof(S), S(1, 2.5).b); buffer = ctypes.create_string_buffer(20)
libc.snprintf(buffer, 20, b'%d-%s', 7, b'x'); print(buffer.value)
"""

PYTHON_PROCESSES = """
import multiprocessing, os, signal, subprocess, sys
print(subprocess.run(['sort', '-r', 'words'], capture_output=True, text=True).stdout[:20])
print(subprocess.run('exit 4', shell=True).returncode)
def square(n): return n * n
if __name__ == '__main__':
    with multiprocessing.get_context('fork').Pool(2) as pool: print(pool.map(square, range(10)))
    pid = os.fork()
    if not pid: os.kill(os.getpid(), signal.SIGKILL)
    print(os.waitpid(pid, 0)[1])
    pid = os.posix_spawn('/usr/bin/true', ['true'], os.environ); print(os.waitpid(pid, 0)[1])
    sys.exit(6)
"""

PYTHON_REST = """
import asyncio, decimal, json, mmap, re, signal, sqlite3, time, zlib
async def serve(reader, writer):
    writer.write((await reader.readline()).upper()); await writer.drain(); writer.close()
async def main():
    server = await asyncio.start_server(serve, '127.0.0.1', 0)
    r, w = await asyncio.open_connection(*server.sockets[0].getsockname())
    w.write(b'hello over asyncio\\n'); print(await r.readline()); w.close(); server.close()
    process = await asyncio.create_subprocess_exec('echo', 'child', stdout=-1)
    print((await process.communicate())[0])
asyncio.run(main())
with open('binary', 'r+b') as f, mmap.mmap(f.fileno(), 0) as m:
    m[:4] = b'mmap'; print(zlib.crc32(m), m.find(b'zzz')); m.flush()
signal.signal(signal.SIGALRM, lambda *a: print('alarm')); signal.setitimer(signal.ITIMER_REAL, 0.05)
time.sleep(0.2)
words = open('words').read(); print(len(re.findall(r'\\b[a-m]\\w+', words)))
print(json.loads(json.dumps({'a': [1, 2.5, None]})), decimal.Decimal(2).sqrt())
db = sqlite3.connect('made.db'); db.execute('create table t(x)')
db.executemany('insert into t values(?)', [(n,) for n in range(100)]); db.commit()
print(db.execute('select sum(x) from t').fetchone()); db.close()
"""

SQL = """
pragma journal_mode=wal; pragma mmap_size=1000000;
create table t(id integer primary key, word text, n int); create index i on t(word);
with recursive c(x) as (select 1 union all select x+1 from c where x<3000)
insert into t select x, printf('w%05d', (x*7919)%3000), x%17 from c;
select count(*), sum(n), min(word), max(word) from t; delete from t where n=3;
select n, count(*) from t group by n order by n limit 5; update t set word=upper(word) where n=5;
pragma integrity_check; select hex(sha3) from (select substr(hex(word),1,8) sha3 from t limit 3);
begin; drop table t; rollback; select count(*) from t; vacuum; select * from nosuch;
"""

COREUTILS = """
ls -lRn --time-style=+ tree
ls -la --time-style=full-iso words no-such-file
cat -A words
cp -rp tree copy
cp --sparse=always binary copy
mv words renamed
wc words binary
sort words
sort -R --random-source=binary words
sort --parallel=2 -S 1M -u words -o sorted
uniq -c words
cut -c2-4 words
head -n 5 words
tail -c 100 binary
tac words
nl words
md5sum words binary
sha512sum binary
b2sum binary
cksum binary words
base64 binary
od -A x -t x1z -N 300 binary
seq -w 1 3 1000
factor 1234567890123 97 1000000007
expr 12 * 13
stat -c %n:%s:%f:%h words tree
du -a --apparent-size tree/a
dd if=binary of=made bs=512 count=7 skip=3 status=none
split -n 4 binary part.
csplit -s words 100 200
comm words words
join words words
paste words words
fold -w 5 words
fmt words
pr -h title -D date words
shuf --random-source=binary words
numfmt --to=iec 1000 1000000
env -i A=1 env
date -u -d @1000000000 +%F_%T
id
uname -sm
nproc
truncate -s 5000 words
ln -s words link
realpath tree/../words
readlink -f /proc/self/cwd
mkdir -p made/of/directories
rmdir tree
rm -r tree
touch -d 2001-02-03 made
chmod -v 741 words
chown 1:2 words
mkfifo made
tee made other
timeout 0.2 sleep 10
timeout -s KILL 0.2 sleep 10
nice -n 5 nice
nohup echo hello
stdbuf -o0 echo hello
sleep 0.05
true
false
pwd
test -d tree
install -m 600 words made
shred -n 1 --random-source=binary words
tsort words
ptx tree/a
"""

OTHERS = [
    *lines("grep", "grep -rn a1 tree\ngrep -P \\b(a|b)\\w+c\\b words\ngrep -c e words"),
    *lines("grep", "grep nothing-like-it words\ngrep x no-such-file\ngrep -zao zz* binary"),
    *lines("sed", "sed -n 10,20p words\nsed -i s/a/A/g words\nsed -E s/(.)(.)/\\2\\1/ words"),
    *lines("tar", "tar -cvf made.tar tree words\ntar -czf made.tgz --mtime=@0 tree"),
    *lines("tar", "tar -cJf made.txz tree\ntar --zstd -cf made.tzst tree"),
    *lines("gzip", "gzip -nk words\ngzip -9nv binary\ngzip -t words\nbzip2 -k binary"),
    *lines("threads", "pigz -p 4 -nk words\npigz -p 4 -nk -b 32 binary\nxz -T2 -k binary"),
    *lines("threads", "xz -T2 --block-size=65536 -k words binary\nzstd -q -T2 -k binary words"),
    *lines("findutils", "find . -newer no-such\nfind tree -type f -exec md5sum {} +"),
    *lines("findutils", "find . -name a* -printf %p:%s:%m\\n\nxargs -a words -n 4000 -P 1 echo"),
    *lines("diffutils", "diff -ru tree tree\ncmp words binary\ndiff words tree/a"),
    *lines("awk", "awk {n[length]++}END{print(n[5])} words"),
    *lines("ld.so", "/lib64/ld-linux-x86-64.so.2 /bin/echo hello\n/sbin/ldconfig -p -C /dev/null"),
    *lines("procps", "free -V\nps -V\nip -br link show lo\nping -qc1 -W1 no.invalid"),
    *lines("util-linux", "flock made echo locked\ngetopt ab: -a -b c"),
    *lines("util-linux", "lscpu -V\nrev words\nsetsid -w echo hello"),
]

PROGRAMS = [
    Program("busybox", ("busybox", "sh", "-c", BUSYBOX_SCRIPT), name="a script of applets"),
    *lines("busybox", "busybox sha256sum words\nbusybox find tree\nbusybox sort -n words"),
    *lines("busybox", "busybox tar -cf made.tar tree\nbusybox cat no-such\nbusybox bzip2 -k words"),
    *lines("coreutils", COREUTILS),
    Program("coreutils", ("tr", "a-z", "A-Z"), stdin="to upper case\n" * 5000),
    *OTHERS,
    Program("sqlite3", ("sqlite3", "made.db"), stdin=SQL, name="a database"),
    Program("sqlite3", ("sqlite3", ":memory:", "select sqlite_version(), 1/3.0, abs(-5)")),
    Program("perl", ("perl", "-e", PERL_SCRIPT), name="fork, sockets, signals"),
    Program("perl", ("perl", "-ne", "print if /^[a-c].*e$/", "words")),
    Program("python3", ("python3", "-c", PYTHON_THREADS), name="threads"),
    Program("python3", ("python3", "-c", PYTHON_CTYPES), name="ctypes"),
    Program("python3", ("python3", "-c", PYTHON_PROCESSES), name="processes"),
    Program("python3", ("python3", "-c", PYTHON_REST), name="asyncio, mmap, signals, sqlite3"),
    Program("python3", ("python3", "-c", "import os; os.abort()")),
    Program("shells", ("dash", "-c", SHELL_SCRIPT), name="dash"),
    Program("shells", ("bash", "-c", SHELL_SCRIPT), name="bash"),
    Program("shells", ("bash", "-c", BASH_SCRIPT), name="bash alone"),
]


@dataclass
class Run:
    """How a run went, and what it left."""

    result: kit.Result
    files: dict[str, object]
    seconds: float


@dataclass
class Tally:
    """Of a group, for the closing report."""

    same: int = 0
    different: int = 0
    bare_s: float = 0.0
    sandboxed_s: float = 0.0


TALLIES: dict[str, Tally] = {}


@functools.cache
def contents() -> dict[str, bytes]:
    """Input that is the same each time, by name."""
    chance = random.Random(20141006)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ("".join(chance.choices(letters, k=chance.randint(2, 9))) for _ in range(WORDS))
    made = {
        "words": "".join(f"{word}\n" for word in words).encode(),
        "binary": chance.randbytes(BINARY_BYTES // 2) + bytes(BINARY_BYTES // 2),
    }
    for name in ("tree/a", "tree/b/c", "tree/b/d", "tree/e/f/g"):
        made[name] = "".join(f"{name[5:]}{n}\n" for n in range(40)).encode()
    return made


def prepare(place: Path) -> None:
    """The input, of one age."""
    for name, data in contents().items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    (place / "tree/link").symlink_to("a")
    for path in (place, *place.rglob("*")):
        os.utime(path, (1e9, 1e9), follow_symlinks=False)


def left(place: Path) -> dict[str, object]:
    """Every file: its type and mode, and what is in it."""
    found: dict[str, object] = {}
    for path in sorted(place.rglob("*")):
        mode = path.lstat().st_mode
        content: object = None
        if stat.S_ISLNK(mode):
            content = os.readlink(path)
        elif stat.S_ISREG(mode):
            content = path.read_bytes()
        found[str(path.relative_to(place))] = (oct(mode), content)
    return found


def run(program: Program, place: Path, sandboxed: bool) -> Run:
    """One run in a fresh directory at `place`."""
    place.mkdir()
    prepare(place)
    before = [kit.SANDBOX, POLICY, "--"] if sandboxed else []
    began = time.monotonic()
    result = kit.run(
        [*before, *program.argv],
        TIMEOUT_S,
        cwd=place,
        env={"TZ": "UTC0"},
        stdin=program.stdin,
    )
    seconds = time.monotonic() - began
    files = left(place)
    shutil.rmtree(place)
    return Run(result, files, seconds)


def differences(bare: Run, sandboxed: Run) -> list[str]:
    """In words."""
    found = []
    for name in ("status", "stdout", "stderr"):
        one, other = getattr(bare.result, name), getattr(sandboxed.result, name)
        if one != other:
            found.append(f"{name}: {one!r:.500} became {other!r:.500}")
    for name in sorted(bare.files.keys() | sandboxed.files.keys()):
        one, other = bare.files.get(name), sandboxed.files.get(name)
        if one != other:
            found.append(f"file {name}: {one!r:.200} became {other!r:.200}")
    return found


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_program_does_as_outside(program: Program, tmp_path: Path) -> None:
    bare = run(program, tmp_path / "place", sandboxed=False)
    sandboxed = run(program, tmp_path / "place", sandboxed=True)
    tally = TALLIES.setdefault(program.group, Tally())
    tally.bare_s += bare.seconds
    tally.sandboxed_s += sandboxed.seconds
    different = differences(bare, sandboxed)
    if bare.result.status in (126, 127, None):
        different.append(f"outside, it can't be run: {bare.result}")
    tally.different += bool(different)
    tally.same += not different
    if different:
        pytest.fail("\n".join(different), pytrace=False)


def test_programs_together(note: Callable[[str], None]) -> None:
    """For the closing report."""
    assert TALLIES
    for group, tally in TALLIES.items():
        note(
            f"{group}: {tally.same} of {tally.same + tally.different} as outside; "
            f"{tally.bare_s:.1f} s outside, {tally.sandboxed_s:.1f} s in ring 3"
        )
