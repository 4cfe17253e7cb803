"""Debian packages for the lab, fetched by name with an apt state of its own.

The machine's own apt is only asked which mirror it uses; nothing of it is changed, nothing is
installed, and no root is needed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# Where newer kernels than a release's own come from, whatever that release is.
KERNEL_SUITES = ("trixie-backports",)
# A merged /usr, as every Debian since 12 has it; the packages still name the old places.
MERGED = ("bin", "sbin", "lib", "lib64")


class LabError(Exception):
    """The lab can't be had; the message ends with the cure."""

    def __init__(self, message: str, cure: str) -> None:
        super().__init__(f"{message}\nlab:   cure: {cure}")


class Unavailable(LabError):
    """The packages can't be fetched from here: no mirror is reached, or this is no Debian."""


def run(command: Sequence[str | Path], what: str, cure: str, **more: object) -> str:
    """Runs a program to its end and returns what it printed. Errors: LabError."""
    try:
        done = subprocess.run(  # type: ignore[call-overload]
            [str(word) for word in command], capture_output=True, text=True, check=False, **more
        )
    except FileNotFoundError:
        raise LabError(f"{command[0]} is not installed", cure) from None
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise LabError(f"can't {what}: {command[0]} says:\n{tail}", cure)
    return str(done.stdout)


def codename() -> str:
    """The release that this machine runs, and so the one whose packages its .venv fits."""
    text = Path("/etc/os-release").read_text()
    found = re.search(r'^VERSION_CODENAME="?(\w+)', text, re.M)
    if not found or not re.search(r"^ID=debian", text, re.M):
        raise Unavailable("this machine does not run Debian", "run make lab on Debian 12 or later")
    return found[1]


class Archive:
    """An apt state under `home` that knows this release, its backports and newer kernels."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.release = codename()

    @cached_property
    def mirror(self) -> str:
        """The mirror that this machine's apt has this release from."""
        cure = "configure a Debian mirror (/etc/apt/sources.list.d), then try again"
        listed = run(
            ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)"],
            "ask apt for its mirror",
            cure,
        )
        for line in listed.splitlines():
            uri, _, release = line.partition(" ")
            if release == self.release:
                return uri
        raise Unavailable(f"apt has no source for {self.release}", cure)

    @cached_property
    def _options(self) -> list[str]:
        options = {
            "Dir::State": self.home / "state",
            "Dir::State::status": self.home / "status",
            "Dir::Cache": self.home / "cache",
            "Dir::Etc::sourcelist": self.home / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Acquire::Languages": "none",
            "APT::Install-Recommends": "false",
            "Debug::NoLocking": "true",
            "Acquire::Retries": "3",
            # A mirror that isn't reached is an error, not a warning and old lists.
            "APT::Update::Error-Mode": "any",
        }
        if os.geteuid() == 0:  # else its unprivileged helper could not write here
            options["APT::Sandbox::User"] = "root"
        return [word for key, value in options.items() for word in ("-o", f"{key}={value}")]

    def _apt(self, tool: str, *arguments: str, what: str, cwd: Path | None = None) -> str:
        cure = (
            f"check that this machine reaches its Debian mirror ({self.mirror}; apt-get update), "
            "then run make lab again"
        )
        try:
            return run([tool, *self._options, *arguments], what, cure, cwd=cwd or self.home)
        except LabError as error:
            if re.search(
                r"(?:Failed|Unable) to fetch|Could not resolve|Could not connect", str(error)
            ):
                raise Unavailable(f"can't {what}: {self.mirror} is not reached", cure) from error
            raise

    def update(self) -> None:
        """Fetches the lists of packages."""
        for part in ("state/lists/partial", "cache/archives/partial"):
            (self.home / part).mkdir(parents=True, exist_ok=True)
        (self.home / "status").write_text("")  # nothing is installed: a closure is everything
        signed = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
        suites = dict.fromkeys((self.release, f"{self.release}-backports", *KERNEL_SUITES))
        lines = [f"deb {signed}{self.mirror} {suite} main\n" for suite in suites]
        (self.home / "sources.list").write_text("".join(lines))
        self._apt("apt-get", "-q", "update", what="read the mirror's lists of packages")

    def closure(
        self, names: Iterable[str], backports: bool = False, without: Sequence[str] = ()
    ) -> list[Path]:
        """Fetches packages and all that they depend on, the newest there are; without: returns no
        package that is in the closure of these."""
        suite = f"{self.release}-backports" if backports else self.release
        archives = self.home / "cache/archives"
        shutil.rmtree(archives, ignore_errors=True)
        (archives / "partial").mkdir(parents=True)
        chosen = ["-q", "-y", "-t", suite, "install"]
        what = f"fetch {' '.join(names)}"
        # 'URI' FILE SIZE DIGEST
        listed = self._apt("apt-get", *chosen, "--print-uris", *without, what=what)
        there = {line.split()[1] for line in listed.splitlines() if line.startswith("'")}
        self._apt("apt-get", *chosen, "--download-only", *names, what=what)
        return sorted(path for path in archives.glob("*.deb") if path.name not in there)

    def names(self, pattern: str) -> list[str]:
        """Names of packages that match the whole pattern."""
        listed = self._apt("apt-cache", "pkgnames", "linux-", what="list packages")
        return [name for name in listed.split() if re.fullmatch(pattern, name)]

    def download(self, names: Iterable[str]) -> list[Path]:
        """Fetches the newest of these packages alone."""
        place = self.home / "debs"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        self._apt("apt-get", "-q", "download", *names, what=f"fetch {' '.join(names)}", cwd=place)
        return sorted(place.glob("*.deb"))


def unpack(packages: Iterable[Path], root: Path) -> None:
    """Unpacks packages, without running their scripts, into a tree with a merged /usr."""
    for name in MERGED:
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        if not (root / name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    for package in packages:
        with subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE
        ) as reader:
            run(
                ["tar", "-x", "--keep-directory-symlink", "--no-same-owner", "-C", root],
                f"unpack {package.name}",
                "remove the lab's cache and run make lab again (is the disk full?)",
                stdin=reader.stdout,
            )
