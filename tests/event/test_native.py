"""apps/echo.c and ixnet bench's load generator, on two shards over the simulated wire."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "build/libixnet.a"
LOAD = [p for p in (ROOT / "ixnet/bench/load").glob("*.c") if p.name != "kernel.c"]
FLAGS = ["-std=gnu11", "-O1", "-g", "-D_GNU_SOURCE", "-fsanitize=address,undefined"]
FLAGS += ["-fno-sanitize-recover=all"]
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Builds both applications into one program, with sanitizers; returns what runs it."""
    if not CORE.exists():
        pytest.skip("build/libixnet.a is not built: run `make build`")
    folder = tmp_path_factory.mktemp("native")
    include = [f"-I{ROOT / path}" for path in ("ixnet/dataplane", "ixnet", "")]
    objects = []
    for source, main in (
        ("apps/echo.c", "echo_main"),
        *((f"ixnet/bench/load/{p.name}", "ixload_main") for p in LOAD),
        ("tests/event/native_pair.c", None),
    ):
        target = folder / (Path(source).stem + ".o")
        rename = [f"-Dix_app_main={main}"] if main else []
        command = ["gcc", *FLAGS, *include, *rename, "-c", str(ROOT / source), "-o", str(target)]
        subprocess.run(command, check=True)
        objects.append(str(target))
    program = folder / "native_pair"
    link = [
        "gcc",
        *FLAGS,
        "-o",
        str(program),
        *objects,
        str(CORE),
        "-lxdp",
        "-lbpf",
        "-lpthread",
        "-lm",
    ]
    subprocess.run(link, check=True)

    def run_it(
        mode: str, *options: str, loss_ppm: int = 0, calls: int = 1024, pool: int = 2048
    ) -> dict[str, Any]:
        words = [str(program), str(loss_ppm), str(calls), str(pool), mode]
        words += ["--host", "10.0.0.1", "--port", "7", "--seconds", "0.3", "--warmup", "0.05"]
        done = subprocess.run([*words, *options], capture_output=True, text=True, timeout=800)
        assert done.returncode == 0, done.stdout + done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        assert report["ok"], report
        return report

    return run_it


@pytest.mark.parametrize("connections", [1, 16, 300])
def test_every_reply_matches(run: Run, connections: int) -> None:
    report = run("echo", "--connections", str(connections))
    assert report["opened"] == connections
    assert report["completed"] > connections
    assert report["verified_bytes"] >= 64 * report["completed"]
    assert report["us"]["p50"] > 0


def test_large_messages(run: Run) -> None:
    assert run("echo", "--connections", "20", "--bytes", "1400")["completed"] > 20


def test_messages_of_many_frames(run: Run) -> None:
    assert run("echo", "--connections", "3", "--bytes", "100000")["completed"] > 3


def test_segment_that_does_not_fit_a_frame_is_refused(run: Run) -> None:
    with pytest.raises(AssertionError, match="--segment is more than a frame holds"):
        run("echo", "--segment", "2000")


def test_transfer_ends_in_order(run: Run) -> None:
    report = run("transfer", "--connections", "20", "--messages", "10", "--max-bytes", "5000")
    assert report["completed"] == 200


def test_open_loop_keeps_its_schedule(run: Run) -> None:
    report = run("echo", "--connections", "8", "--rate", "100", "--fixed", "--probes", "1",
                 "--probe-rate", "100")  # fmt: skip
    assert report["late"] == 0
    # Each request due in 0.3 s, however late it was answered.
    assert abs(sum(count for _, count in report["histogram"]) - 30) <= 1


def test_connect_request_close(run: Run) -> None:
    report = run("connrate", "--connections", "16")
    assert report["completed"] > 16
    assert report["opened"] >= report["completed"]


def test_small_arrays_of_calls_delay_and_lose_nothing(run: Run) -> None:
    assert run("echo", "--connections", "200", calls=64)["completed"] > 200
    assert run("connrate", "--connections", "50", calls=64)["completed"] > 50


def test_loss_is_made_good(run: Run) -> None:
    assert run("echo", "--connections", "50", loss_ppm=10_000)["completed"] > 50


def test_few_frames_are_enough(run: Run) -> None:
    assert run("echo", "--connections", "250", "--bytes", "1400", pool=1024)["completed"] > 250


def test_nobody_listening_is_refused(run: Run) -> None:
    with pytest.raises(AssertionError, match='"refused": '):
        run("echo", "--port", "9")
