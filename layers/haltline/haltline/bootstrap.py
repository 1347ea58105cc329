"""The composition root: settings to everything live. Nothing connects before `Resources.bus` is entered."""

from __future__ import annotations

from haltline.announcements import Announcements
from haltline.authentication import make_authenticator
from haltline.chat_index import ChatIndex
from haltline.chats import ChatStore, ChatStoreError, FileChatStore
from haltline.chats_s3 import S3ChatStore
from haltline.limits import Limits
from haltline.metrics import Metrics
from haltline.observability import configure_logging
from haltline.redis_bus import RedisBus
from haltline.redis_connection import credentials_of
from haltline.resources import Resources
from haltline.runner import Deps, Runner
from haltline.settings import Settings, SettingsError, on_lambda


def make_resources(settings: Settings, *, serves_chat: bool = True) -> Resources:
    """Build what a process needs. `serves_chat` False leaves out the agent, and with it every import of Strands.

    The session directory is made where there is none. Raises: SettingsError naming the variable.
    """
    metrics = _metrics()
    try:
        bus = RedisBus(
            settings.redis_address,
            settings.replica_name,
            stop_ttl=settings.stop_signal_ttl,
            poll_interval=settings.stop_poll_interval,
            run_timeout=settings.run_timeout,
            loss_grace=settings.signal_loss_grace if settings.signal_loss_policy == "stop" else None,
            cluster=settings.redis_cluster,
            credentials=credentials_of(settings),
            metrics=metrics,
        )
    except ValueError as error:
        raise SettingsError(f"REDIS_URL: {error}") from error
    store = _make_store(settings)
    index = ChatIndex(bus.redis, bus, store)
    limits = Limits(
        bus.redis,
        bus,
        requests_per_minute=settings.requests_per_minute,
        live_runs=settings.max_live_runs,
        run_timeout=settings.run_timeout,
    )
    resources = Resources(settings, bus, store, index, metrics, make_authenticator(settings), limits)
    if serves_chat:
        from haltline.agent import AgentSource  # Strands takes a second to import

        agents = AgentSource(settings)
        deps = Deps(
            bus,
            store,
            index,
            agents,
            metrics,
            limits,
            settings.run_timeout,
            settings.max_chats,
            _make_announcements(resources),
        )
        resources.runs = Runner(deps)
    return resources


def start_logging(settings: Settings) -> None:
    """Log as the place where this process runs wants it."""
    if on_lambda():
        from haltline.lambda_telemetry import powertools_sink  # Powertools is there only

        configure_logging(settings, powertools_sink(settings))
    else:
        configure_logging(settings)


def _metrics() -> Metrics:
    if on_lambda():
        from haltline.lambda_telemetry import EmfMetrics

        return EmfMetrics()
    from haltline.prometheus import PrometheusMetrics  # nobody asks a Lambda function

    return PrometheusMetrics()


def _make_store(settings: Settings) -> ChatStore:
    if settings.session_bucket:
        return S3ChatStore(settings.session_bucket, settings.aws_region)
    store = FileChatStore(settings.session_dir)
    try:
        store.prepare()
    except ChatStoreError as error:
        raise SettingsError(f"SESSION_DIR={settings.session_dir}: {error}") from error
    return store


def _make_announcements(resources: Resources) -> Announcements | None:
    settings = resources.settings
    if not settings.event_bus:
        return None
    return Announcements(settings.event_bus, settings.aws_region, settings.replica_name, resources.metrics)


def check_bucket(resources: Resources) -> None:
    """Ask S3, where chats are kept there, whether they can be: a start that may connect is refused now, not later.

    Raises: SettingsError naming SESSION_BUCKET.
    """
    if isinstance(resources.store, S3ChatStore):
        try:
            resources.store.prepare()
        except ChatStoreError as error:
            raise SettingsError(f"SESSION_BUCKET={resources.settings.session_bucket}: {error}") from error
