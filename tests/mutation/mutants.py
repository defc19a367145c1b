"""Small changes to a module's source, each of which a good test suite should notice.

A mutant replaces one expression or statement and leaves every other character as it is, so line numbers stay those of
the original. Not mutated: annotations, decorators, docstrings, messages (f-strings) and imports.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
OPPOSITES = {"min": "max", "any": "all", "argmin": "argmax", "amin": "amax", "minimum": "maximum", "triu": "tril"}
OPPOSITES |= {other: name for name, other in OPPOSITES.items()}


@dataclass(frozen=True)
class Mutant:
    """One change: the text at [start, end) (bytes of the source) becomes `new`."""

    kind: str
    line: int
    start: int
    end: int
    old: str
    new: str

    def applied_to(self, source: str) -> str:
        """The source with this change."""
        raw = source.encode()
        return (raw[: self.start] + self.new.encode() + raw[self.end :]).decode()


def mutants_of(source: str) -> list[Mutant]:
    """Every mutant of a module, in the order of its lines.

    >>> for mutant in mutants_of("def f(a, b):\\n    return a < b + 1\\n"):
    ...     print(mutant.kind, "|", mutant.new)
    return | return None
    comparison | a <= b + 1
    arithmetic | (b - 1)
    constant | 2
    """
    starts = [0]
    for text in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(text))
    found = []
    for node, kind, new in _changes(ast.parse(source)):
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        old = source.encode()[start:end].decode()
        if isinstance(node, ast.expr) and "\n" in new + old:
            new = f"({new})"
        found.append(Mutant(kind, node.lineno, start, end, old, new))
    return sorted(found, key=lambda mutant: (mutant.line, mutant.start))


def _changes(tree: ast.AST) -> Iterator[tuple[ast.AST, str, str]]:
    """(node to replace, kind of change, new text)."""
    for node in _visited(tree):
        for kinds in (_of_operators, _of_constants, _of_calls, _of_statements):
            for kind, new in kinds(node):
                yield node, kind, new


def _visited(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those whose meaning no test should see."""
    if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    yield node
    match node:
        case ast.FunctionDef(body=body, args=given):
            children = [*given.defaults, *filter(None, given.kw_defaults), *body]
        case ast.ClassDef(body=body):
            children = body
        case ast.AnnAssign(value=value):
            children = [value] if value else []
        case _:
            children = list(ast.iter_child_nodes(node))
    for child in children:
        yield from _visited(child)


def _swapped(node: ast.AST, **fields: object) -> str:
    """The text of a node with other fields."""
    return ast.unparse(type(node)(**{**dict(ast.iter_fields(node)), **fields}))


def _of_operators(node: ast.AST) -> Iterator[tuple[str, str]]:
    match node:
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                yield "comparison", _swapped(node, ops=[*ops[:i], COMPARISONS[type(op)](), *ops[i + 1 :]])
        case ast.BinOp(op=op) if type(op) in ARITHMETIC:
            yield "arithmetic", f"({_swapped(node, op=ARITHMETIC[type(op)]())})"
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand) if not isinstance(operand, ast.Constant):
            yield ("not" if isinstance(node.op, ast.Not) else "sign"), f"({ast.unparse(operand)})"
        case ast.BoolOp(op=op):
            yield "and/or", f"({_swapped(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())})"


def _of_constants(node: ast.AST) -> Iterator[tuple[str, str]]:
    match node:
        case ast.Constant(value=bool() as value):
            yield "constant", str(not value)
        case ast.Constant(value=int() as value):
            yield "constant", str(value + 1)
        case ast.Constant(value=float() as value):
            yield "constant", repr(2 * value or 1.0)


def _of_calls(node: ast.AST) -> Iterator[tuple[str, str]]:
    match node:
        case ast.Call(func=ast.Name(id=name)) if name in OPPOSITES:
            yield "call", _swapped(node, func=ast.Name(id=OPPOSITES[name]))
        case ast.Call(func=ast.Attribute(value=value, attr=name)) if name in OPPOSITES:
            yield "call", _swapped(node, func=ast.Attribute(value=value, attr=OPPOSITES[name]))


def _of_statements(node: ast.AST) -> Iterator[tuple[str, str]]:
    match node:
        case ast.Return(value=value) if value is not None:
            yield "return", "return None"
        case ast.Raise() | ast.AugAssign() | ast.Expr(value=ast.Call()):
            yield "deleted", "pass"
        case ast.Assign(targets=[ast.Subscript() | ast.Attribute()]):
            yield "deleted", "pass"
        case ast.Continue():
            yield "loop", "break"
        case ast.Break():
            yield "loop", "continue"
