"""A client of one AWS service, made at its first use: what never calls AWS never imports botocore."""

from __future__ import annotations

import os
import threading
from typing import Any


class Client:
    """One client a service and process, for all of its threads. It finds credentials as botocore documents it."""

    def __init__(
        self, service: str, region: str, *, connect: float, read: float, attempts: int, connections: int
    ) -> None:
        """`connect` and `read` are the seconds that each of `attempts` may take; `connections` are kept open."""
        self._service, self._region = service, region
        self._config: dict[str, Any] = {
            "connect_timeout": connect,
            "read_timeout": read,
            "retries": {"mode": "standard", "total_max_attempts": attempts},
            "max_pool_connections": connections,
        }
        self._made: Any = None
        self._making = threading.Lock()

    def get(self) -> Any:
        """Botocore's client. The first call makes it and connects to nothing of the service.

        Raises: BotoCoreError, ValueError where it cannot be made.
        """
        with self._making:
            if self._made is None:
                import botocore.session
                from botocore.config import Config

                # Empty is not set, as everywhere. botocore would look for a profile of that name.
                if os.environ.get("AWS_PROFILE") == "":
                    del os.environ["AWS_PROFILE"]
                self._made = botocore.session.get_session().create_client(
                    self._service, region_name=self._region, config=Config(**self._config)
                )
            return self._made
