"""A Bedrock model whose call ends at once, and with it the connection, when the run is stopped. No thread a call.

Strands' BedrockModel does all it does: formatting, guardrails, structured output, the meaning of errors. botocore
signs and parses. Only the bytes are carried here, by an asyncio client that botocore is given through its own events
(`before-send`, `needs-retry`, `before-sign`), so that every wait of a call is one that asyncio can cancel.

Nothing of this is seen from outside a call's own flow: other uses of the same boto3 client behave as ever.
"""

from __future__ import annotations

import asyncio
import random
import struct
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import botocore.session
from botocore import UNSIGNED
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.credentials import Credentials
from botocore.eventstream import EventStreamBuffer, ParserError
from botocore.exceptions import BotoCoreError, ConnectionClosedError, ReadTimeoutError
from botocore.exceptions import ConnectionError as AnyConnectionError
from botocore.utils import get_environ_proxies
from strands.models import BedrockModel
from strands.types.content import Messages, SystemContentBlock
from strands.types.exceptions import ModelThrottledException
from strands.types.streaming import StreamEvent
from strands.types.tools import ToolChoice, ToolSpec

from haltline.bedrock_connection import Connection, Connections
from haltline.bedrock_frames import Frames
from haltline.bridge import Flow
from haltline.failures import AnswerBrokenOff
from haltline.runs import live_token

CANCEL_LOOK = 0.2  # seconds between looks at Strands' own cancel signal, which nothing but looking can tell
LONGEST_BACK_OFF = 20.0  # seconds
TURN = 0.005  # seconds that events which have arrived together may keep all else waiting
_ATTEMPTS = {"legacy": 5, "standard": 3}  # as botocore documents them, where AWS_MAX_ATTEMPTS is not set
_PASSING_STATUS = (429, 500, 502, 503, 504, 509)
_PASSING_CODES = (  # of its legacy and its standard mode
    *("Throttling", "ThrottlingException", "ThrottledException", "RequestThrottledException", "RequestThrottled"),
    *("TooManyRequestsException", "ProvisionedThroughputExceededException", "RequestLimitExceeded", "SlowDown"),
    *("BandwidthLimitExceeded", "LimitExceededException", "TransactionInProgressException", "PriorRequestNotComplete"),
    *("RequestTimeout", "RequestTimeoutException", "ModelNotReadyException"),
)
_PASSING_ERRORS = (AnyConnectionError, ConnectionClosedError, ReadTimeoutError)
_SERVICE = "bedrock-runtime"

T = TypeVar("T")

# Credentials that have run out are fetched over the network by blocking code.
_signers = ThreadPoolExecutor(max_workers=4, thread_name_prefix="aws-credentials")


class RunStopped(Exception):
    """The run was stopped: this call was ended with it, or not begun."""


