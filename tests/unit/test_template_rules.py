"""What must hold for template.yaml whatever it becomes. Each rule is also seen to fail."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter
from typing import Any

import pytest

from tests.template import (
    FUNCTIONS,
    RESOURCES,
    TEMPLATE,
    Template,
    api_events,
    listed,
    named,
    of_type,
    variables_of,
    walk,
)


def statements(resources: Template, role: str) -> list[dict[str, Any]]:
    """All that a role may do, its managed policies included; both branches of a condition."""
    properties = resources[role]["Properties"]
    documents = [p["PolicyDocument"] for p in properties["Policies"]]
    documents += [resources[m["Ref"]]["Properties"]["PolicyDocument"] for m in properties["ManagedPolicyArns"]]
    found = [x for d in documents for x in walk(d["Statement"]) if isinstance(x, dict) and "Effect" in x]
    assert found
    return found


def actions(resources: Template, role: str) -> set[str]:
    return {a for s in statements(resources, role) if s["Effect"] == "Allow" for a in listed(s["Action"])}


def longest(parameter: dict[str, Any]) -> int:
    known = [str(v) for v in parameter.get("AllowedValues", [])] or [
        str(parameter.get("MaxValue", parameter["Default"]))
    ]
    return int(parameter.get("MaxLength", max(map(len, known))))


def rule_no_wildcards(r: Template) -> None:
    for role in ("ChatRole", "ControlRole"):
        assert not [a for a in actions(r, role) if "*" in a]
        everywhere = [s for s in statements(r, role) if s["Effect"] == "Allow" and "*" in listed(s["Resource"])]
        for action in (a for s in everywhere for a in listed(s["Action"])):
            assert action.startswith("xray:Put") or re.fullmatch(
                r"ec2:(AssignPrivateIpAddresses|CreateNetworkInterface|DeleteNetworkInterface|"
                r"DescribeNetworkInterfaces|DescribeSubnets|UnassignPrivateIpAddresses)",
                action,
            ), action


def rule_the_code_has_no_network_rights(r: Template) -> None:
    denied = [s for s in statements(r, "ChatRole") if s["Effect"] == "Deny"]
    assert [s for s in denied if s["Action"] == "ec2:*" and "lambda:SourceFunctionArn" in s["Condition"]["ArnLike"]]


def rule_only_the_chosen_model_and_only_streaming(r: Template) -> None:
    assert {a for a in actions(r, "ChatRole") if a.startswith("bedrock:")} == {"bedrock:InvokeModelWithResponseStream"}
    assert not [a for a in actions(r, "ControlRole") if a.startswith("bedrock:")]
    for statement in statements(r, "ChatRole"):
        if statement["Action"] != "bedrock:InvokeModelWithResponseStream":
            continue
        arns = [x["Fn::Sub"] for x in walk(statement["Resource"]) if isinstance(x, dict) and "Fn::Sub" in x]
        assert arns
        for arn in arns:
            assert re.search(r"/\$\{(BedrockModelId|FoundationModelId)\}$", arn)
            if ":foundation-model/" in arn and "${AWS::Region}" not in arn:  # elsewhere only by the profile
                assert "bedrock:InferenceProfileArn" in statement["Condition"]["StringEquals"]


def rule_chats_only(r: Template) -> None:
    wanted = {
        "ChatRole": {"s3:GetObject", "s3:PutObject", "s3:ListBucket"},
        "ControlRole": {"s3:GetObject", "s3:DeleteObject", "s3:ListBucket"},
    }
    for role, allowed in wanted.items():
        assert {a for a in actions(r, role) if a.startswith("s3:")} == allowed
        for statement in statements(r, role):
            if any(a in ("s3:GetObject", "s3:PutObject", "s3:DeleteObject") for a in listed(statement["Action"])):
                assert statement["Resource"] == {"Fn::Sub": "${ChatBucket.Arn}/chats/*"}
            if statement["Action"] == "s3:ListBucket":
                assert statement["Resource"] == {"Fn::GetAtt": "ChatBucket.Arn"}
                assert statement["Condition"] == {"StringLikeIfExists": {"s3:prefix": "chats/*"}}


def rule_events_only_to_the_bus(r: Template) -> None:
    (put,) = [s for s in statements(r, "ChatRole") if s["Action"] == "events:PutEvents"]
    assert put["Resource"]["Fn::Sub"].endswith(":event-bus/${EventBusName}")
    assert put["Condition"] == {"StringEquals": {"events:source": "haltline"}}
    assert "events:PutEvents" not in actions(r, "ControlRole")


def rule_the_cache_is_entered_as_its_one_user(r: Template) -> None:
    for role in ("ChatRole", "ControlRole"):
        (connect,) = [s for s in statements(r, role) if s["Action"] == "elasticache:Connect"]
        assert connect["Resource"] == [{"Fn::GetAtt": "Cache.ARN"}, {"Fn::GetAtt": "CacheUser.Arn"}]
    user, group = r["CacheUser"]["Properties"], r["CacheUserGroup"]["Properties"]
    assert user["AuthenticationMode"] == {"Type": "iam"}
    assert user["UserId"] == user["UserName"]
    assert group["UserIds"] == [{"Ref": "CacheUser"}]
    assert r["Cache"]["Properties"]["UserGroupId"] == {"Ref": "CacheUserGroup"}


def rule_the_cache_obeys_only_what_is_used(r: Template) -> None:
    words = r["CacheUser"]["Properties"]["AccessString"].split()
    assert words[0] == "on"
    assert "-@all" in words
    assert "resetchannels" in words
    granted = [w for w in words if w.startswith("+")]
    assert words.index("-@all") < words.index(granted[0])
    assert not [w for w in granted if "@" in w]
    assert not {"+select", "+keys", "+flushall", "+psubscribe", "+config", "+function", "+acl"} & set(granted)
    assert not {"~*", "allkeys", "&*", "allchannels", "nopass", "+@all", "allcommands"} & set(words)


def rule_the_cache_has_limits(r: Template) -> None:
    limits = r["Cache"]["Properties"]["CacheUsageLimits"]
    assert limits["DataStorage"]["Maximum"] == {"Ref": "CacheMaxGigabytes"}
    assert limits["ECPUPerSecond"]["Maximum"] == {"Ref": "CacheMaxEcpuPerSecond"}


def rule_the_bucket_is_private(r: Template) -> None:
    (bucket,) = of_type(r, "AWS::S3::Bucket").values()
    assert bucket["PublicAccessBlockConfiguration"] == {
        "BlockPublicAcls": True,
        "BlockPublicPolicy": True,
        "IgnorePublicAcls": True,
        "RestrictPublicBuckets": True,
    }
    assert bucket["OwnershipControls"] == {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
    (rule,) = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert rule["ServerSideEncryptionByDefault"]["SSEAlgorithm"] in ("AES256", "aws:kms")


def rule_deleted_chats_are_gone_and_old_ones_go(r: Template) -> None:
    assert "VersioningConfiguration" not in r["ChatBucket"]["Properties"]
    rules = {x["Id"]: x for x in r["ChatBucket"]["Properties"]["LifecycleConfiguration"]["Rules"]}
    assert all(x["Status"] == "Enabled" for x in rules.values())
    assert rules["Chats"]["ExpirationInDays"] == {"Ref": "ChatRetentionDays"}
    assert rules["Uploads"]["AbortIncompleteMultipartUpload"]
    assert r["ChatBucket"]["DeletionPolicy"] == r["ChatBucket"]["UpdateReplacePolicy"] == "Retain"


def rule_tls_only(r: Template) -> None:
    for policy in ("ChatBucketPolicy", "StopTopicPolicy", "AlarmTopicPolicy", "StopDeadLettersPolicy"):
        denied = [s for s in r[policy]["Properties"]["PolicyDocument"]["Statement"] if s["Effect"] == "Deny"]
        assert [s["Condition"] for s in denied] == [{"Bool": {"aws:SecureTransport": False}}], policy
        assert denied[0]["Principal"] == "*"
    for function in (r["ChatFunction"], r["ControlFunction"]):
        assert variables_of(function)["REDIS_URL"]["Fn::Sub"].startswith("rediss://")


def rule_only_aws_publishes_for_this_account(r: Template) -> None:
    account = {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}}
    sources = {
        "ArnEquals": {"aws:SourceArn": [{"Fn::GetAtt": "ControlFunctionStopRequested.Arn"}, {"Ref": "StopTopic"}]}
    }
    for policy in ("StopTopicPolicy", "AlarmTopicPolicy", "StopDeadLettersPolicy"):
        allowed = [s for s in r[policy]["Properties"]["PolicyDocument"]["Statement"] if s["Effect"] == "Allow"]
        for statement in allowed:
            assert set(statement["Principal"]) == {"Service"}
            assert statement["Condition"] == (sources if policy == "StopDeadLettersPolicy" else account)


def rule_every_call_is_behind_the_authorizer(r: Template) -> None:
    auth = r["Api"]["Properties"]["Auth"]
    assert auth["DefaultAuthorizer"] in auth["Authorizers"]
    assert auth["Authorizers"]["Cognito"]["UserPoolArn"] == {"Fn::GetAtt": "UserPool.Arn"}
    unguarded = [p["Path"] for _, p in api_events(r) if p.get("Auth", {}).get("Authorizer") == "NONE"]
    assert sorted(unguarded) == ["/", "/live", "/sign-in", "/static/{file+}"]
    assert {p["Method"] for _, p in api_events(r) if p["Path"] in unguarded} == {"GET"}
    assert not [p for _, p in api_events(r) if set(p.get("Auth", {})) - {"Authorizer"}]
    for function in (r["ChatFunction"], r["ControlFunction"]):
        assert variables_of(function)["AUTH"] == "apigateway"


def rule_nobody_signs_up_alone(r: Template) -> None:
    pool, client = r["UserPool"]["Properties"], r["UserPoolClient"]["Properties"]
    assert pool["AdminCreateUserConfig"] == {"AllowAdminCreateUserOnly": True}
    assert pool["Policies"]["PasswordPolicy"]["MinimumLength"] >= 12
    assert "ALLOW_USER_PASSWORD_AUTH" not in client["ExplicitAuthFlows"]
    assert client["PreventUserExistenceErrors"] == "ENABLED"
    assert client["GenerateSecret"] is False


def rule_users_sign_in_by_a_code_that_goes_to_the_page_alone(r: Template) -> None:
    client = r["UserPoolClient"]["Properties"]
    assert (client["AllowedOAuthFlows"], client["AllowedOAuthScopes"]) == (["code"], ["openid"])
    assert client["AllowedOAuthFlowsUserPoolClient"] is True
    assert client["SupportedIdentityProviders"] == ["COGNITO"]
    page = {"Fn::Sub": "https://${Api}.execute-api.${AWS::Region}.${AWS::URLSuffix}/${Stage}/"}
    assert client["CallbackURLs"] == client["LogoutURLs"] == [page] == [TEMPLATE["Outputs"]["PageUrl"]["Value"]]
    domain = r["SignInDomain"]["Properties"]
    assert domain["UserPoolId"] == {"Ref": "UserPool"}
    assert named(domain["Domain"]) == {"Id", "AWS::StackId"}, "a name with `aws` in it would be refused"


def rule_no_user_takes_all(r: Template) -> None:
    for name in FUNCTIONS:
        variables = variables_of(r[name])
        assert variables["MAX_LIVE_RUNS"] == {"Ref": "MaxLiveRuns"}
        assert variables["REQUESTS_PER_MINUTE"] == {"Ref": "RequestsPerMinute"}
    assert variables_of(r["ChatFunction"])["MAX_CHATS"] == {"Ref": "MaxChats"}
    assert 0 < TEMPLATE["Parameters"]["MaxLiveRuns"]["Default"] < TEMPLATE["Parameters"]["ChatConcurrency"]["Default"]


def rule_nothing_waits_for_itself(r: Template) -> None:
    """As CloudFormation sees it once SAM has made an API and its stage of one resource. The linters do not look."""
    of_the_stage = ("StageName", "Variables", "AccessLogSetting", "MethodSettings")
    waits = {name: named(resource) for name, resource in r.items()}
    api = r["Api"]["Properties"]
    waits["Api"] = named({k: v for k, v in api.items() if k not in of_the_stage}) | {r["Api"]["DependsOn"]}
    waits["its stage"] = {"Api"} | named([api.get(k) for k in of_the_stage])
    for name in FUNCTIONS:
        own = r[name]["Properties"]
        waits[name] = named([TEMPLATE["Globals"]["Function"], {k: v for k, v in own.items() if k != "Events"}])
        waits[name] -= named(own["DeploymentPreference"])  # of the deployment, which comes after all
        waits["Api"] |= {name for event in own["Events"].values() if event["Type"] == "Api"}
    try:
        TopologicalSorter(waits).prepare()
    except CycleError as error:
        raise AssertionError(error.args[1]) from None


def rule_cors(r: Template) -> None:
    api = r["Api"]["Properties"]
    assert api["Auth"]["AddDefaultAuthorizerToCorsPreflight"] is False
    origin = {"Fn::Sub": "'${CorsOrigin}'"}
    assert api["Cors"]["AllowOrigin"] == origin
    assert set(api["Cors"]["AllowMethods"].strip("'").split(",")) == {"GET", "POST", "DELETE", "OPTIONS"}
    assert set(api["Cors"]["AllowHeaders"].strip("'").split(",")) == {"Authorization", "Content-Type"}
    assert "AllowCredentials" not in api["Cors"]
    for name in ("DEFAULT_4XX", "DEFAULT_5XX", "MISSING_AUTHENTICATION_TOKEN"):
        headers = api["GatewayResponses"][name]["ResponseParameters"]["Headers"]
        assert headers["Access-Control-Allow-Origin"] == origin


def rule_streams(r: Template) -> None:
    api = r["Api"]["Properties"]
    assert api["EndpointConfiguration"] == {"Type": "REGIONAL"}
    streamed = {(p["Method"], p["Path"]) for _, p in api_events(r) if p.get("ResponseTransferMode")}
    assert streamed == {("POST", "/api/v1/chat/{chat_id}")}
    chat = r["ChatFunction"]["Properties"]["Events"]["Chat"]["Properties"]
    assert chat["ResponseTransferMode"] == "RESPONSE_STREAM"
    assert chat["TimeoutInMillis"] == 900_000
    assert variables_of(r["ChatFunction"])["AWS_LWA_INVOKE_MODE"] == "response_stream"
    url = r["ChatUrl"]
    assert url["Condition"] == "HasFunctionUrl"
    assert (url["Properties"]["AuthType"], url["Properties"]["InvokeMode"]) == ("AWS_IAM", "RESPONSE_STREAM")


def rule_the_network_has_no_way_out(r: Template) -> None:
    kinds = {x["Type"] for x in r.values()}
    assert not kinds & {"AWS::EC2::InternetGateway", "AWS::EC2::NatGateway", "AWS::EC2::Route", "AWS::EC2::EIP"}
    assert {p["ServiceName"]["Fn::Sub"].rpartition(".")[2] for p in of_type(r, "AWS::EC2::VPCEndpoint").values()} == {
        "bedrock-runtime",
        "events",
        "s3",
    }
    assert all(not p.get("MapPublicIpOnLaunch") for p in of_type(r, "AWS::EC2::Subnet").values())
    assert len(of_type(r, "AWS::EC2::Subnet")) == 2


def rule_security_groups_are_narrow(r: Template) -> None:
    functions, cache = r["FunctionSecurityGroup"]["Properties"], r["CacheSecurityGroup"]["Properties"]
    endpoints = r["EndpointSecurityGroup"]["Properties"]
    assert "SecurityGroupIngress" not in functions
    assert "SecurityGroupIngress" not in cache
    assert sorted((e["FromPort"], e["ToPort"]) for e in functions["SecurityGroupEgress"]) == [(443, 443), (6379, 6380)]
    for group in (cache, endpoints):
        assert [e["CidrIp"] for e in group["SecurityGroupEgress"]] == ["127.0.0.1/32"]
    for ingress in [r["CacheIngress"]["Properties"], *endpoints["SecurityGroupIngress"]]:
        assert ingress["SourceSecurityGroupId"] == {"Ref": "FunctionSecurityGroup"}
        assert "CidrIp" not in ingress
    ports = {(i["FromPort"], i["ToPort"]) for i in endpoints["SecurityGroupIngress"]}
    assert ports == {(443, 443)}
    assert (r["CacheIngress"]["Properties"]["FromPort"], r["CacheIngress"]["Properties"]["ToPort"]) == (6379, 6380)


def rule_endpoints_let_through_what_is_used(r: Template) -> None:
    for name, endpoint in of_type(r, "AWS::EC2::VPCEndpoint").items():
        for statement in endpoint["PolicyDocument"]["Statement"]:
            assert not [a for a in listed(statement["Action"]) if "*" in a], name
            assert statement["Resource"] != "*" or statement["Condition"]["ArnEquals"]["aws:PrincipalArn"], name


def rule_new_layers_and_parameters_become_new_versions(r: Template) -> None:
    shared = TEMPLATE["Globals"]["Function"]
    for layer in of_type(r, "AWS::Serverless::LayerVersion").values():
        assert layer["PublishLambdaVersion"] is True
    for name in FUNCTIONS:
        p = r[name]["Properties"]
        assert p["AutoPublishAliasAllProperties"] is True
        assert p["VersionDeletionPolicy"] == "Delete"
        used = named({k: v for k, v in (shared | p).items() if k not in ("Events", "DeploymentPreference", "Role")})
        used |= named(variables_of(r[name]))
        used -= named(p["ReservedConcurrentExecutions"])  # of the function, not of its versions
        told = named(p["VersionDescription"])
        assert used & TEMPLATE["Parameters"].keys() == told, name
        parts = [TEMPLATE["Parameters"][n] for n in told]
        assert len(told) - 1 + sum(map(longest, parts)) <= 256, name


def rule_deployments_go_back(r: Template) -> None:
    for name in FUNCTIONS:
        preference = r[name]["Properties"]["DeploymentPreference"]
        assert preference["Type"] == {"Fn::If": ["IsProd", "Canary10Percent5Minutes", "AllAtOnce"]}
        assert preference["Alarms"]
        assert all(r[a["Ref"]]["Type"] == "AWS::CloudWatch::Alarm" for a in preference["Alarms"])


def rule_stops_are_not_lost_silently(r: Template) -> None:
    dead = {"Fn::GetAtt": "StopDeadLetters.Arn"}
    control = r["ControlFunction"]["Properties"]
    assert control["EventInvokeConfig"]["DestinationConfig"]["OnFailure"] == {"Type": "SQS", "Destination": dead}
    rule = control["Events"]["StopRequested"]["Properties"]
    assert rule["DeadLetterConfig"] == {"Arn": dead}
    assert rule["RetryPolicy"]["MaximumEventAgeInSeconds"] <= 3600  # a stop that comes late stops what is new
    assert control["Events"]["StopMessage"]["Properties"]["RedrivePolicy"] == {"deadLetterTargetArn": dead}
    assert r["StopDeadLetters"]["Properties"]["SqsManagedSseEnabled"] is True
    assert named(r["StopDeadLettersAlarm"]) >= {"StopDeadLetters", "AlarmTopic"}


def rule_concurrency_is_reserved(r: Template) -> None:
    for name, parameter in (("ChatFunction", "ChatConcurrency"), ("ControlFunction", "ControlConcurrency")):
        assert named(r[name]["Properties"]["ReservedConcurrentExecutions"]) == {parameter, "AWS::NoValue"}
        assert TEMPLATE["Parameters"][parameter]["Default"] > 0


def rule_logs_end(r: Template) -> None:
    for name, group in of_type(r, "AWS::Logs::LogGroup").items():
        assert group["RetentionInDays"] == {"Ref": "LogRetentionDays"}, name
    for name, group in (("ChatFunction", "ChatLogs"), ("ControlFunction", "ControlLogs")):
        assert r[name]["Properties"]["LoggingConfig"]["LogGroup"] == {"Ref": group}
    settings = r["Api"]["Properties"]["MethodSettings"]
    assert [s["DataTraceEnabled"] for s in settings] == [False]
    json.loads(r["Api"]["Properties"]["AccessLogSetting"]["Format"])


def rule_alarms_reach_somebody(r: Template) -> None:
    alarms = of_type(r, "AWS::CloudWatch::Alarm")
    metrics = {m for a in alarms.values() for m in [a.get("MetricName")] if m}
    assert metrics >= {"RunsFailed", "RunsLost", "StopsFailed", "StopsUnconfirmed", "HaltedMs", "Errors", "Throttles"}
    for name, alarm in alarms.items():
        assert alarm["AlarmActions"] == [{"Ref": "AlarmTopic"}], name
        assert alarm["TreatMissingData"] == "notBreaching", name
        assert alarm["AlarmDescription"], name


RULES = [value for name, value in globals().items() if name.startswith("rule_")]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rules(rule: Callable[[Template], None]) -> None:
    rule(RESOURCES)


def put(path: str, value: Any) -> Callable[[Template], None]:
    """Set what lies at `A/B/0/C`, where A is a resource, B one of its properties; None removes it."""

    def change(resources: Template) -> None:
        first, *way, last = path.split("/")
        place: Any = resources[first]["Properties"]
        for step in way:
            place = place[int(step) if isinstance(place, list) else step]
        key = int(last) if isinstance(place, list) else last
        if value is None:
            del place[key]
        else:
            place[key] = value

    return change


def add(name: str, kind: str) -> Callable[[Template], None]:
    return lambda resources: resources.update({name: {"Type": kind, "Properties": {}}})


def let(role: str, **statement: Any) -> Callable[[Template], None]:
    def change(resources: Template) -> None:
        document = resources[role]["Properties"]["Policies"][0]["PolicyDocument"]
        document["Statement"].append({"Effect": "Allow", **statement})

    return change


ANYBODY = {"Effect": "Allow", "Principal": "*", "Action": "sns:Publish", "Resource": "*"}
FAULTS: list[tuple[Callable[[Template], None], Callable[[Template], None]]] = [
    (rule_no_wildcards, let("ControlRole", Action="s3:GetObject", Resource="*")),
    (rule_no_wildcards, let("ChatRole", Action="s3:*", Resource={"Fn::GetAtt": "ChatBucket.Arn"})),
    (rule_the_code_has_no_network_rights, put("FunctionPolicy/PolicyDocument/Statement/1", None)),
    (rule_only_the_chosen_model_and_only_streaming, let("ChatRole", Action="bedrock:InvokeModel", Resource="arn")),
    (
        rule_only_the_chosen_model_and_only_streaming,
        let(
            "ChatRole",
            Action="bedrock:InvokeModelWithResponseStream",
            Resource={"Fn::Sub": "arn:aws:bedrock:*::foundation-model/*"},
        ),
    ),
    (
        rule_only_the_chosen_model_and_only_streaming,
        let(
            "ControlRole",
            Action="bedrock:InvokeModelWithResponseStream",
            Resource={"Fn::Sub": "arn:aws:bedrock:${AWS::Region}::foundation-model/${FoundationModelId}"},
        ),
    ),
    (rule_chats_only, let("ChatRole", Action="s3:DeleteObject", Resource={"Fn::Sub": "${ChatBucket.Arn}/chats/*"})),
    (rule_chats_only, let("ChatRole", Action="s3:GetObject", Resource={"Fn::Sub": "${ChatBucket.Arn}/*"})),
    (rule_events_only_to_the_bus, let("ControlRole", Action="events:PutEvents", Resource="arn")),
    (rule_the_cache_is_entered_as_its_one_user, put("CacheUser/AuthenticationMode/Type", "no-password-required")),
    (rule_the_cache_is_entered_as_its_one_user, put("Cache/UserGroupId", None)),
    (
        rule_the_cache_obeys_only_what_is_used,
        put("CacheUser/AccessString", "on ~* resetchannels &replica:* -@all +get"),
    ),
    (rule_the_cache_obeys_only_what_is_used, put("CacheUser/AccessString", "on ~stop:* &* -@all +@read")),
    (rule_the_cache_has_limits, put("Cache/CacheUsageLimits/ECPUPerSecond", None)),
    (rule_the_bucket_is_private, put("ChatBucket/PublicAccessBlockConfiguration/BlockPublicPolicy", False)),
    (rule_the_bucket_is_private, put("ChatBucket/BucketEncryption", None)),
    (rule_deleted_chats_are_gone_and_old_ones_go, put("ChatBucket/VersioningConfiguration", {"Status": "Enabled"})),
    (rule_deleted_chats_are_gone_and_old_ones_go, put("ChatBucket/LifecycleConfiguration/Rules/0", None)),
    (rule_tls_only, put("ChatBucketPolicy/PolicyDocument/Statement/0", None)),
    (rule_tls_only, put("StopTopicPolicy/PolicyDocument/Statement/1/Condition", {})),
    (rule_only_aws_publishes_for_this_account, put("StopTopicPolicy/PolicyDocument/Statement/0", ANYBODY)),
    (rule_only_aws_publishes_for_this_account, put("StopDeadLettersPolicy/PolicyDocument/Statement/0/Condition", {})),
    (rule_every_call_is_behind_the_authorizer, put("Api/Auth/DefaultAuthorizer", "NONE")),
    (
        rule_every_call_is_behind_the_authorizer,
        put("ControlFunction/Events/Stop/Properties/Auth", {"Authorizer": "NONE"}),
    ),
    (rule_nobody_signs_up_alone, put("UserPool/AdminCreateUserConfig", None)),
    (rule_nobody_signs_up_alone, put("UserPoolClient/ExplicitAuthFlows/0", "ALLOW_USER_PASSWORD_AUTH")),
    (
        rule_every_call_is_behind_the_authorizer,
        put("ControlFunction/Events/PageFiles/Properties/Method", "ANY"),
    ),
    (
        rule_users_sign_in_by_a_code_that_goes_to_the_page_alone,
        put("UserPoolClient/AllowedOAuthFlows", ["code", "implicit"]),
    ),
    (
        rule_users_sign_in_by_a_code_that_goes_to_the_page_alone,
        put("UserPoolClient/CallbackURLs", ["http://localhost:8000/"]),
    ),
    (
        rule_users_sign_in_by_a_code_that_goes_to_the_page_alone,
        put("SignInDomain/Domain", {"Fn::Sub": "${AWS::StackName}"}),
    ),
    (
        rule_nothing_waits_for_itself,
        put("ChatFunction/Environment/Variables/SIGN_IN_CLIENT", {"Ref": "UserPoolClient"}),
    ),
    (rule_nothing_waits_for_itself, put("Api/Auth/Authorizers/Client", {"Ref": "UserPoolClient"})),
    (rule_no_user_takes_all, put("ChatFunction/Environment/Variables/MAX_CHATS", None)),
    (rule_cors, put("Api/Auth/AddDefaultAuthorizerToCorsPreflight", True)),
    (rule_cors, put("Api/Cors/AllowOrigin", "'*'")),
    (rule_cors, put("Api/GatewayResponses/DEFAULT_4XX", {"ResponseParameters": {"Headers": {}}})),
    (rule_streams, put("ChatFunction/Events/Chat/Properties/ResponseTransferMode", "BUFFERED")),
    (rule_streams, put("Api/EndpointConfiguration/Type", "EDGE")),
    (rule_streams, put("ChatUrl/AuthType", "NONE")),
    (rule_the_network_has_no_way_out, add("Nat", "AWS::EC2::NatGateway")),
    (rule_the_network_has_no_way_out, put("SubnetA/MapPublicIpOnLaunch", True)),
    (rule_security_groups_are_narrow, put("FunctionSecurityGroup/SecurityGroupEgress/1/FromPort", 0)),
    (rule_security_groups_are_narrow, put("CacheIngress/ToPort", 65535)),
    (rule_endpoints_let_through_what_is_used, put("S3Endpoint/PolicyDocument/Statement/0/Action", "s3:*")),
    (rule_endpoints_let_through_what_is_used, put("S3Endpoint/PolicyDocument/Statement/0/Resource", "*")),
    (rule_new_layers_and_parameters_become_new_versions, put("DependenciesLayer/PublishLambdaVersion", False)),
    (rule_new_layers_and_parameters_become_new_versions, put("ChatFunction/AutoPublishAliasAllProperties", None)),
    (rule_new_layers_and_parameters_become_new_versions, put("ControlFunction/Timeout", {"Ref": "ChatTimeout"})),
    (rule_new_layers_and_parameters_become_new_versions, put("ControlFunction/VersionDeletionPolicy", "Retain")),
    (rule_deployments_go_back, put("ChatFunction/DeploymentPreference/Alarms", [])),
    (rule_stops_are_not_lost_silently, put("ControlFunction/EventInvokeConfig/DestinationConfig/OnFailure", {})),
    (rule_stops_are_not_lost_silently, put("ControlFunction/Events/StopRequested/Properties/DeadLetterConfig", {})),
    (rule_stops_are_not_lost_silently, put("StopDeadLetters/SqsManagedSseEnabled", False)),
    (rule_concurrency_is_reserved, put("ControlFunction/ReservedConcurrentExecutions", 10)),
    (rule_logs_end, put("ChatLogs/RetentionInDays", 3653)),
    (rule_logs_end, put("Api/MethodSettings/0/DataTraceEnabled", True)),
    (rule_alarms_reach_somebody, put("RunsFailedAlarm/AlarmActions", [])),
    (rule_alarms_reach_somebody, put("RunsFailedAlarm/MetricName", "Invocations")),
]


@pytest.mark.parametrize(("rule", "fault"), FAULTS)
def test_rules_see_a_fault(rule: Callable[[Template], None], fault: Callable[[Template], None]) -> None:
    broken = copy.deepcopy(RESOURCES)
    fault(broken)
    with pytest.raises((AssertionError, KeyError)):
        rule(broken)


def test_every_rule_is_seen_to_fail() -> None:
    assert {rule for rule, _ in FAULTS} == set(RULES)
