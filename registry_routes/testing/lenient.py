"""Made-up digests of test suites: a dialect that takes them, and the layer that serves them."""

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from .. import errors
from ..app import RegistryRequest
from ..converters import DigestConverter
from ..digests import is_registered
from ..grammar import ALGORITHM, DIGEST, REGISTERED_ALGORITHMS
from ..headers import IMAGE_INDEX
from ..map import RegistryMap
from ..registry import MemoryStorage, MissingError, blob_response, manifest_response
from ..routes import OCI_1_1, Dialect, RouteName

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = [
    "LENIENT",
    "LENIENT_DIGEST",
    "LenientDigestConverter",
    "MadeUpDigests",
    "takes_any_digest",
]

LENIENT_DIGEST = replace(
    DIGEST,
    pattern=rf"{ALGORITHM.pattern}:[a-zA-Z0-9=_-]++",
    source="OCI image-spec 1.1, Digests, without the registered algorithms",
    rules=tuple(
        (fault, rule)
        for fault, rule in DIGEST.rules
        if not fault.startswith(tuple(rf"\A{algorithm}:" for algorithm in REGISTERED_ALGORITHMS))
    ),
)
"""The grammar of digests with any algorithm and any encoded part."""


class LenientDigestConverter(DigestConverter, grammar=LENIENT_DIGEST):
    """Any digest of the form ``algorithm:encoded``, even ``sha256:0cd1ee2a9e``."""


LENIENT = Dialect(
    "lenient", OCI_1_1.routes, {**OCI_1_1.converters, "digest": LenientDigestConverter}
)
"""`OCI_1_1`, but with any digest of the form ``algorithm:encoded`` in its URLs, so that tests can
make up digests. See `testing.serve`."""


def takes_any_digest(dialect: Dialect) -> bool:
    """Return whether a dialect is `LENIENT`, or a subset of it."""
    return dialect.converters.get("digest") is LenientDigestConverter


class MadeUpDigests:
    """A layer that serves manifests and blobs under digests that the registry's views refuse.

    Pushes go to the views, which verify them.
    """

    def __init__(
        self, app: "WSGIApplication", storage: MemoryStorage, url_map: RegistryMap
    ) -> None:
        self.app = app
        self.storage = storage
        self.url_map = url_map

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        try:
            endpoint, values = self.url_map.bind_to_environ(environ).match()
        except HTTPException:
            return self.app(environ, start_response)
        digest = values.get("digest", "")
        if (
            endpoint not in (RouteName.MANIFEST, RouteName.BLOB, RouteName.REFERRERS)
            or environ["REQUEST_METHOD"] not in ("GET", "HEAD", "DELETE")
            or not digest
            or (DIGEST.fits(digest) and is_registered(digest))
        ):
            return self.app(environ, start_response)
        try:
            response = self._answer(RegistryRequest(environ), endpoint, **values)
        except MissingError:
            raise errors.MISSING[endpoint](detail=values) from None
        return response(environ, start_response)

    def _answer(self, request: RegistryRequest, endpoint: str, name: str, digest: str) -> Response:
        if request.method == "DELETE":
            is_manifest = endpoint == RouteName.MANIFEST
            delete = self.storage.delete_manifest if is_manifest else self.storage.delete_blob
            delete(name, digest)
            return Response(status=202)
        if endpoint == RouteName.MANIFEST:
            return manifest_response(request, digest, self.storage.manifest(name, digest))
        if endpoint == RouteName.BLOB:
            return blob_response(request, digest, self.storage.open_blob(name, digest))
        referrers = self.storage.referrers(name, digest)
        manifests: list[Any] = [json.loads(descriptor) for _, descriptor in referrers]
        index = {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": manifests}
        return Response(json.dumps(index), content_type=IMAGE_INDEX)
