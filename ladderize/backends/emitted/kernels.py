"""Read from a fused kernel's source what its outputs are computed from.

    void kernel(float* in_out_ptr0, const float* in_ptr0, const float* in_ptr1, float* out_ptr0)
    { auto tmp0 = in_ptr0[x0]; auto tmp1 = in_ptr1[x0]; auto tmp2 = tmp0 + tmp1;
      out_ptr0[x0] = tmp0; in_out_ptr0[x0] = tmp2; }

    params   (in_out_ptr0, in_ptr0, in_ptr1, out_ptr0)
    sources  {out_ptr0: {in_ptr0}, in_out_ptr0: {in_ptr0, in_ptr1}}

Inductor fuses two residual adds into one kernel, which then waits for two all-reduces although the
next op needs only the first. So early waits can only be found inside kernels. Kernels are read
statement by statement, following variables but not control flow. Helper functions of a kernel
(`_triton_helper_fn_add0`) are not read: their results depend on all arguments. A multi-kernel is
any of its kernels.

A kernel that is not Inductor's (its parameters have other names), or whose stores are not all
recognized, is not read; callers assume that it reads and writes all arguments.
"""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

# `arg_A` is an operand of a template, `ws_ptr` scratch memory and `sem_ptr` semaphores of a kernel.
_POINTER = re.compile(r"((in_out_ptr|in_ptr|out_ptr)\d+|arg_\w+|ws_ptr(_\d+)?|sem_ptr)$")
_STORED = re.compile(r"(in_out_ptr|out_ptr)\d+$")
_READ_ONLY = re.compile(r"in_ptr\d+$")
_SCALAR = re.compile(
    r"(ks\d+|\w*numel(_\d+)?|[XYZR]\d?_?BLOCK(_\d+)?|[RX]SPLIT\w*|\w*seed\w*|_grid_\d)$"
)
_CPP_SIGNATURE = re.compile(r"\bvoid\s+(\w+)\(([^)]*)\)\s*\{")
_TRITON_SIGNATURE = re.compile(r"^def (\w+)\(([^)]*)\):$", re.MULTILINE)
_MUTATED = re.compile(r"'mutated_arg_names': \[([^\]]*)\]")
_NAME = re.compile(r"[A-Za-z_]\w*")
_TUPLE = re.compile(r"(\w+\s*,\s*)+(\w+)?$")
_ADDRESS = re.compile(r"(?<=[(,\s])&(\w+)")
_ASSIGN = re.compile(
    r"(?P<target>[^=]*?[\w\],])\s*(?P<op>[-+*/|&]?)=(?!=)(?P<value>.*)$", re.DOTALL
)
_STORE = re.compile(
    r"(?:(?P<value>.+?)\.store|tl\.store)\((?P<address>.*)\)$",  # C++: value.store(address)
    re.DOTALL,
)
# tl.atomic_add(out_ptr0 + (x0), tmp3, xmask, sem='relaxed'): no assignment
_TRITON_CALL = re.compile(r"(tl|triton_helpers)\.\w+\(")
_ARRAY = re.compile(r"[\w\s:<>,()]*\s(?P<name>\w+)\[[^\]]*\]$")


@dataclass(frozen=True)
class KernelFlow:
    """`sources[p]` are the parameters whose initial values the kernel's stores to `p` depend on.

    Pointers without stores are not in `sources`. A kernel that stores to an `in_out_ptr` before
    reading it does not depend on its initial value.
    """

    params: tuple[str, ...]
    sources: Mapping[str, frozenset[str]]

    @property
    def pointers(self) -> tuple[str, ...]:
        return tuple(param for param in self.params if _POINTER.match(param))

    @property
    def reads(self) -> frozenset[str]:
        """The pointers whose memory the kernel reads, or may read."""
        given = (param for param in self.pointers if not _STORED.match(param))
        return frozenset(given).union(*self.sources.values())


def read_kernels(module: ast.Module) -> dict[str, KernelFlow | None]:
    """The flow of each kernel that the emitted module defines; None if it cannot be read."""
    kernels: dict[str, KernelFlow | None] = {}
    for statement in module.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call() as call):
                maker = ast.unparse(call.func)
                if maker.startswith("async_compile.") and maker.endswith("multi_kernel"):
                    members = [n.id for n in ast.walk(call.args[-1]) if isinstance(n, ast.Name)]
                    kernels[name] = _any_of([kernels.get(member) for member in members])
                elif maker.startswith("async_compile."):
                    kernels[name] = _read_kernel(call)
    return kernels


def _any_of(flows: Sequence[KernelFlow | None]) -> KernelFlow | None:
    """The joint flow of kernels that take the same pointers, then possibly different numbers."""
    known = [flow for flow in flows if flow is not None]
    if not known or len(known) < len(flows) or len({flow.pointers for flow in known}) > 1:
        return None
    stored = frozenset[str]().union(*(flow.sources for flow in known))
    none = frozenset[str]()
    sources = {p: none.union(*(flow.sources.get(p, none) for flow in known)) for p in stored}
    return KernelFlow(known[0].params, sources)


def _read_kernel(call: ast.Call) -> KernelFlow | None:
    texts = [
        arg.value
        for arg in call.args
        if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
    ]
    for text in texts:
        for signature, split in (
            (_TRITON_SIGNATURE, _triton_statements),
            (_CPP_SIGNATURE, _cpp_statements),
        ):
            functions = list(signature.finditer(text))
            kernels = [function for function in functions if function[1] in (*texts, "kernel")]
            for kernel in kernels or functions[:1]:
                return _flow(kernel[2], split(text[kernel.end() :]), _mutated_operands(text))
    return None


