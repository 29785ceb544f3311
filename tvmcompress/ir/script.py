"""Tensor programs from texts in TVM's script, which Python runs.

TVM's own reader evaluates such a text node by node and notes where each one stands: a tenth of a second for a kernel of
fifty lines. Here Python runs the text and TVM's builder is told what it does, in a few thousandths.

    for i, j in T.grid(2, 3): …    ->    for i, j in _loop(("i", "j"), T.grid(2, 3)): …
    row = T.axis.spatial(2, i)     ->    row = _named("row", T.axis.spatial(2, i))
    y[i, j] = x[j, i]              ->    _store(y, x[j, i], (i, j))

So `if` and a name for an expression mean what they mean in Python: programs with conditions between statements are for
TVM's own reader.
"""

from __future__ import annotations
import __future__

import ast
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import tvm
from tvm.script import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import PrimFunc
from tvm.tirx.script import builder

FLAGS = __future__.annotations.compiler_flag  # annotations stay text until the program is begun: buffers belong to one


def program(text: str, names: Mapping[str, Any]) -> PrimFunc:
    """The program that `text`, one function, defines; `names`: what it refers to."""
    tree = Statements().visit(ast.parse(text))
    scope = {**names, "_loop": loop, "_named": named, "_store": builder.buffer_store}
    scope |= {"T": Script(scope), "range": lambda stop: builder.serial(0, stop)}
    exec(compile(ast.fix_missing_locations(tree), "<program>", "exec", FLAGS, dont_inherit=True), scope)
    return scope[tree.body[0].name]


@lru_cache(512)
def read(text: str, code: str = "") -> PrimFunc:
    """The program of a text as TVM's own reader takes it, once: a network has the same kernel many times. `code`: what
    the text calls CODE."""
    return tvm.script.from_source(text, {"T": tirx, "CODE": code})


class Script:
    """What a text knows as `T`: TVM's builder, whose `prim_func` makes a program of a function."""

    def __init__(self, scope: dict[str, Any]) -> None:
        self.scope = scope

    def __getattr__(self, name: str) -> Any:
        return getattr(builder, name)

    def prim_func(self, **options: bool) -> Callable[[Callable], PrimFunc]:
        def made(function: Callable) -> PrimFunc:
            with IRBuilder() as result, builder.prim_func(**options):
                builder.func_name(function.__name__)
                kinds = {name: eval(kind, self.scope) for name, kind in function.__annotations__.items()}
                function(*(builder.arg(name, kind) for name, kind in kinds.items()))
            return result.get()

        return made


class Statements(ast.NodeTransformer):
    """Loops and assignments as calls."""

    def visit_For(self, node: ast.For) -> ast.For:
        self.generic_visit(node)
        node.iter = called("_loop", names_of(node.target), node.iter)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.stmt:
        (target,) = node.targets
        if isinstance(target, ast.Subscript):
            return ast.Expr(called("_store", target.value, node.value, target.slice))
        node.value = called("_named", names_of(target), node.value)
        return node


def called(function: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(function, ast.Load()), [*arguments], [])


def names_of(target: ast.expr) -> ast.expr:
    """A name, or several, as a constant."""
    if isinstance(target, ast.Tuple):
        return ast.Tuple([names_of(one) for one in target.elts], ast.Load())
    return ast.Constant(ast.unparse(target))


def loop(names: str | tuple[str, ...], frame: Any) -> Iterator[Any]:
    """Its variables, once: the body is run between the loop's beginning and its end."""
    with frame as variables:
        yield named(names, variables)


def named(names: str | tuple[str, ...], value: Any) -> Any:
    """Variables and buffers are called what the text calls them."""
    if isinstance(names, tuple):
        for name, one in zip(names, value):
            named(name, one)
    elif isinstance(value, tvm.ir.Var):
        IRBuilder.name(names, value)
    return value
