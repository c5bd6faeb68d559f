"""The mutants of a file: small faults in its code, but not in what only documents or declares."""

import ast
import copy
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import accumulate, chain, zip_longest
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

# What each operator may become.
SWAPS = """Lt LtE GtE, LtE Lt Gt, Gt GtE LtE, GtE Gt Lt, Eq NotEq, NotEq Eq, Is IsNot, IsNot Is,
In NotIn, NotIn In, And Or, Or And, Add Sub, Sub Add, Mult FloorDiv, FloorDiv Mult, Div Mult,
Mod Mult, BitOr BitAnd, BitAnd BitOr"""
SWAPPED = {name: others for name, *others in map(str.split, SWAPS.split(","))}


class Mutant(NamedTuple):
    """A change of some bytes of a file."""

    id: str
    kind: str
    file: str
    start: int
    end: int
    text: str
    lines: range
    """The statement; if it runs at import, the whole function, class or file around it."""

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.text.encode() + source[self.end :]

    def overlaps(self, other: "Mutant") -> bool:
        return self.file == other.file and self.start < other.end and other.start < self.end


def swap(operator: ast.AST) -> Iterator[tuple[str, Any]]:
    name = type(operator).__name__
    for other in SWAPPED.get(name, ()):
        yield f"{name} -> {other}", getattr(ast, other)()


def vary(node: Any, parent: ast.AST, field: str) -> Iterator[tuple[str, str, ast.AST]]:
    """Yield changes of a node: the kind, a label, and the new node."""

    def change(**fields: Any) -> Any:
        new = copy.copy(node)
        vars(new).update(fields)
        return new

    if isinstance(parent, ast.If | ast.IfExp | ast.comprehension) and field in ("test", "ifs"):
        yield "condition", "negate", ast.UnaryOp(ast.Not(), node)
    match node:
        case ast.Compare(ops=ops):
            for i, operator in enumerate(ops):
                for label, other in swap(operator):
                    yield "comparison", label, change(ops=[*ops[:i], other, *ops[i + 1 :]])
        case ast.BoolOp(op=operator, values=values):
            for label, other in swap(operator):
                yield "boolean", label, change(op=other)
            for i, value in enumerate(values):
                rest = values[:i] + values[i + 1 :]
                yield "boolean", f"drop {ast.unparse(value)}", change(values=rest)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "not", "drop not", operand
        case ast.BinOp(op=operator) | ast.AugAssign(op=operator):
            for label, other in swap(operator):
                yield "arithmetic", label, change(op=other)
            if isinstance(node, ast.BinOp):
                yield "arithmetic", "drop the right operand", node.left
        case ast.Slice():
            for bound in ("lower", "upper"):
                if getattr(node, bound):
                    yield "index", f"drop {bound}", change(**{bound: None})
        case ast.Return(value=ast.expr()) if ast.unparse(node) != "return None":
            yield "return", "return None", change(value=ast.Constant(None))
        case ast.Expr(value=ast.Call() | ast.Await()) | ast.Raise() | ast.Assert():
            yield "statement", "remove", ast.Pass()
        case ast.Delete() | ast.Continue() | ast.Break():
            yield "statement", "remove", ast.Pass()
        case ast.Constant(value=value):
            is_index = isinstance(parent, ast.Slice | ast.Subscript) and type(value) is int
            for kind, label, new in vary_constant(value):
                if field in ("defaults", "kw_defaults"):
                    kind = "default"
                yield "index" if is_index else kind, label, change(value=new)


