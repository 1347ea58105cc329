"""A replica that waits less for clients than it does by itself: `python -m tests.faults.impatient`."""

from __future__ import annotations

from haltline import inputs, protocol
from haltline.__main__ import main

if __name__ == "__main__":
    protocol.HEAD_SECONDS, inputs.BODY_SECONDS = 1.0, 1
    main()
