"""Answers of a registry, as `client.py`, `upstream.py`, `front.py` and `proxy.py` read them."""

from collections.abc import Mapping

import requests

from registry_routes.responses import raise_for_status

BODY_BLOCK = 64 * 1024  # bytes

# Types that servers send for any file, so they say nothing about a manifest.
DEFAULT_TYPES = "", "application/json", "application/octet-stream", "text/plain"


def read_body(response: requests.Response, most: int = BODY_BLOCK) -> bytes:
    """Return the body of a response, cut off at the first block that exceeds `most` bytes."""
    content = bytearray()
    with response:
        for block in response.iter_content(BODY_BLOCK):
            content += block
            if len(content) > most:
                break
    return bytes(content)


def check_response(response: requests.Response, endpoint: str | None = None) -> requests.Response:
    """Return the response, if it is successful. Raise the registry's error if it is not."""
    raise_for_status(response, endpoint=endpoint)
    if response.status_code >= 300:  # a redirect without a Location
        response.close()
        raise ValueError(f"{response.url!r} answers {response.status_code} without a Location")
    return response


def stated_type(headers: Mapping[str, str]) -> str:
    """Return the media type of an answer, or "" if it is only a server's default."""
    stated = headers.get("Content-Type", "").partition(";")[0].strip()
    return "" if stated.lower() in DEFAULT_TYPES else stated


def has_token(response: requests.Response) -> bool:
    """Return whether the request of this response had a token of the registry's token server."""
    return str(response.request.headers.get("Authorization", "")).startswith("Bearer ")
