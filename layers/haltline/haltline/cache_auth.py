"""Signing in to ElastiCache with IAM: the password is a request to connect, signed with AWS credentials.

As AWS describes it under "Authenticating with IAM" in the user guide of ElastiCache: the request is a presigned URL
without its scheme; one is good for 15 minutes, for any number of connections.
"""

from __future__ import annotations

import asyncio
import time
from functools import cache
from typing import Any
from urllib.parse import urlencode

from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError

EXPIRES = 900  # seconds, the most that ElastiCache takes
SIGN_AGAIN = 600  # seconds until the next connection gets a new one


class CacheCredentials(CredentialProvider):
    """User and token for redis-py, which asks for them whenever it opens a connection."""

    def __init__(self, user: str, cache_name: str, region: str) -> None:
        """Nothing is imported or signed here. `cache_name`: of a serverless cache."""
        self._user, self._cache, self._region = user, cache_name.lower(), region
        self._token, self._signed_at = "", float("-inf")

    def get_credentials(self) -> tuple[str, str]:
        """User and token. May block: where AWS credentials have to be fetched.

        Raises: AuthenticationError where there are none.
        """
        # By the wall's clock: the other one may stand still while a process is frozen, and the token does not.
        if not 0 <= time.time() - self._signed_at < SIGN_AGAIN:
            self._token, self._signed_at = self._sign(), time.time()
        return self._user, self._token

    async def get_credentials_async(self) -> tuple[str, str]:
        """`get_credentials` without holding up the event loop."""
        if 0 <= time.time() - self._signed_at < SIGN_AGAIN:
            return self._user, self._token
        return await asyncio.to_thread(self.get_credentials)

    def _sign(self) -> str:
        from botocore.auth import SigV4QueryAuth
        from botocore.awsrequest import AWSRequest
        from botocore.exceptions import BotoCoreError

        try:
            credentials = _session().get_credentials()
            if credentials is None:
                raise AuthenticationError("REDIS_AUTH=iam: no AWS credentials were found")
            frozen = credentials.get_frozen_credentials()  # renewed where they are about to expire
        except BotoCoreError as error:
            raise AuthenticationError(f"REDIS_AUTH=iam: {error}") from error
        what = {"Action": "connect", "User": self._user, "ResourceType": "ServerlessCache"}
        request = AWSRequest(method="GET", url=f"https://{self._cache}/?{urlencode(what)}")
        SigV4QueryAuth(frozen, "elasticache", self._region, expires=EXPIRES).add_auth(request)
        return str(request.url).removeprefix("https://")


def prepare() -> None:
    """Import now what signs, as for a snapshot of the process; else the first connection does. Reads no credentials."""
    _session()


@cache
def _session() -> Any:
    import botocore.session  # heavy, and needed with REDIS_AUTH=iam alone

    return botocore.session.get_session()
