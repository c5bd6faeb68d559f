"""A pull-through proxy: a cache of other registries, from which anyone may pull without a login.

    python examples/proxy.py --upstream https://registry-1.docker.io --upstream https://quay.io

Blobs, and manifests that are pulled by digest, never change: they are fetched once, verified and
kept. After ``--fresh-for``, the proxy asks again which manifest a tag points at. If an upstream is
down, the proxy serves the manifest that it has, with a ``Warning``. Lists come from the upstream.
The proxy refuses pushes.

The query parameter ``ns`` names the upstream of a request, as containerd sends it
(distribution-spec, main branch, "Registry Proxying"). Without it, the proxy asks the first
upstream. It logs in there with its own account, from the environment variable ``UPSTREAM_USERS``:
every client that reaches the proxy can pull what that account can.
"""

import argparse
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import collection
import kept_tag
from answers import stated_type
from health import add_health
from object_storage import ObjectStorage, one_line
from serving import OneLineParser, Server, add_server_options
from sharing import Fetch, Fetches, Once, Source
from storage import check_place, storage_at
from tokens import parse_user
from upstream import Upstream, User, is_head_refused
from werkzeug.datastructures import MIMEAccept
from werkzeug.exceptions import HTTPException
from werkzeug.http import parse_accept_header
from werkzeug.wrappers import Response

from registry_routes import (
    Reference,
    RegistryApp,
    RegistryRequest,
    RouteName,
    URLBuilder,
    error_response,
    errors,
    headers,
)
from registry_routes.digests import content_digest
from registry_routes.paging import next_link, parse_next_query
from registry_routes.registry import (
    Blob,
    Manifest,
    MissingError,
    blob_response,
    manifest_response,
    require_registered,
)

log = logging.getLogger(__name__)

USERS = "UPSTREAM_USERS"  # in the environment
RETRY = 10  # seconds before an upstream that has failed is asked again about the same tag
MAX_LIST = 32 * 1024 * 1024  # bytes of a page of tags, repositories or referrers
USED = 3600  # seconds until a use of the same manifest or tag is recorded again
WEEK = 7 * 24 * 3600  # seconds
MAX_REMEMBERED = 100_000  # tags and manifests

# The codes of a 404 that is an HTML page, or comes from a server without this route.
NOT_FROM_REGISTRY = errors.Unknown.error_code, errors.RouteUnknown.error_code

Found = tuple[str, Manifest]  # a digest and its manifest
Key = tuple[str, ...]
View = Callable[..., Response]
Value = TypeVar("Value")


class Busy(errors.Unavailable):
    """The error if too many requests wait for upstreams: no upstream has failed."""


