"""One replica: `python -m haltline`. Settings come from the environment and `.env`."""

from __future__ import annotations

import argparse
import gc
import signal


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing has begun that a KeyboardInterrupt would have to tell of
    parser = argparse.ArgumentParser(prog="haltline", description="One replica of Haltline.")
    parser.add_argument("--fd", type=int, help="serve on this inherited listening socket instead of HOST and PORT")
    parser.add_argument("--ready-fd", type=int, help="write a line to this inherited pipe once serving")
    options = parser.parse_args()
    gc.disable()  # a fifth of what the imports take; nothing of them is garbage
    from haltline.settings import load_settings

    load_settings()  # a wrong one is told at once, not after the seconds that the other imports take
    from haltline.serve import serve

    serve(options.fd, options.ready_fd)


if __name__ == "__main__":
    main()
