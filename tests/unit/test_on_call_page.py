"""docs/on-call.md names what there is: every alarm of the template, every metric of a replica, and no other."""

from __future__ import annotations

import re

from haltline.prometheus import PrometheusMetrics
from tests.template import RESOURCES, ROOT

PAGE = (ROOT / "docs/on-call.md").read_text()


def test_every_metric_of_a_replica_is_explained_and_no_other() -> None:
    families = {family.name for family in PrometheusMetrics().registry.collect()}
    named = {re.sub(r"_(total|bucket)$", "", name) for name in re.findall(r"haltline_[a-z_]+", PAGE)}
    assert named == families


def test_every_alarm_is_explained_and_no_other() -> None:
    alarms = {name for name, resource in RESOURCES.items() if resource["Type"] == "AWS::CloudWatch::Alarm"}
    assert set(re.findall(r"[A-Za-z]+Alarm\b", PAGE)) == alarms


def test_every_metric_on_lambda_is_explained() -> None:
    source = (ROOT / "layers/haltline/haltline/lambda_telemetry.py").read_text()
    names = set(re.findall(r'"([A-Z][a-z]+[A-Z][A-Za-z]+)"', source)) | {"StopsFailed", "StopsUnconfirmed"}
    names -= {"Count", "Milliseconds"}
    assert {name for name in names if name not in PAGE} == set()
