"""libdune_shim/sandbox: what it does before a program is in the guest.

Compiled here in two ways, without the guest: with the sanitizers, for everything that reads what
it must not trust (policy files, ELF files, scripts); and as it is, with a dune_enter_user() that
does nothing, so that the program it has loaded runs as an ordinary one.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "libdune_shim/sandbox").glob("*.c"))
NO_GUEST = """
#include "dune.h"
int dune_init(const struct dune_config *config) { (void)config; return 0; }
int dune_enter_user(void) { return 0; }
const char *dune_error(void) { return "no guest here"; }
"""
FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def compile_sandbox(place: Path, *flags: str) -> Path:
    stub = place / "no_guest.c"
    stub.write_text(NO_GUEST)
    made = place / "dune-sandbox"
    warnings = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"]
    include = f"-I{ROOT / 'libdune_shim'}"
    command = ["gcc", *warnings, "-O1", "-g", *flags, include, "-o", made, *SOURCES, stub]
    subprocess.run(command, check=True)
    return made


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dune-sandbox that ends with status 99 when a sanitizer finds something."""
    return compile_sandbox(
        tmp_path_factory.mktemp("sanitized"),
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    )


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dune-sandbox as it is built, but for the guest."""
    return compile_sandbox(tmp_path_factory.mktemp("native"), "-static-pie", "-fPIE")


def start(program: Path, *words: str | Path, **more: object) -> subprocess.CompletedProcess[str]:
    sanitizers = {
        "ASAN_OPTIONS": "detect_leaks=0:exitcode=99:abort_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:exitcode=99",
    }
    environment = more.pop("env", {**os.environ, **sanitizers})
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [program, *words],
        capture_output=True,
        text=True,
        errors="replace",
        env=environment,
        timeout=240,
        **more,
    )


@pytest.fixture
def policy(sanitized: Path, tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Parses a policy's text and prints what was understood."""

    def parse(text: str | bytes) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "p"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return start(sanitized, "--dry-run", "p", cwd=tmp_path)

    return parse


# ---- policy files ------------------------------------------------------------------------------


def test_policy_empty_refuses_everything(policy: Run) -> None:
    said = policy("# nothing\n\n").stdout.splitlines()
    classes = [f"{name} no" for name in ("exec", "network", "fork", "signal", "ipc", "admin")]
    assert said == ["paths checked", *classes, "memory 0", "log stderr"]


def test_policy_all_settings_are_understood(policy: Run, tmp_path: Path) -> None:
    text = (
        f"read /usr\t{tmp_path}  # both\n"
        f'write "{tmp_path}"\r\n'
        "network yes\nfork yes\nsignal yes\nipc yes\nadmin yes\n"
        "exec yes\nmemory 512M\nlog none"
    )
    done = policy(text)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()) == {
        'path "/usr" r--',
        f'path "{tmp_path}" rw-',
        "paths checked",
        *(f"{name} yes" for name in ("exec", "network", "fork", "signal", "ipc", "admin")),
        f"memory {512 << 20}",
        "log none",
    }


def test_policy_rights_hold_below_and_deny_cuts_them_off(policy: Run, tmp_path: Path) -> None:
    for name in ("a/b/c", "a/x"):
        (tmp_path / name).mkdir(parents=True)
    text = f"write {tmp_path}/a/b/c\nread {tmp_path}\ndeny {tmp_path}/a\nexec {tmp_path}/a/b\n"
    lines = set(policy(text).stdout.splitlines())
    assert f'path "{tmp_path}" r--' in lines
    assert f'path "{tmp_path}/a" ---' in lines
    assert f'path "{tmp_path}/a/b" --x' in lines
    assert f'path "{tmp_path}/a/b/c" -wx' in lines
    assert "exec sandboxed" in lines


