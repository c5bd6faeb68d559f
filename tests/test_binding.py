"""Binding late changes only the speed: the adapters are the same as Werkzeug's."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from flask import Request as FlaskRequest
from werkzeug.exceptions import BadRequest, HTTPException, SecurityError
from werkzeug.routing import Map, Subdomain
from werkzeug.wrappers import Request

from registry_routes import OCI_1_1, RegistryMap, RegistryRules
from registry_routes.errors import NameInvalid

from .wsgi import environ_for

ENVIRONS: dict[str, dict[str, Any]] = {
    "plain": environ_for("/v2/"),
    "mounted": environ_for("/v2/?n=1", SCRIPT_NAME="/m/é".encode().decode("latin-1")),
    "not ASCII": environ_for("/v2/%C3%A9%FF?q=%C3%A9"),
    "port 80": environ_for("/v2", "POST", HTTP_HOST="registry.example:80"),
    "port 443": environ_for("/v2", HTTP_HOST="h:443", **{"wsgi.url_scheme": "https"}),
    "websocket": environ_for("/v2/", HTTP_UPGRADE="websocket", HTTP_CONNECTION="a, Upgrade"),
    "HTTP/2": environ_for("/v2/", HTTP_UPGRADE="h2c", HTTP_CONNECTION="Upgrade"),
    **{
        f"host {host[:9]}": environ_for("/v2/", HTTP_HOST=host)
        for host in (*("H:5000", "[::1]:5000", "bücher.example", "", "a..b"), 70 * "a" + ".example")
    },
    "wss": environ_for("/v2/", **{"wsgi.url_scheme": "wss"}),
    **{
        f"no {key}": {k: v for k, v in environ_for("/v2/").items() if k != key}
        for key in ("HTTP_HOST", "PATH_INFO", "SCRIPT_NAME", "QUERY_STRING")
    },
}
ATTRIBUTES = vars(Map().bind("h")).keys() - {"map"}


def bound(url_map: Map, environ: Any, given: dict[str, Any]) -> Any:
    """The attributes of an adapter, or the error, and the warnings on the way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            adapter = url_map.bind_to_environ(environ, **given)
            result: Any = {name: getattr(adapter, name) for name in ATTRIBUTES}
        except HTTPException as error:
            result = type(error)
        except RuntimeError as error:  # a subdomain given to a map that matches hosts
            result = str(error)
    return result, [warning.category for warning in caught]


# Options of the map, and arguments of `bind_to_environ`: each matters alone.
WAYS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    *((options, {}) for options in ({}, {"host_matching": True}, {"default_subdomain": "x"})),
    *(({}, {"server_name": name}) for name in ("example", "Registry.example:80")),
    ({}, {"subdomain": "x"}),
    ({"host_matching": True}, {"subdomain": "x"}),
    ({"host_matching": True}, {"server_name": "example"}),
    ({"default_subdomain": "x"}, {"server_name": "other.example"}),
]


@pytest.mark.parametrize("kind", [dict, Request], ids=["environ", "request"])
@pytest.mark.parametrize("environ", ENVIRONS.values(), ids=ENVIRONS)
def test_adapter_has_the_same_attributes_as_werkzeugs(
    environ: dict[str, Any], kind: Callable[[Any], Any]
) -> None:
    for options, given in WAYS:
        ours, theirs = RegistryMap(dialect=OCI_1_1.subset("base"), **options), Map(**options)
        expected = bound(theirs, kind(environ), given)
        for _ in range(3):  # only the first environ of a host is bound in full
            assert bound(ours, kind(environ), given) == expected


def test_later_changes_to_the_environ_have_no_effect() -> None:
    url_map = RegistryMap()
    for _ in range(2):
        environ = environ_for("/v2/a/tags/list?n=1", SCRIPT_NAME="/mount")
        adapter = url_map.bind_to_environ(environ)
        environ |= {"SCRIPT_NAME": "/other", "QUERY_STRING": "", "PATH_INFO": "/"}
        assert adapter.match() == ("tags", {"name": "a"})
        assert adapter.build("base") == "/mount/v2/"
        assert adapter.query_args == "n=1"