class Proxy:
    """The views of a registry that serves the images of its upstreams.

    :param upstreams: the upstreams by namespace. The first serves requests without one.
    :param fresh_for: how many seconds a tag is served without asking the upstream again.
    :param stale_for: how many seconds a tag is served while the upstream fails, after it has last
        confirmed the tag.
    :param most_waiting: how many requests may wait for upstreams at a time. Others get a 503, so
        that even if an upstream stalls, threads are left to serve kept content.
    """

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        fresh_for: float,
        stale_for: float = WEEK,
        most_waiting: int = 384,
    ) -> None:
        self.upstreams = upstreams
        self.fresh_for = fresh_for
        self.stale_for = stale_for
        self.places = threading.BoundedSemaphore(most_waiting)
        self.fetches = Fetches()
        self.once = Once()
        # Each process has its own.
        self.fresh: dict[Key, tuple[float, str]] = {}
        """For a tag and an Accept: until when it is served without asking, and its digest."""
        self.failed: dict[Key, tuple[float, str]] = {}
        """For a tag: until when its upstream, which has failed, is not asked, and the warning."""
        self.used: dict[Key, float] = {}
        """For a tag or a manifest: when its use was last recorded."""

    def app(self) -> RegistryApp:
        app = RegistryApp()
        for endpoint, view in (
            (RouteName.MANIFEST, self.manifest),
            (RouteName.BLOB, self.blob),
            (RouteName.TAGS, partial(self.forward_list, RouteName.TAGS)),
            (RouteName.CATALOG, partial(self.forward_list, RouteName.CATALOG)),
            (RouteName.REFERRERS, partial(self.forward_list, RouteName.REFERRERS)),
        ):
            app.view(endpoint, "GET")(self._wrap(endpoint, view))
        app.view(RouteName.BLOB_UPLOAD, "POST")(_refuse_push)
        return app

    def _wrap(self, endpoint: str, view: View) -> View:
        """Return a view that passes on the upstream, and the repository's name there."""

        def answer(request: RegistryRequest, **values: str) -> Response:
            namespace = request.args.get("ns")
            upstream = self._choose_upstream(namespace)
            try:
                if "name" in values:
                    values["name"] = upstream.name_of(values["name"])
                response = view(request, upstream, **values)
            except MissingError:
                response = error_response(errors.MISSING[endpoint](detail=values))
            except HTTPException as error:
                response = error_response(error, request.environ)
            except OSError as error:
                log.error("%s: the storage has failed: %s", upstream.namespace, one_line(error))
                response = error_response(errors.Unavailable())
            if namespace is not None:
                response.headers["OCI-Namespace"] = namespace
            return response

        return answer

    def _take_place(self) -> Callable[[], None]:
        """Take a place among the waiting requests. Return a function that gives it back once.

        Raise `errors.Unavailable` if too many requests wait for upstreams.
        """
        if not self.places.acquire(blocking=False):
            raise Busy("too many requests wait for other registries", retry_after=1)
        is_given_back = threading.Lock()

        def give_back() -> None:
            if is_given_back.acquire(blocking=False):
                self.places.release()

        return give_back

    @contextmanager
    def _hold_place(self) -> Iterator[None]:
        """Take a place, and give it back at the end."""
        give_back = self._take_place()
        try:
            yield
        finally:
            give_back()

    def _choose_upstream(self, namespace: str | None) -> Upstream:
        """Return the upstream that a request is for, always one from the command line."""
        if namespace is None:
            return next(iter(self.upstreams.values()))
        found = self.upstreams.get(host_of(namespace))
        if found is None or not namespace.isascii():  # the Kelvin sign is a small k in lower case
            known = ", ".join(self.upstreams)
            raise errors.NameUnknown(f"ns {namespace!r:.300} is not an upstream here: {known}")
        return found

    # Manifests.

    def manifest(
        self, request: RegistryRequest, upstream: Upstream, name: str, **reference: str
    ) -> Response:
        warning = ""
        found: Found | Response
        if "tag" in reference:
            found, warning = self._find_tagged(request, upstream, name, reference["tag"])
        else:
            kept = _read_kept(upstream, name, require_registered(reference["digest"]))
            found = kept or self._ask_manifest(request, upstream, {"name": name, **reference})
        if isinstance(found, Response):
            return found
        self._use(upstream, name, *found)
        response = manifest_response(request, *found)
        if warning:
            response.headers["Warning"] = headers.warning(warning)
        return response

    def _find_tagged(
        self, request: RegistryRequest, upstream: Upstream, name: str, tag: str
    ) -> tuple[Found | Response, str]:
        """Return the manifest that a tag points at, and a warning if the tag may have changed."""
        where, accept = (upstream.namespace, name, tag), accept_of(request)
        until, digest = self.fresh.get((*where, accept), (0.0, ""))
        if time.monotonic() < until and (fresh := _read_kept(upstream, name, digest)):
            return fresh, ""
        accepted = parse_accept_header(accept, MIMEAccept)
        entry, kept = self._find_kept(upstream, name, tag, accepted)
        until, warning = self.failed.get(where, (0.0, ""))
        if kept and time.monotonic() < until:
            return kept, warning
        try:
            found = self._ask_manifest(request, upstream, {"name": name, "tag": tag}, kept)
        except HTTPException as error:
            # A 404 may come from a server in front of the registry that cannot reach it just now.
            if error.code == 404 and getattr(error, "error_code", "") not in NOT_FROM_REGISTRY:
                with suppress(MissingError):
                    upstream.storage.delete_tag(name, tag)
                raise
            if not kept or not entry or entry.age > self.stale_for:
                raise
            if isinstance(error, Busy):
                return kept, f"The proxy is busy. {name}:{tag} may have changed."
            return kept, self._note_failure(upstream, name, tag, error)
        if not isinstance(found, Response):
            digest, manifest = found
            answered = kept_tag.Kept(manifest.media_type, digest, time.time())
            confirm = partial(self._confirm, upstream, name, tag, answered, accepted)
            self.once.do((*where, "confirm"), confirm)
            _remember(self.fresh, (*where, accept), (time.monotonic() + self.fresh_for, digest))
        return found, ""

    def _note_failure(self, upstream: Upstream, name: str, tag: str, error: HTTPException) -> str:
        """Remember that the upstream failed for a tag. Return the warning that the tag is stale."""
        where = upstream.namespace, name, tag
        answer = f"{error.code} {error.name}"
        warning = f"{upstream.namespace}: {answer}. {name}:{tag} may have changed since."
        log.warning("%s The proxy serves the kept manifest.", warning)
        _remember(self.failed, where, (time.monotonic() + min(self.fresh_for, RETRY), warning))
        if self._is_due(where):  # tell the next collection that the tag was used
            with self._log_errors(upstream, f"{name}:{tag}"):
                entries = kept_tag.read(upstream.storage, name, tag)
                kept_tag.write(upstream.storage, name, tag, entries)
        return warning

    def _find_kept(
        self, upstream: Upstream, name: str, tag: str, accepted: MIMEAccept
    ) -> tuple[kept_tag.Kept | None, Found | None]:
        """Return the kept manifest of a tag that a client accepts, and its entry in the record."""
        for entry in kept_tag.select_accepted(kept_tag.read(upstream.storage, name, tag), accepted):
            if kept := _read_kept(upstream, name, entry.digest):
                return entry, kept
        return None, None

    def _confirm(
        self, upstream: Upstream, name: str, tag: str, answer: kept_tag.Kept, accepted: MIMEAccept
    ) -> None:
        """Record the upstream's answer for a tag, at least once an hour."""
        entries = kept_tag.read(upstream.storage, name, tag)
        found = kept_tag.merge_answer(entries, answer, accepted)
        ages = {(entry.media_type, entry.digest): entry.age for entry in entries}
        age = ages.get((answer.media_type, answer.digest), float("inf"))
        if len(found) == len(entries) and age <= min(USED, self.stale_for / 2):
            return
        with self._log_errors(upstream, f"{name}:{tag}"):
            kept_tag.write(upstream.storage, name, tag, found)

    def _ask_manifest(
        self,
        request: RegistryRequest,
        upstream: Upstream,
        values: dict[str, str],
        kept: Found | None = None,
    ) -> Found | Response:
        """Ask the upstream for a manifest. Return it, or the kept one if that is the same.

        For a HEAD, return a response with the upstream's headers instead, unless it is kept.
        """
        accept = accept_of(request)
        key = (upstream.namespace, *values.values(), accept)
        is_head, sent = request.method == "HEAD", None
        with self._hold_place():
            if kept or is_head:
                sent = self._ask_head(key, upstream, values, accept, is_kept=kept is not None)
            if sent is not None:
                if kept and content_digest(sent.get("Docker-Content-Digest")) == kept[0]:
                    return kept
                if is_head:
                    return answer_head(sent)
            return self._fetch_once(key, upstream, values, accept)

    def _ask_head(
        self, key: Key, upstream: Upstream, values: dict[str, str], accept: str, *, is_kept: bool
    ) -> Mapping[str, str] | None:
        """Return the headers of a manifest; `None` if only a GET can tell."""
        ask = partial(upstream.ask, "HEAD", RouteName.MANIFEST, values, {}, {"Accept": accept})
        try:
            return self.once.do((*key, "HEAD"), ask).headers
        except errors.RegistryError as error:
            # Only the body of a GET's 404 says whether it comes from the registry.
            is_unclear = is_kept and isinstance(error, errors.ManifestUnknown)
            if is_unclear or is_head_refused(error):
                return None
            raise

    def _fetch_once(
        self, key: Key, upstream: Upstream, values: dict[str, str], accept: str
    ) -> Found:
        return self.once.do((*key, "GET"), lambda: self._fetch_manifest(upstream, values, accept))

    def _fetch_manifest(self, upstream: Upstream, values: dict[str, str], accept: str) -> Found:
        found = upstream.manifest(values, accept)
        self._keep(upstream, values["name"], *found)
        return found

    def _use(self, upstream: Upstream, name: str, digest: str, manifest: Manifest) -> None:
        """Record the use of a manifest, by writing it again, which renews its time."""
        if self._is_due((upstream.namespace, name, digest)):
            self._keep(upstream, name, digest, manifest)

    def _is_due(self, key: Key) -> bool:
        """Return whether the use of a tag or manifest must be recorded. Remember it as recorded."""
        now = time.monotonic()
        if self.used.get(key, -float("inf")) + USED > now:
            return False
        _remember(self.used, key, now)
        return True

    def _keep(self, upstream: Upstream, name: str, digest: str, manifest: Manifest) -> None:
        _remember(self.used, (upstream.namespace, name, digest), time.monotonic())
        with self._log_errors(upstream, digest):
            upstream.storage.put_manifest(name, digest, manifest)

    @contextmanager
    def _log_errors(self, upstream: Upstream, what: str) -> Iterator[None]:
        """Log an error of the storage instead of raising it, so that the request goes on."""
        try:
            yield
        except MissingError:  # a collection is deleting it
            log.info("%s: cannot keep %s during a collection", upstream.namespace, what)
        except OSError as error:
            log.error("%s: cannot keep %s: %s", upstream.namespace, what, one_line(error))

    # Blobs.

    def blob(
        self, request: RegistryRequest, upstream: Upstream, name: str, digest: str
    ) -> Response:
        storage, values = upstream.storage, {"name": name, "digest": require_registered(digest)}
        with suppress(MissingError):
            return blob_response(request, digest, storage.open_blob(name, digest))
        if request.method == "HEAD":
            with self._hold_place():
                size = upstream.blob_size(values)
            response = blob_response(request, digest, Blob(size or 0, _no_content))
            if size is None:
                response.automatically_set_content_length = False
                del response.headers["Content-Length"]
            return response

        def open_source() -> Source:
            with suppress(MissingError):  # another request has just fetched it
                blob = storage.open_blob(name, digest)
                return Source(blob.size, blob.read(0, blob.size))
            return upstream.blob(values)

        def keep(content: Iterable[bytes]) -> None:
            with self._log_errors(upstream, digest):
                storage.put_blob(name, digest, content)

        key = (upstream.namespace, name, digest)
        make_fetch = partial(Fetch, f"{upstream.namespace}: {digest}", open_source, keep)
        with ExitStack() as at_end:
            give_back = self._take_place()
            at_end.callback(give_back)
            fetch = self.fetches.join(key, make_fetch)
            at_end.callback(self.fetches.leave, fetch)
            fetch.when_received(give_back)  # from then on, nobody waits for the upstream
            response = blob_response(request, digest, Blob(fetch.size(), fetch.read))
            response.call_on_close(at_end.pop_all().close)
        return response

    # Lists.

    def forward_list(
        self, endpoint: str, request: RegistryRequest, upstream: Upstream, **values: str
    ) -> Response:
        query = request.args.to_dict(flat=False)
        namespace = query.pop("ns", [])
        with self._hold_place():
            answer = upstream.ask(request.method, endpoint, values, query)
            content = upstream.read_body(answer, MAX_LIST)
        response = Response(content)
        passed_on = ["Content-Type", "OCI-Filters-Applied"]
        if request.method == "HEAD":
            response.automatically_set_content_length = False
            passed_on.append("Content-Length")
        for header in passed_on:
            if header in answer.headers:
                response.headers[header] = answer.headers[header]
        if not response.is_json:  # a browser might show HTML as a page of the proxy
            response.content_type = "application/json"
        asked = upstream.urls.build(endpoint, values, query)
        if found := parse_next_query(asked, answer.headers.get("Link")):
            url = request.urls.build(endpoint, values, {**found, "ns": namespace})
            response.headers["Link"] = next_link(url)
        return response