def test_policy_symbolic_link_stands_for_its_target(policy: Run, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    assert f'path "{tmp_path}/there" r--' in policy(f"read {tmp_path}/link\n").stdout


def test_policy_redundant_rule_takes_no_room(policy: Run) -> None:
    said = policy("read /usr/bin /usr /usr/lib /usr/bin\n").stdout
    assert [line for line in said.splitlines() if line.startswith('path "')] == ['path "/usr" r--']


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("reed /usr", "reed is no word of a policy"),
        ("read usr", "usr is no absolute path"),
        ("read", "read needs a path"),
        ("write /nowhere/at/all", "/nowhere/at/all: No such file or directory"),
        ("read /proc/self/fd", "another directory in each process"),
        ("exec", "exec needs yes, no, sandboxed or a path"),
        ("exec maybe", "exec: maybe is neither"),
        ("exec no yes", "exec: yes is too much"),
        ("exec /usr bin", "bin is no absolute path"),
        ("network", "network needs yes or no"),
        ("network on", "network: on is neither yes nor no"),
        ("network yes please", "network: please is too much"),
        ("fork yes\nfork no", "fork is given a second time"),
        ("exec yes\nexec no", "is given a second time"),
        ("exec no\nexec /usr", "paths that may be executed"),
        ("memory", "memory needs a size"),
        ("memory lots", "memory: lots is no size"),
        ("memory -5M", "memory: -5M is no size"),
        ("memory 5T", "memory: 5T is no size"),
        ("memory 5MB", "memory: 5MB is no size"),
        ("memory 99999999999G", "memory: 99999999999G is no size"),
        ("memory 99999999999999999999999", "is no size"),
        ("memory 4K", "too little for any program"),
        ("log", "log needs stderr, none or a path"),
        ("log stdout", "log: stdout is neither"),
        ("log none\nlog none", "log is given a second time"),
        ("paths", "paths needs any"),
        ("paths all", "paths: all is not `any`"),
        ("read /usr\ndeny /usr", "/usr is both allowed and denied"),
        ("deny /usr\nread /usr", "/usr is both allowed and denied"),
        ('read "/usr', 'a " has no partner'),
        ("read /us\x01r", "a control character (0x01)"),
        ("read /us\x00r", "a control character (0x00)"),
        ("read /" + "x" * 5000, "a word is too long"),
    ],
)
def test_policy_error_names_file_line_and_reason(policy: Run, line: str, why: str) -> None:
    done = policy(f"# a comment\n{line}\n")
    assert done.returncode == FAILED, done.stdout + done.stderr
    number = 2 + line.count("\n")
    # What only the whole tells is said of the last line.
    assert done.stderr.startswith(f"dune-sandbox: p:{number}: "), done.stderr
    assert why in done.stderr


def test_policy_too_many_paths_is_an_error(policy: Run, tmp_path: Path) -> None:
    for n in range(65):
        (tmp_path / f"d{n}").mkdir()
    done = policy("".join(f"read {tmp_path}/d{n}\n" for n in range(65)))
    assert done.returncode == FAILED
    assert "p:65: more than 64 paths" in done.stderr


def test_policy_path_too_long_for_a_rule_is_an_error(policy: Run, tmp_path: Path) -> None:
    deep = tmp_path / ("y" * 200) / ("z" * 200)
    deep.mkdir(parents=True)
    done = policy(f"read {deep}\n")
    assert done.returncode == FAILED and "is longer than 255 bytes" in done.stderr


def test_policy_larger_than_a_megabyte_is_refused(policy: Run) -> None:
    assert "larger than 1 MiB" in policy("# " + "x" * (1 << 20)).stderr


def test_policy_garbage_never_crashes_the_parser(policy: Run) -> None:
    rng = random.Random(1)
    words = [b"read", b"write", b"exec", b"deny", b"memory", b"log", b'"', b"#", b"\n", b" ", b"/"]
    for _ in range(60):
        parts = [rng.choice(words) if rng.random() < 0.8 else rng.randbytes(3) for _ in range(40)]
        assert policy(b"".join(parts)).returncode in (0, FAILED)


@pytest.mark.parametrize("name", ["strict", "permissive"])
def test_builtin_policy_is_understood(sanitized: Path, name: str) -> None:
    done = start(sanitized, "--dry-run", name)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    if name == "strict":
        assert {"paths checked", "exec no", "network no", "fork no", "log stderr"} <= set(said)
        assert not [
            line
            for line in said
            if line.startswith('path "') and "w" in line[-3:] and '"/dev/' not in line
        ]
    else:
        assert {"paths any", "exec sandboxed", "admin no", "log none"} <= set(said)


