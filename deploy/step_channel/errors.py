"""What can go wrong on the channel itself."""

from __future__ import annotations


class ChannelError(Exception):
    """The channel cannot go on: close the connection. The text is for our own log."""


class ProtocolError(ChannelError):
    """The peer sent what no correct peer sends."""


class PeerClosedError(ChannelError):
    """The peer closed the connection."""
