"""What the kernel is asked about clients: to tell of one that vanished, and to keep little for one that reads slowly.

A phone that leaves its network says no goodbye. On Linux connections inherit all this from the socket that takes them.
"""

from __future__ import annotations

import socket
from contextlib import suppress

# Seconds a client may take nothing: neither acknowledge what was sent nor, reading too slowly, have room for more.
# Mobile networks lose packets for seconds, and TCP sends again after 0.2, 0.6, 1.4, 3, 6.2, 12.6 and 25.4 s: who is
# back within 12 s is always heard in time. No sooner can a client that is gone be told from one in a tunnel.
TAKES_NOTHING = 30
IDLE = 15  # seconds without a packet, after which the kernel asks whether the client is there
ASK_AGAIN = 5  # seconds
UNSENT = 64 * 1024  # bytes the kernel keeps beyond what is under way; by itself megabytes, for who reads slowly


def set_patience(listener: socket.socket) -> None:
    """Set it for all connections of this socket. Systems that do not know one of these options keep their own way."""
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_USER_TIMEOUT", TAKES_NOTHING * 1000),
        ("TCP_KEEPIDLE", IDLE),
        ("TCP_KEEPINTVL", ASK_AGAIN),
        ("TCP_KEEPCNT", max((TAKES_NOTHING - IDLE) // ASK_AGAIN, 1)),
        ("TCP_NOTSENT_LOWAT", UNSENT),
    ):
        if (option := getattr(socket, name, None)) is not None:
            with suppress(OSError):
                listener.setsockopt(socket.IPPROTO_TCP, option, value)
