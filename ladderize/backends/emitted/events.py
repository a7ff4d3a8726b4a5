"""Read an emitted Python wrapper into ordered events.

    all_reduce_.default(buf5, 'sum', '0')          launch  all_reduce on group '0'; buf5 in flight
    extern_kernels.mm(buf2, primals_4, out=buf8)   compute mm; reads buf2, primals_4; writes buf8
    wait_tensor.default(buf5)                      wait    for buf5
    buf29 = buf5; del buf5  # reuse                reuse   of buf5's memory

Names are resolved to *storages*: through assignment, `reinterpret_tensor`, views, lists and tuples,
reuse, and calls of graph partitions and subgraphs, which are read inline. Unknown code is assumed
to read and write every buffer that it mentions. Different graph inputs are assumed to be different
storages.
"""

import ast
from collections.abc import Iterable, Mapping

from ladderize.backends.emitted.kernels import KernelFlow, read_kernels
from ladderize.backends.emitted.names import (
    NOTHING,
    Names,
    Storage,
    Storages,
    Value,
    storages_of,
    union,
)
from ladderize.backends.emitted.program import EventKind, Program, Recorder
from ladderize.backends.emitted.syntax import (
    ALIGN,
    COLLECTIVES,
    FUNCTIONAL,
    METADATA,
    PERHAPS_VIEWS,
    PINNED_WAITS,
    SYMBOL,
    VIEWS,
    frees_source,
    op_name,
    root_name,
)
from ladderize.errors import Blocker, LadderError


def read_events(source: str) -> Program:
    """The events of the `call` function of an emitted Python wrapper.

    Raises:
        LadderError: the source has no `call`, or has a collective under `if`, `for` or `while`,
            whose position in the order is unknown.
    """
    module = ast.parse(source)
    bodies = [module.body, *(node.body for node in module.body if isinstance(node, ast.ClassDef))]
    functions = {
        node.name: node for body in bodies for node in body if isinstance(node, ast.FunctionDef)
    }
    if "call" not in functions:
        raise LadderError("The emitted code has no Python `call` function to check.")
    reader = _WrapperReader(Recorder(source.splitlines()), functions, read_kernels(module))
    reader.read_function(functions["call"])
    return Program(tuple(reader.record.events), frozenset(reader.inputs))


