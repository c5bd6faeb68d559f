"""Image references as Docker users write them: ``nginx``, ``ghcr.io/org/app:v1@sha256:…``."""

import re
from dataclasses import dataclass
from typing import Self

from .digests import check_algorithm
from .grammar import DIGEST, DOMAIN, NAME, TAG, shorten
from .scopes import Scope

__all__ = ["Reference"]

_DOCKER_HUB = "docker.io"
_OFFICIAL = "library/"


@dataclass(frozen=True, slots=True)
class Reference:
    """An image reference: a repository of a registry, with a tag, a digest, both or neither.

    >>> reference = Reference.parse("nginx:1.27")
    >>> reference
    Reference(domain='docker.io', name='library/nginx', tag='1.27', digest=None)
    >>> str(reference), reference.familiar()
    ('docker.io/library/nginx:1.27', 'nginx:1.27')
    >>> reference.root(), reference.reference()
    ('https://registry-1.docker.io', '1.27')
    >>> Reference.parse("localhost:5000/Foo")
    Traceback (most recent call last):
        ...
    ValueError: repository name 'Foo' must be lowercase

    - `domain`: the registry: its host, and its port if the reference has one; ``docker.io`` by
      default. It is empty if the first component looks like a domain but can only be part of a
      name, as in ``a_b.com/app``: ``distribution/reference`` then takes the whole text for a name.
    - `name`: the repository name, at most 255 characters: ``library/nginx``.
    - `tag`: the tag, or `None`.
    - `digest`: the digest, with an algorithm that OCI image-spec 1.1 registers; or `None`.

    The grammar and the defaults are those of ``distribution/reference`` (0.6.0,
    ``ParseNormalizedNamed``), which Docker uses. A reference without a tag does not get any.

    The constructor takes the parts of a reference, if its text parses to the same parts. Otherwise
    it raises `ValueError`, which names the part and the rule it broke. `dataclasses.replace`
    returns the same repository with another tag or digest.
    """

    domain: str
    name: str
    tag: str | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        checked = (
            "" if self.domain == "" else DOMAIN.check(self.domain),
            NAME.check(self.name),
            None if self.tag is None else TAG.check(self.tag),
            None if self.digest is None else DIGEST.check(self.digest),
        )
        domain, name, _, digest = checked
        if len(name) > 255:
            raise ValueError(f"{NAME.kind} {shorten(name)} must have at most 255 characters")
        if digest is not None:
            check_algorithm(digest.partition(":")[0])
        for field, value in zip(("domain", "name", "tag", "digest"), checked, strict=True):
            object.__setattr__(self, field, value)  # a plain `str`, even for a member of an enum
        parsed = _split(str(self))
        if parsed != checked:
            raise ValueError(
                f"reference {shorten(str(self))} means the domain {shorten(parsed[0])} and "
                f"the repository name {shorten(parsed[1])}, not {shorten(domain)} and "
                f"{shorten(name)}"
            )

    @classmethod
    def parse(cls, text: str, *, default_domain: str = _DOCKER_HUB) -> Self:
        """Parse a reference, in its short or its full form.

        The first component is the domain if a ``/`` follows it and it is ``localhost`` or contains
        a ``.``, a ``:`` or an upper-case letter. Raises `ValueError`, which names the malformed
        part and the rule it broke. It refuses 64 hexadecimal digits alone, which Docker takes for
        the ID of an image.

        >>> Reference.parse("index.docker.io/org/app")
        Reference(domain='docker.io', name='org/app', tag=None, digest=None)
        >>> Reference.parse("localhost/app:v1").domain
        'localhost'
        >>> Reference.parse("localhost:5000").name  # without a "/", it names no registry
        'library/localhost'
        >>> str(Reference.parse("org/app", default_domain="quay.io"))
        'quay.io/org/app'

        :param default_domain: the registry of a reference without a domain, for tools whose default
            is not Docker Hub. Only Docker Hub has names of one component in ``library``.
        """
        if not isinstance(text, str):
            kind = type(text).__name__
            raise ValueError(f"reference {shorten(text)} must be a string, not {kind}")
        if scheme := re.match("([a-z][a-z0-9+.-]*:)//", text):
            raise ValueError(f"domain {shorten(scheme[1])} must not be the scheme of a URL")
        if re.fullmatch("[a-f0-9]{64}", text):
            raise ValueError(f"reference {text!r} is 64 hexadecimal digits, which mean an image ID")
        return cls(*_split(str.__str__(text), DOMAIN.check(default_domain)))

    def __str__(self) -> str:
        """Return the full form, with the domain."""
        return self._add_tag_and_digest(f"{self.domain}/{self.name}" if self.domain else self.name)

    def familiar(self) -> str:
        """Return the short form that Docker shows, without ``docker.io`` and ``library``.

        >>> Reference.parse("ghcr.io/org/app").familiar()
        'ghcr.io/org/app'
        >>> Reference.parse("docker.io/org/app:v1").familiar()
        'org/app:v1'

        It is for people; programs should keep the full form. As in ``distribution/reference``, two
        kinds of short form do not parse to the same reference again: ``docker.io/a.b/app`` becomes
        ``a.b/app``, which is at the registry ``a.b``; and a name of 64 hexadecimal digits loses its
        ``library`` too, after which `parse` refuses it.
        """
        if self.domain != _DOCKER_HUB:
            return str(self)
        official = self.name.removeprefix(_OFFICIAL)
        return self._add_tag_and_digest(self.name if "/" in official else official)

    def reference(self) -> str:
        """Return the end of the manifest's URL: the digest, else the tag, else ``latest``."""
        return self.digest or self.tag or "latest"

    def scope(self, *actions: str) -> Scope:
        """Return the scope of a token for these actions on the repository.

        >>> print(Reference.parse("nginx").scope("pull", "push"))
        repository:library/nginx:pull,push
        """
        return Scope("repository", self.name, actions)

    def root(self, scheme: str = "https") -> str:
        """Return the URL of the registry, for `URLBuilder`.

        Docker Hub's API is at ``registry-1.docker.io``. Raises `ValueError` for a `scheme` that is
        not ``http`` or ``https``, and for a reference without a domain.

        >>> Reference.parse("localhost:5000/app").root("http")
        'http://localhost:5000'
        """
        if scheme not in ("http", "https"):
            raise ValueError(f"scheme {shorten(scheme)} must be 'http' or 'https'")
        # Without a domain, the name starts with a malformed one, which the error names.
        domain = DOMAIN.check(self.domain or self.name.partition("/")[0])
        return f"{scheme}://{'registry-1.docker.io' if domain == _DOCKER_HUB else domain}"

    def _add_tag_and_digest(self, name: str) -> str:
        tag = "" if self.tag is None else f":{self.tag}"
        digest = "" if self.digest is None else f"@{self.digest}"
        return f"{name}{tag}{digest}"


def _split(text: str, default_domain: str = _DOCKER_HUB) -> tuple[str, str, str | None, str | None]:
    """Split a reference into its parts, with Docker's defaults, without checking them."""
    named, at, digest = text.partition("@")
    domain, slash, rest = named.partition("/")
    if not slash or not (domain == "localhost" or re.search("[.:A-Z]", domain)):
        domain, rest = default_domain, named
    name, colon, tag = rest.partition(":")
    if domain == "index.docker.io":
        domain = _DOCKER_HUB
    if domain == _DOCKER_HUB and name and "/" not in name:
        name = f"{_OFFICIAL}{name}"
    if not DOMAIN.fits(domain) and NAME.fits(f"{domain}/{name}"):
        domain, name = "", f"{domain}/{name}"
    return domain, name, tag if colon else None, digest if at else None
