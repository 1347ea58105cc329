#!/bin/sh
# The chat function. Lambda starts this (handler `run.sh`) by the exec wrapper of the AWS Lambda Web Adapter's layer; the
# adapter, an extension beside it, asks for events and passes them on as HTTP to PORT.
set -eu
export HOST=127.0.0.1 PORT="${AWS_LWA_PORT:-8080}"
# The log stream is named after this environment, 2026/11/26/[$LATEST]0123abcd…: X-Replica then tells where an answer was logged.
stream=${AWS_LAMBDA_LOG_STREAM_NAME:-lambda}
export REPLICA_NAME="${REPLICA_NAME:-${stream##*\]}}"
# First, or the runtime's own boto3 would come before the one that was tested; no Python runtime adds this path here.
export PYTHONPATH="/opt/python${PYTHONPATH:+:$PYTHONPATH}"
exec python3 -m haltline
