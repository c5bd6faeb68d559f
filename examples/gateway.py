"""A gateway in front of a registry. It asks for a token with the scopes that a request needs.

    python examples/gateway.py --port 5001 --storage ./registry-data --users ./passwords

`Gateway` is a hook of a `RegistryApp`, called before each view. `TokenServer` issues the tokens, as
Docker's token authentication specification describes. Here they protect the registry of
`registry.py`, with this policy: anyone may pull, and users may do anything. The users are lines of
``NAME:PASSWORD``, in a file or in the environment variable ``REGISTRY_USERS``. Tokens are signed
with the key in ``REGISTRY_KEY``, or with a new key at each start.
"""

import argparse
import hmac
import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jwt
from serving import OneLineParser, Server, server_options, with_health
from storage import CheckedStorage, check_place, storage_at
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.wrappers import Request, Response

from registry_routes import (
    OCI_1_1,
    RegistryMap,
    RegistryRequest,
    URLBuilder,
    error_response,
    errors,
    scopes,
)
from registry_routes.registry import make_registry

LIFETIME = 300  # seconds
LEEWAY = 60  # seconds by which the clocks of two machines may differ
SERVICE = "registry_routes example"
CHALLENGE = f'Basic realm="{SERVICE}"'  # of the token server
USERS, KEY = "REGISTRY_USERS", "REGISTRY_KEY"  # in the environment
LEAST_KEY = 32  # bytes: as many as the signature has (RFC 7518, section 3.2)

Wsgi = Callable[[Any, Any], Iterable[bytes]]
Policy = Callable[[str | None, scopes.Scope], Iterable[str]]


class Gateway:
    """Lets a request through if its token has the scopes that the request needs.

    :param key: the key that the token server signs with.
    """

    def __init__(self, key: bytes) -> None:
        self.key = key

    def __call__(self, request: RegistryRequest) -> None:
        """Raise `errors.Unauthorized` if the request's token does not allow it."""
        if request.url_rule is None:  # a redirect, 404, 405 or OPTIONS, which reveals no repository
            return
        needed, granted = request.scopes, self.granted(request)
        if granted is None or not all(scope.is_granted_by(granted) for scope in needed):
            message = error = None
            if granted is not None:  # another token would let the client through
                message = f"the token must allow {' '.join(map(str, needed))}"
                error = "insufficient_scope"
            realm = f"{URLBuilder.from_environ(request.environ).root}/token"
            raise errors.Unauthorized(
                message, realm=realm, service=SERVICE, scope=needed, error=error
            )

    def granted(self, request: Request) -> list[scopes.Scope] | None:
        """Return the scopes of the request's token; `None` if it has no valid token."""
        claims = claims_of(request, self.key)
        try:
            return None if claims is None else [_scope_of(entry) for entry in claims["access"]]
        except (LookupError, TypeError, ValueError):
            return None


def claims_of(request: Request, key: bytes) -> dict[str, Any] | None:
    """Return the claims of a request's token; `None` if it has no valid token."""
    authorization = request.authorization
    if authorization is None or authorization.type != "bearer" or not authorization.token:
        return None
    try:
        return jwt.decode(
            authorization.token,
            key,
            algorithms=["HS256"],
            audience=SERVICE,
            leeway=LEEWAY,
            options={"require": ["exp", "aud", "access"]},
        )
    # RecursionError: the header is parsed before the signature is checked, however deep it is.
    except (jwt.InvalidTokenError, LookupError, TypeError, ValueError, RecursionError):
        return None


def _scope_of(entry: dict[str, Any]) -> scopes.Scope:
    """The scope of an entry in ``access``. Raises `LookupError` or `TypeError` if malformed."""
    actions = entry["actions"]
    texts = [entry["type"], entry["name"], *actions]
    if not (isinstance(actions, list) and all(isinstance(text, str) for text in texts)):
        raise TypeError(f"{entry!r} must have a type, a name and a list of actions")
    return scopes.Scope(entry["type"], entry["name"], tuple(actions))