def accept_of(request: RegistryRequest) -> str:
    """Return the media types that the client accepts, for the upstream."""
    return request.headers.get("Accept") or f"{headers.ACCEPT_MANIFESTS}, */*"


def _read_kept(upstream: Upstream, name: str, digest: str) -> Found | None:
    with suppress(MissingError):
        manifest = upstream.storage.manifest(name, digest)
        if manifest.media_type != kept_tag.RECORD:
            return digest, manifest
    return None


def _remember(memory: dict[Key, Value], key: Key, value: Value) -> None:
    if len(memory) >= MAX_REMEMBERED:  # endless new keys must not fill the memory
        memory.clear()
    memory[key] = value


def _no_content(start: int, end: int) -> Iterable[bytes]:
    """Return no content, for an answer to a HEAD."""
    return ()


def _refuse_push(request: RegistryRequest, name: str) -> Response:
    """Refuse the first request of a push. The other requests have no view."""
    raise errors.Unsupported("this is a proxy, which takes no pushes", headers=[("Allow", "")])


def answer_head(sent: Mapping[str, str]) -> Response:
    """Return the response to a HEAD of a manifest: the upstream's headers, without defaults."""
    response = Response()
    response.automatically_set_content_length = False
    del response.headers["Content-Type"]
    for name, is_stated in (
        ("Content-Type", stated_type(sent)),
        ("Docker-Content-Digest", content_digest(sent.get("Docker-Content-Digest"))),
        ("Content-Length", "Content-Length" in sent),
    ):
        if is_stated:
            response.headers[name] = sent[name]
    return response