class _WrapperReader:
    def __init__(
        self,
        record: Recorder,
        functions: Mapping[str, ast.FunctionDef],
        kernels: Mapping[str, KernelFlow | None],
    ) -> None:
        self.record = record
        self.functions = functions
        self.kernels = kernels
        self.inputs: set[Storage] = set()
        self.names = Names()
        self.results: set[Storage] = set()  # of functional ops: perhaps tuples of tensors
        self.target = ""  # the name that the expression being read is assigned to

    # ---- statements

    def read_function(self, function: ast.FunctionDef) -> Value:
        return self._read_body(function.body) or NOTHING

    def _read_body(self, body: list[ast.stmt]) -> Value | None:
        """The returned value; None if the end is reached without a `return`."""
        for statement, after in zip(body, [*body[1:], None], strict=True):
            match statement:
                case ast.Return(value=value):
                    return self._return(statement, value)
                case ast.With(body=inner):
                    returned = self._read_body(inner)
                    if returned is not None:
                        return returned
                case ast.Delete(targets=targets):
                    self._delete(statement, targets)
                case ast.Assign(targets=[target], value=value):
                    self._assign(statement, target, value)
                    if frees_source(statement, after):
                        self._reuse(statement, target)
                case ast.Expr(value=value):
                    self._value(value)
                case _:
                    self._read_unknown(statement)
        return None

    def _return(self, statement: ast.Return, value: ast.expr | None) -> Value:
        returned = self._value(value) if value else NOTHING
        if len(self.names.frames) == 1:
            self.record.add(EventKind.RETURN, "return", statement, storages_of(returned))
        return returned

    def _delete(self, statement: ast.Delete, targets: Iterable[ast.expr]) -> None:
        for target in targets:
            gone = self.names.drop(target.id) if isinstance(target, ast.Name) else NOTHING
            if gone:
                self.record.add(
                    EventKind.FREE, "free", statement, writes=dict.fromkeys(gone, NOTHING)
                )

    def _assign(self, statement: ast.Assign, target: ast.expr, value: ast.expr) -> None:
        if len(self.names.frames) == 1 and root_name(value) == "args":
            self._bind_inputs(target)
            return
        self.target = target.id if isinstance(target, ast.Name) else f"line{statement.lineno}"
        self._bind(statement, target, self._value(value))

    def _bind_inputs(self, target: ast.expr) -> None:
        for node in ast.walk(target):
            if isinstance(node, ast.Name):
                self.names[node.id] = self.names.new_storage(node.id)
                self.inputs |= storages_of(self.names[node.id])

    def _bind(self, statement: ast.stmt, target: ast.expr, value: Value) -> None:
        match target:
            case ast.Name(id=name) if SYMBOL.match(name):
                self.names[name] = NOTHING
            case ast.Name(id=name):
                is_buffer = name.startswith(("buf", "pool"))
                self.names[name] = value or (self.names.new_storage(name) if is_buffer else NOTHING)
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                for index, part in enumerate(parts):
                    self._bind(statement, part, self._item(statement, value, index))
            case _:
                self._opaque(statement, "assign", self._mentioned(target) | storages_of(value))

    def _reuse(self, statement: ast.Assign, target: ast.expr) -> None:
        reused = self._mentioned(target)
        self.record.add(
            EventKind.REUSE, "reuse", statement, writes={s: frozenset({s}) for s in reused}
        )
        self.record.stale |= reused

    def _read_unknown(self, statement: ast.stmt) -> None:
        if "_c10d_functional" in ast.unparse(statement):
            where = f"line {statement.lineno} of the emitted code"
            blocker = Blocker("a collective under control flow", where)
            raise LadderError("The emitted code cannot be checked.", [blocker])
        touched = self._mentioned(statement)
        self._opaque(statement, type(statement).__name__.lower(), touched)
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self.names[node.id] = touched | self.names.new_storage(node.id)

    # ---- expressions

    def _value(self, node: ast.expr) -> Value:
        """The value of an expression; records the events of the calls in it."""
        match node:
            case ast.Name(id=name):
                return self.names[name]
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                return tuple(self._value(part) for part in parts)
            case ast.Subscript(value=value, slice=ast.Constant(value=int(index))):
                return self._item(node, self._value(value), index)
            case ast.Attribute(attr=attribute) if attribute in METADATA:
                return NOTHING
            case ast.Starred(value=value) | ast.Attribute(value=value) | ast.Subscript(value=value):
                return self._value(value)
            case ast.Call():
                return self._call(node, ast.unparse(node.func))
            case _:
                return self._opaque(node, type(node).__name__.lower(), self._mentioned(node))

    def _item(self, node: ast.AST, value: Value, index: int) -> Value:
        if isinstance(value, tuple):
            return value[index] if index < len(value) else union(value)
        if not value or not value <= self.results:
            return value
        (result,) = value
        item = f"{result}[{index}]"
        if item not in self.names.given:
            self.names.given.add(item)
            self.record.add(EventKind.UNPACK, "unpack", node, writes={item: value})
        return frozenset({item})

    def _call(self, call: ast.Call, function: str) -> Value:
        if function == "args.clear":
            self.names.drop("args")
            return NOTHING
        if isinstance(call.func, ast.Attribute) and call.func.attr in METADATA:
            return NOTHING
        if function in METADATA:
            return NOTHING
        inner = function.replace("self.partitions[", "partition_").removesuffix("]")
        if inner in self.functions and inner != "call":
            with self.names.call(args=self._value(call.args[0]) if call.args else NOTHING):
                before = self.record.partition
                self.record.partition = inner if inner != function else before
                result = self.read_function(self.functions[inner])
                self.record.partition = before
                return result
        kernel = function.removesuffix(".run")
        if kernel in self.kernels:
            return self._kernel(call, kernel, self.kernels[kernel])
        return self._op(call, function)

    def _kernel(self, call: ast.Call, name: str, flow: KernelFlow | None) -> Value:
        if flow is None or self._mentioned(*call.keywords):
            return self._opaque(call, name, self._mentioned(*call.args, *call.keywords))
        given = {
            param: storages_of(self._value(arg))
            for param, arg in zip(flow.params, call.args, strict=False)
        }
        shared = _stored_elsewhere(flow, given)
        writes: dict[Storage, Storages] = {}
        for param, sources in flow.sources.items():
            content = union(given.get(p, NOTHING) for p in _with_shared(sources, shared))
            for storage in given.get(param, NOTHING):
                writes[storage] = writes.get(storage, NOTHING) | content | self.record.kept(storage)
        self.record.add(
            EventKind.COMPUTE, name, call, union(given.get(p, NOTHING) for p in flow.reads), writes
        )
        return NOTHING

    def _op(self, call: ast.Call, function: str) -> Value:
        op = op_name(function)
        args = [self._value(arg) for arg in call.args]
        options = {k.arg: self._value(k.value) for k in call.keywords}
        out = options.pop("out", NOTHING)
        touched = union([*args, *options.values()])
        receiver = NOTHING
        if isinstance(call.func, ast.Attribute) and not function.startswith(
            FUNCTIONAL + COLLECTIVES
        ):
            receiver = storages_of(self._value(call.func.value))
        if function.startswith(COLLECTIVES):
            return self._collective(call, op, args, out)
        if function.startswith(PINNED_WAITS):
            return self._pinned_wait(call, op, args)
        if op == ALIGN:
            self.record.add(EventKind.ALIGN, op, call, touched)
            return args[0]
        if op in VIEWS:
            return receiver or (storages_of(args[0]) if args else NOTHING)
        if not function.startswith(FUNCTIONAL) and not (receiver and op.endswith("_")):
            return self._opaque(call, op, touched | receiver | storages_of(out))
        if op in PERHAPS_VIEWS:
            return self._opaque(call, op, touched | receiver)
        return self._functional(call, op, [receiver, *args] if receiver else args, touched, out)

    def _functional(
        self, call: ast.Call, op: str, args: list[Value], touched: Storages, out: Value
    ) -> Value:
        in_place = op.endswith("_") and bool(args)
        result = args[0] if in_place else out or self.names.new_storage(self.target)
        kind = EventKind.COPY if op == "copy_" else EventKind.COMPUTE
        if kind is EventKind.COPY:
            touched = union(args[1:])
        elif in_place:
            touched |= storages_of(result)
        elif not out:
            self.results |= storages_of(result)
        writes = {s: touched | self.record.kept(s) for s in storages_of(result)}
        self.record.add(kind, op, call, touched, writes)
        return result

    def _collective(self, call: ast.Call, op: str, args: list[Value], out: Value) -> Value:
        operand = args[0]
        reads = storages_of(operand)
        if op == "wait_tensor":
            self.record.add(EventKind.WAIT, op, call, pending=reads)
            return operand
        result = operand if op.endswith("_") else out or self._new_like(operand)
        self.record.add(
            EventKind.LAUNCH,
            op.removesuffix("_").removesuffix("_out"),
            call,
            reads,
            dict.fromkeys(storages_of(result), reads),
            pending=storages_of(result),
            group=ast.unparse(call.args[-1]),
        )
        return result

    def _pinned_wait(self, call: ast.Call, op: str, args: list[Value]) -> Value:
        """`wait_add(residual, pending, after)`: `after` is in flight and only fixes the order."""
        *added, pending, _ = map(storages_of, args)
        result = self.names.new_storage(self.target)
        writes = dict.fromkeys(result, union([*added, pending]))
        self.record.add(EventKind.WAIT, op, call, union(added), writes, pending)
        return result

    def _new_like(self, operand: Value) -> Value:
        """The result of a collective: a list of tensors if the operand is one."""
        if isinstance(operand, tuple):
            return tuple(self.names.new_storage(f"{self.target}[{i}]") for i in range(len(operand)))
        return self.names.new_storage(self.target)

    def _opaque(self, node: ast.AST, name: str, touched: Storages) -> Storages:
        """Unknown code: it may read, write and return everything that it mentions."""
        if not touched:
            return NOTHING
        self.record.add(EventKind.COMPUTE, name, node, touched, dict.fromkeys(touched, touched))
        return touched

    def _mentioned(self, *nodes: ast.AST) -> Storages:
        names = {n.id for node in nodes for n in ast.walk(node) if isinstance(n, ast.Name)}
        return union(self.names[name] for name in names)


def _stored_elsewhere(flow: KernelFlow, given: Mapping[str, Storages]) -> dict[str, frozenset[str]]:
    """For each parameter of a kernel, what the kernel stores to its storage through others.

    A kernel may store a `cat` in parts and read it as a whole: `(buf55[:8], …, buf55)`.
    """
    found: dict[str, frozenset[str]] = {}
    for param, storages in given.items():
        others = [p for p in flow.sources if p != param and given.get(p, NOTHING) & storages]
        if others:
            found[param] = frozenset().union(*(flow.sources[other] for other in others))
    return found


def _with_shared(sources: frozenset[str], shared: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """`sources` and, transitively, what is stored to them through other parameters."""
    found, todo = set(sources), list(sources)
    while todo:
        new = shared.get(todo.pop(), frozenset()) - found
        found |= new
        todo += new
    return frozenset(found)
