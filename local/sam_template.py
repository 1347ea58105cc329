"""template.yaml without AWS: read, and made into one that `sam local` can run."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
ADAPTER = ROOT / "build" / "lambda-adapter" / "bin" / "lambda-adapter"
BUILT = ROOT / "build" / "layers"
LAYERS = {"HaltlineLayer": "haltline", "DependenciesLayer": "dependencies", "AdapterLayer": "adapter"}
# As the adapter's own layer has it.
EXEC_WRAPPER = '#!/bin/bash\nexec -- "${LAMBDA_TASK_ROOT}/${_HANDLER}"\n'
# What only AWS has, and what stands for it. Sample events carry the claims that AUTH=apigateway wants.
INSTEAD = {
    "REDIS_URL": "redis://redis:6379",
    "REDIS_CLUSTER": "false",
    "REDIS_AUTH": "none",
    "REDIS_USERNAME": "",
    "REDIS_CACHE_NAME": "",
    "SESSION_STORE": "file",
    "SESSION_DIR": "/tmp/sessions",  # noqa: S108 - the container's own
    "SESSION_BUCKET": "",
    "MODEL_PROVIDER": "scripted",
    "EVENT_BUS": "",
}


class Loader(yaml.SafeLoader):  # type: ignore[misc] # PyYAML tells no types
    """Short forms as the long ones: `!Ref x` is {"Ref": "x"}, `!GetAtt a.b` {"Fn::GetAtt": "a.b"}."""


def _long(loader: Loader, tag: str, node: yaml.Node) -> dict[str, Any]:
    name = tag if tag in ("Ref", "Condition") else f"Fn::{tag}"
    if isinstance(node, yaml.ScalarNode):
        return {name: loader.construct_scalar(node)}
    if isinstance(node, yaml.SequenceNode):
        return {name: loader.construct_sequence(node, deep=True)}
    if not isinstance(node, yaml.MappingNode):
        raise TypeError(f"no value of YAML: {node}")
    return {name: loader.construct_mapping(node, deep=True)}


Loader.add_multi_constructor("!", _long)


def read_template(path: Path = ROOT / "template.yaml") -> dict[str, Any]:
    """A template, intrinsic functions in their long form."""
    found: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader)  # noqa: S506 - a SafeLoader
    return found


def local_template(architecture: str, layers: dict[str, str]) -> dict[str, Any]:
    """The functions with their own handlers, variables and layers; the parameters have their defaults.

    Args:
        architecture: as Lambda says it, arm64 or x86_64.
        layers: an ARN for each of LAYERS.
    """
    template = read_template()
    shared = template["Globals"]["Function"]
    defaults = {name: str(p["Default"]) for name, p in template["Parameters"].items()} | {"AWS::StackName": "haltline"}
    resources: dict[str, Any] = {}
    for name, resource in template["Resources"].items():
        if resource["Type"] != "AWS::Serverless::Function":
            continue
        own = resource["Properties"]
        variables = shared["Environment"]["Variables"] | own.get("Environment", {}).get("Variables", {})
        told = {key: _resolved(value, defaults) for key, value in variables.items() if key not in INSTEAD}
        resources[name] = {
            "Type": resource["Type"],
            "Properties": {
                "Runtime": shared["Runtime"],
                "Architectures": [architecture],
                "CodeUri": str(ROOT / own["CodeUri"]),
                "Handler": own["Handler"],
                "Timeout": int(_resolved(own["Timeout"], defaults)),
                "MemorySize": int(_resolved(own["MemorySize"], defaults)),
                "Layers": [layers[layer.get("Ref", "AdapterLayer")] for layer in own["Layers"]],
                "Environment": {"Variables": told | INSTEAD},
            },
        }
    return {"Transform": template["Transform"], "Resources": resources}


def _resolved(value: Any, known: dict[str, str]) -> str:
    if isinstance(value, dict) and "Ref" in value:
        return known[value["Ref"]]
    if isinstance(value, dict):
        return re.sub(r"\$\{([^}]+)\}", lambda name: known[name[1]], value["Fn::Sub"])
    return str(value)


def write_local_template(directory: Path, architecture: str) -> None:
    """Write `template.json`, and beside it `layers` as `sam local` keeps layers that it has downloaded.

    Layers of the template itself it would pack into an image again for each call. These have a new version each time.
    """
    adapter = BUILT / "adapter"
    (adapter / "extensions").mkdir(parents=True, exist_ok=True)
    shutil.copy2(ADAPTER, adapter / "extensions")
    (adapter / "bootstrap").write_text(EXEC_WRAPPER, encoding="utf-8")
    (adapter / "bootstrap").chmod(0o755)
    shutil.rmtree(directory, ignore_errors=True)
    kept = directory / "layers"
    kept.mkdir(parents=True)
    version, arns = time.time_ns(), {}
    for name, built in LAYERS.items():
        arns[name] = f"arn:aws:lambda:us-west-2:123456789012:layer:{name}:{version}"
        digest = hashlib.sha256(arns[name].encode()).hexdigest()[:10]
        (kept / f"{name}-{version}-{digest}").symlink_to(BUILT / built)
    text = json.dumps(local_template(architecture, arns), indent=1)
    (directory / "template.json").write_text(text, encoding="utf-8")
