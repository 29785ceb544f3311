"""Reading and rewriting a Relax program.

A program is an IRModule with one function `main`: parameters in the order of the model's inputs, one dataflow block,
and a tuple as its result. A layer is called by the name of the variable its result is bound to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import GenericConst, Op

Expr: TypeAlias = relax.Expr
Var: TypeAlias = relax.Var
Value: TypeAlias = np.ndarray | np.generic | float  # what a constant can be made of

# What stops a program passes through TVM's callbacks as what it is: TVM would make it a RuntimeError, which those who
# try a second way catch.
for _stop in (KeyboardInterrupt, SystemExit):
    tvm_ffi.register_error(_stop.__name__, _stop)  # type: ignore[arg-type]


def const(array: Value, dtype: str | None = None) -> Expr:
    """A constant, copied from `array`; `dtype` only when that is a Python number."""
    array = np.asarray(array, dtype, order="C")  # ascontiguousarray would make a scalar one-dimensional
    return relax.const(tvm.runtime.tensor(array))  # an array passed to relax.const loses half of int64 and float64


def is_const(expr: Expr) -> bool:
    return isinstance(expr, GenericConst)


def value(expr: Expr) -> np.ndarray:
    """The payload of a constant. It shares the constant's memory where NumPy can: do not write to it."""
    return as_numpy(expr.value)


def as_numpy(tensor: tvm.runtime.Tensor) -> np.ndarray:
    """A tensor in main memory as an array, sharing its memory where NumPy can."""
    try:
        return np.from_dlpack(tensor)
    except (RuntimeError, BufferError, TypeError):
        return tensor.numpy()  # dtypes that DLPack or NumPy lack: bfloat16, float8


def shape(expr: Expr) -> tuple[int, ...]:
    """The static shape; raises ValueError when a dimension is open."""
    dims = expr.ty.shape
    if dims is None:
        raise ValueError("shape is not known")
    return tuple(static_int(d) for d in dims)


def static_int(dim) -> int:
    try:
        return int(dim)
    except TypeError as error:
        raise ValueError(f"dimension {dim} is not a number") from error


def number(expr) -> float:
    """A Python number or an immediate of TVM's, as a float."""
    return float(getattr(expr, "value", expr))


def has_static_shape(expr: Expr) -> bool:
    ty = expr.ty
    if isinstance(ty, relax.TupleType):
        return all(
            isinstance(f, relax.TensorType)
            and f.shape is not None
            and all(isinstance(d, tvm.tirx.IntImm) for d in f.shape)
            for f in ty.fields
        )
    return (
        isinstance(ty, relax.TensorType)
        and ty.shape is not None
        and all(isinstance(d, tvm.tirx.IntImm) for d in ty.shape)
    )


def dtype(expr: Expr) -> str:
    return str(expr.ty.dtype)


def op_name(expr: Expr) -> str:
    """`relax.nn.conv2d`, or an empty string when `expr` is not a call of an operator."""
    return expr.op.name if isinstance(expr, relax.Call) and isinstance(expr.op, Op) else ""


def bindings(mod: tvm.IRModule, name: str = "main") -> Iterator[relax.VarBinding]:
    """The bindings of a function, in order of execution."""
    for block in mod[name].body.blocks:
        yield from block.bindings


def definitions(mod: tvm.IRModule) -> dict[Var, Expr]:
    """From each bound variable to the expression it stands for."""
    return {b.var: b.value for b in bindings(mod)}


def results(mod: tvm.IRModule) -> list[Expr]:
    """The fields of the result tuple."""
    body = mod["main"].body.body
    if isinstance(body, relax.Tuple):
        return list(body.fields)
    last = definitions(mod).get(body)
    return list(last.fields) if isinstance(last, relax.Tuple) else [body]


def constants_of(expr: Expr) -> Iterator[Expr]:
    """The constants that an expression reads, in order."""
    if isinstance(expr, GenericConst):
        yield expr
    elif isinstance(expr, relax.Tuple):
        for field in expr.fields:
            yield from constants_of(field)
    elif isinstance(expr, relax.Call):
        for argument in expr.args:
            yield from constants_of(argument)


def consumers(mod: tvm.IRModule) -> dict[Var, list[Var]]:
    """From each variable to the variables whose bindings read it."""
    uses: dict[Var, list[Var]] = {}
    for b in bindings(mod):
        for var in relax.analysis.free_vars(b.value):
            uses.setdefault(var, []).append(b.var)
    return uses


Visit = Callable[["Rewriter", Var, Expr], Expr | None]


