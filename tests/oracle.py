"""The answer of OCI 1.1 to a request, found in the slow and obvious way.

It shares no code with the package. It tries every split of the path into the pieces of every route,
and applies the regular expressions of the specification, copied from there, to each piece.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from . import nasty

# distribution-spec 1.1, "Pulling manifests"
NAME = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*"
TAG = r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}"
# image-spec 1.1, "Digests" (the grammar, as one expression) and "Registered Algorithms"
DIGEST = r"[a-z0-9]+([+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+"
SHA256 = r"[a-f0-9]{64}"
SHA512 = r"[a-f0-9]{128}"
# distribution-spec 1.1, extensions/README.md, with the "*" that is missing there
EXTENSION = r"[a-z0-9]+([._-][a-z0-9]+)*"
# an upload id of Docker's API, but without a leading dot
UPLOAD_ID = r"(?![.])[a-zA-Z0-9-_.=]+"


def is_valid(kind: str, value: str) -> bool:
    if kind == "digest" and value.startswith("sha256:"):
        return bool(re.fullmatch(SHA256, value.removeprefix("sha256:")))
    if kind == "digest" and value.startswith("sha512:"):
        return bool(re.fullmatch(SHA512, value.removeprefix("sha512:")))
    pattern = {
        "name": NAME,
        "tag": TAG,
        "digest": DIGEST,
        "algorithm": DIGEST.partition(":")[0],
        "uuid": UPLOAD_ID,
        "extension": EXTENSION,
        "component": EXTENSION,
        "module": EXTENSION,
    }[kind]
    return bool(re.fullmatch(pattern, value))


# The endpoint, the path and the methods of each route.
ROUTES = [
    ("base", "/v2/", "GET HEAD"),
    ("manifest", "/v2/{name}/manifests/{tag}", "GET HEAD PUT DELETE"),
    ("manifest", "/v2/{name}/manifests/{digest}", "GET HEAD PUT DELETE"),
    ("tags", "/v2/{name}/tags/list", "GET HEAD"),
    ("blob", "/v2/{name}/blobs/{digest}", "GET HEAD DELETE"),
    ("blob-upload", "/v2/{name}/blobs/uploads/", "POST"),
    ("blob-upload-chunk", "/v2/{name}/blobs/uploads/{uuid}", "GET HEAD PATCH PUT DELETE"),
    ("referrers", "/v2/{name}/referrers/{digest}", "GET HEAD"),
    ("catalog", "/v2/_catalog", "GET HEAD"),
    ("extension", "/v2/_{extension}/{component}/{module}", "GET HEAD"),
    ("extension", "/v2/{name}/_{extension}/{component}/{module}", "GET HEAD"),
]


EXAMPLE = {
    "name": "library/nginx",
    "tag": "latest",
    "digest": nasty.SHA256,
    "uuid": "some-id",
    "extension": "oci",
    "component": "ext",
    "module": "discover",
}


class Example(NamedTuple):
    """A path of a route, with its methods, endpoint and values."""

    path: str
    methods: list[str]
    endpoint: str
    values: dict[str, str]


EXAMPLES = [
    Example(
        template.format(**EXAMPLE),
        methods.split(),
        endpoint,
        {name: EXAMPLE[name] for name in re.findall(r"{(\w+)}", template)},
    )
    for endpoint, template, methods in ROUTES
]


def splits(text: str, pieces: list[str], fits: Callable[[str, str], bool]) -> list[dict[str, str]]:
    """Every way to cut `text` into `pieces`: literals, and {variables} with a value that fits."""
    if not pieces:
        return [] if text else [{}]
    piece, rest = pieces[0], pieces[1:]
    if not piece.startswith("{"):
        return splits(text[len(piece) :], rest, fits) if text.startswith(piece) else []
    found = []
    for end in range(1, len(text) + 1):
        # After every variable but the last comes a literal, so only try the ends before one.
        if text.startswith(rest[0], end) if rest else end == len(text):
            for values in splits(text[end:], rest, fits):
                if fits(piece[1:-1], text[:end]):
                    found.append({piece[1:-1]: text[:end], **values})
    return found


class Hit(NamedTuple):
    endpoint: str
    values: dict[str, str]
    methods: set[str]


def routes_of(path: str, prefix: str, fits: Callable[[str, str], bool] = is_valid) -> list[Hit]:
    return [
        Hit(endpoint, values, set(methods.split()))
        for endpoint, template, methods in ROUTES
        for values in splits(path, re.findall(r"{\w+}|[^{]+", prefix + template), fits)
    ]


def is_meant_as(kind: str, value: str) -> bool:
    """Whether `value` may be meant as one of this kind, well-formed or not."""
    if kind in ("extension", "component", "module"):
        return is_valid(kind, value)
    return kind == "name" or not ("/" in value or (kind == "tag" and ":" in value))


def diagnosis(path: str, other_ending: str, method: str, prefix: str) -> "Answer":
    """The answer to a request for a clean path that is not a route."""
    faults = {
        next(kind for kind, value in hit.values.items() if not is_valid(kind, value))
        for candidate in (path, other_ending)
        for hit in routes_of(candidate, prefix, is_meant_as)
        if hit.values
    }
    # A manifest's reference with no ":" in it is a tag.
    fault = "name" if "name" in faults else "tag" if "tag" in faults else min(faults, default=None)
    if fault is None:
        under_the_api = path == f"{prefix}/v2" or path.startswith(f"{prefix}/v2/")
        return Answer(404, "UNSUPPORTED" if under_the_api else None)
    return {
        "name": Answer(400, "NAME_INVALID"),
        "digest": Answer(400, "DIGEST_INVALID"),
        "tag": Answer(400, "TAG_INVALID") if method == "PUT" else Answer(404, "MANIFEST_UNKNOWN"),
        "uuid": Answer(404, "BLOB_UPLOAD_UNKNOWN"),
    }[fault]


def clean(path: str) -> str:
    """Like Go's path.Clean of a rooted path, but with a trailing slash kept; one step at a time."""
    trailing = path.endswith("/")
    path = f"/{path}/"
    while path != (step := re.sub(r"/(\.?/)+", "/", path, count=1)):
        path = step
    while path != (step := re.sub(r"\A(/\.\.)+/|(?<=/)(?!\.\./)[^/]+/\.\./", "", path, count=1)):
        path = step if step.startswith("/") else f"/{step}"
    return path if trailing else path.rstrip("/") or "/"


class Answer(NamedTuple):
    """A status, and with 200 the endpoint and the values, with 308 the path, with 405 the methods,
    and otherwise the error code."""

    status: int
    what: object = None


def answer(path: str, method: str, prefix: str = "") -> Answer:
    """The answer to a request for the decoded `path`."""
    other_ending = path[:-1] if path.endswith("/") else path + "/"
    cleaned = clean(path)
    other_cleaned = cleaned[:-1] if cleaned.endswith("/") else cleaned + "/"
    for candidate in path, cleaned, other_ending, other_cleaned:
        if candidate != clean(candidate):
            continue
        hits = routes_of(candidate, prefix)
        assert len(hits) < 2, f"{candidate} is ambiguous: {hits}"
        for hit in hits:
            if method not in hit.methods:
                return Answer(405, hit.methods)
            if candidate == path:
                return Answer(200, (hit.endpoint, hit.values))
            return Answer(308, candidate)
    return diagnosis(cleaned, other_cleaned, method, prefix)
