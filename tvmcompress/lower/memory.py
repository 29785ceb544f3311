"""What `main` computes in between lies in memory that is taken once, when a package is loaded.

    main(x, weights…):             y = alloc(…); f(x, y); z = alloc(…); g(y, z); …
    ->
    prepare(stored…):              …; storage = alloc(…); return (weights…, y, z)
    main(x, weights…, y, z):       f(x, y); g(y, z); …

Tensors that are never needed at the same time share a storage: the largest first, each into the smallest free storage
that holds it (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020). A kernel that may
(`in_place`) writes over the operand that dies with it.

Left to TVM, which allocates them with each call, are the results, for they belong to the caller; tensors inside
branches; those whose shape depends on data; and those handed to anything but a tensor program.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import GlobalVar
from tvm.tirx import PrimFunc

from tvmcompress.ir import graph
from tvmcompress.lower.in_place import in_place

ALIGNMENT = 64  # bytes, of what a storage holds


@dataclass(frozen=True)
class Memory:
    """Bytes: of the weights as `main` reads them, and of what it computes in between."""

    weights: int = 0
    arena: int = 0


@dataclass(eq=False)
class Storage:
    """Memory, and from which step to which it is in use."""

    nbytes: int
    taken: list[tuple[int, int]] = field(default_factory=list)

    def free(self, first: int, last: int) -> bool:
        return all(last < start or end < first for start, end in self.taken)


@dataclass(eq=False)
class Buffer:
    """A tensor that `main` allocates, the steps that touch it first and last, and where it will lie."""

    nbytes: int
    first: int = -1
    last: int = -1
    over: Buffer | None = None  # the operand that it is written over
    storage: Storage | None = None


class Reading:
    """What `main` says of its tensors: `names` leads from each name of a tensor that may move to the tensor."""

    def __init__(self, mod: tvm.IRModule):
        self.mod = mod
        self.steps = list(graph.bindings(mod))
        self.names: dict[relax.Expr, Buffer] = {}
        self.fields: dict[relax.Expr, list[relax.Expr]] = {}  # of tuples that are only taken apart
        for at, step in enumerate(self.steps):
            self._read(at, step)
        self._stay(mod["main"].body.body)
        self.names = {name: buffer for name, buffer in self.names.items() if buffer.first >= 0}

    def kernel(self, value: relax.Expr) -> PrimFunc | None:
        """The tensor program that is called, its results among the arguments."""
        if isinstance(value, relax.Call) and isinstance(value.op, GlobalVar):
            func = self.mod[value.op]
            return func if isinstance(func, PrimFunc) else None
        return None

    def _read(self, at: int, step: relax.Binding) -> None:
        value, op, names = step.value, graph.op_name(step.value), self.names
        if op == "relax.builtin.alloc_tensor" and graph.has_static_shape(step.var):
            names[step.var] = Buffer(nbytes(step.var))
        elif isinstance(value, relax.Tuple) and not any(isinstance(f, relax.Tuple) for f in value.fields):
            self.fields[step.var] = list(value.fields)
        elif (part := self.taken(value)) is not None:
            self._alias(step.var, part)
        elif isinstance(step, relax.VarBinding) and isinstance(value, relax.Var):
            self._alias(step.var, value)
        elif op == "relax.reshape" and graph.has_static_shape(step.var) and value.args[0] in names:
            self._alias(step.var, value.args[0])
        elif self.kernel(value) is not None:
            for argument in value.args:
                if argument in names:
                    buffer = names[argument]
                    buffer.first, buffer.last = at if buffer.first < 0 else buffer.first, at
                else:
                    self._stay(argument)
        else:
            self._stay(value)

    def taken(self, value: relax.Expr) -> relax.Expr | None:
        """The field that is taken of a tuple."""
        if isinstance(value, relax.TupleGetItem) and value.tuple_value in self.fields:
            return self.fields[value.tuple_value][value.index]
        return None

    def _alias(self, var: relax.Var, of: relax.Expr) -> None:
        if of in self.names:
            self.names[var] = self.names[of]
        elif of in self.fields:
            self.fields[var] = self.fields[of]

    def _stay(self, expr: relax.Expr) -> None:
        """Whatever `expr` refers to is out of our sight from here on."""
        for var in relax.analysis.free_vars(expr):
            if (apart := self.fields.get(var)) is not None:
                self.fields = {name: fields for name, fields in self.fields.items() if fields is not apart}
                for part in apart:
                    self._stay(part)
            if gone := self.names.get(var):
                self.names = {name: buffer for name, buffer in self.names.items() if buffer is not gone}


def arena(mod: tvm.IRModule, inputs: int) -> tuple[tvm.IRModule, Memory]:
    """Move the tensors of `main` into `prepare`. The first `inputs` parameters of `main` are the model's."""
    read = Reading(mod)
    builder = relax.BlockBuilder(mod)
    forms = overwrite(read, builder)
    storages = assign(list(dict.fromkeys(read.names.values())))
    main = mod["main"]
    weights = list(main.params[inputs:])
    if not weights and not storages:
        return mod, Memory()
    views: dict[tuple, relax.Var] = {}

    def view(name: relax.Expr) -> relax.Expr:
        if name not in read.names:
            return name
        key = (read.names[name].storage, graph.shape(name), graph.dtype(name))
        return views.setdefault(key, relax.Var(f"buffer_{len(views)}", name.ty))

    def rewritten(step: relax.Binding) -> relax.Binding:
        value = step.value
        if read.kernel(value) is not None:
            form = forms.get(step.var)
            arguments = [view(a) for a in (value.args[:-1] if form else value.args)]
            call = relax.Call(form or value.op, arguments, value.attrs, value.ty_args, ret_ty=value.ty)
            return relax.VarBinding(step.var, call)
        part = read.taken(value)
        return step if part is None else relax.VarBinding(step.var, part)

    blocks = [
        relax.BindingBlock(
            [rewritten(step) for step in block.bindings if step.var not in read.names and step.var not in read.fields]
        )
        for block in main.body.blocks
    ]
    body = relax.SeqExpr(blocks, main.body.body)
    new = relax.Function([*main.params, *views.values()], body, main.ret_ty, main.is_pure, main.attrs)
    builder.update_func(mod.get_global_var("main"), new)
    old = next((var for var in mod.get_global_vars() if var.name_hint == "prepare"), None)
    ready = prepare(mod[old] if old else None, weights, {var: key[0] for key, var in views.items()})
    builder.update_func(old, ready) if old else builder.add_func(ready, "prepare")
    memory = Memory(sum(map(nbytes, weights)), sum(storage.nbytes for storage in storages))
    return relax.transform.Normalize()(called(builder.finalize())), memory


