"""The users of `gateway.py` and `front.py`, and the tokens that they get for their passwords.

`TokenServer` issues the tokens, as Docker's token authentication specification describes, and
`read_claims` checks them. `parse_users` and `parse_key` read an operator's passwords and key;
`proxy.py` reads its accounts at upstreams with `parse_user`.
"""

import hmac
import json
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import jwt
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Request, Response

from registry_routes import error_response, errors, scopes

LIFETIME = 300  # seconds
LEEWAY = 60  # seconds by which the clocks of two machines may differ
SERVICE = "registry_routes example"
CHALLENGE = f'Basic realm="{SERVICE}"'  # of the token server
USERS, KEY = "REGISTRY_USERS", "REGISTRY_KEY"  # in the environment
LEAST_KEY = 32  # bytes, as many as the signature has (RFC 7518, section 3.2)

Policy = Callable[[str | None, scopes.Scope], Iterable[str]]


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
