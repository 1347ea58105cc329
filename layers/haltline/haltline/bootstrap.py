"""The composition root: settings to everything live. Nothing connects before `Resources.bus` is entered."""

from __future__ import annotations

from haltline.chat_index import ChatIndex
from haltline.chats import ChatStoreError, FileChatStore
from haltline.observability import Metrics, configure_logging
from haltline.redis_bus import RedisBus
from haltline.resources import Resources
from haltline.runner import Deps, Runner
from haltline.settings import Settings, SettingsError, on_lambda


def make_resources(settings: Settings, *, serves_chat: bool = True) -> Resources:
    """Build what a process needs. `serves_chat` False leaves out the agent, and with it every import of Strands.

    The session store is made where there is none. Raises: SettingsError naming the variable.
    """
    try:
        bus = RedisBus(
            settings.redis_address,
            settings.replica_name,
            stop_ttl=settings.stop_signal_ttl,
            poll_interval=settings.stop_poll_interval,
            run_timeout=settings.run_timeout,
            loss_grace=settings.signal_loss_grace if settings.signal_loss_policy == "stop" else None,
        )
    except ValueError as error:
        raise SettingsError(f"REDIS_URL: {error}") from error
    store = FileChatStore(settings.session_dir)
    try:
        store.prepare()
    except ChatStoreError as error:
        raise SettingsError(f"SESSION_DIR={settings.session_dir}: {error}") from error
    index = ChatIndex(bus.redis, bus, store)
    resources = Resources(settings, bus, store, index, _metrics())
    if serves_chat:
        from haltline.agent import AgentSource  # Strands takes a second to import

        agents = AgentSource(settings)
        resources.runs = Runner(Deps(bus, store, index, agents, resources.metrics, settings.run_timeout))
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
    return Metrics()
