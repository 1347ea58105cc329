"""Why a start ends."""

import sys


class CannotStart(Exception):
    """Something that has to be there is not.

    The text is one line for the person who started it, or empty when that person has been told. `status` is the exit
    status of the launcher.
    """

    def __init__(self, line: str, status: int = 1) -> None:
        self.status = status
        super().__init__(line)

    def tell(self) -> int:
        """Say the line, if there is one. Returns the exit status."""
        if str(self):
            print(f"haltline: {self}", file=sys.stderr)
        return self.status