class TokenServer:
    """Issues tokens with those of the requested actions that `allowed` returns.

    :param key: the key that it signs with.
    :param users: passwords by name.
    :param allowed: called with a user (`None` without a login) and a scope; returns the actions
        that are allowed.
    """

    def __init__(
        self,
        key: bytes,
        users: Mapping[str, str],
        allowed: Policy,
    ) -> None:
        self.key = key
        self.users = users
        self.allowed = allowed

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        request = Request(environ)
        try:
            response = self.token(request)
        except HTTPException as error:
            response = error_response(error, environ)
        return response(environ, start_response)

    def token(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):  # clients that POST a form then try GET
            raise errors.Unsupported(valid_methods=["GET", "HEAD"])
        user = self.user(request)
        access = []
        for text in " ".join(request.args.getlist("scope")).split():
            with suppress(ValueError):  # malformed: it allows nothing
                scope = scopes.Scope.parse(text)
                if scope.name:  # or it is of another registry's form
                    actions = tuple(self.allowed(user, scope))
                    access.append(asdict(scopes.Scope(scope.type, scope.name, actions)))
        now = int(time.time())
        claims = {
            "aud": SERVICE,
            "sub": user or "",
            "iat": now,
            "exp": now + LIFETIME,
            "access": access,
        }
        token = jwt.encode(claims, self.key, algorithm="HS256")
        body = {"token": token, "access_token": token, "expires_in": LIFETIME}
        return Response(json.dumps(body), mimetype="application/json")

    def user(self, request: Request) -> str | None:
        """The user who sent the request; `None` if it has no credentials."""
        if "Authorization" not in request.headers:
            return None
        authorization = request.authorization
        if authorization is None or authorization.type != "basic":
            raise errors.Unauthorized("malformed credentials", challenge=CHALLENGE)
        name, password = authorization.username or "", authorization.password or ""
        known = self.users.get(name, "")
        if not (hmac.compare_digest(known.encode(), password.encode()) and name in self.users):
            raise errors.Unauthorized("incorrect username or password", challenge=CHALLENGE)
        return name


def pull_or_user(user: str | None, scope: scopes.Scope) -> Iterable[str]:
    """Anyone may pull, and users may do anything."""
    return scope.actions if user else {"pull"}.intersection(scope.actions)


def make_app(
    storage: CheckedStorage,
    key: bytes,
    users: Mapping[str, str],
    allowed: Policy = pull_or_user,
    *,
    read_only: bool = False,
) -> Wsgi:
    """The registry behind its gateway, with the token server and the health check beside it."""
    dialect = OCI_1_1.subset(methods=["GET"]) if read_only else OCI_1_1
    registry = make_registry(storage, url_map=RegistryMap(dialect=dialect))
    registry.before_request(Gateway(key))
    token_server = TokenServer(key, users, allowed)
    return DispatcherMiddleware(with_health(registry, storage), {"/token": token_server})


def name_and_password(text: str) -> tuple[str, str]:
    """The two parts of ``NAME:PASSWORD``. Raises `ValueError`, which does not show the password."""
    name, colon, password = text.partition(":")
    if not (name and colon and password):
        raise ValueError("a user must be NAME:PASSWORD")
    return name, password


def users_of(text: str, source: str) -> dict[str, str]:
    """Passwords by name, from lines of ``NAME:PASSWORD``. Empty lines are skipped.

    Raises `ValueError`, which names the source and the line.
    """
    users = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if line:
            try:
                name, password = name_and_password(line)
            except ValueError as error:
                raise ValueError(f"{source}, line {number}: {error}") from None
            users[name] = password
    return users


def key_of(text: str) -> bytes:
    """The key that signs tokens; a new one if the text is empty.

    Raises `ValueError`, which does not show the key, if it is too short.
    """
    if not text:
        return secrets.token_bytes(LEAST_KEY)
    key = text.encode()
    if len(key) < LEAST_KEY:
        raise ValueError(f"${KEY} must have at least {LEAST_KEY} bytes")
    return key


def main() -> None:
    parser = OneLineParser(
        description="A registry behind a gateway that asks for tokens.",
        epilog=f"${USERS} may hold more users, a line for each as in the file. ${KEY} is the key "
        "that signs the tokens: with the same key, they outlive a restart and are valid on every "
        "machine. Without it, each start makes a new key.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    server_options(parser, port=5001)
    parser.add_argument(
        "--user",
        action="append",
        default=[],
        metavar="NAME:PASSWORD",
        help="a user, who may do anything; may be repeated; others on this machine can read it",
    )
    parser.add_argument("--users", metavar="FILE", help="a file with a NAME:PASSWORD on each line")
    parser.add_argument("--read-only", action="store_true", help="refuse pushes and deletes")
    options = parser.parse_args()
    try:
        users = users_of(os.environ.get(USERS, ""), f"${USERS}")
        if options.users is not None:
            users |= users_of(Path(options.users).read_text("utf-8"), options.users)
        users |= map(name_and_password, options.user)
        key = key_of(os.environ.get(KEY, ""))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    server = Server(
        lambda: make_app(
            storage_at(options.storage, create=False), key, users, read_only=options.read_only
        ),
        options,
        "A registry at http://{host} that asks for tokens",
    )
    check_place(parser, options.storage, read_only=options.read_only)
    server.run()


if __name__ == "__main__":
    main()
