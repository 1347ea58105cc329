"""A client of one AWS service, made at its first use: what never calls AWS never imports botocore."""

from __future__ import annotations

import os
import threading
from functools import cache
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

    def warm(self) -> None:
        """Load all that making the client needs, for every other client too, and look for no credentials yet."""
        for name in ("endpoints", "partitions", "sdk-default-configuration", "_retry"):
            _loader().load_data(name)
        for kind in ("service-2", "endpoint-rule-set-1"):
            _loader().load_service_model(self._service, kind)

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
                session = botocore.session.get_session()
                session.register_component("data_loader", _loader())
                self._made = session.create_client(
                    self._service, region_name=self._region, config=Config(**self._config)
                )
            return self._made


@cache
def _loader() -> Any:
    """What botocore knows of services, read from its files once a process: half of what making a client takes."""
    import botocore.loaders
    import botocore.session

    return botocore.loaders.create_loader(botocore.session.get_session().get_config_variable("data_path"))
