#!/bin/sh
# The chat function. Lambda starts this (handler `run.sh`) by the exec wrapper of the AWS Lambda Web Adapter's layer; the
# adapter, an extension beside it, asks for events and passes them on as HTTP to PORT.
export HOST=127.0.0.1 PORT="${AWS_LWA_PORT:-8080}"
# Only Lambda's Python runtime would look there by itself. First, or another boto3 than the one of the lock might be found.
export PYTHONPATH="/opt/python${PYTHONPATH:+:$PYTHONPATH}"
export LOGURU_AUTOINIT=0 # a sink is set up soon; loguru's first one would take 2 % of the init
exec python3 -m haltline