# ---- command line ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "status", "why"),
    [
        ([], FAILED, "use it as: dune-sandbox POLICY -- PROGRAM ARGS"),
        (["strict"], FAILED, "use it as"),
        (["strict", "--"], FAILED, "no program is given"),
        (["strict", "/bin/true"], FAILED, "use it as"),
        (["--what", "strict", "--", "true"], FAILED, "--what is no option"),
        (["loose", "--", "true"], FAILED, "there is no policy loose"),
        (["./loose", "--", "true"], FAILED, "can't be read: No such file"),
        (["strict", "--", "no-such-program"], NOT_FOUND, "not found in PATH"),
        (["strict", "--", ""], NOT_FOUND, "No such file"),
        (["strict", "--", "/no/such"], NOT_FOUND, "No such file"),
        (["strict", "--", "/etc"], NOT_EXECUTABLE, "is a directory"),
        (["strict", "--", "/dev/null"], NOT_EXECUTABLE, "no ordinary file"),
        (["strict", "--", "/etc/passwd"], NOT_EXECUTABLE, "chmod +x?"),
        (["--inherit", "0", "--", "/bin/true", "true"], FAILED, "no policy that was handed down"),
        (["--inherit", "x", "--", "/bin/true", "true"], FAILED, "no policy that was handed down"),
        (["--inherit", "77", "--", "/bin/true", "true"], FAILED, "no policy that was handed down"),
    ],
)
def test_command_line_error_says_why(
    sanitized: Path, tmp_path: Path, words: Sequence[str], status: int, why: str
) -> None:
    done = start(sanitized, *words, cwd=tmp_path, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (status, "")
    assert why in done.stderr


def test_help_explains_the_policy(sanitized: Path) -> None:
    done = start(sanitized, "--help")
    assert done.returncode == 0
    for word in ("read PATH", "exec sandboxed", "memory SIZE", "125", "126", "127"):
        assert word in done.stdout


HAND_DOWN = """
#include "shim/policy.h"
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
/* hand_down SEALS SANDBOX PROGRAM ARGV...: as the shim runs what ring 3 executes. */
int main(int argc, char **argv)
{
    static struct dune_policy policy = { .check_paths = 1, .n_rules = 1, .log_fd = ~0u };
    char *list[20] = { argv[2], "--inherit", "50", "--" };
    int fd = memfd_create("policy", MFD_ALLOW_SEALING);

    strcpy(policy.rule[0].path, "/usr");
    policy.rule[0].length = 4;
    policy.rule[0].access = DUNE_MAY_READ | DUNE_MAY_EXEC;
    if (write(fd, &policy, sizeof policy) != sizeof policy || dup2(fd, 50) != 50)
        return 99;
    if (argv[1][0] == 'y')
        fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
    memcpy(list + 4, argv + 3, (size_t)(argc - 2) * sizeof *argv);
    execv(argv[2], list);
    return 98;
}
"""


def test_inherited_policy_must_be_sealed_and_needs_exec(native: Path, tmp_path: Path) -> None:
    helper = compile_program(
        tmp_path / "hand_down", HAND_DOWN, "-D_GNU_SOURCE", f"-I{ROOT / 'libdune_shim'}"
    )
    program = tmp_path / "mine"
    shutil.copy("/bin/true", program)
    done = start(helper, "no", native, "/bin/echo", "echo", "x")
    assert done.returncode == FAILED and "no policy that was handed down" in done.stderr
    done = start(helper, "yes", native, "/bin/sh", "another-name", "--version")
    assert done.returncode == 2 and "another-name: 0: Illegal option" in done.stderr
    done = start(helper, "yes", native, program, "mine")
    assert done.returncode == NOT_EXECUTABLE and "the policy doesn't allow it" in done.stderr


def test_machine_without_a_fit_kvm_is_refused_with_the_reason() -> None:
    sandbox = ROOT / "build/dune-sandbox"
    if not sandbox.exists():
        pytest.fail(f"{sandbox} is not there: `make build` makes it")
    done = start(sandbox, "permissive", "--", "/bin/echo", "ran")
    if done.returncode == 0:
        pytest.skip("this machine's KVM is fit for it")
    assert done.returncode == FAILED and done.stdout == ""
    assert done.stderr.startswith("dune-sandbox: ") and len(done.stderr) > 40, done.stderr
    assert "KVM is unfit" in done.stderr or "/dev/kvm" in done.stderr


# ---- ELF files ---------------------------------------------------------------------------------


def phdr(
    kind: int, flags: int, offset: int, vaddr: int, filesz: int, memsz: int, align: int
) -> bytes:
    return struct.pack("<IIQQQQQQ", kind, flags, offset, vaddr, vaddr, filesz, memsz, align)


def elf(
    *headers: bytes,
    kind: int = 3,
    machine: int = 62,
    entry: int = 0x100,
    size: int = 0x3000,
    **change: int,
) -> bytes:
    fields = {"klass": 2, "data": 1, "phoff": 64, "phentsize": 56, "phnum": len(headers), **change}
    ident = b"\x7fELF" + bytes([fields["klass"], fields["data"], 1]) + bytes(9)
    head = ident + struct.pack(
        "<HHIQQQIHHHHHH",
        kind,
        machine,
        1,
        entry,
        fields["phoff"],
        0,
        0,
        64,
        fields["phentsize"],
        fields["phnum"],
        0,
        0,
        0,
    )
    return (head + b"".join(headers)).ljust(size, b"\0")


GOOD = phdr(1, 5, 0, 0, 0x1000, 0x1000, 0x1000)
DATA = phdr(1, 6, 0x1800, 0x2800, 0x100, 0x3000, 0x1000)


@pytest.fixture
def load(sanitized: Path, tmp_path: Path) -> Run:
    """Lets dune-sandbox map a file and say where."""

    def run(content: bytes) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "program"
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        path.chmod(0o755)
        return start(sanitized, "--dry-run", "strict", "--", path)

    return run


def test_elf_plan_has_segments_bss_and_headers(load: Run) -> None:
    done = load(elf(GOOD, DATA, phdr(0x6474E551, 7, 0, 0, 0, 0, 16)))
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert "segment 0x0 4096 bytes, 4096 from 0x0, r-x" in said
    assert "segment 0x2800 12288 bytes, 256 from 0x1800, rw-" in said
    assert "stack executable" in said and "interpreter none" in said
    base = int(next(line for line in said if line.startswith("base")).split()[1], 16)
    assert base % 4096 == 0
    assert f"entry {base + 0x100:#x}" in said and f"phdr {base + 64:#x}" in said


def test_elf_base_honours_a_large_alignment(load: Run) -> None:
    done = load(elf(phdr(1, 5, 0, 0x200000, 0x1000, 0x1000, 0x200000)))
    assert done.returncode == 0, done.stderr
    base = int(done.stdout.split("base ")[1].split()[0], 16)
    assert base % 0x200000 == 0


def test_elf_fixed_program_lies_at_its_addresses(load: Run) -> None:
    done = load(elf(phdr(1, 5, 0, 0x400000, 0x1000, 0x1000, 0x1000), kind=2, entry=0x400100))
    assert "base 0x0\nentry 0x400100\nphdr 0x400040\n" in done.stdout


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "neither an ELF file nor a script"),
        (b"\x7fELF", "neither an ELF file nor a script"),
        (b"echo hello\n" + bytes(80), "neither an ELF file nor a script"),
        (elf(GOOD, klass=1), "not for x86-64 in 64 bits"),
        (elf(GOOD, machine=183), "not for x86-64 in 64 bits"),
        (elf(GOOD, data=2), "byte order"),
        (elf(GOOD, kind=1), "no program"),
        (elf(GOOD, phentsize=32), "program headers have a wrong size"),
        (elf(GOOD, phnum=0), "number of program headers"),
        (elf(GOOD, phnum=0xFFFF), "number of program headers"),
        (elf(GOOD, phoff=0x2FF0), "program headers are missing"),
        (elf(GOOD, phoff=(1 << 64) - 8), "program headers are missing"),
        (elf(GOOD, entry=1 << 63), "entry point"),
        (elf(phdr(4, 4, 0, 0, 0, 0, 1)), "nothing to load"),
        (elf(phdr(1, 5, 0, 0, 0x2000, 0x1000, 0x1000)), "larger in the file"),
        (elf(phdr(1, 5, 0, 0, 0x9000, 0x9000, 0x1000)), "cut short"),
        (elf(phdr(1, 5, 0xFFFFFFFFFFFFF000, 0, 0x2000, 0x2000, 0x1000)), "cut short"),
        (elf(phdr(1, 5, 0, 0xFFFFFFFFFFFFF000, 0x1000, 0x2000, 0x1000)), "outside the address"),
        (elf(phdr(1, 5, 0, 0x7FFFFFFFF000, 0x1000, 0x1000, 0x1000)), "outside the address"),
        (elf(phdr(1, 5, 0x10, 0, 0x1000, 0x1000, 0x1000)), "doesn't fit its address"),
        (elf(phdr(1, 5, 0, 0, 0x1000, 0x1000, 0x3000)), "no power of two"),
        (elf(phdr(1, 5, 0, 0, 0x1000, 0x1000, 1 << 40)), "alignment is too large"),
        (elf(DATA, GOOD), "out of order"),
        (elf(GOOD, phdr(1, 5, 0, 0x800, 0, 0x1000, 1)), "doesn't fit its address"),
        (elf(GOOD, phdr(1, 5, 0x800, 0x800, 0, 0x1000, 1)), "overlap"),
        (elf(*[phdr(1, 5, 0, n << 12, 16, 16, 1) for n in range(129)], size=0x4000), "too many"),
        (elf(phdr(1, 6, 0, 0, 0x1000, 0x7F0000000000, 0x1000)), "no room"),
        (elf(GOOD, phdr(3, 4, 64, 0, 1, 1, 1)), "interpreter has a wrong length"),
        (elf(GOOD, phdr(3, 4, 0, 0, 5000, 5000, 1)), "interpreter has a wrong length"),
        (elf(GOOD, phdr(3, 4, 0x2FFF, 0, 5, 5, 1)), "interpreter can't be read"),
        (elf(GOOD, phdr(3, 4, 0, 0, 4, 4, 1)), "is no string"),
        # There the address sanitizer has its shadow.
        (elf(phdr(1, 5, 0, 0x7FFF8000, 0x1000, 0x1000, 0x1000), kind=2), "fixed addresses"),
    ],
)
def test_elf_that_is_wrong_is_refused_with_the_reason(load: Run, content: bytes, why: str) -> None:
    done = load(content)
    assert done.returncode == NOT_EXECUTABLE, done.stdout + done.stderr
    assert why in done.stderr


