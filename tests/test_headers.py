"""The API's own headers: written headers can be read back, and so can those of registries."""

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from werkzeug.http import parse_accept_header
from werkzeug.test import create_environ, run_wsgi_app
from werkzeug.wrappers import Response

from registry_routes.headers import (
    ACCEPT_MANIFESTS,
    MANIFEST_MEDIA_TYPES,
    bytes_received,
    chunk_min_length,
    content_range,
    field_lines,
    header_pairs,
    header_values,
    parse_content_range,
    parse_list,
    parse_warnings,
    upload_range,
    warning,
)

SIZES = st.integers(0, 10**17)


def test_accept_has_all_types_of_manifests() -> None:
    accepted = [value for value, _ in parse_accept_header(ACCEPT_MANIFESTS)]
    assert sorted(accepted) == sorted(MANIFEST_MEDIA_TYPES)
    kinds = ["oci.image.index.v1", "oci.image.manifest.v1"]
    kinds += ["docker.distribution.manifest.list.v2", "docker.distribution.manifest.v2"]
    assert set(MANIFEST_MEDIA_TYPES) == {f"application/vnd.{kind}+json" for kind in kinds}


@pytest.mark.parametrize("headers", [3, ["GET"]])
def test_header_pairs_of_other_objects_is_a_type_error(headers: Any) -> None:
    with pytest.raises(TypeError, match=r"^headers .* are neither a mapping nor pairs"):
        header_pairs(headers)
    assert header_values({"Retry-After": 30, "retry-after": None}, "Retry-After") == ["30"]


# Ranges and sizes.

NOT_NUMBERS = ["", "x", "٣", "0x1", "1_000", "+1", "1.0", "5\n", "9" * 19]


@given(SIZES)
@example(0)
@example(1)
@example(2)
def test_upload_range_is_read_back(size: int) -> None:
    written = upload_range(size)
    assert re.fullmatch("0-[0-9]+", written)  # the specification's form
    for value in written, f"Bytes={written}\t", f"bytes {written}":
        assert bytes_received(value) == (size if size != 1 else 0)


def test_upload_range_of_nothing() -> None:
    for value in None, "0--1", "bytes=0--1":
        assert bytes_received(value) == 0


@given(SIZES, SIZES.map(lambda size: size + 1))
def test_content_range_is_read_back(start: int, size: int) -> None:
    written = content_range(start, size)
    total = start + size
    for value in written, f"bytes {written}/*", f"bytes {written}/{total}", f" Bytes={written}":
        assert parse_content_range(value) == (start, size)


@given(SIZES)
def test_chunk_min_length(size: int) -> None:
    assert chunk_min_length(str(size)) == chunk_min_length(f" {size:018}\t") == size
    assert chunk_min_length(None) == 0


def test_negative_size_or_start_is_refused() -> None:
    with pytest.raises(ValueError, match="size -1 must be 0 or more"):
        upload_range(-1)
    with pytest.raises(ValueError, match="size 0 must be 1 or more"):
        content_range(5, 0)
    with pytest.raises(ValueError, match="start -1 must be 0 or more"):
        content_range(-1, 5)


@pytest.mark.parametrize(
    ("parse", "name", "values"),
    [
        (
            *(bytes_received, "Range"),
            ["0", "0-", "0--2", "1-5", "0-5/10", "00-5", "0 - 5", "bytes", "bytes=0-1,3-4"]
            + [f"0-{number}" for number in NOT_NUMBERS],
        ),
        (
            *(parse_content_range, "Content-Range"),
            ["5", "5-4", "0--1", "-1-3", "0-4,6-9", "0 - 4", "0-4/", "bytes */10", "bytes 0-4/4"]
            + ["items 0-4", "bytes  0-4", "0-4/5/6"]
            + [f.format(number) for number in NOT_NUMBERS for f in ("0-{}", "{}-9", "0-4/{}")],
        ),
        (chunk_min_length, "OCI-Chunk-Min-Length", [*NOT_NUMBERS, "-1", "9" * 5000]),
    ],
)
def test_malformed_number_is_named(parse: Any, name: str, values: list[str]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"^{name} '") as error:
            parse(value)
        assert len(str(error.value)) < 200


# Lists and warnings.

TAGS = st.from_regex("[a-zA-Z0-9_][a-zA-Z0-9._-]{0,7}", fullmatch=True)


@given(
    st.lists(st.lists(TAGS, max_size=4), max_size=4),
    st.sampled_from([",", ", ", " ,\t", ",,", ", ,"]),
)
def test_list_in_one_line_or_in_several(lines: list[list[str]], comma: str) -> None:
    tags = [tag for line in lines for tag in line]
    assert parse_list([comma.join(line) for line in lines]) == tags
    assert parse_list(comma.join(tags)) == tags
    assert parse_list(tag for tag in tags) == tags


def test_quoted_comma_does_not_end_an_element() -> None:
    assert parse_list('a="1,2", b="\\",", c') == ['a="1,2"', 'b="\\","', "c"]
    assert parse_list(None) == parse_warnings("") == field_lines(None) == []


LATIN_1 = st.text(st.sampled_from("\t" + "".join(map(chr, [*range(32, 127), *range(160, 256)]))))


@given(st.lists(LATIN_1, unique=True), st.booleans())
def test_warning_is_sent_and_read_back(texts: list[str], are_joined: bool) -> None:
    response = Response(headers=[("Warning", warning(text)) for text in texts])
    sent = run_wsgi_app(response, create_environ())[2].getlist("Warning")
    assert parse_warnings(", ".join(sent) if are_joined else sent) == texts
    assert parse_warnings(sent * 3) == texts  # each once


@given(LATIN_1, st.sampled_from("\x00\r\n\x1f\x7f\x80\x85\x9fĀ€\ud800"), LATIN_1)
def test_warning_of_unsendable_characters_is_refused(before: str, bad: str, after: str) -> None:
    with pytest.raises(ValueError, match="contains characters that no header can carry"):
        warning(before + bad + after)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('299 - "a" "Sat, 25 Aug 2012 23:34:45 GMT"', ["a"]),
        ('299 registry.example "a", 299 - "b"', ["a", "b"]),
        ('110 - "Response is Stale", 299 - "b"', ["b"]),
        ('299 - a, 299 - "b"', ["b"]),
        ('299 - "a" b, 1299 - "c", 299 - "d"', ["d"]),
        ('299 - "a\\"b\\\\c, d"', ['a"b\\c, d']),
        ('299 - "a', []),
        ('299 - "a\\"', []),
    ],
)
def test_warnings_in_all_their_forms(value: str, expected: list[str]) -> None:
    assert parse_warnings(value) == expected
    assert parse_warnings(["299", value]) == expected  # a malformed line does not affect others
