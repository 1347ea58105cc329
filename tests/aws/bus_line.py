"""A TCP line to the bus that can go dead unseen, as one does when an address translation forgets it."""

from __future__ import annotations

import contextlib
import socket
import threading


class BusLine:
    """Listens on a free port of 127.0.0.1 and passes on to `port`."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._lock = threading.Lock()
        self._alive: set[socket.socket] = set()
        self._dead: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def go_dead(self) -> int:
        """Pass on nothing more of the connections there are, and close none; later ones are alive. Returns how many."""
        with self._lock:
            count = len(self._alive)
            self._dead |= self._alive
            self._alive.clear()
        return count // 2

    def __enter__(self) -> BusLine:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        with self._lock:
            for end in self._alive | self._dead:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the end
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                with self._lock:
                    self._alive |= {client, server}
                for one, other in ((client, server), (server, client)):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    threading.Thread(target=self._pass_on, args=[one, other], daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                if self._is_alive(one):
                    other.sendall(data)
        if self._is_alive(one):
            with contextlib.suppress(OSError):
                other.shutdown(socket.SHUT_WR)

    def _is_alive(self, end: socket.socket) -> bool:
        with self._lock:
            return end in self._alive
