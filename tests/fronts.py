"""The gateway of the examples that stands in front of another registry, and its clients."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from werkzeug.test import Client

pytest.importorskip("cryptography", reason="cryptography cannot be installed on this Python")

from front import main as main
from front import make_app

from registry_routes.login import Login
from registry_routes.testing import ServedRegistry, serve

USERS = {"alice": "alice's", "bob": "bob's"}


class FrontClient:
    """A client of a gateway in front of an upstream."""

    def __init__(
        self,
        url: str,
        *account: str,
        user: str | None = "alice",
        key: bytes = b"k" * 32,
        **options: Any,
    ) -> None:
        self.upstream = url
        self.client = Client(make_app(Login(url, *account), key, USERS, **options))
        self.token = self.token_of(user)

    def token_of(self, user: str | None) -> str:
        auth = (user, USERS[user]) if user else None
        answer = self.client.get("/token", query_string={"service": "x"}, auth=auth)
        return str(answer.get_json()["token"])

    def open(self, method: str, path: str, *, user: str | None = None, **options: Any) -> Any:
        token = self.token if user is None else self.token_of(user or None)
        headers = {"Authorization": f"Bearer {token}", **options.pop("headers", {})}
        answer = self.client.open(path, method=method, headers=headers, buffered=True, **options)
        host = urlsplit(self.upstream).netloc
        if answer.status_code != 307:
            assert host not in str(answer.headers)
        assert "WWW-Authenticate" not in answer.headers or answer.status_code == 401
        return answer


@contextmanager
def served_front(url: str, *account: str, **options: Any) -> Iterator[ServedRegistry]:
    """A gateway in front of an upstream, over HTTP."""
    with serve(make_app(Login(url, *account), b"k" * 32, USERS, **options)) as front:
        yield front