@pytest.mark.parametrize("kind", [dict, Request, FlaskRequest])
def test_match_binds_only_the_attributes_that_it_needs(kind: Callable[[Any], Any]) -> None:
    """The results would be the same, so this looks at the attributes."""
    url_map = RegistryMap()
    url_map.bind_to_environ(kind(environ_for("/v2/")))
    adapter = url_map.bind_to_environ(kind(environ_for("/v2/")))
    assert adapter.match() == ("base", {})
    assert "server_name" not in vars(adapter)
    assert adapter.server_name == "registry.example"
    adapter.script_name = "/other/"  # an attribute that was set keeps its value
    assert adapter.build("base", force_external=True) == "http://registry.example/other/v2/"


class Trusting(Request):
    trusted_hosts = ["registry.example"]


class Checking(Request):
    @property
    def host(self) -> str:
        if super().host != "registry.example":
            raise SecurityError
        return super().host


@pytest.mark.parametrize("kind", [Trusting, Checking])
def test_request_that_checks_its_host_is_bound_by_werkzeug(kind: type[Request]) -> None:
    """From 3.2 on, Werkzeug checks the trusted hosts of a request, and so reads its host."""
    evil = environ_for("/v2/", HTTP_HOST="evil.example")
    url_map = RegistryMap()
    for environ in environ_for("/v2/"), evil:
        url_map.bind_to_environ(environ)  # now the host is known
    assert "server_name" in vars(url_map.bind_to_environ(kind(environ_for("/v2/"))))
    for given in {}, {"server_name": "other.example"}:
        assert bound(url_map, kind(evil), given) == bound(Map(), kind(evil), given)


def test_host_that_werkzeug_refuses_is_refused_again() -> None:
    url_map = RegistryMap()
    environ = environ_for("/v2/", HTTP_HOST="a..b")
    with pytest.warns(UserWarning, match="Current server name"):
        assert url_map.bind_to_environ(environ, server_name="registry.example")
    for _ in range(2):
        with pytest.raises(BadRequest):
            url_map.bind_to_environ(environ)


def test_memory_for_hosts_is_limited() -> None:
    url_map = RegistryMap()
    for i in range(3000):
        adapter = url_map.bind_to_environ(environ_for("/v2/", HTTP_HOST=f"host-{i}.example"))
        assert adapter.match() == ("base", {})
    assert 0 < len(url_map._known_hosts) <= 1000
    known = set(url_map._known_hosts)
    for long in "a." * 30_000 + "example", "registry.example:" + "1" * 60_000:
        adapter = url_map.bind_to_environ(environ_for("/v2/", HTTP_HOST=long))
        assert adapter.match() == ("base", {})
    assert url_map._known_hosts <= known


def test_default_subdomain_can_be_set_later_as_in_a_plain_map() -> None:
    ours, plain = RegistryMap(), Map([RegistryRules()])
    ours.default_subdomain = plain.default_subdomain = "www"
    for subdomain in None, "":
        adapters = [url_map.bind("h.example", None, subdomain) for url_map in (ours, plain)]
        for adapter in adapters:
            assert adapter.test("/v2/a/tags/list") == (subdomain == "")
        for external in False, True:
            built = {a.build("tags", {"name": "a"}, force_external=external) for a in adapters}
            assert len(built) == 1


def test_table_applies_at_the_default_subdomain() -> None:
    adapter = RegistryMap(default_subdomain="www").bind("registry.example")
    assert adapter.match("/v2/a/tags/list") == ("tags", {"name": "a"})
    with pytest.raises(NameInvalid):
        adapter.match("/v2/A/tags/list")
    other = RegistryMap(rules=[Subdomain("www", [RegistryRules()])])
    built = other.bind("registry.example", None, "www").build("tags", {"name": "a"})
    assert built == "http://registry.example/v2/a/tags/list"
