"""A Bedrock model whose call ends at once, and with it the connection, when the run is stopped. No thread a call.

Strands' BedrockModel does all it does: formatting, guardrails, structured output, the meaning of errors. botocore
signs and parses. Only the bytes are carried here, by an asyncio client that botocore is given through its own events
(`before-send`, `needs-retry`, `before-sign`), so that every wait of a call is one that asyncio can cancel.

Nothing of this is seen from outside a call's own flow: other uses of the same boto3 client behave as ever.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import ssl
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import botocore.session
import httpx2
from botocore import UNSIGNED
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.credentials import Credentials
from botocore.exceptions import (
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
)
from botocore.exceptions import ConnectionError as AnyConnectionError
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies
from strands.models import BedrockModel
from strands.types.content import Messages, SystemContentBlock
from strands.types.streaming import StreamEvent
from strands.types.tools import ToolChoice, ToolSpec

from haltline.bridge import Flow
from haltline.runs import live_token

CANCEL_LOOK = 0.2  # seconds between looks at Strands' own cancel signal, which nothing but looking can tell
IDLE_CONNECTIONS = 100
IDLE_SECONDS = 60.0  # a connection that was idle for longer is not used again
LONGEST_BACK_OFF = 20.0  # seconds
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
        """As BedrockModel.stream. Raises: RunStopped as well, in a thread whose run was stopped."""
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

        config = self.client.meta.config
        timeout = httpx2.Timeout(config.read_timeout, connect=config.connect_timeout, pool=None)
        async with _Call(self._connections, timeout, cancel_signal) as call:
            flow = Flow(work, call)
            call.flow = flow
            events = flow.events()
            try:
                async for event in events:
                    yield event
            except RunStopped:
                if not (cancel_signal and cancel_signal.is_set()):
                    raise
            finally:
                await events.aclose()


class _Connections:
    """The HTTP client of all models: one for the event loop of the main thread, one a call for any other.

    Not one a model: an agent may bring a new model with each run, and nobody would close what that keeps open.
    """

    def __init__(self, bundle: str | None, proxy: str | None) -> None:
        """`bundle`: a PEM file of the certificates to trust, None for those that botocore trusts."""
        self._tls = ssl.create_default_context(cafile=get_cert_path(bundle or True))
        self._proxy = proxy
        self._loop: asyncio.AbstractEventLoop | None = None
        self._kept: httpx2.AsyncClient | None = None

    def _make(self) -> httpx2.AsyncClient:
        limits = httpx2.Limits(
            max_connections=None, max_keepalive_connections=IDLE_CONNECTIONS, keepalive_expiry=IDLE_SECONDS
        )
        return httpx2.AsyncClient(
            limits=limits,
            verify=self._tls,
            proxy=self._proxy,
            trust_env=False,  # what botocore reads of the environment is in the arguments
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # nothing of one chat goes with another's call
            headers={"accept-encoding": "identity"},
        )

    def get(self) -> tuple[httpx2.AsyncClient, bool]:
        """A client, and whether it is only for this call."""
        loop = asyncio.get_running_loop()
        if self._kept is not None and self._loop is loop:
            return self._kept, False
        if threading.current_thread() is not threading.main_thread():
            return self._make(), True  # an event loop that may be gone after this call
        self._loop, self._kept = loop, self._make()
        return self._kept, False

    async def aclose(self) -> None:
        if self._kept is not None and self._loop is asyncio.get_running_loop():
            kept, self._kept = self._kept, None
            await kept.aclose()


_connections: dict[tuple[str | None, str | None], _Connections] = {}


def _connections_for(client: Any) -> _Connections:
    """Those with the certificates and the proxy that botocore would use for this client."""
    config = botocore.session.Session(include_builtin_handlers=False)  # they are most of what a session takes to make
    bundle = config.get_config_variable("ca_bundle")  # AWS_CA_BUNDLE, or the profile's
    endpoint, proxies = client.meta.endpoint_url, client.meta.config.proxies
    proxy = (get_environ_proxies(endpoint) if proxies is None else proxies).get(endpoint.partition(":")[0])
    if proxy and not proxy.startswith(("http:", "https:")):
        proxy = f"http://{proxy.removeprefix('//')}"
    if (bundle, proxy) not in _connections:
        _connections[bundle, proxy] = _Connections(bundle, proxy)
    return _connections[bundle, proxy]


async def close_connections() -> None:
    """Close the connections of this event loop that are kept for the next call."""
    for connections in _connections.values():
        await connections.aclose()


class _Call:
    """One call: the task that carries its bytes, and what ends it early.

    The carrier is cancelled once and never again, whatever happens to the task that makes the call: closing a
    connection takes some steps, and a second cancellation among them would leave it open.
    """

    def __init__(
        self, connections: _Connections, timeout: httpx2.Timeout, cancel_signal: threading.Event | None
    ) -> None:
        self._connections, self._timeout, self._cancel_signal = connections, timeout, cancel_signal
        self._token = live_token.get()
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._client: httpx2.AsyncClient | None = None
        self._own_client = False
        self._carrier: asyncio.Task[None] | None = None
        self._carried: asyncio.Queue[Any] = asyncio.Queue()  # a response, then bytes, b"" at the end; or an error
        self._stopped = self._loop.create_future()
        self._looking: asyncio.TimerHandle | None = None
        self._made: Any = None  # the TCP connection, where this attempt had to make one
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
        await self.close()
        if self._own_client and self._client:
            await self._client.aclose()

    async def close(self) -> None:
        """Close the connection, unless the answer was read to its end. Returns when that is done."""
        self._drop()
        if self._carrier is not None:
            await asyncio.wait({self._carrier})

    def _drop(self) -> None:
        if self._carrier is not None and not self._carrier.cancelling():  # of one that is done this asks nothing
            self._carrier.cancel()

    # ---- being stopped
    def _stop(self) -> None:
        """Called inside StopToken.stop, in its thread."""
        if threading.get_ident() == self._thread:
            self._end()
            return
        with suppress(RuntimeError):  # that loop has ended, and the call with it
            self._loop.call_soon_threadsafe(self._end)
        if self._own_client and self._made is not None:  # that thread may get its turn only some ms later
            # Where that thread was faster it is closed by now, and under uvloop there is no socket any more.
            with (
                suppress(OSError, AttributeError),
                socket.socket(fileno=os.dup(self._made.get_extra_info("socket").fileno())) as own,
            ):
                own.shutdown(socket.SHUT_RDWR)

    def _look(self) -> None:
        if self._cancel_signal and self._cancel_signal.is_set():
            self._end()
        else:
            self._looking = self._loop.call_later(CANCEL_LOOK, self._look)

    def _end(self) -> None:
        if self._stopped.done():
            return
        self._stopped.set_result(None)
        self._carried.put_nowait(RunStopped())
        self._drop()

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
        response = self.flow.wait(self._sent(request))
        return AWSResponse(request.url, response.status_code, dict(response.headers), _Body(self))

    async def _sent(self, request: AWSPreparedRequest) -> Any:
        await self.close()  # of the attempt before
        if self._stopped.done() or (self._token and self._token.stopped):
            raise RunStopped
        if self._client is None:
            self._client, self._own_client = self._connections.get()
        self._carrier = asyncio.create_task(self._carry(self._client, request))
        return await self.next()

    async def next(self) -> Any:
        """What is carried next. Raises: what went wrong with it, as botocore would have said it."""
        carried = await self._carried.get()
        if isinstance(carried, Exception):
            raise carried
        return carried

    async def _carry(self, client: httpx2.AsyncClient, request: AWSPreparedRequest) -> None:
        headers = {k: v.decode() if isinstance(v, bytes) else str(v) for k, v in request.headers.items()}
        made = client.build_request(
            request.method,
            request.url,
            headers=headers,
            content=request.body,
            timeout=self._timeout,
            extensions={"trace": self._note_connection},
        )
        response = None
        self._made = None  # that of the attempt before may be another call's by now
        try:
            response = await client.send(made, stream=True)
            self._carried.put_nowait(response)
            async for chunk in response.aiter_raw():
                self._carried.put_nowait(chunk)
            self._carried.put_nowait(b"")
        except httpx2.TransportError as error:
            said = _as_botocore(error, request.url)
            said.__cause__ = error
            self._carried.put_nowait(said)
        except Exception as error:
            self._carried.put_nowait(error)
        finally:
            if response is not None:
                await response.aclose()
            elif self._made is not None:  # given up in the TLS handshake, httpcore would leave it open
                await self._made.aclose()

    async def _note_connection(self, event: str, told: dict[str, Any]) -> None:
        """See https://www.encode.io/httpcore/extensions/#trace."""
        if event == "connection.connect_tcp.complete":
            self._made = told["return_value"]


