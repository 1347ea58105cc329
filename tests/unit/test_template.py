"""template.yaml agrees with the code, with itself and with samconfig.toml."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from haltline import chat_routes
from haltline.app import make_app
from haltline.bootstrap import make_resources
from haltline.lambda_door import ADMINS
from haltline.settings import Settings, read_settings
from tests.integration.access_string import ACCESS_STRING
from tests.template import FUNCTIONS, RESOURCES, ROOT, TEMPLATE, api_events, named, of_type, variables_of


@pytest.mark.parametrize("name", FUNCTIONS)
def test_handlers_and_paths_exist(name: str) -> None:
    properties = FUNCTIONS[name]["Properties"]
    code, handler = ROOT / properties["CodeUri"], properties["Handler"]
    if handler.endswith(".sh"):
        assert (code / handler).stat().st_mode & 0o111
    else:
        module, _, attribute = handler.partition(".")
        source = (code / f"{module}.py").read_text(encoding="utf-8")
        assert re.search(rf"^(def {attribute}\b|{attribute} ?[:=])", source, re.MULTILINE)


@pytest.mark.parametrize("name", ["HaltlineLayer", "DependenciesLayer", "ChatFunction", "ControlFunction"])
def test_what_is_built_has_a_recipe(name: str) -> None:
    resource = RESOURCES[name]
    source = resource["Properties"].get("ContentUri") or resource["Properties"]["CodeUri"]
    assert (ROOT / source).is_dir()
    makefile = ROOT / resource["Metadata"].get("ContextPath", source) / "Makefile"
    assert f"build-{name}:" in makefile.read_text(encoding="utf-8").splitlines()


def test_one_architecture_and_one_python_throughout() -> None:
    shared = TEMPLATE["Globals"]["Function"]
    layers = of_type(RESOURCES, "AWS::Serverless::LayerVersion").values()
    assert all(layer["CompatibleArchitectures"] == shared["Architectures"] for layer in layers)
    assert all(layer["CompatibleRuntimes"] == [shared["Runtime"]] for layer in layers)
    for name in ("HaltlineLayer", "DependenciesLayer"):
        assert [RESOURCES[name]["Metadata"]["BuildArchitecture"]] == shared["Architectures"]
    (adapter,) = [x["Fn::Sub"] for x in RESOURCES["ChatFunction"]["Properties"]["Layers"] if "Fn::Sub" in x]
    assert f":LambdaAdapterLayer{ {'arm64': 'Arm64', 'x86_64': 'X86'}[shared['Architectures'][0]] }:" in adapter


OF_LAMBDA = {
    "AWS_LAMBDA_EXEC_WRAPPER",
    "AWS_LWA_INVOKE_MODE",
    "AWS_LWA_PASS_THROUGH_PATH",
    "AWS_LWA_PORT",
    "AWS_LWA_READINESS_CHECK_PATH",
    "POWERTOOLS_METRICS_NAMESPACE",
    "POWERTOOLS_SERVICE_NAME",
}
LIVE = {
    "Cache.Endpoint.Address": "cache",
    "Cache.Endpoint.Port": "6379",
    "Cache": "c",
    "CacheUser": "u",
    "ChatBucket": "b",
}


def value_of(value: Any) -> str:
    """A variable as Lambda would set it, with the parameters' defaults."""
    known = LIVE | {name: str(p["Default"]) for name, p in TEMPLATE["Parameters"].items()} | {"AWS::StackName": "s"}
    if isinstance(value, dict):
        return (
            known[value["Ref"]] if "Ref" in value else re.sub(r"\$\{([^}]+)\}", lambda m: known[m[1]], value["Fn::Sub"])
        )
    return str(value)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_variables_are_settings_that_the_code_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {key: value_of(value) for key, value in variables_of(FUNCTIONS[name]).items()}
    assert variables.keys() - OF_LAMBDA <= {field.upper() for field in Settings.model_fields}
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "f")
    for key in variables.keys() - OF_LAMBDA:
        monkeypatch.setenv(key, variables[key])
    settings = read_settings(_env_file=None)
    assert settings.redis_address == "rediss://cache:6379"
    assert (settings.redis_cluster, settings.redis_auth, settings.session_store) == (True, "iam", "s3")


def test_every_route_is_answered_by_its_function(tmp_path: Path) -> None:
    left_out = {"/metrics"}  # CloudWatch has them
    resources = make_resources(read_settings(_env_file=None, session_dir=tmp_path), serves_chat=False)
    chat = FastAPI()
    chat.include_router(chat_routes.router)
    beside_the_api = ("/docs", "/openapi.json", "/", "/static/{file+}", "/sign-in")
    answered = {("GET", path): "ControlFunction" for path in beside_the_api}
    for app, function in ((make_app(resources), "ControlFunction"), (chat, "ChatFunction")):
        for path, methods in app.openapi()["paths"].items():
            answered |= {(method.upper(), path): function for method in methods if path not in left_out}
    assert {(p["Method"], p["Path"]): name for name, p in api_events(RESOURCES)} == answered


def test_the_cache_lets_do_what_the_tests_on_a_cluster_do() -> None:
    assert RESOURCES["CacheUser"]["Properties"]["AccessString"] == ACCESS_STRING


