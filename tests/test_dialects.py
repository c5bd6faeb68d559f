"""Any dialect that can be made is right: drawn dialects, read slowly, with other rules next to them."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import Any, ClassVar, NamedTuple
from urllib.parse import unquote

import werkzeug.routing.exceptions
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import Map, RequestRedirect, Rule, RuleFactory, Submount

from registry_routes import OCI_1_1, Dialect, RegistryMap, RegistryRules, Route
from registry_routes.converters import ANYTHING, GrammarConverter
from registry_routes.errors import DigestInvalid, NameInvalid, RegistryError, RouteUnknown
from registry_routes.grammar import Grammar

from . import nasty
from .nasty import SHA256
from .oracle import clean
from .wsgi import other_ending

# From Werkzeug 3.2 on.
DuplicateRuleError: Any = getattr(werkzeug.routing.exceptions, "DuplicateRuleError", ())


def grammar(pattern: str, example: str, *, is_url_safe: bool = True) -> Grammar:
    rules = (("", f"must match {pattern}"),)
    return Grammar("value", pattern, "a test", rules, example, is_url_safe)


class Greedy(GrammarConverter, grammar=grammar("[a-z]+(?:/[a-z]+)*", "a/b")):
    @classmethod
    def malformed(cls, method: str) -> type[RegistryError]:
        return NameInvalid


class Anything(GrammarConverter, grammar=grammar("[^/].*", "a/b", is_url_safe=False)): ...


class Word(GrammarConverter, grammar=grammar("[ab]+", "ab")): ...


class Slashy(GrammarConverter, grammar=grammar("x(?:/y)?|a.*", "x", is_url_safe=False)):
    looks_like: ClassVar[str | None] = ANYTHING

    @classmethod
    def malformed(cls, method: str) -> type[RegistryError]:
        return DigestInvalid


CONVERTERS: dict[str, type[GrammarConverter]] = {
    **OCI_1_1.converters,
    "greedy": Greedy,
    "anything": Anything,
    "word": Word,
    "slashy": Slashy,
}
NAMES = ["repository", "repository", "greedy", "anything", "word", "tag"]
KINDS = ["tag", "digest", "word", "slashy", "extension", "upload_id"]
METHODS = ["GET", "HEAD", "PUT", "POST"]


def dialect_of(random: Random, kinds: list[str] = KINDS) -> Dialect:
    """A dialect of one to eight routes, of those that can be made."""
    root = random.choice(["/v2", "/v2", "/api/v1", ""])
    names = random.choices(NAMES, k=random.choice([1, 1, 2]))
    routes: list[Route] = []
    while len(routes) < 8 and (not routes or random.random() < 0.9):
        segments = [f"<{random.choice(names)}:name>"] if random.random() < 0.75 else []
        for i in range(random.choice([0, 1, 1, 2, 2, 3])):
            literal = random.choice(["tags", "list", "a", "b", "_a"])
            variable = f"{random.choice(['', '', '_'])}<{random.choice(kinds)}:v{i}>"
            segments.append(random.choice([literal, variable]))
        path = "/".join([root, *segments, *random.choice([[], [], [], [""]])]) or "/"
        if routes and random.random() < 0.3:
            path = random.choice(routes).path
            path = random.choice([path, other_ending(path)])
        methods = random.choice([None, *[tuple(random.sample(METHODS, 2))] * 9, ("GET",), ()])
        try:
            route = Route(f"e{random.randrange(5)}", path, methods)
            Dialect("drawn", (*routes, route), CONVERTERS)
        except ValueError as error:
            assert str(error).startswith(f"route {path!r}: ")
            continue
        routes.append(route)
    dialect = Dialect("drawn", tuple(routes), CONVERTERS)
    if random.random() < 0.3:
        endpoints = random.sample([r.endpoint for r in routes], random.randint(1, len(routes)))
        try:
            return dialect.subset(*endpoints, methods=random.choice([None, None, ["GET"]]))
        except ValueError:  # nothing is left
            pass
    return dialect


class Reading(NamedTuple):
    """The values of a path if it is taken for a path of this route."""

    route: Route
    values: dict[str, str]
    is_left_out: bool
    rank: tuple[int, ...]


class SlowTable:
    """The answers of a table, read slowly from the documentation of `Dialect`."""

    def __init__(self, dialect: Dialect, prefix: str) -> None:
        self.dialect, self.prefix = dialect, prefix
        self.root = prefix + dialect.root
        self.routes = [(route, False) for route in dialect.routes]
        self.routes += [(route, True) for route in dialect.left_out]

    def methods(self, route: Route) -> set[str]:
        if route.methods is None:
            return {*METHODS, "PROPFIND"}
        shape = re.sub(":[a-z0-9]+>", ">", route.path).rstrip("/")
        siblings = [
            other
            for other in self.dialect.routes
            if re.sub(":[a-z0-9]+>", ">", other.path).rstrip("/") == shape
        ]
        has_head = any("HEAD" in (other.methods or ()) for other in siblings)
        return {*route.methods, *(["HEAD"] if "GET" in route.methods and not has_head else [])}

    def readings(self, path: str, *, loosely: bool = False) -> Iterator[Reading]:
        for index, (route, is_left_out) in enumerate(self.routes):
            parts = (self.prefix + route.path).split("/")
            segments = path.split("/")
            start = len(self.root.split("/"))
            has_name = parts[start].startswith("<") if len(parts) > start else False
            if has_name:
                end = len(segments) - len(parts) + start + 1
                if end <= start:
                    continue
                segments[start:end] = ["/".join(segments[start:end])]
            if len(segments) != len(parts):
                continue
            if loosely and path.endswith("/") != route.path.endswith("/"):
                continue  # a name may have a trailing slash, but this is not meant
            values = {}
            for i, (part, segment) in enumerate(zip(parts, segments, strict=True)):
                text, _, variable = part.partition("<")
                if not variable:
                    if part != segment:
                        break
                    continue
                kind, _, name = variable.rstrip(">").partition(":")
                value = segment[len(text) :]
                if not segment.startswith(text) or not value:
                    break
                converter = self.dialect.converters[kind]
                is_name = has_name and i == start
                may_be = loosely and (
                    is_name or re.fullmatch(converter.looks_like or "(?!)", value)
                )
                if not (converter.grammar.fits(value) or may_be):
                    break
                values[name] = value
            else:
                literals = sum("<" not in part for part in parts[start:] if part)
                kinds = self.dialect.variables(route).values()
                wide = sum(kind.looks_like == ANYTHING for kind in kinds)
                length = len("/".join(parts).rstrip("/").split("/"))
                rank = (has_name, -literals, length, len(values), wide, index)
                yield Reading(route, values, is_left_out, rank)

    def exact(self, path: str, method: str) -> Reading | None:
        """The route that has a path: that with the most literal segments, then the first."""
        fits = [r for r in self.readings(path) if not r.is_left_out]
        fits = [r for r in fits if method in self.methods(r.route)]
        return min(fits, key=lambda r: (r.rank[1], r.rank[-1]), default=None)

    def is_under_root(self, path: str) -> bool:
        return f"{path}/".startswith(f"{self.root}/")

    def refusing_methods(self, path: str) -> set[str] | None:
        """The methods of a path that is a route; `None` if it is not."""
        forms = path, other_ending(path)
        kept = [r.route for form in forms for r in self.readings(form) if not r.is_left_out]
        return set().union(*map(self.methods, kept)) if kept else None

    def fault(self, path: str, method: str) -> tuple[Any, ...]:
        forms = path, other_ending(path)
        if any(r.is_left_out for form in forms for r in self.readings(form)):
            return (RouteUnknown, None)
        meant = [r for form in forms for r in self.readings(form, loosely=True)]
        if not meant:
            return (RouteUnknown, None)
        first = min(meant, key=lambda r: r.rank)
        for name, converter in self.dialect.variables(first.route).items():
            if not converter.grammar.fits(first.values[name]):
                if first.is_left_out:
                    return (RouteUnknown, None)
                return converter.malformed(method), {name: first.values[name]}
        raise AssertionError("it is a route")


Outcome = tuple[Any, ...]


def outcome(call: Callable[[], Any]) -> Outcome:
    try:
        endpoint, values = call()
    except RequestRedirect as error:
        return 308, unquote(error.new_url)
    except MethodNotAllowed as error:
        return 405, set(error.valid_methods or ())
    except RegistryError as error:
        return type(error), error.detail
    except HTTPException as error:
        return (type(error),)
    return endpoint, values


def rules_of(random: Random, root: str) -> list[Callable[[], RuleFactory]]:
    paths = ["/<path:p>", "/<path:p>/", "/x/<path:p>", f"{root}/token", f"{root}/<path:p>"]
    paths += [f"{root}/a/tags/", f"{root}/<string:s>", f"{root}/<string:s>/tags", f"{root}/a/b"]
    chosen = random.sample(range(len(paths)), random.choice([0, 0, 1, 2, 4]))
    methods = {i: random.choice([None, ["GET"], ["PUT", "POST"]]) for i in chosen}
    to = {i: random.choice([None, None, None, "elsewhere"]) for i in chosen}
    return [
        partial(Rule, paths[i], endpoint=f"mine{i}", methods=methods[i], redirect_to=to[i])
        for i in chosen
    ]


def paths_of(random: Random, dialect: Dialect, prefix: str) -> Iterator[str]:
    texts = ["a", "b", "tags", "list", "_a", "x", "A", ".x", "y", "é", "a\n", "", "sha256:", SHA256]
    names = ["a", "a/b", "a/tags/list", "A/b", "a/-", "tags", "_a/b", "a//b", "b/a/tags/a/b"]
    for _ in range(6):
        for route in (*dialect.routes, *dialect.left_out):
            path = re.sub("<[a-z_]+:name>", lambda _: random.choice(names), route.path)
            path = prefix + re.sub("<[^>]*>", lambda _: random.choice(texts), path)
            at = random.randrange(len(path) + 1)
            yield random.choice(
                [
                    *(path, path, path, other_ending(path), f"{path}/", f"/{path}"),
                    *(path[:at] + "/" + path[at:], path[:at] + "/x/.." + path[at:]),
                ]
            )
        tail = "/".join(random.choices(texts, k=random.randint(0, 4)))
        yield f"{random.choice([prefix, ''])}{dialect.root}/{tail}"


class BuildOnly(RegistryRules):
    """Routes that an alias can lead to, but that never match."""

    def get_rules(self, map: Map) -> Iterator[Rule]:
        for rule in super().get_rules(map):
            rule.build_only = True
            yield rule


class Engine:
    """A map with other rules, and the answers that it must give."""

    def __init__(
        self, dialect: Dialect, prefix: str, make: list[Callable[[], RuleFactory]], **options: Any
    ) -> None:
        self.dialect, self.prefix = dialect, prefix
        self.slow = SlowTable(dialect, prefix)
        self.map = RegistryMap(
            (make_rule() for make_rule in make), dialect=dialect, prefix=prefix, **options
        )
        options["converters"] = dialect.converters
        routes = Submount(prefix, [RegistryRules(dialect)])
        self.plain = Map([routes, *(make_rule() for make_rule in make)], **options)
        own = [rule for make_rule in make for rule in make_rule().get_rules(Map())]
        below = [rule for rule in own if self.is_below(rule.rule)]
        self.below = Map([Submount(prefix, [BuildOnly(dialect)]), *below], **options)

    def is_below(self, path: str) -> bool:
        return self.slow.is_under_root(re.sub("/{2,}", "/", f"/{path}"))

    def expected(self, path: str, method: str) -> Outcome:
        slow = self.slow
        if hit := slow.exact(path, method):
            return hit.route.endpoint, hit.values
        stripped = f"/{path.lstrip('/')}"
        others: Outcome = (NotFound,)
        if not (self.is_below(path) and slow.exact(stripped, method)):
            others_map = self.below if self.is_below(path) else self.plain
            others = outcome(lambda: others_map.bind("h").match(path, method))
        if isinstance(others[0], str):
            return others
        given = path if path.startswith("/") else stripped
        cleaned = clean(given)
        for form in cleaned, other_ending(cleaned):
            if slow.is_under_root(cleaned) and (hit := slow.exact(form, method)):
                if cleaned == given and (form == cleaned or not self.map.strict_slashes):
                    return hit.route.endpoint, hit.values
                return 308, form
        if slow.is_under_root(cleaned) and (methods := slow.refusing_methods(cleaned)) is not None:
            return 405, methods | (others[1] if others[0] == 405 else set())
        if others != (NotFound,) or not slow.is_under_root(cleaned):
            return others
        return slow.fault(cleaned, method)


def check_drawn(seed: int, *, is_strict: bool) -> Counter[Any]:
    """Compare the answers of a drawn map with the slow ones, and count their kinds."""
    random, seen = Random(seed), Counter[Any]()
    try:
        dialect, prefix = dialect_of(random), random.choice(["", "", "/r", "/a b"])
        rules = rules_of(random, prefix + dialect.root)
        engine = Engine(dialect, prefix, rules, strict_slashes=is_strict)
    except DuplicateRuleError:
        return seen
    adapter = engine.map.bind("h")
    for path in paths_of(random, engine.dialect, engine.prefix):
        reached = adapter.endpoints(path)
        fits = [r.route for r in engine.slow.readings(path) if not r.is_left_out]
        for method in [*METHODS, "PROPFIND"]:
            expected = engine.expected(path, method)
            got = outcome(lambda: adapter.match(path, method))
            assert got == expected, (engine.dialect.routes, engine.prefix, path, method)
            if isinstance(got[0], str):
                assert reached.get(method, reached.get(None)) == got[0]
            elif got[0] == 405:
                assert method not in reached
            seen[re.sub("[0-9]", "", got[0]) if isinstance(got[0], str) else got[0]] += 1
            seen["several"] += sum(method in engine.slow.methods(route) for route in fits) > 1
    return seen


@nasty.examples(10)
@given(seed=st.integers(0, 2**32), is_strict=st.booleans())
def test_drawn_dialect_is_matched_explained_and_redirected(seed: int, is_strict: bool) -> None:
    check_drawn(seed, is_strict=is_strict)


def test_drawn_dialects_get_every_kind_of_answer() -> None:
    seen = Counter[Any]()
    for seed in range(15):
        seen += check_drawn(seed, is_strict=seed % 3 > 0)
    kinds = ["e", "mine", "several", 308, 405, NotFound, RouteUnknown, NameInvalid, DigestInvalid]
    assert all(seen[kind] > 10 for kind in kinds), seen


@nasty.examples(15)
@given(seed=st.integers(0, 2**32))
def test_drawn_dialect_matches_and_builds_as_in_a_plain_map(seed: int) -> None:
    random = Random(seed)
    # In a plain map, Werkzeug decides how many segments a value has.
    dialect = dialect_of(random, [kind for kind in KINDS if kind != "slashy"])
    slow = SlowTable(dialect, "")
    ours, plain = RegistryMap(dialect=dialect), Map([RegistryRules(dialect)])
    for path in paths_of(random, dialect, ""):
        forms = path, other_ending(path)
        fits = [r for form in forms for r in slow.readings(form) if not r.is_left_out]
        here = [r for r in slow.readings(path) if r in fits]
        for method in [*METHODS, "PROPFIND"]:
            for name, values in ((r.route.endpoint, r.values) for r in fits):
                built = {built_by(url_map, name, values, method) for url_map in (ours, plain)}
                assert len(built) == 1, (dialect.routes, name, values, method)
            if clean(path) != path or len(fits) > 1 or (fits and not here):
                continue  # ambiguous, or redirected in another way
            methods = slow.methods(here[0].route) if here else set()
            expected: Outcome = (405, methods) if methods else (NotFound,)
            if method in methods:
                expected = here[0].route.endpoint, here[0].values
            assert outcome(lambda: plain.bind("h").match(path, method)) == expected


def built_by(url_map: Map, endpoint: str, values: dict[str, str], default_method: str) -> str:
    adapter = url_map.bind("h", default_method=default_method)
    try:
        return adapter.build(endpoint, dict(values))
    except ValueError as error:
        return str(error)
