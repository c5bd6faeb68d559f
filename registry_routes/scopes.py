"""The access that a request needs, as the scopes of a token.

Docker's token authentication specification says how a scope is written. Go distribution decides
which scopes a request needs.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from .grammar import NAME, shorten

__all__ = ["Scope", "parse_scopes", "required_scopes"]


@dataclass(frozen=True)
class Scope:
    """Actions on a resource, written ``repository:library/nginx:pull,push``.

    (Docker token authentication specification, "Token Scope".)

    >>> scope = Scope.parse("repository:library/nginx:pull,push")
    >>> scope
    Scope(type='repository', name='library/nginx', actions=('pull', 'push'))
    >>> str(scope)
    'repository:library/nginx:pull,push'

    - `type`: ``repository`` or ``registry``; or the whole text of a scope in another form, such as
      ``aws``.
    - `name`: the repository name, or ``catalog`` for the registry.
    - `actions`: ``pull``, ``push``, ``delete``, or ``*`` for all actions. A string such as
      ``"pull,push"`` is split at its commas.
    """

    type: str
    name: str = ""
    actions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        actions = self.actions.split(",") if isinstance(self.actions, str) else self.actions
        object.__setattr__(self, "actions", tuple(filter(None, actions)))
        text = str(self)
        if not re.fullmatch(_WORD, text):  # a blank in a name would begin another scope
            raise ValueError(
                f"scope {shorten(text)} must be printable ASCII, without blanks, '\"' and '\\'"
            )
        if _split(text) != (self.type, self.name, self.actions):
            raise ValueError(f"scope {shorten(text)} must have its ':' and ',' between its parts")

    def __str__(self) -> str:
        if not self.name and not self.actions:
            return self.type
        return f"{self.type}:{self.name}:{','.join(self.actions)}"

    @classmethod
    def parse(cls, text: str) -> "Scope":
        """Read a scope, as registries and token servers write it.

        An empty action, as in ``repository:a:pull,``, is left out. A scope in another form becomes
        the `type`, without a name and actions, and grants only itself.

        >>> Scope.parse("aws"), str(Scope.parse("aws"))
        (Scope(type='aws', name='', actions=()), 'aws')

        Raises `ValueError` for characters that no scope can have (RFC 6749, 3.3), and for an empty
        text.
        """
        return cls(*_split(text))

    def is_granted_by(self, granted: Iterable["Scope"]) -> bool:
        """Return whether the scopes in `granted` together allow everything in this scope.

        >>> granted = parse_scopes("repository:a:pull,push repository:b:pull")
        >>> Scope("repository", "a", ("pull",)).is_granted_by(granted)
        True
        """
        granted = list(granted)
        actions = {
            action
            for scope in granted
            if (scope.type, scope.name) == (self.type, self.name)
            for action in scope.actions
        }
        if not self.name:
            return self in granted
        return "*" in actions or actions.issuperset(self.actions)


_WORD = r"[!#-\[\]-~]+"  # RFC 6749, 3.3

# A name that starts with a host and a port has ":" in it.
_SCOPE = re.compile(rf"([a-z0-9]+(?:\([a-z0-9]+\))?):({_WORD}):([a-zA-Z0-9_.*,-]*)")


def _split(text: str) -> tuple[str, str, tuple[str, ...]]:
    found = _SCOPE.fullmatch(text)
    if not found:
        return text, "", ()
    return found[1], found[2], tuple(filter(None, found[3].split(",")))


def parse_scopes(text: str) -> list[Scope]:
    """Return the scopes of a challenge or a token request, separated by spaces (RFC 6749, 3.3).

    >>> [scope.name for scope in parse_scopes("repository:a:pull registry:catalog:*")]
    ['a', 'catalog']

    Raises `ValueError`, which names the scope, if one is malformed.
    """
    return [Scope.parse(scope) for scope in text.split()]


def required_scopes(
    endpoint: str,
    method: str,
    values: Mapping[str, Any],
    query: Mapping[str, Any] | str = "",
) -> list[Scope]:
    """Return the scopes that a token needs for a request; none for `base`, where any token will do.

    (Go distribution, ``registry/handlers/app.go``, ``appendAccessRecords``.)

    `endpoint` and `values` are the result of a match. The prefix of an `EndpointPrefix` that ends
    in "." is ignored. `query` is the request's, as a string or parsed.

    >>> required_scopes("manifest", "PUT", {"name": "library/nginx", "tag": "latest"})
    [Scope(type='repository', name='library/nginx', actions=('pull', 'push'))]
    >>> query = "mount=sha256:…&from=library/debian"
    >>> " ".join(map(str, required_scopes("blob-upload", "POST", {"name": "me/app"}, query)))
    'repository:me/app:pull,push repository:library/debian:pull'

    An endpoint without a ``name`` needs ``registry:catalog:*``: the catalog, an extension of the
    registry, or your own endpoint. A POST with ``from`` in its query counts as a mount at any
    endpoint. If ``from`` is empty or not a repository name, the request needs only the scope of its
    target, and the registry must begin an ordinary upload instead of a mount.

    Raises `ValueError` for a malformed repository name, which one of your rules may let through.
    """
    name = values.get("name")
    if name is None:
        is_base = endpoint.rpartition(".")[2] == "base"
        return [] if is_base else [Scope("registry", "catalog", ("*",))]
    # An unknown method might do anything, so it needs every action.
    scopes = [Scope("repository", NAME.check(name), _ACTIONS.get(method.upper(), ("*",)))]
    if method.upper() == "POST":  # at any endpoint, as a map may rename them
        for source in _values_of(query, "from"):
            if source != name and NAME.fits(source):
                scopes.append(Scope("repository", source, ("pull",)))
    return scopes


_PULL, _PUSH = ("pull",), ("pull", "push")
_ACTIONS = {
    "GET": _PULL,
    "HEAD": _PULL,
    "POST": _PUSH,
    "PUT": _PUSH,
    "PATCH": _PUSH,
    "DELETE": ("delete",),
}


def _values_of(query: Mapping[str, Any] | str, name: str) -> list[str]:
    """Return all values of a parameter, because a registry may not read the first."""
    if isinstance(query, str):
        query = parse_qs(query, keep_blank_values=True)
    getlist = getattr(query, "getlist", None)
    found = getlist(name) if getlist else query.get(name)
    return [found] if isinstance(found, str) else list(found or ())