class _Body:
    """A response's body in the form that botocore reads."""

    def __init__(self, call: _Call) -> None:
        self._call = call

    def stream(self, *_: Any, **__: Any) -> Iterator[bytes]:
        """The bytes as they come."""
        while chunk := self._call.flow.wait(self._call.next()):
            yield chunk

    def close(self) -> None:
        """Close the connection, unless all has been read."""
        self._call.flow.wait(self._call.close())


def _as_botocore(error: httpx2.TransportError, url: str) -> HTTPClientError:
    """The error that botocore would have raised."""
    match error:
        case httpx2.ConnectTimeout():
            return ConnectTimeoutError(endpoint_url=url, error=error)
        case httpx2.ReadTimeout() | httpx2.WriteTimeout():
            return ReadTimeoutError(endpoint_url=url, error=error)
        case httpx2.ProxyError():
            return ProxyConnectionError(proxy_url=url, error=error)
        case httpx2.ConnectError() if isinstance(_root(error), ssl.SSLError):
            return SSLError(endpoint_url=url, error=error)
        case httpx2.ConnectError():
            return EndpointConnectionError(endpoint_url=url, error=error)
        case _:
            return ConnectionClosedError(endpoint_url=url, error=error)


def _root(error: BaseException) -> BaseException:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


# ---- what botocore asks
def take_over(client: Any) -> None:
    """Let calls that run in a flow go over asyncio. Others of the client's calls stay as they were."""
    events = client.meta.events
    events.unregister(f"needs-retry.{_SERVICE}", unique_id=f"retry-config-{_SERVICE}")
    events.register(f"before-sign.{_SERVICE}", _before_sign, unique_id="haltline-before-sign")
    events.register_last(f"before-send.{_SERVICE}", _before_send, unique_id="haltline-before-send")  # others may add
    events.register(f"needs-retry.{_SERVICE}", _Retries(client), unique_id="haltline-needs-retry")


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
