"""Werkzeug converters for the values in a registry URL, each made from a `Grammar`."""

from collections.abc import Mapping
from inspect import cleandoc
from types import MappingProxyType
from typing import Any, ClassVar

from werkzeug.routing import BaseConverter

from . import grammar
from .errors import (
    BlobUploadUnknown,
    DigestInvalid,
    ManifestUnknown,
    NameInvalid,
    RegistryError,
    RouteUnknown,
    TagInvalid,
)
from .grammar import Grammar

__all__ = [
    "ANYTHING",
    "CONVERTERS",
    "DOCKER_CONVERTERS",
    "DigestConverter",
    "DockerDigestConverter",
    "DockerRepositoryNameConverter",
    "DockerTagConverter",
    "DockerUploadIdConverter",
    "ExtensionConverter",
    "GrammarConverter",
    "RepositoryNameConverter",
    "TagConverter",
    "UploadIdConverter",
]

ANYTHING = "[^/]+"
"""A `GrammarConverter.looks_like` that takes any whole segment."""


class GrammarConverter(BaseConverter):
    """A converter that matches and builds the values that a `Grammar` allows, unchanged.

    A subclass names its grammar, and gets its regular expression from it:

    >>> class TeamConverter(GrammarConverter, grammar=grammar.EXTENSION): ...
    >>> TeamConverter.regex == grammar.EXTENSION.regex
    True

    - `grammar`: the grammar.
    - `regex`: the grammar's regular expression, for Werkzeug.
    - `looks_like`: a regular expression for malformed values that get their own error, because the
      client probably meant a value of this kind. If it is `None`, there are none. A name right
      after the root may look like anything.
    """

    regex: str
    grammar: ClassVar[Grammar]

    looks_like: ClassVar[str | None] = None

    def __init_subclass__(cls, grammar: Grammar | None = None, **kwargs: Any) -> None:
        if grammar is not None:
            cls.grammar = grammar
            cls.regex = grammar.regex
            cls.__doc__ = f"{cleandoc(cls.__doc__ or '')}\n\n({grammar.source}.)"
        super().__init_subclass__(**kwargs)

    def to_url(self, value: Any) -> str:
        """Return `value`, percent-encoded if its grammar allows characters that paths cannot have.

        Raises `ValueError`, which names the value and the rule it broke, if it is malformed.
        """
        checked = self.grammar.check(value)
        return checked if self.grammar.is_url_safe else super().to_url(checked)

    @classmethod
    def malformed(cls, method: str) -> type[RegistryError]:
        """Return the class of the error for a request with a malformed value."""
        return RouteUnknown


class RepositoryNameConverter(GrammarConverter, grammar=grammar.NAME):
    """A repository name: one or more components joined by ``/``, like ``library/nginx``.

    It may contain slashes, so its end depends on the text that follows it in the rule:

    >>> from werkzeug.routing import Map, Rule
    >>> url_map = Map(
    ...     [Rule("/icons/<repository:name>.svg", endpoint="icon")],
    ...     converters={"repository": RepositoryNameConverter},
    ... )
    >>> adapter = url_map.bind("example.com")
    >>> adapter.match("/icons/library/nginx.svg")
    ('icon', {'name': 'library/nginx'})
    >>> adapter.build("icon", {"name": "Library/nginx"})
    Traceback (most recent call last):
        ...
    ValueError: repository name 'Library/nginx' must be lowercase
    """

    @classmethod
    def malformed(cls, method: str) -> type[RegistryError]:
        return NameInvalid


class TagConverter(GrammarConverter, grammar=grammar.TAG):
    """A tag: up to 128 letters, digits, ``_``, ``.`` and ``-``, like ``3.19-alpine``.

    >>> TagConverter.grammar.fits("3.19-alpine"), TagConverter.grammar.fits(".hidden")
    (True, False)
    """

    looks_like: ClassVar[str | None] = "[^/:]+"  # a value with ":" in it is meant as a digest

    @classmethod
    def malformed(cls, method: str) -> type[RegistryError]:
        return TagInvalid if method == "PUT" else ManifestUnknown


class DigestConverter(GrammarConverter, grammar=grammar.DIGEST):
    """A digest: an algorithm, ``:`` and an encoded hash (64 lowercase hex digits for sha256).

    >>> DigestConverter.grammar.complaint("sha256:abc")
    "digest 'sha256:abc' must have 64 lowercase hexadecimal digits after 'sha256:'"
    """

    looks_like: ClassVar[str | None] = ANYTHING

    @classmethod
    def malformed(cls, method: str) -> type[RegistryError]:
        return DigestInvalid


class UploadIdConverter(GrammarConverter, grammar=grammar.UPLOAD_ID):
    """An upload id, which the registry chooses: one URL-safe segment without a leading dot.

    >>> UploadIdConverter.grammar.fits("any-id_9f=="), UploadIdConverter.grammar.fits("..")
    (True, False)
    """

    looks_like: ClassVar[str | None] = ANYTHING

    @classmethod
    def malformed(cls, method: str) -> type[RegistryError]:
        return BlobUploadUnknown


class ExtensionConverter(GrammarConverter, grammar=grammar.EXTENSION):
    """An extension's name, without its leading ``_``; also its component and its module.

    >>> ExtensionConverter.grammar.fits("oci"), ExtensionConverter.grammar.fits("_oci")
    (True, False)
    """


class _Docker(GrammarConverter):
    """A converter of Docker 1.5.0, where a path with a malformed value is simply not a route."""

    @classmethod
    def malformed(cls, method: str) -> type[RegistryError]:
        return RouteUnknown


class DockerRepositoryNameConverter(_Docker, RepositoryNameConverter, grammar=grammar.DOCKER_NAME):
    """A repository name of Docker 1.5.0: two to five components, single separators."""


class DockerTagConverter(_Docker, TagConverter):
    """A tag of Docker 1.5.0, of the same form as today."""


class DockerDigestConverter(_Docker, DigestConverter, grammar=grammar.DOCKER_DIGEST):
    """A digest of Docker 1.5.0: any algorithm and any length, even ``tarsum.v1+sha256:…``."""


class DockerUploadIdConverter(_Docker, UploadIdConverter, grammar=grammar.DOCKER_UPLOAD_ID):
    """An upload id of Docker 1.5.0: any one path segment."""


CONVERTERS: Mapping[str, type[GrammarConverter]] = MappingProxyType(
    {
        "repository": RepositoryNameConverter,
        "tag": TagConverter,
        "digest": DigestConverter,
        "upload_id": UploadIdConverter,
        "extension": ExtensionConverter,
    }
)
"""The converters of `OCI_1_1`, by name, for the ``converters`` of any `werkzeug.routing.Map`."""

DOCKER_CONVERTERS: Mapping[str, type[GrammarConverter]] = MappingProxyType(
    {
        "repository": DockerRepositoryNameConverter,
        "tag": DockerTagConverter,
        "digest": DockerDigestConverter,
        "upload_id": DockerUploadIdConverter,
    }
)
"""The converters of `DOCKER_1_5`, under the same names."""
