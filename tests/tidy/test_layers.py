"""Folder rank is include permission: base < wire < mem < link < net < tcp < shard < gate < api."""

from __future__ import annotations

from pathlib import Path

from tests.tidy import tree

RANK = {layer: rank for rank, layer in enumerate(tree.LAYERS)}
# The records of the API are vocabulary that every layer may use: api.h includes nothing of the
# core, config.h only what ranks lowest.
OPEN_TO_ALL = {"api/api.h", "api/config.h", "api/gate.h"}
# What the application's side may see of the core: the API, the interface that a link fills in,
# the recorder that it may put around one, and how memory comes on huge pages.
OPEN_TO_APPLICATIONS = (
    "api/",
    "base/types.h",
    "base/huge_hosted.h",
    "link/link.h",
    "link/pcap_link.h",
)


def violations(layer: str, included: list[str]) -> list[str]:
    """The includes that a file of `layer` may not have."""
    bad = []
    for name in included:
        folder = name.split("/")[0]
        if folder not in RANK or (RANK[folder] > RANK[layer] and name not in OPEN_TO_ALL):
            bad.append(name)
    return bad


def own_includes(path: Path) -> list[str]:
    """What a file includes of the tree."""
    return [name for style, name in tree.includes(path) if style == '"']


def test_core_files_include_only_lower_layers() -> None:
    found = {
        tree.relative(path): bad
        for path in tree.core_files()
        if (bad := violations(path.parent.name, own_includes(path)))
    }
    tree.expect_none(found)


def test_api_h_includes_nothing_of_the_core() -> None:
    assert own_includes(tree.DATAPLANE / "api/api.h") == []


def test_config_h_includes_only_the_lowest_layer() -> None:
    above = [n for n in own_includes(tree.DATAPLANE / "api/config.h") if not n.startswith("base/")]
    tree.expect_none(above)


def test_violations_are_found() -> None:
    # The rule itself can fail: upwards, sideways out of the core, and a bare name.
    assert violations("mem", ["base/types.h", "tcp/tcp.h", "native/app.h", "frame.h"]) == [
        "tcp/tcp.h",
        "native/app.h",
        "frame.h",
    ]


def test_application_side_sees_only_the_api_of_the_core() -> None:
    found = {}
    sides = (tree.ROOT / "ixnet" / name for name in ("native", "posix"))
    for path in sorted(path for side in sides for path in side.glob("*.[ch]")):
        core = [name for name in own_includes(path) if name.split("/")[0] in RANK]
        bad = [name for name in core if not name.startswith(OPEN_TO_APPLICATIONS)]
        if bad:
            found[tree.relative(path)] = bad
    tree.expect_none(found)