# The command line.


def make_app(
    places: Mapping[str, str],
    storage: str,
    users: Mapping[str, User],
    fresh_for: float = 300,
    stale_for: float = WEEK,
    timeout: float = 30,
    most_waiting: int = 384,
) -> Any:
    """Return the proxy, with its health check.

    :param places: the URL of each namespace's registry.
    :param storage: the place of the storages. Each namespace has its own storage within, because
        repositories of different registries may have the same name.
    """
    storages = {
        namespace: storage_at(place_within(storage, namespace), create=False)
        for namespace in places
    }
    upstreams = {
        namespace: Upstream(namespace, root, storages[namespace], users.get(namespace), timeout)
        for namespace, root in places.items()
    }
    return add_health(
        Proxy(upstreams, fresh_for, stale_for, most_waiting).app(), next(iter(storages.values()))
    )


def place_within(place: str, namespace: str) -> str:
    """Return the place of a namespace's storage."""
    return f"{place.rstrip('/')}/{namespace}"


def parse_place(text: str) -> tuple[str, str]:
    """Parse ``[NAMESPACE=]URL`` into a namespace and the URL of its registry."""
    namespace, equals, root = text.partition("=")
    if not equals or "/" in namespace:
        namespace, root = "", text
    try:
        root = URLBuilder(root).root
        namespace = host_of(namespace or urlsplit(root).netloc)
        if Reference.parse(f"{namespace}/x").domain != namespace:
            raise ValueError(f"{namespace!r} must be a host with a dot, or with a port")
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    return namespace, root