def test_elf_missing_interpreter_is_named(load: Run) -> None:
    content = bytearray(elf(GOOD, phdr(3, 4, 0x2000, 0, 9, 9, 1)))
    content[0x2000:0x2009] = b"/no/such\0"
    done = load(bytes(content))
    assert done.returncode == NOT_FOUND
    assert "/no/such (the dynamic loader)" in done.stderr


@pytest.mark.parametrize("seed", range(3))
def test_elf_corrupt_file_never_crashes_the_loader(load: Run, seed: int) -> None:
    rng = random.Random(seed)
    start_of = bytearray(Path("/bin/true").read_bytes())
    edges = [0, 1, 0xFF, 0xFFF, 0x1000, 1 << 31, 1 << 32, 1 << 47, 1 << 63, (1 << 64) - 1]
    headers = 64 + 56 * struct.unpack_from("<H", start_of, 56)[0]
    for _ in range(80):
        content = bytearray(start_of)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(4, headers - 8)
            if rng.random() < 0.5:
                struct.pack_into("<Q", content, at & ~7, rng.choice(edges))
            else:
                content[at] ^= 1 << rng.randrange(8)
        if rng.random() < 0.2:
            del content[rng.randrange(len(content)) :]
        assert load(bytes(content)).returncode in (0, NOT_EXECUTABLE, NOT_FOUND), content[:headers]