class StoppableBedrockModel(BedrockModel):
    """Strands' BedrockModel, to be used in its place: same arguments, same behaviour, but for the stop.

    A call ends, and its connection is closed, when the task that makes it is cancelled, or when the run's stop token
    fires, from whatever thread or event loop the call is made (an agent inside of a tool). Connections of other calls
    stay as they are.

    Source: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStream.html
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As BedrockModel. Raises: what BedrockModel raises."""
        super().__init__(*args, **kwargs)
        self._attach()

    @classmethod
    def like(cls, model: BedrockModel) -> StoppableBedrockModel:
        """A stoppable model with the client and the configuration of `model`, which stays usable."""
        made = cls.__new__(cls)
        made.__dict__.update(model.__dict__)
        made._attach()
        return made

    def _attach(self) -> None:
        self._connections = _connections_for(self.client)
        take_over(self.client)

    async def stream(
        self,
        messages: Messages,
        tool_specs: list[ToolSpec] | None = None,
        system_prompt: str | None = None,
        *,
        tool_choice: ToolChoice | None = None,
        system_prompt_content: list[SystemContentBlock] | None = None,
        cancel_signal: threading.Event | None = None,
        structured_output_model: Any = None,
        **kwargs: Any,
    ) -> AsyncGenerator[StreamEvent, None]:
        """As BedrockModel.stream, but what is no whole answer is told, and not begun anew where some of it was said.

        Raises: AnswerBrokenOff as well; RunStopped, in a thread whose run was stopped.
        """
        if system_prompt and system_prompt_content is None:
            system_prompt_content = [{"text": system_prompt}]
        trailing = kwargs.get("dynamic_trailing_blocks", 0)

        def work(emit: Callable[[Any], None]) -> None:
            def callback(event: Any = None) -> None:
                if event is not None:  # None says that it is over
                    emit(event)

            self._stream(
                callback,
                messages,
                tool_specs,
                system_prompt_content,
                tool_choice,
                trailing,
                cancel_signal,
                structured_output_model,
            )

        async with _Call(self._connections, self.client.meta.config, cancel_signal) as call:
            flow = Flow(work, call)
            call.flow = flow
            events = flow.events()
            said = whole = False
            try:
                async for event in events:
                    said = said or "contentBlockDelta" in event
                    whole = whole or "messageStop" in event
                    yield event
                if not whole:
                    raise AnswerBrokenOff
            except RunStopped:
                if not (cancel_signal and cancel_signal.is_set()):
                    raise
            except ModelThrottledException as error:
                if said:  # Strands would have the model say it once more, behind what the user has seen
                    raise AnswerBrokenOff from error
                raise
            finally:
                await events.aclose()


_connections: dict[tuple[str | None, str | None], Connections] = {}


def _connections_for(client: Any) -> Connections:
    """Those with the certificates and the proxy that botocore would use for this client."""
    config = botocore.session.Session(include_builtin_handlers=False)  # they are most of what a session takes to make
    bundle = config.get_config_variable("ca_bundle")  # AWS_CA_BUNDLE, or the profile's
    endpoint, proxies = client.meta.endpoint_url, client.meta.config.proxies
    proxy = (get_environ_proxies(endpoint) if proxies is None else proxies).get(endpoint.partition(":")[0])
    if proxy and not proxy.startswith(("http:", "https:")):
        proxy = f"http://{proxy.removeprefix('//')}"
    if (bundle, proxy) not in _connections:
        _connections[bundle, proxy] = Connections(bundle, proxy)
    return _connections[bundle, proxy]


def close_connections() -> None:
    """Close the connections of this event loop that are kept for the next call."""
    for connections in _connections.values():
        connections.close()


