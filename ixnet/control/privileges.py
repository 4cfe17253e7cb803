"""What a worker may do: as much as the user that it runs as, and nothing that takes a capability.

The control process needs capabilities (rights.py); the application needs none of them, since all
that does is made before the fork. So a worker lets go of them before the application's first
instruction, for ever: programs that it starts have none either. With `--user` it becomes that user
as well, who can't end the control process or change its files.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
from dataclasses import dataclass

from ixnet._core import ffi, lib
from ixnet.control.errors import IxError, from_errno

_NO_USER = 2**32 - 1


class NoSuchUser(IxError):
    """The user or group of --user is not known here."""


@dataclass(frozen=True)
class User:
    """Who workers become. groups: the first is its own; home: its directory."""

    name: str
    uid: int
    groups: tuple[int, ...]
    home: str

    @classmethod
    def find(cls, text: str) -> User:
        """Of USER or USER:GROUP, names or numbers. Errors: NoSuchUser."""
        name, _, group = text.partition(":")
        try:
            found = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
        except KeyError:
            raise NoSuchUser(f"there is no user {name}", "useradd --system, or another") from None
        if not group:
            own = found.pw_gid
            others = [gid for gid in os.getgrouplist(found.pw_name, own) if gid != own]
            return cls(found.pw_name, found.pw_uid, (own, *others), found.pw_dir)
        try:
            gid = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
        except KeyError:
            raise NoSuchUser(f"there is no group {group}", "groupadd, or another") from None
        return cls(found.pw_name, found.pw_uid, (gid,), found.pw_dir)


@dataclass(frozen=True)
class Privileges:
    """Of workers. user: who they become, None: who started the instance. keep: they keep what the
    control process may."""

    user: User | None = None
    keep: bool = False

    def check(self) -> None:
        """Raises IxError where this process can't become the user."""
        if self.user is not None and os.geteuid() not in (0, self.user.uid):
            raise IxError("only root can run workers as another user", "sudo", errno.EPERM)

    def drop(self, hide: bool) -> None:
        """In a worker that has one thread. hide: from other processes of its user."""
        if self.keep:
            return
        user = self.user
        if user is None or os.geteuid() != 0:
            uid, groups = _NO_USER, ffi.new("uint32_t[1]")
        else:
            uid, groups = user.uid, ffi.new("uint32_t[]", user.groups)
            os.environ.update(HOME=user.home, USER=user.name, LOGNAME=user.name)
        result = lib.ix_process_drop(uid, groups, len(groups), hide)
        if result < 0:
            whose = f" and become {user.name}" if user is not None else ""
            raise from_errno(result, f"drop privileges{whose}", "see --keep-privileges")

    def text(self) -> str:
        """For the report at the start."""
        name = self.user.name if self.user is not None else _name(os.geteuid())
        return f"{name}, {'all that this process may' if self.keep else 'without capabilities'}"


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