# ---- programs, run as ordinary ones ------------------------------------------------------------


def compile_program(place: Path, source: str, *flags: str) -> Path:
    place.with_suffix(".c").write_text(source)
    subprocess.run(["gcc", "-O1", *flags, "-o", place, place.with_suffix(".c")], check=True)
    return place


AUXV = """
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>
static char zeros[100000];
static int data = 5;
extern char **environ;
extern const Elf64_Ehdr __ehdr_start __attribute__((visibility("hidden")));
int main(int argc, char **argv)
{
    unsigned long random[2];
    for (unsigned n = 0; n < sizeof zeros; n++)
        if (zeros[n])
            return 9;
    if (data != 5 || getauxval(AT_PHDR) != (unsigned long)&__ehdr_start + __ehdr_start.e_phoff)
        return 8;
    memcpy(random, (void *)getauxval(AT_RANDOM), 16);
    if (!random[0] || (unsigned long)__builtin_frame_address(0) % 16)
        return 7;
    char *first = sbrk(1 << 20);
    memset(first, 1, 1 << 20);
    printf("%d %s %s\\n", argc, argv[0], argv[argc - 1]);
    printf("%s %s %lu %lu %lu %lu\\n", (char *)getauxval(AT_EXECFN), (char *)getauxval(AT_PLATFORM),
           getauxval(AT_PAGESZ), getauxval(AT_PHENT), getauxval(AT_SECURE), getauxval(AT_UID));
    printf("%lu %s\\n", getauxval(AT_MINSIGSTKSZ) > 1000 ? 1ul : 0ul, getenv("SAID"));
    return argc;
}
"""


