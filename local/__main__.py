"""`python -m local`: the chat on this machine. Run it from the project's root."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Returns the exit status: 0 when told to end, 1 when something is missing, 2 for a wrong setting."""
    # Until the launcher takes it: in the imports, which take a while, a KeyboardInterrupt is a traceback, or is lost.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    import argparse
    import asyncio

    from haltline.settings import SettingsError, exit_with, load_settings
    from local.errors import CannotStart
    from local.launcher import Launcher

    parser = argparse.ArgumentParser(prog="python -m local", description="Haltline on this machine. Ctrl-C ends it.")
    parser.add_argument("--host", help="HOST, default 127.0.0.1")
    parser.add_argument("--port", help="PORT, default 8000; 0 takes a free one")
    parser.add_argument("--replicas", type=int, choices=range(1, 65), default=3, metavar="N", help="1 to 64, default 3")
    parser.add_argument("--model", help="MODEL_PROVIDER: local (the default), bedrock, scripted or module:callable")
    options = parser.parse_args()
    # As strings: the settings check them, so that one line says what is wrong wherever it was given.
    given = {"host": options.host, "port": options.port, "model_provider": options.model}
    settings = load_settings(**{name: value for name, value in given.items() if value is not None})
    try:
        asyncio.run(Launcher(settings, options.replicas).run())
    except SettingsError as error:
        exit_with(str(error))
    except CannotStart as error:
        return error.tell()
    return 0


if __name__ == "__main__":
    sys.exit(main())
