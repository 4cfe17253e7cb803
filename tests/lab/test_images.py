"""The lab's images are made again when what decides them changed, and only then."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

RELEASE = "7.3.4-amd64"


class Mirror:
    """Stands for packages.Archive: has kernels, serves nothing."""

    mirror = "http://mirror.invalid/debian"

    def __init__(self, home: Path) -> None:
        self.home = home

    def update(self) -> None:
        pass

    def names(self, pattern: str) -> list[str]:
        there = ("linux-image-7.3.4-amd64", "linux-headers-7.3.4-amd64")
        return [name for name in there if re.fullmatch(pattern, name)]


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The module, with a cache in which everything is ready, and makers that only note it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    module = importlib.import_module("images")
    monkeypatch.setattr(module, "CACHE", tmp_path)
    monkeypatch.setattr(module, "codename", lambda: "bookworm")
    monkeypatch.setattr(module, "Archive", Mirror)
    module.calls = []

    def maker(name: str, made: object) -> object:
        def make(*arguments: object) -> None:
            module.calls.append(name)
            one = made(*arguments[1:]) if name in ("kernel", "tracing") else made()
            if name in ("guest", "tracing"):
                one.place.touch()
            else:
                one.place.mkdir(exist_ok=True)
            if name == "kernel":
                (one.place / "vmlinux").touch()
            one.done()

        return make

    monkeypatch.setattr(module, "_make_host", maker("host", module.made_host))
    monkeypatch.setattr(module, "_prepare_kernel", maker("kernel", module.made_kernel))
    monkeypatch.setattr(module, "_make_tracing", maker("tracing", module.made_tracing))
    monkeypatch.setattr(module, "_make_kernel", lambda a, w: module._prepare_kernel(a, RELEASE))
    # Its own source is part of its recipe, so it is not replaced, only what it calls.
    guest = maker("guest", module.made_guest)
    monkeypatch.setattr(module, "unpack", lambda *_: None)
    monkeypatch.setattr(module, "GUEST_FILES", {})
    monkeypatch.setattr(module, "GUEST_LINKS", {})
    monkeypatch.setattr(Mirror, "closure", lambda *_: guest(), raising=False)
    monkeypatch.setattr(module.HOST, "image", lambda *_: None)
    module.setup()
    assert sorted(module.calls) == ["guest", "host", "kernel"]
    module.calls.clear()
    return module


def test_setup_with_nothing_changed_asks_no_mirror(
    images: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "Archive", None)
    images.setup()
    assert images.calls == []
    assert [path.name for path in images.kernels()] == [f"kernel-{RELEASE}"]


@pytest.mark.parametrize(
    ("what", "made"),
    [("TOOLS", "host"), ("GUEST", "guest"), ("MODULES", "kernel")],
)
def test_setup_with_a_changed_list_remakes_that(
    images: ModuleType, monkeypatch: pytest.MonkeyPatch, what: str, made: str
) -> None:
    monkeypatch.setattr(images, what, (*getattr(images, what), "one-more"))
    if made == "kernel":
        assert images.kernels() == [], "a kernel with another list of modules is not used"
    images.setup()
    assert images.calls == [made]
    images.setup()
    assert images.calls == [made], "made once"


def test_setup_for_another_kernel_fetches_it(images: ModuleType) -> None:
    images.setup(wanted="7.3")
    assert images.calls == []
    images.setup(wanted="6.18")
    assert images.calls == ["kernel"]


def test_setup_with_a_changed_list_removes_a_kernel_that_the_mirror_has_no_more(
    images: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = tmp_path / "kernel-6.1.0-amd64"
    old.mkdir()
    monkeypatch.setattr(Mirror, "names", lambda *_: [])
    images.setup()
    assert not old.exists()
    assert images.calls == []


def test_setup_makes_what_tracing_needs_when_asked_to(
    images: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    images.setup(tracing=True)
    images.setup(tracing=True)
    assert images.calls == ["tracing"], "made once"
    monkeypatch.setattr(images, "HEADERS", (*images.HEADERS, "one-more"))
    images.setup()
    assert images.calls == ["tracing"], "nobody asked"
    images.setup(tracing=True)
    assert images.calls == ["tracing", "tracing"]


def test_setup_for_tracing_removes_a_kernel_whose_headers_the_mirror_has_no_more(
    images: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Mirror, "names", lambda *_: [])
    images.setup(tracing=True)
    assert images.calls == ["kernel", "tracing"], "another one took its place"
