"""template.yaml as the tests of it see it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from local.sam_template import ROOT as ROOT
from local.sam_template import read_template

Template = dict[str, Any]


TEMPLATE: Template = read_template()
RESOURCES: Template = TEMPLATE["Resources"]
FUNCTIONS = {name: r for name, r in RESOURCES.items() if r["Type"] == "AWS::Serverless::Function"}


def walk(value: Any) -> Iterator[Any]:
    """Every value inside of a value, itself first."""
    yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(inner)


def named(value: Any) -> set[str]:
    """What a value refers to: by Ref, GetAtt or inside of a Sub."""
    found: set[str] = set()
    for inner in walk(value):
        if not isinstance(inner, dict):
            continue
        found |= {inner["Ref"]} if "Ref" in inner else set()
        found |= {str(inner["Fn::GetAtt"]).partition(".")[0]} if "Fn::GetAtt" in inner else set()
        if "Fn::Sub" in inner:
            sub = inner["Fn::Sub"] if isinstance(inner["Fn::Sub"], str) else inner["Fn::Sub"][0]
            found |= {name.partition(".")[0] for name in re.findall(r"\$\{([^!}]+)\}", sub)}
    return found


def of_type(resources: Template, kind: str) -> dict[str, Any]:
    return {name: r["Properties"] for name, r in resources.items() if r["Type"] == kind}


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def variables_of(function: dict[str, Any]) -> dict[str, Any]:
    shared: dict[str, Any] = TEMPLATE["Globals"]["Function"]["Environment"]["Variables"]
    return shared | function["Properties"].get("Environment", {}).get("Variables", {})


def api_events(resources: Template) -> Iterator[tuple[str, dict[str, Any]]]:
    """Which function answers what: its name, and the properties of the event."""
    for name in FUNCTIONS:
        for event in resources[name]["Properties"]["Events"].values():
            if event["Type"] == "Api":
                yield name, event["Properties"]
