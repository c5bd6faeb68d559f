"""The example registry behind a gateway, in one process: the gateway checks the token of a request.

    python examples/gateway.py --port 5001 --storage ./registry-data --users ./passwords

`Gateway` is a hook of a `RegistryApp`, called before each view. It demands a token with the scopes
that the request needs; `tokens.py` issues the tokens. The policy: anyone may pull, and users may do
anything. The users are lines of ``NAME:PASSWORD``, in a file or in the environment variable
``REGISTRY_USERS``. The key in ``REGISTRY_KEY`` signs the tokens; without one, each start makes a
new key. For a registry that runs elsewhere, use `front.py`.
"""

import argparse
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from health import add_health
from serving import OneLineParser, Server, add_server_options
from storage import CheckedStorage, check_place, storage_at
from tokens import (
    KEY,
    SERVICE,
    USERS,
    Policy,
    TokenServer,
    parse_key,
    parse_user,
    parse_users,
    read_claims,
)
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.wrappers import Request

from registry_routes import (
    OCI_1_1,
    RegistryMap,
    RegistryRequest,
    URLBuilder,
    errors,
    scopes,
)
from registry_routes.registry import make_registry

Wsgi = Callable[[Any, Any], Iterable[bytes]]


class Gateway:
    """A hook that lets a request through if its token has the scopes that the request needs.

    :param key: the key with which the token server signs.
    """

    def __init__(self, key: bytes) -> None:
        self.key = key

    def __call__(self, request: RegistryRequest) -> None:
        """Raise `errors.Unauthorized` if the request's token does not allow the request."""
        if request.url_rule is None:  # a redirect, 404, 405 or OPTIONS, which reveals no repository
            return
        needed, granted = request.scopes, self.scopes_of(request)
        if granted is None or not all(scope.is_granted_by(granted) for scope in needed):
            message = error = None
            if granted is not None:  # the token is valid, but not sufficient
                message = f"the token does not allow {' '.join(map(str, needed))}"
                error = "insufficient_scope"
            realm = f"{URLBuilder.from_environ(request.environ).root}/token"
            raise errors.Unauthorized(
                message, realm=realm, service=SERVICE, scope=needed, error=error
            )

    def scopes_of(self, request: Request) -> list[scopes.Scope] | None:
        """Return the scopes of the request's token; `None` without a valid token."""
        claims = read_claims(request, self.key)
        try:
            return None if claims is None else [_parse_scope(entry) for entry in claims["access"]]
        except (LookupError, TypeError, ValueError):
            return None


def _parse_scope(entry: dict[str, Any]) -> scopes.Scope:
    """Parse an entry of ``access``. Raise `LookupError` or `TypeError` if it is malformed."""
    actions = entry["actions"]
    texts = [entry["type"], entry["name"], *actions]
    if not (isinstance(actions, list) and all(isinstance(text, str) for text in texts)):
        raise TypeError(f"{entry!r} is not a type, a name and a list of actions")
    return scopes.Scope(entry["type"], entry["name"], tuple(actions))


def allow_pulls(user: str | None, scope: scopes.Scope) -> Iterable[str]:
    """Allow pulls to anyone, and everything to users."""
    return scope.actions if user else {"pull"}.intersection(scope.actions)


def make_app(
    storage: CheckedStorage,
    key: bytes,
    users: Mapping[str, str],
    policy: Policy = allow_pulls,
    *,
    read_only: bool = False,
) -> Wsgi:
    """Return the registry behind its gateway, with the token server and the health check."""
    dialect = OCI_1_1.subset(methods=["GET"]) if read_only else OCI_1_1
    registry = make_registry(storage, url_map=RegistryMap(dialect=dialect))
    registry.before_request(Gateway(key))
    token_server = TokenServer(key, users, policy)
    return DispatcherMiddleware(add_health(registry, storage), {"/token": token_server})


def main() -> None:
    parser = OneLineParser(
        description="A registry behind a gateway that demands tokens.",
        epilog=f"${USERS} may hold more users, one a line as in the file. ${KEY} is the key that "
        "signs the tokens: with the same key, they outlive a restart and are valid on every "
        "machine. Without it, each start makes a new key.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_server_options(parser, port=5001)
    parser.add_argument(
        "--user",
        action="append",
        default=[],
        metavar="NAME:PASSWORD",
        help="a user, who may do anything; may be repeated; others on this machine can see it",
    )
    parser.add_argument("--users", metavar="FILE", help="a file with a NAME:PASSWORD on each line")
    parser.add_argument("--read-only", action="store_true", help="refuse pushes and deletes")
    options = parser.parse_args()
    try:
        users = parse_users(os.environ.get(USERS, ""), f"${USERS}")
        if options.users is not None:
            users |= parse_users(Path(options.users).read_text("utf-8"), options.users)
        users |= map(parse_user, options.user)
        key = parse_key(os.environ.get(KEY, ""))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    server = Server(
        lambda: make_app(
            storage_at(options.storage, create=False), key, users, read_only=options.read_only
        ),
        options,
        "A registry at http://{host} that demands tokens",
    )
    check_place(parser, options.storage, read_only=options.read_only)
    server.run()


if __name__ == "__main__":
    main()