@pytest.mark.parametrize("flags", [[], ["-no-pie"], ["-static"], ["-static-pie"]], ids=str)
def test_program_finds_what_the_kernel_leaves(
    native: Path, tmp_path: Path, flags: Sequence[str]
) -> None:
    program = compile_program(tmp_path / "p", AUXV, *flags)
    env = {**os.environ, "SAID": "x y"}
    outside = start(program, "a", "b c", env=env)
    inside = start(native, "permissive", "--", program, "a", "b c", env=env)
    assert inside.stderr == ""
    assert (
        (inside.returncode, inside.stdout)
        == (outside.returncode, outside.stdout)
        == (
            3,
            f"3 {program} b c\n{program} x86_64 4096 56 0 {os.getuid()}\n1 x y\n",
        )
    )


def test_program_dies_of_its_own_signal(native: Path) -> None:
    done = start(native, "permissive", "--", "sh", "-c", "kill -TERM $$")
    assert done.returncode == -signal.SIGTERM


def test_program_is_shown_as_itself(native: Path) -> None:
    text = "tr '\\0' , </proc/$$/cmdline; cat /proc/$$/comm"
    done = start(native, "permissive", "--", "sh", "-c", text, "one", "")
    assert done.stdout == f"/usr/bin/sh,-c,{text},one,,sh\n".replace("/usr/bin/sh", "sh", 1)


def test_program_with_much_environment_starts(native: Path) -> None:
    script = "import os; print(len(os.environ['BIG']))"
    big = {"PATH": os.environ["PATH"], **{f"BIG{n}": "x" * 100_000 for n in range(10)}}
    done = start(
        native,
        "permissive",
        "--",
        "/usr/bin/python3",
        "-c",
        script,
        env={**big, "BIG": "y" * 100_000},
    )
    assert done.stdout == "100000\n", done.stderr


@pytest.mark.parametrize(
    ("first", "arguments"),
    [
        ("#!/bin/echo", "{script} a b"),
        ("#! \t/bin/echo  -n one  two \t", "one  two {script} a b"),
        ("#!/bin/echo x", "x {script} a b"),
    ],
)
def test_script_runs_by_its_interpreter(
    native: Path, tmp_path: Path, first: str, arguments: str
) -> None:
    script = tmp_path / "s"
    script.write_text(first.replace("-n ", "") + "\n")
    script.chmod(0o755)
    inside = start(native, "permissive", "--", script, "a", "b")
    outside = start(script, "a", "b")
    assert inside.stdout == outside.stdout == arguments.format(script=script) + "\n"


@pytest.mark.parametrize("first", ["#!", "#!   \nx", "#!" + "/" * 300])
def test_script_without_interpreter_is_refused(native: Path, tmp_path: Path, first: str) -> None:
    script = tmp_path / "s"
    script.write_text(first)
    script.chmod(0o755)
    done = start(native, "permissive", "--", script)
    assert done.returncode == NOT_EXECUTABLE and "names no interpreter" in done.stderr


def test_script_run_by_scripts_ends(native: Path, tmp_path: Path) -> None:
    for n in range(7):
        script = tmp_path / f"s{n}"
        script.write_text(f"#!{tmp_path}/s{n + 1}\n")
        script.chmod(0o755)
    done = start(native, "permissive", "--", tmp_path / "s0")
    assert done.returncode == NOT_EXECUTABLE and "too many scripts" in done.stderr


def test_memory_limit_leaves_what_the_policy_says(native: Path, tmp_path: Path) -> None:
    rules = tmp_path / "p"
    rules.write_text("paths any\nmemory 64M\n")
    script = "import mmap; mmap.mmap(-1, 32 << 20); print('fits')\nmmap.mmap(-1, 64 << 20)"
    done = start(native, rules, "--", "/usr/bin/python3", "-c", script)
    assert done.stdout == "fits\n" and "Cannot allocate memory" in done.stderr