def host_of(namespace: str) -> str:
    """Return a registry's host as image references write it, such as ``docker.io``."""
    host = namespace.lower().removesuffix(":443")
    return "docker.io" if host in ("index.docker.io", "registry-1.docker.io") else host


def parse_accounts(text: str, places: Mapping[str, str]) -> dict[str, User]:
    """Return the account for each namespace, from lines of ``NAMESPACE=NAME:PASSWORD``."""
    users: dict[str, User] = {}
    for number, line in enumerate(filter(None, text.split("\n")), start=1):
        namespace, _, user = line.partition("=")
        try:
            if host_of(namespace) not in places:
                raise ValueError(f"there is no --upstream for it, only for {', '.join(places)}")
            users[host_of(namespace)] = parse_user(user)
        except ValueError as error:
            raise ValueError(f"${USERS}, account {number}: {error}") from None
    return users


def collect(arguments: list[str]) -> int:
    parser = collection.make_parser(
        "proxy.py collect",
        "Delete content that clients have not asked for lately, while the proxy is running.",
        older_than="the least time since a client asked for a manifest, such as 7d; the proxy "
        "records the time once an hour",
    )
    options = parser.parse_args(arguments)
    try:
        for namespace, storage in _list_storages(options.storage):
            found = collection.select_unneeded(storage, options.older_than, with_manifests=True)
            if not options.dry_run:
                found.delete()
            print(f"{namespace}: {'it would delete' if options.dry_run else 'deleted'}")
            for line in found.summary():
                print(f"  {line}")
    except OSError as error:
        print(f"proxy.py: {options.storage!r}: {error}", file=sys.stderr)
        return 2
    return 0


