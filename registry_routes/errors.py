"""The registry's errors: one exception for each error code of the API.

Each is the Werkzeug exception that its status implies, and renders the JSON body that the
distribution-spec 1.1 describes under "Error Codes". (RANGE_INVALID and
PAGINATION_NUMBER_INVALID are Docker's: Go distribution, ``registry/api``.)
"""

import json
from typing import Any, ClassVar

from werkzeug.exceptions import (
    BadRequest,
    HTTPException,
    MethodNotAllowed,
    NotFound,
    RequestedRangeNotSatisfiable,
)


def error_body(code: str, message: str, detail: Any = None) -> str:
    """The JSON body of an error.

    >>> error_body("NAME_UNKNOWN", "no such repository", {"name": "library/nginx"})
    '{"errors": [{"code": "NAME_UNKNOWN", "message": "no such repository", "detail": {"name": "library/nginx"}}]}'
    """  # noqa: E501
    error = {"code": code, "message": message, "detail": detail}
    if detail is None:
        del error["detail"]
    return json.dumps({"errors": [error]})


class RegistryError(HTTPException):
    """An error of the registry, as an exception and as the response to send.

    `message` says what went wrong to a person, in place of the code's own words; `detail` is
    anything that JSON can hold. Other options go to the Werkzeug exception.

    >>> error = BlobUnknown(detail={"digest": "sha256:…"})
    >>> isinstance(error, NotFound), error.code, error.error_code
    (True, 404, 'BLOB_UNKNOWN')
    >>> error.get_response().mimetype
    'application/json'
    """

    error_code: ClassVar[str]

    def __init__(self, message: str | None = None, *, detail: Any = None, **options: Any) -> None:
        super().__init__(description=message, **options)
        self.detail = detail

    def get_body(self, environ: Any = None, scope: Any = None) -> str:
        return error_body(self.error_code, self.description or self.name, self.detail)

    def get_headers(self, environ: Any = None, scope: Any = None) -> list[tuple[str, str]]:
        others = super().get_headers(environ, scope)
        return [
            ("Content-Type", "application/json"),
            *((name, value) for name, value in others if name.lower() != "content-type"),
        ]


class BlobUnknown(RegistryError, NotFound):
    error_code = "BLOB_UNKNOWN"
    description = "the repository has no such blob"


class BlobUploadUnknown(RegistryError, NotFound):
    error_code = "BLOB_UPLOAD_UNKNOWN"
    description = "the repository has no such upload"


class DigestInvalid(RegistryError, BadRequest):
    error_code = "DIGEST_INVALID"
    description = "the digest is not that of the content"


class ManifestBlobUnknown(RegistryError, NotFound):
    error_code = "MANIFEST_BLOB_UNKNOWN"
    description = "the manifest names a blob that the repository does not have"


class ManifestInvalid(RegistryError, BadRequest):
    error_code = "MANIFEST_INVALID"
    description = "the manifest is not valid"


class ManifestUnknown(RegistryError, NotFound):
    error_code = "MANIFEST_UNKNOWN"
    description = "the repository has no such manifest"


class NameInvalid(RegistryError, BadRequest):
    error_code = "NAME_INVALID"
    description = "the repository name is not valid"


class NameUnknown(RegistryError, NotFound):
    error_code = "NAME_UNKNOWN"
    description = "there is no such repository"


class PaginationNumberInvalid(RegistryError, BadRequest):
    error_code = "PAGINATION_NUMBER_INVALID"
    description = "the number of results to return must be a whole number, 0 or more"


class RangeInvalid(RegistryError, RequestedRangeNotSatisfiable):
    error_code = "RANGE_INVALID"
    description = "the chunk does not begin where the upload ends"


class SizeInvalid(RegistryError, BadRequest):
    error_code = "SIZE_INVALID"
    description = "the length of the content is not the length that was announced"


class Unsupported(RegistryError, MethodNotAllowed):
    error_code = "UNSUPPORTED"
    description = "the registry does not support this operation"


class RouteUnknown(RegistryError, NotFound):
    """UNSUPPORTED as a 404: the registry has no such endpoint, so clients do without it."""

    error_code = "UNSUPPORTED"
    description = "the registry has no such endpoint"
