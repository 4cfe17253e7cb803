"""Timestamps of frames by the NIC (ixnet run --timestamps): what can be had, or why not."""

from __future__ import annotations

from contextlib import suppress

from ixnet.control.errors import IxError, ProgramAttached
from ixnet.control.ethtool import metadata_features
from ixnet.control.nic import Mode, Nic, OpenedQueues
from ixnet.control.xdp import HARDWARE_STAMP_PATH, STAMP_PATH, Steering, XdpMode

# struct xsk_tx_metadata (Documentation/networking/xsk-tx-metadata.rst).
TX_METADATA_BYTES = 24
HARDWARE = "by the NIC's clock"


def open_stamping(nic: Nic, wanted: Mode | None) -> tuple[Steering, str]:
    """A steering program that writes the time of arrival before each frame: the NIC's too where
    the driver tells it to XDP programs. Returns it with HARDWARE, or with why it is software.

    wanted: the mode that was asked for. Errors: as Steering.open().
    """
    why = _why_not(nic, wanted)
    if not why:
        try:
            return _open_bound(nic), HARDWARE
        except ProgramAttached:
            raise
        except IxError as error:
            # The last line is ours; before it is what libbpf and the verifier had to say.
            why = f"no program can be bound to {nic.name}: {error.message.splitlines()[-1]}"
    return Steering.open(STAMP_PATH), f"software: {why}"


def _why_not(nic: Nic, wanted: Mode | None) -> str:
    if wanted is Mode.GENERIC_COPY:
        return "a program bound to a device does not run in generic mode (cure: --mode auto)"
    features = metadata_features(nic.ifindex)
    if features is not None and "timestamp" not in features.receive:
        return (
            f"{nic.driver or nic.kind} gives XDP programs no receive timestamps "
            "(netdev xdp-rx-metadata-features)"
        )
    return ""


def _open_bound(nic: Nic) -> Steering:
    """Bound to the device, and proved to attach there in native mode."""
    steering = Steering.open(HARDWARE_STAMP_PATH, bound_to=nic.ifindex)
    try:
        steering.attach(nic.ifindex, XdpMode.NATIVE)
        steering.detach()
    except IxError:
        with suppress(IxError):
            steering.close()
        raise
    return steering


def transmit_text(nic: Nic, opened: OpenedQueues) -> str:
    """What completions of sent frames tell."""
    if not opened.sockets[0].tx_metadata_bytes:
        return "none: this kernel has no AF_XDP TX metadata (Linux 6.11)"
    if not opened.sockets[0].zerocopy:
        return "software: in copy mode the kernel says when it let go of the frame"
    features = metadata_features(nic.ifindex)
    if features is not None and "tx-timestamp" not in features.transmit:
        return f"none: {nic.driver or nic.kind} gives none (netdev xsk-features)"
    return HARDWARE