class Rewriter:
    """Emits a new `main` binding by binding. See `rewrite`."""

    def __init__(self) -> None:
        self.builder = relax.BlockBuilder()
        self.replacement: dict[Var, Expr] = {}
        self.emitted: dict[Var, Expr] = {}
        self.on_const: Callable[[Expr], Expr] = lambda constant: constant

    def adopt(self, mod: tvm.IRModule) -> None:
        """Take over the functions of `mod` other than main, tensor programs that its calls name."""
        for var, function in mod.functions_items():
            if var.name_hint != "main":
                self.replacement[var] = self.builder.add_func(function, var.name_hint)

    def emit(self, expr: Expr, name: str = "") -> Expr:
        """Bind `expr` to a new variable and return that; variables and constants are returned as they are."""
        if isinstance(expr, relax.Var | GenericConst):
            return expr
        var = self.builder.emit(expr, name_hint=name)
        self.emitted[var] = self.builder.lookup_binding(var)
        return var

    def bind(self, binding: relax.Binding, expr: Expr) -> Expr:
        """What an old binding becomes with the value `expr`: a tuple passes through, the rest is emitted.

        A MatchCast stays one: it gives a data-dependent size its name.
        """
        if isinstance(binding, relax.MatchCast):
            expr = self.builder.match_cast(expr, binding.ty, binding.var.name)
        elif not isinstance(expr, relax.Tuple):
            expr = self.emit(expr, binding.var.name)
        self.replacement[binding.var] = expr
        return expr

    def definition(self, expr: Expr) -> Any:
        """The call that a variable of the new program stands for; None for inputs."""
        return self.emitted.get(expr) if isinstance(expr, relax.Var) else None

    def new(self, expr: Expr) -> Expr:
        """`expr` with the old program's variables replaced by the new one's."""
        if isinstance(expr, relax.Var | relax.GlobalVar):
            return self.replacement.get(expr, expr)
        if isinstance(expr, GenericConst):
            return self.on_const(expr)
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self.new(f) for f in expr.fields])
        if isinstance(expr, relax.TupleGetItem):
            tuple_value = self.new(expr.tuple_value)
            if isinstance(tuple_value, relax.Tuple):
                return tuple_value.fields[expr.index]
            return relax.TupleGetItem(tuple_value, expr.index)
        if isinstance(expr, relax.Call):
            ret_ty = None if isinstance(expr.op, Op) and expr.op.name != "relax.call_tir" else expr.ty
            return relax.Call(expr.op, [self.new(a) for a in expr.args], expr.attrs, expr.ty_args, ret_ty=ret_ty)
        return expr


def rewrite(
    mod: tvm.IRModule,
    visit: Visit,
    *,
    more_params: Sequence[Var] = (),
    fewer_params: dict[Var, Expr] | None = None,
    on_const: Callable[[Expr], Expr] | None = None,
) -> tvm.IRModule:
    """A new module in which each binding of `main` was offered to `visit(rewriter, var, expr)`.

    `expr` already refers to the new program. `visit` returns what the binding becomes (it may emit more bindings
    before), or None to keep it. Dead bindings are removed. `mod` is not changed. `more_params` are appended to the
    parameters; `fewer_params` replaces some of the old ones by expressions; `on_const` replaces constants.
    """
    old = mod["main"]
    rewriter = Rewriter()
    rewriter.on_const = on_const or rewriter.on_const
    fewer_params = fewer_params or {}
    kept = [p for p in old.params if p not in fewer_params]
    params = [relax.Var(p.name, p.ty) for p in kept]
    rewriter.replacement.update(zip(kept, params))
    rewriter.replacement.update(fewer_params)
    params += more_params
    builder = rewriter.builder
    rewriter.adopt(mod)
    with builder.function("main", params, attrs=dict(old.attrs) if old.attrs else None):
        with builder.dataflow():
            for binding in bindings(mod):
                expr = rewriter.new(binding.value)
                if isinstance(expr, relax.Tuple):
                    rewriter.replacement[binding.var] = expr
                    continue
                if isinstance(binding, relax.MatchCast):
                    rewriter.bind(binding, expr)
                    continue
                replaced = visit(rewriter, binding.var, expr)
                expr = expr if replaced is None else replaced
                if not isinstance(expr, relax.Tuple):
                    expr = rewriter.emit(expr, binding.var.name)
                rewriter.replacement[binding.var] = expr
            out = rewriter.new(old.body.body)
            if not isinstance(out, relax.Tuple):
                out = relax.Tuple([out])
            out = builder.emit_output(out)
        builder.emit_func_output(out)
    return remove_dead(builder.finalize())


def remove_dead(mod: tvm.IRModule) -> tvm.IRModule:
    """Without bindings that nothing reads."""
    return relax.transform.DeadCodeElimination()(mod)


def program(inputs: Sequence[tuple[str, Sequence[int], str]], body: Callable[..., Sequence[Expr]]) -> tvm.IRModule:
    """A program from a Python function: `body(rewriter, *inputs)` emits and returns the results."""
    rewriter = Rewriter()
    params = [relax.Var(name, relax.TensorType(list(dims), kind)) for name, dims, kind in inputs]
    with rewriter.builder.function("main", params):
        with rewriter.builder.dataflow():
            fields = [rewriter.emit(e) for e in body(rewriter, *params)]
            out = rewriter.builder.emit_output(relax.Tuple(fields))
        rewriter.builder.emit_func_output(out)
    return rewriter.builder.finalize()
