"""Texts on which a careless expression takes quadratic time, or exponential."""

from collections.abc import Callable
from contextlib import suppress
from time import thread_time

import pytest
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map

from registry_routes import Reference, RegistryMap, RegistryRules, match_url, resolve_location
from registry_routes.challenges import parse_challenges
from registry_routes.headers import (
    bytes_received,
    chunk_min_length,
    parse_content_range,
    parse_list,
    parse_warnings,
)
from registry_routes.paging import parse_next_link
from registry_routes.responses import parse_errors
from registry_routes.routes import DIALECTS

SIZE = 40_000
MAPS = [RegistryMap(dialect=dialect) for dialect in DIALECTS.values()]
PLAIN_MAPS = [Map([RegistryRules(dialect)]) for dialect in DIALECTS.values()]


def in_url(text: str) -> None:
    for begin in "/", "/v2/", "/v2/a/tags/list?", "https://h/", "https://", "/m/v2/":
        for root in "/", "/m", f"/m/{'x/' * 20_000}":
            with suppress(HTTPException, ValueError):
                match_url(begin + text, root=root)
        with suppress(ValueError):
            resolve_location("https://h/v2/", begin + text, digest="x")


def in_path(text: str) -> None:
    for end in "!", "/tags/list/", "/_a/tags/list/", "/blobs/0.5":
        for url_map in [*MAPS, *PLAIN_MAPS] if end == "!" else MAPS:
            for begin in "", "!":
                with pytest.raises(HTTPException):
                    url_map.bind("registry.example").match(f"/v2/{begin}{text}{end}")


def in_challenge(text: str) -> None:
    for begin in "", "Bearer ", 'Bearer realm="', "Bearer scope=a:b:c", "Negotiate abc":
        parse_challenges(begin + text)


def in_list(text: str) -> None:
    for end in "", "!", '"', "\\":
        parse_list(text + end)
        parse_warnings(text + end)


def in_number(text: str) -> None:
    for parse in bytes_received, parse_content_range, chunk_min_length:
        for end in "", "x", "\n":
            with pytest.raises(ValueError, match="must"):
                parse(text + end)


def in_link(text: str) -> None:
    for begin in "", "</x>", '</x>; a="', "</x>;":
        for end in "", "!", '"', ">":
            assert parse_next_link("https://h/", begin + text + end) is None


def in_reference(text: str) -> None:
    for form in "{}", "{}.b/c", "{}/b", "[{}/a", "a:{}/a", "a:{}x/a", "a.b/{}@", "n:{}", "n@{}":
        try:
            Reference.parse(form.format(text))
        except ValueError as error:
            assert len(str(error)) < 400


def in_body(text: str) -> None:
    for begin in "", "<title", "<", "&#", '{"message": "':
        assert parse_errors(404, begin + text, {"Allow": text, "Retry-After": text})


SHAPES: dict[Callable[[str], None], list[str]] = {
    in_url: [*"/%&?#é[@:;", "/..", "/.", "a/", "%2F", "%zz", "%C3", "a=&"],
    in_path: [
        *("a/", "A/", "a", "a-", "/", "/manifests/", "a/manifests/", "/blobs/uploads/", "a/_"),
        *("_a/b/c/", ":", "a/!/", "a__", "a.b/", "-"),
    ],
    in_challenge: [
        *("a ", "a=b ", "a,", ",a ", '"', '\\"', "\\", " ", ",", "a b=", "scope=a,b ", "x=,"),
        "a=b,c ",
    ],
    in_list: ['"', '\\"', "\\", '299 - "', '299 - "a" ', ",", " ", '",', "299 ", '299 - "\\"'],
    in_number: ["9", "0-", "-", " ", "bytes ", "0-0/", "\t"],
    in_link: [
        *("</x>;", "</x>; ", " ", ",", "<", ';"', '\\"', "; a", '</x>;a="', '="', ';a="\\'),
        *(';a="\\"', ";rel", "</x>,", '</x>;rel="next', ";a= ", "=", "; "),
    ],
    in_reference: [
        *("a", "A", "-", ":", "@", "\x00", "a:", "a/", "a-", "a_", "a.", "a_b.", "[", "0", "c--"),
        *("v", "a+"),
    ],
    in_body: ["<", "<title>", "&#", "&#x", "a ", "[", " ,", "9", "\n"],
}


@pytest.mark.parametrize(
    ("read", "shape"), [(read, shape) for read, shapes in SHAPES.items() for shape in shapes]
)
def test_hostile_text_takes_linear_time(read: Callable[[str], None], shape: str) -> None:
    """A text that is eight times as long takes 64 times as long in quadratic time."""

    def seconds(size: int) -> float:
        text, begun = shape * (size // len(shape)), thread_time()
        read(text)
        return thread_time() - begun

    assert seconds(SIZE) < 24 * seconds(SIZE // 8) + 0.2
