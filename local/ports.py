"""The port that users know, and ports of our own."""

from __future__ import annotations

import errno
import random
import socket

from haltline.settings import SettingsError

BACKLOG = 2048  # connections that wait for a replica to take them


def listen(host: str, port: int) -> socket.socket:
    """The one listening socket that all replicas inherit.

    One socket, not one a replica by SO_REUSEPORT: there the kernel hands connections to a replica that is frozen or not
    there yet, here whoever is free takes the next one.

    Raises: SettingsError naming HOST or PORT.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except PermissionError as error:
        raise SettingsError(f"PORT={port}: permission denied, choose another with --port") from error
    except socket.gaierror as error:
        raise SettingsError(f"HOST={host}: {error.strerror}") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(f"PORT={port}: address already in use, choose another with --port") from error
        raise SettingsError(f"HOST={host}: {error.strerror}") from error


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses now, for a server that must come back on the same one.

    Below what Linux and macOS give to outgoing connections, so that none of those takes it while the server restarts.
    """
    while True:
        port = random.randrange(20_000, 32_000)  # noqa: S311 - no secret
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
