"""dune-sandbox: programs run as outside, except for what the policy refuses."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.dune import kit

DO = kit.PROGRAMS / "sandboxed"
# What the program itself needs to start, in every policy here.
BASE = "read /usr /etc/ld.so.cache\n"

Sandbox = Callable[..., kit.Result]


@pytest.fixture
def do(sandbox: Sandbox) -> Callable[..., list[str]]:
    """Runs `sandboxed DEED ARGS` under a policy; the lines that it prints, ERRNO or ok each."""

    def run(policy: str, *words: str | Path) -> list[str]:
        if not policy.isalpha():
            policy = BASE + policy
        return sandbox(policy, DO, *words).expect(0).stdout.splitlines()

    return run


def as_outside(sandbox: Sandbox, *argv: str | Path, **more: object) -> kit.Result:
    """Runs a program in the sandbox and bare; both must end and print the same."""
    bare = kit.run(argv, **more)  # type: ignore[arg-type]
    inside = sandbox("permissive", *argv, **more)
    assert (inside.status, inside.stdout, inside.stderr) == (bare.status, bare.stdout, bare.stderr)
    return inside


# ---- as outside --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        ["/bin/busybox", "echo", "static"],
        ["/bin/true"],
        ["/bin/false"],
        ["/bin/echo", "-n", "a  b", ""],
        ["/bin/cat", "/etc/hosts"],
        ["/bin/ls", "/nowhere"],
        ["/usr/bin/env", "-i", "A=b", "/usr/bin/env"],
        ["/bin/sh", "-c", "echo $$ >/dev/null; echo a | tr a b; exit 3"],
        ["/usr/bin/perl", "-e", "print join(',', map { $_ * 2 } 1..5), qq(\\n)"],
        ["/usr/bin/python3", "-c", "import sys, json; print(json.dumps([sys.argv, 1]))", "x"],
    ],
    ids=" ".join,
)
def test_program_runs_as_outside(sandbox: Sandbox, argv: Sequence[str]) -> None:
    as_outside(sandbox, *argv)


@pytest.mark.parametrize("status", [0, 1, 125, 255])
def test_exit_status_is_the_programs_own(sandbox: Sandbox, status: int) -> None:
    sandbox("permissive", DO, "exit", str(status)).expect(status)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGABRT, signal.SIGUSR1])
def test_program_dies_of_its_own_signal(sandbox: Sandbox, number: signal.Signals) -> None:
    sandbox("permissive", DO, "signal", str(number.value)).expect(-number)


@pytest.mark.parametrize("address", ["0", "8", str(1 << 46), str(1 << 63)])
def test_program_dies_of_a_fault(sandbox: Sandbox, address: str) -> None:
    sandbox("permissive", DO, "fault", address).expect(-signal.SIGSEGV)


def test_arguments_environment_and_name_are_intact(sandbox: Sandbox) -> None:
    argv = [DO, "show", "a b", "", "ü", "x" * 100_000]
    env = {"EMPTY": "", "LONG": "y" * 50_000, "SPACE": " "}
    result = as_outside(sandbox, *argv, env=env)
    assert f"exe {DO}\n" in result.stdout and "name sandboxed\n" in result.stdout


def test_standard_input_and_output_are_pipes_as_outside(sandbox: Sandbox) -> None:
    text = "".join(f"{n}\n" for n in range(50_000))
    as_outside(sandbox, "/usr/bin/tac", stdin=text)
    assert sandbox("permissive", "/bin/cat", stdin=text).expect(0).stdout == text


def test_large_output_arrives_whole(sandbox: Sandbox) -> None:
    assert sandbox("permissive", DO, "much", str(20 << 20)).expect(0).stdout == "x" * (20 << 20)


def test_deep_stack_grows_to_its_limit(sandbox: Sandbox) -> None:
    sandbox("permissive", DO, "deep", str(7 << 20)).expect(0)
    sandbox("permissive", DO, "deep", str(9 << 20)).expect(-signal.SIGSEGV)


def test_script_runs_by_its_interpreter(sandbox: Sandbox, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh -e\necho $0 $# $1\nfalse\necho unreached\n")
    script.chmod(0o755)
    result = as_outside(sandbox, script, "one", "two")
    assert result.status == 1 and result.stdout == f"{script} 2 one\n"


def test_program_is_found_in_path(sandbox: Sandbox) -> None:
    assert sandbox("permissive", "echo", "found").expect(0).stdout == "found\n"


def test_missing_program_says_so(sandbox: Sandbox, tmp_path: Path) -> None:
    assert "not found in PATH" in sandbox("permissive", "no-such-program").expect(127).stderr
    assert "chmod" in sandbox("permissive", "/etc/hosts").expect(126).stderr
    assert "policy:1: " in sandbox("nonsense 1\n", "/bin/true").expect(125).stderr


def test_threads_are_allowed_without_fork(do: Callable[..., list[str]]) -> None:
    assert do("fork no\n", "thread") == ["thread ok"]


def shell(script: str, **more: object) -> kit.Result:
    """A script with dune-sandbox as $S and the program of deeds as $D."""
    env = {"S": str(kit.SANDBOX), "D": str(DO)}
    return kit.run(["/bin/bash", "-c", script], env=env, **more)  # type: ignore[arg-type]


def test_program_finds_no_descriptor_of_the_sandboxs_own(sandbox: Sandbox) -> None:
    list_them = "import os; print([fd for fd in os.listdir('/proc/self/fd') if int(fd) < 256])"
    bare = kit.run(["/usr/bin/python3", "-c", list_them]).expect(0).stdout
    for rules in ("permissive", "paths any\nmemory 512M\nlog stderr\n"):
        assert sandbox(rules, "/usr/bin/python3", "-c", list_them).expect(0).stdout == bare


def test_program_starts_without_standard_descriptors() -> None:
    shell('exec "$S" permissive -- "$D" exit 3 <&- >&- 2>&-').expect(3)
    shell('exec "$S" strict -- "$D" open /etc/hosts <&- 2>&-').expect(0)


def test_program_starts_with_unusual_limits() -> None:
    shell('ulimit -s unlimited; exec "$S" permissive -- "$D" deep 20000000').expect(0)
    shell('ulimit -Ss 128; exec "$S" permissive -- "$D" exit 3').expect(3)
    shell('ulimit -n 40; exec "$S" permissive -- "$D" exit 3').expect(3)
    shell('ulimit -c 0; ulimit -l 0; exec "$S" permissive -- "$D" exit 3').expect(3)
    done = shell('ulimit -v 2000000; exec "$S" permissive -- "$D" exit 3').expect(125)
    assert "ulimit -v" in done.stderr


@pytest.fixture
def public() -> Iterator[Path]:
    """Copies of both programs where every user may go: the tree may lie anywhere."""
    with tempfile.TemporaryDirectory(dir="/run") as made:
        place = Path(made)
        place.chmod(0o755)
        for name, program in (("S", kit.SANDBOX), ("D", DO)):
            shutil.copyfile(program, place / name)
            (place / name).chmod(0o755)
        yield place


def test_ordinary_user_is_told_about_the_group_and_may_use_it(public: Path) -> None:
    device = Path("/dev/kvm")
    mode = stat.S_IMODE(device.stat().st_mode)
    run = f"exec setpriv --reuid 65534 --regid 65534 --clear-groups {public}/S permissive --"
    do = f"{run} {public}/D"
    try:
        device.chmod(0o660)
        done = shell(f"{do} exit 3").expect(125)
        assert "/dev/kvm" in done.stderr and "group kvm" in done.stderr
        device.chmod(0o666)
        shell(f"{do} exit 3").expect(3)
        assert shell(f'{run} /bin/sh -c "id -u; id -u"').expect(0).stdout == "65534\n65534\n"
        done = shell(f"ulimit -Sn 300; {do} show").expect(0)
        assert "descriptors 300\n" in done.stdout
        # The shim's own descriptors need room, and this user can't make more.
        done = shell(f"ulimit -n 1024; {do} show").expect(0)
        assert "descriptors 512\n" in done.stdout
    finally:
        device.chmod(mode)


# ---- children ----------------------------------------------------------------------------------


def test_child_keeps_its_name_arguments_and_limits(sandbox: Sandbox) -> None:
    program = f"exec -a other {DO} show x"
    inside = sandbox("permissive", "/bin/bash", "-c", program).expect(0).stdout
    bare = kit.run(["/bin/bash", "-c", program]).expect(0).stdout
    assert inside == bare
    assert "argv other\n" in inside and f"exe {DO}\n" in inside


def test_child_is_in_the_sandbox_too(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "open").write_text("y")
    rules = BASE + f"read {tmp_path}/open\nread {DO}\nexec /usr {DO}\nfork yes\n"
    secret = tmp_path / "secret"
    script = f"cat {tmp_path}/open; cat {secret}; {DO} open {secret}; sh -c 'cat {secret}'"
    done = sandbox(rules, "/bin/sh", "-c", script).expect(1)
    assert done.stdout == "yopen EACCES\n"
    refused = [line for line in done.stderr.splitlines() if f"read {tmp_path}/secret" in line]
    assert len(refused) == 3, done.stderr
    assert len({line.split()[0] for line in refused}) == 3, "each by a process of its own"


def test_child_can_not_call_the_sandbox_with_a_policy_of_its_own(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("x")
    rules = BASE + f"read {kit.SANDBOX}\nexec /usr {kit.SANDBOX}\nfork yes\n"
    for words in (["permissive"], ["--inherit", "5"], ["--inherit", "0"]):
        script = f"exec {kit.SANDBOX} {' '.join(words)} -- /bin/cat {tmp_path}/secret"
        done = sandbox(rules, "/bin/sh", "-c", script)
        assert done.status == 125 and done.stdout == "", done


def test_interpreter_of_a_script_needs_exec_too(sandbox: Sandbox, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(f"#!{DO}\n")
    script.chmod(0o755)
    rules = BASE + f"read {tmp_path}\nexec /usr/bin {tmp_path}\nfork yes\n"
    done = sandbox(rules, "/bin/sh", "-c", f"{script}; echo $?")
    assert done.stdout == "126\n" and "the policy doesn't allow it" in done.stderr, done


def test_sandbox_file_can_not_be_replaced_by_a_child(sandbox: Sandbox, tmp_path: Path) -> None:
    # permissive lets it write where dune-sandbox lies; what runs next is still the running file.
    copy = tmp_path / "dune-sandbox"
    copy.write_bytes(kit.SANDBOX.read_bytes())
    copy.chmod(0o755)
    script = f"cp /bin/busybox {copy}.new && mv {copy}.new {copy} && /bin/echo still here; exit 4"
    done = kit.run([copy, "permissive", "--", "/bin/sh", "-c", script])
    assert (done.status, done.stdout) == (4, "still here\n"), done
    script = f"echo x >>{copy}"
    copy.unlink()
    copy.write_bytes(kit.SANDBOX.read_bytes())
    copy.chmod(0o755)
    done = kit.run([copy, "permissive", "--", "/bin/sh", "-c", script])
    assert done.status != 0 and "Text file busy" in done.stderr, done


# ---- policy ------------------------------------------------------------------------------------


def test_reads_outside_are_refused_and_logged(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("in/f", "out"):
        (tmp_path / name).write_text("x")
    rules = BASE + f"read {tmp_path}/in\n"
    assert sandbox(rules, DO, "open", tmp_path / "in/f").stdout == "open ok\n"
    done = sandbox(rules, DO, "open", tmp_path / "in/../out")
    assert done.stdout == "open EACCES\n"
    assert re.search(rf"^\d+ refused \w+\(.*\): .*{tmp_path}/out \(error 13\)$", done.stderr, re.M)
    assert sandbox(rules, DO, "open", tmp_path / "in/f", "w").stdout == "open EACCES\n"
    (tmp_path / "in/link").symlink_to(tmp_path / "out")
    assert sandbox(rules, DO, "open", tmp_path / "in/link").stdout == "open EACCES\n"


def test_writes_are_allowed_where_the_policy_says(
    do: Callable[..., list[str]], tmp_path: Path
) -> None:
    said = dict(line.split() for line in do(f"read {tmp_path}\n", "files", tmp_path))
    assert len(said) == 11
    assert {name for name, came in said.items() if came == "ok"} == {"stat", "chdir"}, said
    assert list(tmp_path.iterdir()) == [tmp_path / "policy"]
    said = dict(
        line.split() for line in do(f"read {tmp_path}\nwrite {tmp_path}\n", "files", tmp_path)
    )
    assert said["create"] == said["mkdir"] == said["unlink"] == said["rmdir"] == "ok", said


def test_denied_path_below_an_allowed_one(do: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/f").write_text("x")
    assert do(f"read {tmp_path}\n", "open", tmp_path / "a/f") == ["open ok"]
    assert do(f"read {tmp_path}\ndeny {tmp_path}/a\n", "open", tmp_path / "a/f") == ["open EACCES"]


def test_secret_gets_no_name_where_all_is_allowed(
    do: Callable[..., list[str]], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_text("x")
    rules = f"read {tmp_path}/in\nwrite {tmp_path}/in\n"
    said = dict(
        line.rsplit(" ", 1) for line in do(rules, "names", tmp_path / "secret", tmp_path / "in")
    )
    assert said.pop("symlink") == "ok"  # it is only a name
    assert "ok" not in said.values(), said
    assert (tmp_path / "secret").read_text() == "x"
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["symlink"]


def test_log_goes_to_a_file(sandbox: Sandbox, tmp_path: Path) -> None:
    log = tmp_path / "log"
    rules = BASE + f"exec /usr\nfork yes\nlog {log}\n"
    done = sandbox(rules, "/bin/sh", "-c", "cat /etc/hosts; cat /etc/passwd; exit 0").expect(0)
    text = log.read_text()
    assert "refused" not in done.stderr
    assert "/etc/hosts (error 13)" in text and "/etc/passwd (error 13)" in text
    assert stat.S_IMODE(log.stat().st_mode) & 0o022 == 0
    silent = sandbox(BASE + "log none\n", DO, "open", "/etc/hosts")
    assert (silent.stdout, silent.stderr) == ("open EACCES\n", "")


def test_log_line_can_not_be_forged_by_a_path(sandbox: Sandbox) -> None:
    done = sandbox(BASE, DO, "open", "/etc/\n1 refused forged(): x (error 1)")
    assert not [line for line in done.stderr.splitlines() if line.startswith("1 refused")]


def test_network_is_refused(do: Callable[..., list[str]]) -> None:
    said = dict(line.split() for line in do("network no\n", "network"))
    assert said.pop("pair") == "ok"
    assert set(said.values()) <= {"EPERM", "EACCES"}, said
    said = dict(line.split() for line in do("network yes\n", "network"))
    assert said["socket"] == said["datagram"] == "ok" and said["connect"] == "ECONNREFUSED"


def test_exec_is_refused(sandbox: Sandbox, do: Callable[..., list[str]]) -> None:
    assert do("", "exec", "/bin/true") == ["exec EPERM"]
    assert do("exec /usr/bin/true\n", "exec", "/bin/false") == ["exec EACCES"]
    assert do("exec /usr/bin/true\n", "exec", "/bin/true") == []
    assert sandbox(BASE + "exec sandboxed\nexec /usr\n", DO, "exec", "/bin/false").status == 1


def test_exec_yes_leaves_the_sandbox(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    rules = BASE + "exec yes\nexec /usr\nfork yes\n"
    assert sandbox(rules, "/bin/sh", "-c", f"exec cat {tmp_path}/f").expect(0).stdout == "x"


def test_fork_is_refused(do: Callable[..., list[str]]) -> None:
    assert do("exec /usr\n", "fork") == ["fork EPERM", "vfork EPERM", "posix_spawn EPERM"]
    assert do("exec /usr\nfork yes\n", "fork") == ["fork ok", "vfork ok", "posix_spawn ok"]


@pytest.mark.parametrize("limit", [64, 256])
def test_memory_is_limited(do: Callable[..., list[str]], limit: int) -> None:
    said, got = do(f"memory {limit}M\n", "memory")
    assert said in ("raise the limit EPERM", "raise the limit EACCES"), said
    assert limit - 24 <= int(got) <= limit, got


def test_memory_of_a_child_is_limited_too(sandbox: Sandbox) -> None:
    rules = BASE + f"memory 64M\nread {DO}\nexec /usr {DO}\nfork yes\n"
    done = sandbox(rules, "/bin/sh", "-c", f"{DO} memory; {DO} memory; exec {DO} memory")
    said = done.expect(0).stdout.splitlines()
    assert said[::2] == ["raise the limit EPERM"] * 3
    assert all(40 <= int(got) <= 64 for got in said[1::2]), said


def test_signals_ipc_and_administration_are_refused(do: Callable[..., list[str]]) -> None:
    parent = str(os.getpid())
    assert do("", "kill", parent) == ["kill another EPERM", "kill itself ok"]
    assert do("signal yes\n", "kill", parent) == ["kill another ok", "kill itself ok"]
    assert do("", "ipc") == ["shmget EPERM"]
    assert do("ipc yes\n", "ipc") == ["shmget ok"]
    assert do("", "admin") == ["chroot EPERM", "sethostname EPERM", "settime EPERM"]


def test_strict_runs_interpreters_and_no_more(sandbox: Sandbox) -> None:
    script = "import os\nprint(os.path.exists('/usr/bin/env'))\nopen('/etc/hosts')"
    done = sandbox("strict", "/usr/bin/python3", "-c", script)
    assert done.status == 1 and done.stdout == "True\n", done
    assert "PermissionError" in done.stderr and "/etc/hosts (error 13)" in done.stderr
