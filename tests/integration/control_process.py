"""The control function in a process of its own, as Lambda runs it: an init, then one invocation after another."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.stack import ROOT, clean_environment

_LOOP = """
import json, sys
from types import SimpleNamespace

sys.path.insert(0, sys.argv[1])
from app import handler

context = SimpleNamespace(
    function_name="control", memory_limit_in_mb=512, aws_request_id="invocation",
    invoked_function_arn="arn:aws:lambda:eu-west-1:123456789012:function:control",
)
print("RESULT", json.dumps(None), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    try:
        if "hook" in asked:
            import snapshot_restore_py
            for hook, args, kwargs in getattr(snapshot_restore_py, asked["hook"])():
                hook(*args, **kwargs)
            result = None
        elif "code" in asked:
            result = eval(asked["code"], {"handler": handler})
        else:
            result = handler(asked["event"], context)
    except Exception as error:
        result = {"errorType": type(error).__name__, "errorMessage": str(error)}
    print("RESULT", json.dumps(result), flush=True)
"""


class ControlProcess:
    """`logs` are the lines that it has written to stdout, parsed."""

    def __init__(self, directory: Path, **env: str) -> None:
        settings = {
            "AWS_LAMBDA_FUNCTION_NAME": "control",
            "AWS_REGION": "eu-west-1",
            "POWERTOOLS_SERVICE_NAME": "haltline-test",
            "AUTH": "apigateway",
            "SESSION_DIR": str(directory / "sessions"),
        }
        self.logs: list[dict[str, Any]] = []
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LOOP, str(ROOT / "functions/control")],
            env={**clean_environment(), **settings, **env},
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._result()

    def invoke(self, event: dict[str, Any]) -> Any:
        """What the handler returns; `errorType` and `errorMessage` where it raises."""
        return self._ask({"event": event})

    def call(self, method: str, path: str, body: Any = None, **event: Any) -> tuple[int, Any]:
        """Status and body of a call through API Gateway."""
        answer = self.invoke(rest_event(method, path, body, **event))
        return answer["statusCode"], json.loads(answer["body"])

    def before_snapshot(self) -> None:
        self._ask({"hook": "get_before_snapshot"})

    def after_restore(self) -> None:
        self._ask({"hook": "get_after_restore"})

    def look(self, code: str) -> Any:
        """The value of an expression over `handler`."""
        return self._ask({"code": code})

    def end(self) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait(10)
        self._process.stdout.close()  # type: ignore[union-attr]

    def _ask(self, asked: dict[str, Any]) -> Any:
        self._process.stdin.write(json.dumps(asked) + "\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        return self._result()

    def _result(self) -> Any:
        for line in self._process.stdout:  # type: ignore[union-attr]
            if line.startswith("RESULT "):
                return json.loads(line.removeprefix("RESULT "))
            self.logs.append(json.loads(line))
        raise RuntimeError("the control function has ended")

    def counted(self, name: str) -> list[float]:
        """The values of a metric, as CloudWatch would read them."""
        return [value for line in self.logs if "_aws" in line for value in line.get(name, ())]


def rest_event(
    method: str,
    path: str,
    body: Any = None,
    *,
    query: dict[str, str] | None = None,
    sub: str | None = "ann",
    at: float | None = None,
) -> dict[str, Any]:
    """A proxy event of a REST API behind a Cognito authorizer."""
    return {
        "resource": path,
        "path": path,
        "httpMethod": method,
        "headers": {"Content-Type": "application/json", "Host": "api.example"},
        "multiValueHeaders": {"Content-Type": ["application/json"], "Host": ["api.example"]},
        "queryStringParameters": query,
        "multiValueQueryStringParameters": {k: [v] for k, v in query.items()} if query else None,
        "pathParameters": None,
        "stageVariables": None,
        "requestContext": {
            "requestId": "from-api-gateway",
            "requestTimeEpoch": round((time.time() if at is None else at) * 1000),
            "authorizer": {"claims": {"sub": sub}} if sub else None,
            "identity": {"sourceIp": "192.0.2.1"},
            "path": f"/prod{path}",
            "stage": "prod",
            "httpMethod": method,
        },
        "body": None if body is None else json.dumps(body),
        "isBase64Encoded": False,
    }


def event_bridge(
    detail: Any, *, at: str = "2020-01-01T00:00:00Z", detail_type: str = "StopRequested"
) -> dict[str, Any]:
    """An EventBridge event."""
    return {
        "version": "0",
        "id": "an-event",
        "detail-type": detail_type,
        "source": "runbook",
        "account": "123456789012",
        "time": at,
        "region": "eu-west-1",
        "resources": [],
        "detail": detail,
    }


def sns(message: str, *, at: str) -> dict[str, Any]:
    """A message of SNS."""
    notification = {
        "Type": "Notification",
        "MessageId": "a-message",
        "TopicArn": "arn:aws:sns:eu-west-1:123456789012:stop",
        "Subject": None,
        "Message": message,
        "Timestamp": at,
        "SignatureVersion": "1",
        "Signature": "x",
        "SigningCertUrl": "https://sns.eu-west-1.amazonaws.com/x.pem",
        "UnsubscribeUrl": "https://sns.eu-west-1.amazonaws.com/?Action=Unsubscribe",
        "MessageAttributes": {},
    }
    record = {
        "EventSource": "aws:sns",
        "EventVersion": "1.0",
        "EventSubscriptionArn": "arn:aws:sns:eu-west-1:123456789012:stop:1",
        "Sns": notification,
    }
    return {"Records": [record]}