def called(mod: tvm.IRModule) -> tvm.IRModule:
    """Without tensor programs that no function names."""
    named: set[GlobalVar] = set()
    for func in mod.functions.values():
        tvm_ffi.structural_walk(func, [(GlobalVar, named.add)])
    functions = {var: func for var, func in mod.functions_items() if var in named or not isinstance(func, PrimFunc)}
    return tvm.IRModule(functions, attrs=mod.attrs)


class Forms(dict[relax.Var, GlobalVar]):
    """From steps to the kernels that they call instead, which write over an operand."""

    def __init__(self, builder: relax.BlockBuilder) -> None:
        self._builder = builder
        self._made: dict[tuple[str, int], GlobalVar | None] = {}

    def of(self, callee: GlobalVar, func: PrimFunc, operand: int) -> GlobalVar | None:
        key = (callee.name_hint, operand)
        if key not in self._made:
            form = in_place(func, operand)
            name = f"{callee.name_hint}_over_{operand}"
            self._made[key] = None if form is None else self._builder.add_func(form, name)
        return self._made[key]


def overwrite(read: Reading, builder: relax.BlockBuilder) -> Forms:
    """Let kernels write over operands that die with them, and say which do."""
    forms = Forms(builder)
    for at, step in enumerate(read.steps):
        func = read.kernel(step.value)
        if func is None or len(func.params) != len(step.value.args):
            continue
        touched = [read.names.get(argument) for argument in step.value.args]
        if touched[-1] is None or touched[-1].first != at:
            continue
        for operand, buffer in enumerate(touched[:-1]):
            if buffer is None or buffer.last != at or touched.count(buffer) > 1:
                continue
            if form := forms.of(step.value.op, func, operand):
                forms[step.var] = form
                touched[-1].over = buffer
                break
    return forms