def test_the_page_is_told_where_to_sign_in() -> None:
    """By variables of the stage, as `GET /sign-in` reads them."""
    told = RESOURCES["Api"]["Properties"]["Variables"]
    assert told["SignInClient"] == {"Ref": "UserPoolClient"}
    domain = "https://${SignInDomain}.auth.${AWS::Region}.amazoncognito.com"
    assert told["SignInDomain"] == TEMPLATE["Outputs"]["SignInUrl"]["Value"] == {"Fn::Sub": domain}


def test_who_may_stop_all_is_in_the_group_that_the_door_knows() -> None:
    (group,) = of_type(RESOURCES, "AWS::Cognito::UserPoolGroup").values()
    assert group["GroupName"] == ADMINS


def test_metrics_are_those_that_the_code_writes() -> None:
    code = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "layers/haltline/haltline").glob("*.py"))
    alarms = {
        a["MetricName"]
        for a in of_type(RESOURCES, "AWS::CloudWatch::Alarm").values()
        if a.get("Namespace") == "Haltline"
    }
    body = RESOURCES["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"]
    shown = set(re.findall(r'\["Haltline", "(\w+)", "service"', body))
    assert shown >= alarms - {"EventsLost"}
    for name in alarms | shown:
        status = name.removeprefix("Stops").lower()
        assert f'"{name}"' in code or (name.startswith("Stops") and f'"{status}"' in code), name


def test_the_dashboard_is_json_over_things_that_exist() -> None:
    body = RESOURCES["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"]
    widgets = json.loads(re.sub(r"\$\{[^}]+\}", "x", body))["widgets"]
    assert named(body) <= RESOURCES.keys() | TEMPLATE["Parameters"].keys() | {"AWS::Region", "AWS::StackName"}
    places = [(w["x"], w["y"]) for w in widgets]
    assert len(places) == len(set(places))


# ---- parameters, outputs, samconfig.toml --------------------------------------------------------------
def test_every_parameter_is_told_used_and_in_a_group() -> None:
    parameters = TEMPLATE["Parameters"]
    groups = TEMPLATE["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    grouped = [name for group in groups for name in group["Parameters"]]
    assert sorted(grouped) == sorted(parameters)
    used = named([TEMPLATE["Resources"], TEMPLATE["Globals"], TEMPLATE["Conditions"], TEMPLATE["Outputs"]])
    assert parameters.keys() <= used
    for name, parameter in parameters.items():
        assert parameter["Description"], name
        assert accepted(parameter, str(parameter["Default"])), name


def accepted(parameter: dict[str, Any], value: str) -> bool:
    if "AllowedValues" in parameter and value not in map(str, parameter["AllowedValues"]):
        return False
    if "AllowedPattern" in parameter and not re.search(parameter["AllowedPattern"], value):
        return False
    if len(value) > parameter.get("MaxLength", 4096):
        return False
    number = float(value) if parameter["Type"] == "Number" else 0.0
    return bool(parameter.get("MinValue", number) <= number <= parameter.get("MaxValue", number))


@pytest.mark.parametrize(
    ("name", "value", "good"),
    [
        ("BedrockModelId", "global.anthropic.claude-sonnet-4-5-20250929-v1:0", True),
        ("BedrockModelId", "*", False),
        ("FoundationModelId", "*", False),
        ("FoundationModelId", "amazon.nova-*", False),
        ("CorsOrigin", "https://chat.example.com", True),
        ("CorsOrigin", "http://localhost:5173", True),
        ("CorsOrigin", "*", False),
        ("CorsOrigin", "https://a.example,https://b.example", False),
        ("CorsOrigin", "https://chat.example.com/", False),
        ("Agent", "my_agents:make_agent", True),
        ("Agent", "my_agents.py", False),
        ("VpcCidr", "10.0.0.0/24", False),
        ("ChatTimeout", "901", False),
    ],
)
def test_parameters_take_what_works_and_nothing_else(name: str, value: str, good: bool) -> None:
    assert accepted(TEMPLATE["Parameters"][name], value) is good


def test_outputs_are_told() -> None:
    outputs = TEMPLATE["Outputs"]
    assert all(o["Description"] and o["Value"] for o in outputs.values())
    assert outputs.keys() >= {
        "ApiUrl",
        "PageUrl",
        "SignInUrl",
        "ChatUrl",
        "UserPoolId",
        "UserPoolClientId",
        "StopTopicArn",
        "BucketName",
    }


def test_samconfig_gives_parameters_that_exist() -> None:
    config = tomllib.loads((ROOT / "samconfig.toml").read_text(encoding="utf-8"))
    assert config.keys() >= {"local", "dev", "prod"}
    for environment in ("dev", "prod"):
        given = dict(
            p.split("=", 1) for p in config[environment]["deploy"]["parameters"]["parameter_overrides"].split()
        )
        assert given["Stage"] == environment
        for name, value in given.items():
            assert accepted(TEMPLATE["Parameters"][name], value), name


def test_the_page_names_outputs_and_parameters_that_exist() -> None:
    page = (ROOT / "docs" / "aws.md").read_text(encoding="utf-8")
    outputs = set(re.findall(r"\$\(out (\w+)\)", page)) | set(re.findall(r"the output `(\w+)`", page))
    assert outputs
    assert outputs <= TEMPLATE["Outputs"].keys()
    named_there = set(re.findall(r"`([A-Z][a-z]\w+)=", page)) | set(re.findall(r"\*\*(\w+)\*\*:? `", page))
    assert {"Agent", "FunctionUrl", "ApiLogRole"} <= named_there
    assert named_there <= TEMPLATE["Parameters"].keys()
