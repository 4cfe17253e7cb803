"""ixnet memcached's options, before anything is started."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from ixnet.control.config import ConfigError
from ixnet.memcached import check_listen

IPS = (ip_address("10.0.0.1"), ip_address("fd00::1"))


@pytest.mark.parametrize("text", ["10.0.0.1", "fd00::1", "::ffff:10.0.0.1", "::", "0.0.0.0"])
def test_listen_takes_what_the_interface_has(text: str) -> None:
    check_listen(text, "eth1", IPS)


@pytest.mark.parametrize("text", ["10.0.0.2", "127.0.0.1", "::1", "host", "10.0.0.1:80", ""])
def test_listen_refuses_what_would_fail_in_the_workers(text: str) -> None:
    with pytest.raises(ConfigError, match=f"-l {text} is not an address") as caught:
        check_listen(text, "eth1", IPS)
    assert "10.0.0.1, fd00::1" in caught.value.cure


def test_listen_on_an_interface_without_addresses_says_so() -> None:
    with pytest.raises(ConfigError, match="not an address of eth1"):
        check_listen("10.0.0.1", "eth1", ())