def assign(buffers: list[Buffer]) -> list[Storage]:
    """Give every buffer its storage."""
    first: dict[Buffer, int] = {}
    last: dict[Buffer, int] = {}
    for buffer in buffers:
        root = root_of(buffer)
        first[root] = min(first.get(root, buffer.first), buffer.first)
        last[root] = max(last.get(root, buffer.last), buffer.last)
    storages: list[Storage] = []
    for root in sorted(first, key=lambda b: (-b.nbytes, b.first)):
        fitting = [s for s in storages if s.free(first[root], last[root])]
        if not fitting:
            fitting = [Storage(root.nbytes)]
            storages += fitting
        root.storage = min(fitting, key=lambda s: s.nbytes)
        root.storage.taken.append((first[root], last[root]))
    for buffer in buffers:
        buffer.storage = root_of(buffer).storage
    return storages


def root_of(buffer: Buffer) -> Buffer:
    while buffer.over:
        buffer = buffer.over
    return buffer


def prepare(old: relax.Function | None, weights: list[relax.Var], views: dict[relax.Var, Storage]) -> relax.Function:
    """`prepare(stored…) -> (weights…, buffers…)`: what it did before, and the buffers on new storages."""
    if old is None:
        params = [relax.Var(weight.name, weight.ty) for weight in weights]
        blocks, fields, attrs = [], list(params), None
    else:
        params, blocks, attrs = list(old.params), list(old.body.blocks), old.attrs
        result = next((b.value for block in blocks for b in block.bindings if b.var.same_as(old.body.body)), None)
        fields = list((old.body.body if result is None else result).fields)
    steps: list[relax.Binding] = []
    places: dict[Storage, relax.Var] = {}

    def bind(value: relax.Expr, ty: tvm.ir.Type) -> relax.Var:
        steps.append(relax.VarBinding(relax.Var(f"place_{len(steps)}", ty), value))
        return steps[-1].var

    for var, storage in views.items():
        if storage not in places:
            size = relax.ShapeExpr([max(-(-storage.nbytes // ALIGNMENT), 1) * ALIGNMENT])
            new = relax.op.memory.alloc_storage(size, 0, "global", "uint8")
            places[storage] = bind(new, relax.ObjectType())
        shape = relax.ShapeExpr(graph.shape(var))
        tensor = relax.op.memory.alloc_tensor(places[storage], 0, shape, graph.dtype(var))
        fields.append(bind(tensor, var.ty))
    result = bind(relax.Tuple(fields), relax.TupleType([f.ty for f in fields]))
    body = relax.SeqExpr([*blocks, relax.BindingBlock(steps)], result)
    return relax.Function(params, body, result.ty, False, attrs).with_attr("global_symbol", "prepare")


def nbytes(tensor: relax.Expr) -> int:
    """Elements of less than a byte take one."""
    return math.prod(graph.shape(tensor)) * -(-tvm.DataType(graph.dtype(tensor)).bits // 8)


CHECKS = {"vm.builtin.check_tensor_info", "vm.builtin.match_shape"}


def trusted(mod: tvm.IRModule, inputs: int) -> tvm.IRModule:
    """`main` checks its first `inputs` parameters and not the others with every call: these come from `prepare`."""
    main = mod["main"]
    ours = set(main.params[inputs:])

    def needed(step: relax.Binding) -> bool:
        value = step.value
        if not isinstance(value, relax.Call) or not isinstance(value.op, relax.ExternFunc):
            return True
        return value.op.global_symbol not in CHECKS or value.args[0] not in ours

    blocks = [relax.BindingBlock([step for step in block.bindings if needed(step)]) for block in main.body.blocks]
    body = relax.SeqExpr(blocks, main.body.body)
    new = relax.Function(main.params, body, main.ret_ty, main.is_pure, main.attrs)
    functions = dict(mod.functions_items())
    return tvm.IRModule(functions | {mod.get_global_var("main"): new}, attrs=mod.attrs)
