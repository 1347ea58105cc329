"""MODEL_PROVIDER to a Strands model. One model object a process; it carries every run."""

from __future__ import annotations

import importlib
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, cast

from strands.models import Model
from strands.types.streaming import StreamEvent

from haltline.failures import AnswerBrokenOff
from haltline.scripted import ScriptedModel
from haltline.settings import Settings, SettingsError


def make_model(settings: Settings) -> Model:
    """Build the model that the settings name.

    Raises: SettingsError naming MODEL_PROVIDER when it cannot be had.
    """
    provider = settings.model_provider
    if provider == "scripted":
        return ScriptedModel(settings.scripted_pace_ms)
    if provider == "local":
        return _local(settings)
    if provider == "bedrock":
        return _bedrock(settings)
    model = load_object(provider, "MODEL_PROVIDER")()
    if not isinstance(model, Model):
        raise SettingsError(
            f"MODEL_PROVIDER={provider} returned {type(model).__name__}; it must return a Strands model"
        )
    return model


def load_object(path: str, setting: str) -> Callable[..., Any]:
    """The callable that `module:name` names.

    Raises: SettingsError naming `setting`.
    """
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"{setting}={path} cannot be imported: {error}") from error
    if not callable(found):
        raise SettingsError(f"{setting}={path} is {type(found).__name__}, not something to call")
    return cast("Callable[..., Any]", found)


def _local(settings: Settings) -> Model:
    from openai import AsyncOpenAI
    from strands.models.openai import OpenAIModel

    class LocalModel(OpenAIModel):
        """A model of 135 million parameters makes nothing of tools, and reading their descriptions takes it seconds."""

        def format_request(self, messages: Any, tool_specs: Any = None, *args: Any, **kwargs: Any) -> dict[str, Any]:
            return dict(super().format_request(messages, None, *args, **kwargs))

        async def stream(self, *args: Any, **kwargs: Any) -> AsyncGenerator[StreamEvent, None]:
            async with aclosing(super().stream(*args, **kwargs)) as events:
                try:
                    async for event in events:
                        yield event
                except ValueError as error:  # what was said is no JSON, or no UTF-8
                    raise AnswerBrokenOff from error

        def format_chunk(self, event: dict[str, Any], **kwargs: Any) -> StreamEvent:
            # What Strands makes of an answer that said nothing of its end; those that do say "stop" and the like.
            if event["chunk_type"] == "message_stop" and event["data"] == "end_turn":
                raise AnswerBrokenOff
            return super().format_chunk(event, **kwargs)

    # Closed by no one: it lives as long as the process. One client, or each call would set up TLS anew. It tries again,
    # for some seconds in all, while the model is still loading or its server is being started again.
    client = AsyncOpenAI(base_url=settings.local_model_url, api_key="none", max_retries=3)
    _ = client.chat.completions  # imports for 0.6 s; in the first run all others would wait for it
    params = {"max_tokens": settings.max_output_tokens, "temperature": 0.7, "frequency_penalty": 0.4}
    return LocalModel(client=client, model_id=settings.local_model_id, params=params)


def _bedrock(settings: Settings) -> Model:
    import botocore.session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    from haltline.bedrock import StoppableBedrockModel

    # Empty is not set, as everywhere. botocore would look for a profile of that name.
    if os.environ.get("AWS_PROFILE") == "":
        del os.environ["AWS_PROFILE"]
    # Handlers, which this session does not need, are most of what one takes to make.
    config = botocore.session.Session(include_builtin_handlers=False)
    adaptive = config.get_config_variable("retry_mode") == "adaptive"
    # The limiter of the adaptive mode sleeps where it runs, which would be the event loop.
    retries: Any = {"retries": {"mode": "standard"}} if adaptive else {}
    try:
        return StoppableBedrockModel(
            region_name=settings.aws_region,
            model_id=settings.bedrock_model_id,
            temperature=settings.bedrock_temperature,
            max_tokens=settings.max_output_tokens,
            boto_client_config=Config(connect_timeout=10, read_timeout=120, **retries),
        )
    except (BotoCoreError, ValueError) as error:
        raise SettingsError(f"AWS_REGION={settings.aws_region}: the Bedrock client cannot be made: {error}") from error
