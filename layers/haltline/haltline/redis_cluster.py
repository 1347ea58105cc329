"""Redis or Valkey in cluster mode, as the signal bus uses it: every command goes to the node that holds its key.

It is built of redis-py's plain clients, one a node. redis-py's own `RedisCluster` hands out connections that died while
they lay idle, closes those on which others await a reply when slots move, and first asks for the list of all commands.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, RedisError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

Address = tuple[str, int]

REFUSALS = 20  # of one command, while slots move
TRY_AGAIN = 0.05  # seconds
_UNKNOWN = (None, "", "?")  # how a node says that it has the name by which it was asked
_OF_ALL_NODES = ("PING", "SCRIPT LOAD")


class ClusterRedis(Redis):
    """Single commands on a cluster; of what needs more than one, MGET alone may name keys of several slots.

    A command is sent again only where a node has refused it: it says that the slot is, or is about to be, elsewhere.
    """

    def __init__(self, seed: Address, make_client: Callable[..., Redis], beside: Redis | None = None) -> None:
        """Nothing connects here.

        Args:
            seed: where a node is.
            make_client: makes a client of one node, of `host` and `port`.
            beside: another client of this cluster, which knows more nodes.
        """
        self._seed, self._make_client, self._beside = seed, make_client, beside
        self._clients: dict[Address, Any] = {}  # redis-py types no `execute_command`
        self._starts: list[int] = []  # first slots of ranges, in order
        self._ranges: list[tuple[int, Address]] = []  # last slot of each, and who holds it
        self._stale = True
        self._failed: Address | None = None  # who did not answer when asked last
        self._finding: asyncio.Task[None] | None = None
        self._subscriptions = 0
        super().__init__(connection_pool=self._client(seed).connection_pool)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """The reply of one command: of MGET in the order of its keys, of PING and SCRIPT LOAD that of all nodes.

        Raises: what redis-py raises. After a ConnectionError or TimeoutError it may or may not have been executed.
        """
        if self._stale:
            await self._find()
        if args[0] == "MGET":
            return await self._mget(args[1:])
        if args[0] in _OF_ALL_NODES:
            nodes = {address for _, address in self._ranges} or {self._holder(0)}
            return (await asyncio.gather(*(self._ask(node, *args, **options) for node in nodes)))[0]
        key = args[3] if args[0] == "EVALSHA" else args[1] if len(args) > 1 else ""
        return await self._send(_slot(key), *args, **options)

    async def info_of_each(self, section: str) -> dict[str, dict[str, Any]]:
        """What every node says of itself that holds slots, by its address; of those that answer. Raises: RedisError."""
        if self._stale:
            await self._find()
        nodes = sorted({address for _, address in self._ranges})
        told = await asyncio.gather(*(self._ask(n, "INFO", section) for n in nodes), return_exceptions=True)
        return {f"{n[0]}:{n[1]}": t for n, t in zip(nodes, told, strict=True) if isinstance(t, dict)}

    def pubsub(self, **options: Any) -> PubSub:
        """Subscribe through a node; through another one each time, for one may be gone. A cluster tells all of them."""
        known = self._beside if isinstance(self._beside, ClusterRedis) else self
        nodes = [self._seed, *(node for node in known._clients if node != self._seed)]
        node = nodes[self._subscriptions % len(nodes)]
        self._subscriptions += 1
        subscription: PubSub = self._client(node).pubsub(**options)
        return subscription

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the connections to all nodes."""
        if self._finding:
            self._finding.cancel()
            await asyncio.wait({self._finding})
        await asyncio.gather(*(client.aclose(True) for client in self._clients.values()))

    def _client(self, node: Address) -> Any:
        if node not in self._clients:
            self._clients[node] = self._make_client(host=node[0], port=node[1])
        return self._clients[node]

    async def _send(self, slot: int, *args: Any, **options: Any) -> Any:
        """Ask who holds the slot, and whoever a refusal names."""
        node, asking = self._holder(slot), False
        for _ in range(REFUSALS):
            try:
                return await self._ask(node, *args, asking=asking, **options)
            except MovedError as error:
                self._stale = True
                node, asking = self._named(error, node), False
            except AskError as error:
                node, asking = self._named(error, node), True
            except TryAgainError:  # some of the keys are at one node, some at the other
                await asyncio.sleep(TRY_AGAIN)
                node, asking = self._holder(slot), False
        raise RedisConnectionError(f"slot {slot} of the cluster is on the move")

    async def _ask(self, node: Address, *args: Any, asking: bool = False, **options: Any) -> Any:
        client = self._client(node)
        with self._noting(node):
            if not asking:
                return await client.execute_command(*args, **options)
            async with client.client() as one:  # the permission is that of the connection, for its next command
                await one.execute_command("ASKING")
                return await one.execute_command(*args, **options)

    @contextmanager
    def _noting(self, node: Address) -> Iterator[None]:
        """Where a node does not answer, or knows no cluster any more, ask anew who holds what: others first."""
        try:
            yield
        except (RedisConnectionError, RedisTimeoutError, ClusterDownError, OSError):
            self._stale, self._failed = True, node
            raise

    async def _mget(self, keys: Sequence[str]) -> list[Any]:
        """One MGET a slot, those of a node in one go."""
        of_node: dict[Address, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for i, key in enumerate(keys):
            slot = _slot(key)
            of_node[self._holder(slot)][slot].append(i)
        values: list[Any] = [None] * len(keys)
        await asyncio.gather(*(self._mget_of(node, keys, slots, values) for node, slots in of_node.items()))
        return values

    async def _mget_of(
        self, node: Address, keys: Sequence[str], slots: dict[int, list[int]], values: list[Any]
    ) -> None:
        with self._noting(node):
            async with self._client(node).pipeline(transaction=False) as pipe:
                for places in slots.values():
                    pipe.mget([keys[i] for i in places])
                found = await pipe.execute(raise_on_error=False)
        for (slot, places), part in zip(slots.items(), found, strict=True):
            if isinstance(part, AskError | TryAgainError | ClusterDownError):
                part = await self._send(slot, "MGET", *(keys[i] for i in places))
            elif isinstance(part, Exception):
                raise part
            for i, value in zip(places, part, strict=True):
                values[i] = value

    # ---- who holds what
    def _holder(self, slot: int) -> Address:
        i = bisect_right(self._starts, slot) - 1
        if i >= 0 and slot <= self._ranges[i][0]:
            return self._ranges[i][1]
        self._stale = True
        raise RedisConnectionError(f"no node of the cluster holds slot {slot}")

    def _named(self, error: AskError, asked: Address) -> Address:
        return (asked[0] if error.host in _UNKNOWN else error.host), error.port

    async def _find(self) -> None:
        """Ask who holds which slots; whoever needs to know meanwhile waits for the same answer."""
        if self._finding is None or self._finding.done():
            self._finding = asyncio.create_task(self._ask_around())
            self._finding.add_done_callback(lambda task: task.cancelled() or task.exception())  # all may have left
        await asyncio.shield(self._finding)

    async def _ask_around(self) -> None:
        nodes = sorted(self._clients, key=lambda node: node == self._failed)  # the seed is the first of them
        for last, node in enumerate(nodes, 1 - len(nodes)):
            try:
                found = await self._client(node).execute_command("CLUSTER SLOTS")
            except (RedisError, OSError):
                if last == 0:
                    raise
                continue
            if not found and last < 0:  # it has left the cluster
                continue
            held = sorted((start, end, primary[:2]) for start, end, primary, *_ in found)
            self._starts = [start for start, _, _ in held]
            self._ranges = [(end, (node[0] if host in _UNKNOWN else host, port)) for _, end, (host, port) in held]
            self._stale, self._failed = False, None
            return


def _slot(key: Any) -> int:
    return key_slot(key if isinstance(key, bytes) else str(key).encode())
