"""The generator of the cffi modules: what it makes of C headers."""

from __future__ import annotations

import importlib
import subprocess
import sysconfig
from pathlib import Path

import pytest

from ixnet import _build_core

HEADER = """
#ifndef SAMPLE_H
#define SAMPLE_H
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>
#define SAMPLE_SIZE (1u << 4)
#define SAMPLE_NAME "text"
#define SAMPLE_CALL(x) ((x) + 1)
#define SAMPLE_TWICE (SAMPLE_SIZE * 2)
enum sample_kind { SAMPLE_A = 1 << 3, SAMPLE_B, SAMPLE_C = sizeof(int) };
struct sample_packed {
    uint8_t a;
    uint32_t b[SAMPLE_SIZE / 2];
    struct iovec foreign; /* of a header that isn't the tree's */
} __attribute__((packed));
struct sample_outer {
    union { uint32_t u; uint8_t bytes[sizeof(uint32_t)]; };
    const struct sample_packed *inner;
    int (*call)(void *self, int value);
};
_Static_assert(sizeof(struct sample_packed) > 1, "a { brace } in a string");
static inline uint32_t sample_inline(const uint8_t p[static 4])
{
    if (p[0]) { return '}'; }
    return 1;
}
__attribute__((noinline)) int sample_defined(struct sample_outer *restrict outer);
int sample_undefined(void);
#endif
"""


@pytest.fixture
def header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sample header, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "sample.h"
    path.write_text(HEADER)
    return path


def test_generate_sample_header_gives_a_module_that_works(
    header: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "_sample.c"
    cdef = _build_core.generate("_sample", [header], out, False, {"sample_defined"})
    assert cdef.undefined == ["sample_undefined"]
    assert cdef.refused == []
    extra = tmp_path / "extra.c"
    extra.write_text(
        '#include "sample.h"\n'
        "int sample_defined(struct sample_outer *outer) { return outer->bytes[1]; }\n"
    )
    module = tmp_path / "_sample.abi3.so"
    command = ["gcc", "-shared", "-fPIC", "-w", f"-I{_python_include()}"]
    command += [f"-I{tmp_path}", str(out), str(extra), "-o", str(module)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    monkeypatch.syspath_prepend(str(tmp_path))
    sample = importlib.import_module("_sample")
    outer = sample.ffi.new("struct sample_outer *", {"u": 0x0500})
    assert sample.lib.sample_defined(outer) == 5
    assert sample.lib.sample_inline(b"\x00abc") == 1
    assert sample.lib.SAMPLE_TWICE == 32 and sample.lib.SAMPLE_C == 4
    assert sample.ffi.sizeof("struct sample_packed") == 1 + 32 + 16
    assert sample.ffi.offsetof("struct sample_packed", "b") == 1


def test_generate_sample_header_declares_every_kind(header: Path, tmp_path: Path) -> None:
    cdef = _build_core.generate("_sample", [header], tmp_path / "o.c", False, {"sample_defined"})
    text = cdef.text.replace(" ", "")
    assert "#defineSAMPLE_SIZE..." in text and "#defineSAMPLE_TWICE..." in text
    assert "SAMPLE_NAME" not in text and "SAMPLE_CALL" not in text
    assert "structsample_packed{uint8_ta;uint32_tb[8];...;}" in text
    assert "SAMPLE_A,SAMPLE_B,SAMPLE_C,..." in text
    assert "uint32_tsample_inline(constuint8_tp[4]);" in text
    assert "intsample_defined(structsample_outer*outer);" in text


def test_generate_same_headers_keeps_the_file(header: Path, tmp_path: Path) -> None:
    out = tmp_path / "_sample.c"
    _build_core.generate("_sample", [header], out, False, {"sample_defined"})
    before = out.stat().st_mtime_ns
    _build_core.generate("_sample", [header], out, False, {"sample_defined"})
    assert out.stat().st_mtime_ns == before


def test_generate_broken_header_raises_with_the_compilers_words(tmp_path: Path) -> None:
    header = tmp_path / "broken.h"
    header.write_text('#include "nowhere.h"\n')
    with pytest.raises(_build_core.HeaderError, match=r"nowhere\.h"):
        _build_core.generate("_sample", [header], tmp_path / "_sample.c", False, set())


def test_generate_one_name_for_two_structs_raises_with_both_places(tmp_path: Path) -> None:
    paths = [tmp_path / "a.h", tmp_path / "b.h"]
    for path in paths:
        path.write_text("struct ix_twin {\n    int x;\n};\n")
    with pytest.raises(
        _build_core.HeaderError, match=r"ix_twin is defined in .*a\.h and in .*b\.h"
    ):
        _build_core.generate("_sample", paths, tmp_path / "_sample.c", False, set())


def test_main_undefined_function_fails_unless_partial(
    header: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["x", "--module", "_sample", "--out", str(tmp_path / "_sample.c")]
    monkeypatch.setattr("sys.argv", [*arguments, str(header)])
    assert _build_core.main() == 1
    assert "sample_undefined" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", [*arguments, "--partial", str(header)])
    assert _build_core.main() == 0


def _python_include() -> str:
    return sysconfig.get_path("include")
