"""ixnet: a userspace TCP/IP dataplane on AF_XDP, in the manner of IX (OSDI '14)."""

from __future__ import annotations

__version__ = "0.1.0"