def vary_constant(value: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield other numbers, and texts without a token (a word, a class of a regex) or its end."""
    match value:
        case bool():
            yield "bool", str(not value), not value
        case int() | float():
            for new in (value + 1, value - 1):
                yield "number", f"{value} -> {new}", new
        case bytes():
            for kind, label, text in vary_constant(value.decode("latin-1")):
                yield kind, label, text.encode("latin-1")
        case str():
            for token in re.finditer(r"\\.|\[[^]]+\]|\{[0-9,]+\}|\w+|\s+|.", value, re.DOTALL):
                start, end = token.span()
                yield "string", f"drop {token[0]!r} at {start}", value[:start] + value[end:]
                if end - start > 2 and token[0].isalnum():
                    yield "string", f"cut {token[0]!r} at {start}", value[: end - 1] + value[end:]


def is_skipped(node: ast.AST, parent: ast.AST, field: str) -> bool:
    """Return whether a node only documents or declares something."""
    match node:
        case (
            ast.Expr(value=ast.Constant())
            | ast.If(test=ast.Name(id="TYPE_CHECKING"))
            | ast.Assign(targets=[ast.Name(id="__all__")])
            | ast.AnnAssign(annotation=ast.Name(id="TypeAlias"))
            | ast.Subscript(value=ast.Name(id="Literal"))
            | ast.Call(func=ast.Name(id="TypeVar"))
            | ast.FunctionDef(decorator_list=[ast.Name(id="overload"), *_])
        ):
            return True
        case _ if isinstance(parent, ast.Call) and parent.args[:1] == [node]:
            return ast.unparse(parent.func) == "cast"
    return field in ("annotation", "returns")


def find_mutants(tree: Path, file: str) -> Iterator[Mutant]:
    """Yield every mutant of a file."""
    source = (tree / file).read_bytes()
    rows = source.splitlines(keepends=True)
    offsets = [0, *accumulate(map(len, rows))]
    repeated: Counter[str] = Counter()

    def walk(parent: Any, scope: str, lines: range, early: bool, f_string: Any) -> Iterator[Mutant]:
        for field, value in ast.iter_fields(parent):
            nodes = value if isinstance(value, list) else [value]
            in_function = (
                isinstance(parent, ast.FunctionDef | ast.AsyncFunctionDef) and field == "body"
            )
            at_import = early and not in_function
            for i, node in enumerate(nodes):
                if not isinstance(node, ast.AST) or is_skipped(node, parent, field):
                    continue
                inner, around = scope, lines
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    inner = f"{scope}.{node.name}".lstrip(".")
                    around = range(node.lineno, (node.end_lineno or 0) + 1)
                if isinstance(node, ast.stmt) and not at_import:
                    last = node.body[0].lineno - 1 if hasattr(node, "body") else node.end_lineno
                    around = range(node.lineno, max(node.lineno, last or 0) + 1)
                for kind, label, new in vary(node, parent, field):
                    setattr(
                        parent, field, [*nodes[:i], new, *nodes[i + 1 :]] if nodes is value else new
                    )
                    text = write(f_string or new)
                    setattr(parent, field, value)
                    old = f_string or node
                    row = rows[old.lineno - 1].decode().strip()
                    name = f"{file} :: {inner or '-'} :: {row} :: {kind}: {label}"
                    repeated[name] += 1
                    if repeated[name] > 1:
                        name += f" (#{repeated[name]})"
                    start = offsets[old.lineno - 1] + old.col_offset
                    end = offsets[old.end_lineno - 1] + old.end_col_offset
                    yield Mutant(name, kind, file, start, end, text, around)
                whole = node if isinstance(node, ast.JoinedStr) else None
                yield from walk(node, inner, around, at_import, f_string or whole)

    return walk(ast.parse(source), "", range(1, len(rows) + 1), True, None)


def write(node: ast.AST) -> str:
    try:
        text = ast.unparse(node)
    except ValueError:
        return "("  # no mutant: before Python 3.12, an f-string cannot hold everything
    return f"({text})" if isinstance(node, ast.expr) and not isinstance(node, ast.Slice) else text


def describe(source: bytes) -> tuple[Any, ...] | None:
    """Return the code of a compiled module, without line numbers, or `None` if it does not compile."""

    def parts(code: CodeType) -> tuple[Any, ...]:
        constants = [
            parts(constant) if isinstance(constant, CodeType) else repr(constant)
            for constant in code.co_consts
        ]
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        return (code.co_code, code.co_exceptiontable, code.co_flags, *names, *constants)

    try:
        return parts(compile(source, "", "exec"))
    except SyntaxError:
        return None


def draw(mutants: Iterable[Mutant], tree: Path, count: int, seed: int) -> list[Mutant]:
    """Return `count` mutants that differ from the original and each other, in turn of each kind."""
    sites: dict[str, dict[Any, list[Mutant]]] = defaultdict(lambda: defaultdict(list))
    for mutant in mutants:
        sites[mutant.kind][mutant.file, mutant.start, mutant.end].append(mutant)
    chance = random.Random(seed)
    piles = []
    for kind in sorted(sites):
        piles.append([chance.choice(variants) for variants in sites[kind].values()])
        chance.shuffle(piles[-1])
    seen: set[Any] = {None}
    drawn: list[Mutant] = []
    for mutant in filter(None, chain.from_iterable(zip_longest(*piles))):
        if len(drawn) == count:
            break
        source = (tree / mutant.file).read_bytes()
        code = describe(mutant.apply(source))
        seen.add(describe(source))
        if code not in seen:
            drawn.append(mutant)
        seen.add(code)
    return drawn
