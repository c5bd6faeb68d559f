"""A registry behind a gateway, which demands a token with the scopes that a request needs.

    python examples/gateway.py --port 5001 --storage ./registry-data --users ./passwords

`Gateway` is a hook of a `RegistryApp`, called before each view. `TokenServer` issues the tokens, as
Docker's token authentication specification describes. The policy: anyone may pull, and users may
do anything. The users are lines of ``NAME:PASSWORD``, in a file or in the environment variable
``REGISTRY_USERS``. The key in ``REGISTRY_KEY`` signs the tokens; without one, each start makes a
new key.
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
from serving import OneLineParser, Server, add_health, add_server_options
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
LEAST_KEY = 32  # bytes, as many as the signature has (RFC 7518, section 3.2)

Wsgi = Callable[[Any, Any], Iterable[bytes]]
Policy = Callable[[str | None, scopes.Scope], Iterable[str]]


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


def read_claims(request: Request, key: bytes) -> dict[str, Any] | None:
    """Return the claims of a request's token; `None` without a valid token."""
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
    # RecursionError: PyJWT parses the header, however deep, before it checks the signature.
    except (jwt.InvalidTokenError, LookupError, TypeError, ValueError, RecursionError):
        return None


def _parse_scope(entry: dict[str, Any]) -> scopes.Scope:
    """Parse an entry of ``access``. Raise `LookupError` or `TypeError` if it is malformed."""
    actions = entry["actions"]
    texts = [entry["type"], entry["name"], *actions]
    if not (isinstance(actions, list) and all(isinstance(text, str) for text in texts)):
        raise TypeError(f"{entry!r} is not a type, a name and a list of actions")
    return scopes.Scope(entry["type"], entry["name"], tuple(actions))


class TokenServer:
    """A token server. It grants those of the requested actions that the policy allows.

    :param key: the key with which it signs.
    :param users: the password of each user.
    :param policy: a function that takes a user (`None` without a login) and a scope, and returns
        the actions to allow.
    """

    def __init__(
        self,
        key: bytes,
        users: Mapping[str, str],
        policy: Policy,
    ) -> None:
        self.key = key
        self.users = users
        self.policy = policy

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        request = Request(environ)
        try:
            response = self.issue_token(request)
        except HTTPException as error:
            response = error_response(error, environ)
        return response(environ, start_response)

    def issue_token(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):  # clients that POST a form then try GET
            raise errors.Unsupported(valid_methods=["GET", "HEAD"])
        user = self.authenticate(request)
        access = []
        for text in " ".join(request.args.getlist("scope")).split():
            with suppress(ValueError):  # a malformed scope allows nothing
                scope = scopes.Scope.parse(text)
                if scope.name:  # a scope without a name is for another kind of registry
                    actions = tuple(self.policy(user, scope))
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

    def authenticate(self, request: Request) -> str | None:
        """Return the user who sent the request; `None` if it has no credentials.

        Raise `errors.Unauthorized` if they are wrong.
        """
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


def parse_user(text: str) -> tuple[str, str]:
    """Split ``NAME:PASSWORD``. Raise `ValueError`, which does not show the password."""
    name, colon, password = text.partition(":")
    if not (name and colon and password):
        raise ValueError("a user must be NAME:PASSWORD")
    return name, password


def parse_users(text: str, source: str) -> dict[str, str]:
    """Return the password of each user, from lines of ``NAME:PASSWORD``. Skip empty lines.

    Raise `ValueError`, which names the source and the line.
    """
    users = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if line := line.removesuffix("\r"):
            try:
                name, password = parse_user(line)
            except ValueError as error:
                raise ValueError(f"{source}, line {number}: {error}") from None
            users[name] = password
    return users


def parse_key(text: str) -> bytes:
    """Return the key that signs tokens; a new key if the text is empty.

    Raise `ValueError`, which does not show the key, if the key is too short.
    """
    if not text:
        return secrets.token_bytes(LEAST_KEY)
    key = text.encode()
    if len(key) < LEAST_KEY:
        raise ValueError(f"${KEY} has {len(key)} bytes; it needs at least {LEAST_KEY}")
    return key


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
