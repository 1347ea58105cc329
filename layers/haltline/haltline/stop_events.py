"""Stops that come as events, so that a budget alarm or a runbook can pull the plug.

- EventBridge, detail-type `StopRequested`: `{"chat_ids": [...], "principal": "..."}` or `{"all": true}` as the
  detail. The principal is whose chats these are; without one they are those of direct invocations that named none.
- SNS: the same JSON as the message; or a CloudWatch alarm, which stops all when it goes off; or plain text, as AWS
  Budgets sends it, which stops all.

Both may deliver an event twice, and late. A stop means the runs that arrived before it, by the time in the event, so
that a second delivery stops nothing new.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from aws_lambda_powertools.utilities.parser import parse
from aws_lambda_powertools.utilities.parser.models import EventBridgeModel, SnsModel
from loguru import logger
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import from_json

from haltline.inputs import ChatId, PrincipalName
from haltline.openapi import Verdict
from haltline.principals import scoped
from haltline.resources import Resources
from haltline.runs import Arrival
from haltline.signals import BusUnavailable
from haltline.stopping import stop_all, stop_many


class StopRequested(BaseModel):
    """Which chats to stop: these of one principal, or all with a live run."""

    chat_ids: list[ChatId] = Field(default_factory=list, max_length=1000)
    principal: PrincipalName | None = None
    all: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> StopRequested:
        if self.all == bool(self.chat_ids):
            raise ValueError('give either {"chat_ids": [...]} or {"all": true}')
        if self.all and self.principal is not None:  # taken for all of one principal's it would stop everybody's
            raise ValueError('"principal" goes with "chat_ids"')
        return self


class StopsFailed(Exception):
    """Some stops could not be stored. Lambda delivers the event again."""


async def obey(resources: Resources, event: dict[str, Any]) -> dict[str, int]:
    """Do what an event asks for; the number of chats that a stop was sent to.

    Raises: ValueError where it is no such event; StopsFailed, BusUnavailable, ChatStoreError.
    """
    sent = 0
    try:
        requests = list(_requests(event))
    except ValidationError as error:  # by itself it would show the event, in the log too
        told = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(f"no event that stops: {'; '.join(told)}") from None
    for wanted, arrival, event_id in requests:
        with logger.contextualize(correlation_id=event_id):
            try:
                if wanted.all:
                    verdicts: Sequence[Verdict] = await stop_all(resources, arrival)
                else:
                    chats = [scoped(wanted.principal or "", chat_id) for chat_id in wanted.chat_ids]
                    verdicts = await stop_many(resources, chats, arrival)
            except BusUnavailable:
                resources.metrics.stop_answered("failed")
                raise
            failed = [v.chat_id for v in verdicts if v.status == "failed"]
            logger.info(
                "all=<{}> chats=<{}> failed=<{}> | stops sent, as an event asked",
                wanted.all,
                len(verdicts),
                len(failed),
            )
        if failed:
            raise StopsFailed(f"{len(failed)} of {len(verdicts)} stops could not be stored, {failed[0]} among them")
        sent += len(verdicts)
    return {"stops": sent}


def _requests(event: dict[str, Any]) -> Iterator[tuple[StopRequested, Arrival, str]]:
    if "Records" in event:
        for record in parse(event=event, model=SnsModel).Records:
            if wanted := _in_message(str(record.Sns.Message)):
                yield wanted, _arrival(record.Sns.Timestamp), record.Sns.MessageId
        return
    told = parse(event=event, model=EventBridgeModel)
    if told.detail_type != "StopRequested":
        raise ValueError(f"the detail-type is {told.detail_type[:60]!r}; only StopRequested is known")
    yield StopRequested.model_validate(told.detail), _arrival(told.time), told.id


def _in_message(text: str) -> StopRequested | None:
    """What a message of SNS asks for; None where it is an alarm that does not go off."""
    try:
        told = from_json(text)
    except ValueError:
        if text.lstrip().startswith("{"):  # meant for us, and mistyped
            raise
        return StopRequested(all=True)  # AWS Budgets
    if isinstance(told, dict) and "NewStateValue" in told:
        return StopRequested(all=True) if told["NewStateValue"] == "ALARM" else None
    return StopRequested.model_validate(told)


def _arrival(at: datetime) -> Arrival:
    # EventBridge tells whole seconds: a run of the same second is meant, for a stop too many can be sent again.
    end = at if at.microsecond else at + timedelta(milliseconds=999)
    return Arrival(round(end.timestamp() * 1000))