def _list_storages(place: str) -> Iterator[tuple[str, ObjectStorage]]:
    """Yield each namespace that has a storage, and the storage."""
    whole = collection.storage_to_collect(place)
    for namespace in whole.sections():
        yield namespace, collection.storage_to_collect(place_within(place, namespace))


def main() -> None:
    if sys.argv[1:2] == ["collect"]:
        sys.exit(collect(sys.argv[2:]))
    parser = OneLineParser(
        description="A pull-through proxy: a cache in front of one or more registries.",
        epilog=f"${USERS} holds the proxy's accounts, on lines of NAMESPACE=NAME:PASSWORD. "
        "`proxy.py collect` deletes content that was not used lately: see `collect --help`.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_server_options(parser, port=5002)
    parser.set_defaults(storage="./proxy-data")
    parser.add_argument(
        "--upstream",
        action="append",
        required=True,
        type=parse_place,
        metavar="[NAMESPACE=]URL",
        help="a registry, and the host in its image references if it differs from the URL's; may "
        "be repeated; the first serves requests without ns=",
    )
    parser.add_argument(
        "--fresh-for",
        default="5m",
        type=collection.parse_duration,
        metavar="TIME",
        help="how long a tag is served before the upstream is asked again, such as 30s, 5m, 1d",
    )
    parser.add_argument(
        "--stale-for",
        default="7d",
        type=collection.parse_duration,
        metavar="TIME",
        help="how long a tag is served while its upstream fails, after the upstream's last answer",
    )
    parser.add_argument(
        "--timeout",
        default="30s",
        type=collection.parse_duration,
        metavar="TIME",
        help="how long an upstream may be silent",
    )
    options = parser.parse_args()
    places = dict(options.upstream)
    if len(places) < len(options.upstream):
        parser.error("argument --upstream: two upstreams have one namespace")
    if not options.timeout:
        parser.error("--timeout 0s leaves an upstream no time to answer")
    try:
        users = parse_accounts(os.environ.get(USERS, ""), places)
    except ValueError as error:
        parser.error(str(error))
    server = Server(
        lambda: make_app(
            places,
            options.storage,
            users,
            options.fresh_for,
            options.stale_for,
            options.timeout,
            most_waiting=max(options.threads * 3 // 4, 1),
        ),
        options,
        f"A proxy at http://{{host}} for {', '.join(places)}",
    )
    for namespace in places:
        check_place(parser, place_within(options.storage, namespace))
    server.run()


if __name__ == "__main__":
    main()