def _mutated_operands(text: str) -> frozenset[str]:
    """The mutated operands of a template. (A mutated `in_ptr0` has a second, stored pointer.)"""
    listed = _NAME.findall(" ".join(_MUTATED.findall(text)))
    return frozenset(name for name in listed if name.startswith("arg_"))


def _flow(signature: str, statements: Iterator[str], mutated: frozenset[str]) -> KernelFlow | None:
    params = tuple(_param_name(chunk) for chunk in signature.split(",") if chunk.strip())
    if any(not _POINTER.match(param) and not _SCALAR.match(param) for param in params):
        return None
    reader = _KernelReader({param for param in params if _POINTER.match(param)})
    for statement in statements:
        reader.read(statement)
    # An `in_out_ptr` whose buffer was optimized away is not stored to.
    outputs = {param for param in params if param.startswith("out_ptr")}
    if not outputs | mutated <= reader.stored:
        return None
    return KernelFlow(
        params, {p: frozenset(reader.values[p]) for p in reader.stored if p in params}
    )


def _param_name(chunk: str) -> str:
    """The name in `const float* in_ptr0` or `XBLOCK : tl.constexpr`."""
    return str(_NAME.findall(chunk.split(":")[0] if "tl." in chunk else chunk)[-1])


def _triton_statements(body: str) -> Iterator[str]:
    for line in body.splitlines():
        if statement := line.split("#")[0].strip():
            yield statement


def _cpp_statements(body: str) -> Iterator[str]:
    """The statements of C++ code, with each brace as a separate statement."""
    code = re.sub(r"^\s*#.*$|//.*$", "", body, flags=re.MULTILINE)
    for piece in re.split(r"([;{}])", code):
        if (statement := piece.strip()) and statement != ";":
            yield statement


@dataclass
class _KernelReader:
    """Walks a kernel's statements; `values[name]` are the initial values that `name` depends on."""

    pointers: set[str]
    values: dict[str, set[str]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    arrays: set[str] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)
    scopes: list[str] = field(default_factory=list)  # of each open brace: its lambda's name or ""
    opening: str = ""
    last_target: str = ""

    def read(self, statement: str) -> None:
        if statement == "{":
            self.scopes.append(self.opening)
            self.opening = ""
        elif statement == "}":
            self.last_target = (self.scopes.pop() if self.scopes else "") or self.last_target
        else:
            self._read_plain(statement)
            self.opening = self.last_target if "[&]" in statement or "[]" in statement else ""

    def _read_plain(self, statement: str) -> None:
        if statement.startswith("return "):
            self._add(next(filter(None, reversed(self.scopes)), ""), statement)
        elif statement[0] in ",)":  # the rest of a statement that a brace cut
            self._add(self.last_target, statement)
        elif match := _STORE.match(statement):
            self._store_at(match["address"], match["value"])
        elif _TRITON_CALL.match(statement):
            self._call(statement)
        elif match := _ARRAY.match(statement):
            self.arrays.add(match["name"])
        elif match := _ASSIGN.match(statement):
            self._assign(match["target"], match["op"], match["value"])
        else:
            self._call(statement)

    def _assign(self, target: str, op: str, value: str) -> None:
        name = target.split("[")[0].split()[-1]
        if "[" in target:
            self._store(name, f"{value} {target if op else target.split('[', 1)[1]}")
        elif value.strip() in self.pointers:  # auto out_ptr0 = in_out_ptr0
            self.aliases[name] = value.strip()
        elif _TUPLE.match(target):  # Triton: mean, m2, weight = triton_helpers.welford(…)
            for member in _NAME.findall(target):
                self._set(member, value)
        elif op or (name == target and self.scopes):  # C++ assigns again, perhaps in a loop
            self._add(name, value)
        else:
            self._set(name, value)

    def _call(self, statement: str) -> None:
        """A bare call may write what is passed by address: `atomic_add(&out_ptr0[i], tmp3)`."""
        by_address = set(_ADDRESS.findall(statement))
        for name in _NAME.findall(statement):
            pointer = self._resolve(name)
            writable = pointer in self.pointers and not _READ_ONLY.match(pointer)
            if writable or name in by_address or name in self.arrays:
                self._store(name, statement)

    def _store_at(self, address: str, value: str) -> None:
        """Store to the pointer (or, in C++, local array) that `address` starts from."""
        names = _NAME.findall(address)
        known = [name for name in names if self._resolve(name) in self.pointers]
        name = (known or names)[0]
        self._store(name, f"{value} {address.replace(name, '', 1)}")

    def _store(self, name: str, value: str) -> None:
        pointer = self._resolve(name)
        added = self._values_in(value)
        self.last_target = pointer
        self.stored.add(pointer)
        self.values.setdefault(pointer, set()).update(added)

    def _set(self, name: str, value: str) -> None:
        self.values[name] = self._values_in(value)
        self.last_target = name

    def _add(self, name: str, value: str) -> None:
        self.values.setdefault(name, set()).update(self._values_in(value))
        self.last_target = name

    def _resolve(self, name: str) -> str:
        return self.aliases.get(name, name)

    def _values_in(self, text: str) -> set[str]:
        values: set[str] = set()
        for name in map(self._resolve, _NAME.findall(text)):
            if name in self.pointers and name not in self.stored:
                self.values.setdefault(name, set()).add(name)
            values |= self.values.get(name, set())
        return values
