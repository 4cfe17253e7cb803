"""The installed package works outside of the tree: a wheel of it, in an environment of its own.

The wheel is built in a copy of the tree with what make built there, so that nothing is compiled
again. Dependencies are the tree's environment's.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ixnet.control.lab import Lab, LabConfig
from tests.bench.test_commands import client_words

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = (".git", ".venv", "san", "__pycache__", "*.egg-info", "*.pyc")
# Beside sources: what the tree's package has and the installed one doesn't need.
NOT_INSTALLED = {"ring0.elf"}


def run(*argv: str | Path, cwd: Path = ROOT) -> str:
    """Its output. The environment is without whatever leads back to the tree."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LD_", "IX"))}
    kept.pop("MAKEFLAGS", None)  # of the make that runs the tests
    done = subprocess.run(
        argv, cwd=cwd, env=kept, capture_output=True, text=True, timeout=800, check=False
    )
    assert done.returncode == 0, f"{' '.join(map(str, argv))}: {done.stdout}{done.stderr}"
    return done.stdout


def pip(*words: str | Path) -> None:
    quiet = ("--quiet", "--disable-pip-version-check", "--no-input")
    run(sys.executable, "-m", "pip", *quiet, *words)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, made / "tree", ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    words = ("--no-build-isolation", "--no-deps", "--no-index", "-w", made, made / "tree")
    pip("wheel", *words)
    shutil.rmtree(made / "tree")
    (path,) = made.glob("ixnet-*.whl")
    return path


def test_source_archive_has_all_that_make_asks_for(tmp_path: Path) -> None:
    """Compiling it would take a minute; make looks for every file all the same."""
    ignore = shutil.ignore_patterns(*LEFT_OUT, "build", "*.so", "*.o")
    shutil.copytree(ROOT, tmp_path / "tree", ignore=ignore, symlinks=True)
    words = ("setup.py", "--quiet", "sdist", "--formats=tar", "--dist-dir", tmp_path)
    run(sys.executable, *words, cwd=tmp_path / "tree")
    (archive,) = tmp_path.glob("ixnet-*.tar")
    shutil.unpack_archive(archive, tmp_path / "out")
    (unpacked,) = (tmp_path / "out").iterdir()
    run("make", "--dry-run", "lib", f"PYTHON={sys.executable}", cwd=unpacked)


@pytest.fixture(scope="module")
def ixnet(wheel: Path) -> Path:
    """The installed command."""
    place = wheel.parent / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", place)
    (site,) = place.glob("lib/python*/site-packages")
    # A path file's own path files are not followed: the tree is not in it.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    words = ("--no-deps", "--no-index", "--no-compile", wheel)
    pip("--python", place / "bin/python", "install", *words)
    return place / "bin/ixnet"


def test_wheel_has_all_that_was_built(wheel: Path) -> None:
    package = ROOT / "ixnet"
    kinds = (".c", ".h", ".pyc")
    there = {p.relative_to(package) for p in package.rglob("*") if p.is_file()}
    wanted = {str(p) for p in there if p.suffix not in kinds} - NOT_INSTALLED
    with zipfile.ZipFile(wheel) as archive:
        got = {n.removeprefix("ixnet/") for n in archive.namelist() if n.startswith("ixnet/")}
    assert wanted <= got


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--version", "ixnet "),
        ("bench --help", "latency"),
        ("bench latency --help", "--received"),
        ("memcached --help", "--memory-limit"),
        ("run --help", "--placement"),
    ],
)
def test_command_runs_outside_of_the_tree(ixnet: Path, words: str, part: str) -> None:
    assert part in run(ixnet, *words.split(), cwd=Path("/"))


def test_doctor_finds_the_installed_parts(ixnet: Path) -> None:
    argv = [ixnet, "doctor"]
    done = subprocess.run(argv, cwd="/", capture_output=True, text=True, timeout=800, check=False)
    assert "Traceback" not in done.stderr
    for part in ("C module", "BPF object"):
        (line,) = (line for line in done.stdout.splitlines() if part in line)
        assert " ok " in line


@pytest.fixture
def echo() -> Iterator[str]:
    """An echo server on this machine."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        try:
            while True:
                sock, _ = listener.accept()
                with sock:
                    while data := sock.recv(65536):
                        sock.sendall(data)
        except OSError:
            return

    threading.Thread(target=serve, daemon=True).start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    listener.close()


def test_load_and_report_from_the_installed_package(ixnet: Path, echo: str, tmp_path: Path) -> None:
    words = ("-c", "1", "-t", "0.2", "--warmup", "0", "--repeat", "1", "--json", "r.json")
    run(ixnet, "bench", "echo", echo, *words, cwd=tmp_path)
    assert json.loads((tmp_path / "r.json").read_text())["targets"][0]["runs"][0]["completed"] > 0
    run(ixnet, "bench", "report", "r.json", cwd=tmp_path)
    assert "<svg" in (tmp_path / "report.html").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a lab")
def test_dataplane_from_the_installed_package(ixnet: Path, tmp_path: Path) -> None:
    with Lab(LabConfig.named(f"p{os.getpid()}", queues=1)) as lab:
        argv = [sys.executable, str(ROOT / "tests/package/echo.py"), lab.facts.server.ip, "7000"]
        server = lab.start_server(argv, stdout=subprocess.PIPE)
        assert server.stdout is not None and server.stdout.readline() == "ready\n"
        words = ("--protocol", "udp", "--seconds", "0.2", "--repeat", "1", "--json", "r.json")
        target = f"{lab.facts.server.ip}:7000"
        run(ixnet, "bench", "latency", *client_words(lab, "ixnet"), target, *words, cwd=tmp_path)
        lab.stop(server)
    made = json.loads((tmp_path / "r.json").read_text())
    assert made["client"]["mode"] == "native copy"
    assert made["targets"][0]["probes"][0]["sent"] > 0