class _Call:
    """One call: the connection that carries its bytes, and what ends it early."""

    def __init__(self, connections: Connections, config: Any, cancel_signal: threading.Event | None) -> None:
        """`config`: of the botocore client, for its time limits."""
        self._connections, self._config, self._cancel_signal = connections, config, cancel_signal
        self._token = live_token.get()
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._connection: Connection | None = None
        self._own = threading.Lock()  # held while this call's connection is shut from another thread, or let go of
        self._stopped = self._loop.create_future()
        self._looking: asyncio.TimerHandle | None = None
        self.flow: Flow[_Call]

    async def __aenter__(self) -> _Call:
        if self._token:
            self._token.on_stop(self._stop)
        if self._cancel_signal:
            self._look()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._token:
            self._token.off_stop(self._stop)
        if self._looking:
            self._looking.cancel()
        self.close()

    def close(self) -> None:
        """Close the connection, unless the answer was read to its end."""
        with self._own:
            connection, self._connection = self._connection, None
        if connection is not None:
            self._connections.give_back(connection)

    # ---- being stopped
    def _stop(self) -> None:
        """Called inside StopToken.stop, in its thread."""
        if threading.get_ident() == self._thread:
            self._end()
            return
        with suppress(RuntimeError):  # that loop has ended, and the call with it
            self._loop.call_soon_threadsafe(self._end)
        with self._own:
            if self._connection is not None:
                self._connection.shut_from_elsewhere()

    def _look(self) -> None:
        if self._cancel_signal and self._cancel_signal.is_set():
            self._end()
        else:
            self._looking = self._loop.call_later(CANCEL_LOOK, self._look)

    def _end(self) -> None:
        if self._stopped.done():
            return
        self._stopped.set_result(None)
        if self._connection is not None:
            self._connection.abort(RunStopped())

    def wait(self, awaitable: Awaitable[Any]) -> Any:
        """Await from inside the flow. Raises: RunStopped when the call was ended meanwhile."""
        return self.flow.wait(self._either(asyncio.ensure_future(awaitable)))

    async def _either(self, task: asyncio.Future[Any]) -> Any:
        try:
            await asyncio.wait({task, self._stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise RunStopped
            return task.result()
        finally:
            task.cancel()

    # ---- the bytes
    def send(self, request: AWSPreparedRequest) -> AWSResponse:
        """Send what botocore has signed; returns when the response's headers are there."""
        connection = self._carried(self._sent(request))
        return AWSResponse(request.url, connection.status, connection.headers, _Body(self))

    def _carried(self, awaitable: Awaitable[T]) -> T:
        try:
            return self.flow.wait(awaitable)
        except BotoCoreError:
            if self._token and self._token.stopped:  # from another thread, whose end of the connection is seen first
                raise RunStopped from None
            raise

    async def _sent(self, request: AWSPreparedRequest) -> Connection:
        self.close()  # of the attempt before
        if self._stopped.done() or (self._token and self._token.stopped):
            raise RunStopped
        connections = self._connections
        self._connection = connection = connections.take(request.url) or Connection(request.url)
        if not connection.connected:
            connecting = connection.connect(connections.tls, connections.proxy, self._config.connect_timeout)
            await self._either(asyncio.ensure_future(connecting))
        connection.send(request, connections.proxy)
        await connection.head(self._config.read_timeout)
        return connection

    def read(self) -> bytes:
        """What has arrived of the body since the last call, at least a byte of it; b"" at the end."""
        connection = self._connection
        if connection is None:
            return b""
        data = connection.take() or self._carried(connection.read(self._config.read_timeout))
        if not data:
            self.close()  # others may have the connection now
        return data


class _Body:
    """A response's body in the form that botocore reads."""

    def __init__(self, call: _Call) -> None:
        self._call = call

    def stream(self, *_: Any, **__: Any) -> Iterator[bytes]:
        """The bytes as they come."""
        while chunk := self._call.read():
            yield chunk

    def close(self) -> None:
        """Close the connection, unless all has been read."""
        self._call.close()


class _Events:
    """botocore's stream of events, in the place of it: text is read without botocore's parser."""

    def __init__(self, stream: Any, call: _Call) -> None:
        self._stream, self._call = stream, call

    def __iter__(self) -> Iterator[Any]:
        frames, buffer, loop = Frames(), EventStreamBuffer(), asyncio.get_running_loop()
        while chunk := self._call.read():
            until = loop.time() + TURN
            for part in frames.feed(chunk):
                if loop.time() > until:
                    self._call.wait(asyncio.sleep(0))
                    until = loop.time() + TURN
                if isinstance(part, dict):
                    yield part
                    continue
                yield from self._parsed(buffer, part)

    def _parsed(self, buffer: EventStreamBuffer, part: bytes) -> list[Any]:
        """What botocore makes of frames. Raises: AnswerBrokenOff where that is nothing, ClientError as it is told."""
        try:
            buffer.add_data(part)
            events = [event for message in buffer if (event := self._stream._parse_event(message))]
        except (ParserError, struct.error, ValueError, LookupError, TypeError, AttributeError) as error:
            raise AnswerBrokenOff from error
        if not all(map(_in_order, events)):
            raise AnswerBrokenOff
        return events

    def close(self) -> None:
        """Close the connection, unless all has been read."""
        self._stream.close()


_HOLDS = {
    "messageStart": "role",
    "contentBlockStart": "start",
    "contentBlockDelta": "delta",
    "messageStop": "stopReason",
}


def _in_order(event: dict[str, Any]) -> bool:
    """Whether it holds what Strands takes for granted: botocore makes an empty event of JSON that is none."""
    for kind, payload in event.items():
        if (held := _HOLDS.get(kind)) and not payload.get(held):
            return False
        if kind == "contentBlockDelta":
            said = payload["delta"]
            texts = (said.get("text", ""), said.get("toolUse", {}).get("input", ""))
            return all(isinstance(text, str) for text in texts)
    return True


# ---- what botocore asks
def take_over(client: Any) -> None:
    """Let calls that run in a flow go over asyncio. Others of the client's calls stay as they were."""
    events = client.meta.events
    events.unregister(f"needs-retry.{_SERVICE}", unique_id=f"retry-config-{_SERVICE}")
    events.register(f"before-sign.{_SERVICE}", _before_sign, unique_id="haltline-before-sign")
    events.register_last(f"before-send.{_SERVICE}", _before_send, unique_id="haltline-before-send")  # others may add
    events.register(f"needs-retry.{_SERVICE}", _Retries(client), unique_id="haltline-needs-retry")
    events.register(f"after-call.{_SERVICE}.ConverseStream", _after_call, unique_id="haltline-after-call")


def _current_call() -> _Call | None:
    flow = Flow.current()
    return flow.context if flow is not None and isinstance(flow.context, _Call) else None


def _before_sign(
    request: Any, request_signer: Any, signing_name: str, region_name: str, signature_version: Any, **_: Any
) -> None:
    """Have credentials that run out fetched in a thread, and signed with: asked again, they may be fetched again."""
    if (call := _current_call()) and signature_version is not UNSIGNED:
        loop = asyncio.get_running_loop()
        fetch = request_signer.get_auth_instance
        auth = call.wait(loop.run_in_executor(_signers, fetch, signing_name, region_name, signature_version))
        if found := getattr(auth, "credentials", None):  # a bearer token has none
            frozen = Credentials(found.access_key, found.secret_key, found.token)
            request.context.setdefault("signing", {})["request_credentials"] = frozen


def _before_send(request: AWSPreparedRequest, **_: Any) -> AWSResponse | None:
    call = _current_call()
    return call.send(request) if call else None


def _after_call(parsed: dict[str, Any], **_: Any) -> None:
    if (call := _current_call()) and "stream" in parsed:
        parsed["stream"] = _Events(parsed["stream"], call)


class _Retries:
    """botocore's rule of what is tried again and when, its waiting done by asyncio."""

    def __init__(self, client: Any) -> None:
        config = client.meta.config.retries or {}
        self._attempts = int(config.get("total_max_attempts") or _ATTEMPTS.get(config.get("mode", "legacy"), 3))

    def __call__(self, attempts: int, response: Any, caught_exception: Any, **_: Any) -> float | None:
        """Seconds that botocore is to sleep before it tries again, None where it is not to."""
        if attempts >= self._attempts or not self._passing(response, caught_exception):
            return None
        delay = random.random() * min(2.0 ** (attempts - 1), LONGEST_BACK_OFF)  # noqa: S311 - spreads, hides nothing
        if call := _current_call():
            call.wait(asyncio.sleep(delay))
            return 0.0
        return delay

    @staticmethod
    def _passing(response: Any, caught_exception: Any) -> bool:
        if response is None:
            return isinstance(caught_exception, _PASSING_ERRORS)
        http, parsed = response
        return http.status_code in _PASSING_STATUS or parsed.get("Error", {}).get("Code") in _PASSING_CODES
