"""The modules and parameters of a Dynamo graph, by the user's module paths.

Dynamo names a module by the expression that reached it in the translated function:

    L['s'].layers.0             an attribute of the compiled module, which the function calls s
    G['nets']['a'].layers.0     in a dict outside of it
    G['old'].__self__           through a bound method

A submodule of the compiled module gets its path in it (`layers.0`). Other modules are written as
attributes of the variable that holds them (`nets.a.layers.0`).
"""

import re
from collections.abc import Iterator

from torch.fx import GraphModule, Node

from ladderize import compat

_STACK = "nn_module_stack"
_OWNED = re.compile(
    r"(.*)\.(?:(?:__dict__\['_(?:parameters|buffers)'\]|_(?:parameters|buffers))\['([^']+)'\]|(\w+))"
    r"(.*)"
)
_VARIABLE = re.compile(r"\b[LG]\['(\w+)'\]")
_NUMBER = re.compile(r"\.(\d+)(?=[.\[)]|$)")
_PARTIAL = re.compile(r"^(\.func\b)+")
_ATTRIBUTE = re.compile(r"getattr\((.*), '([^']+)'\)")
_ITEM = re.compile(r"\[(?:'([^']*)'|(\d+))\]")
_MODULES = re.compile(r"\.__dict__\['_modules'\]|\._modules\b")


def name_modules(gm: GraphModule) -> None:
    """Put the user's module paths into the nodes of `gm`, which Dynamo has just traced.

    Call this from inside a backend.
    """
    paths = _paths()
    known: dict[str, str] = {}
    for part in _graphs(gm):
        for node in part.graph.nodes:
            if stack := node.meta.get(_STACK):
                node.meta[_STACK] = {
                    key: (_path(str(source), paths, known), kind)
                    for key, (source, kind) in stack.items()
                }


def parameter_names(gm: GraphModule) -> dict[Node, str]:
    """The inputs of a Dynamo graph that belong to a module, with their qualified names.

    Names come from Dynamo's source of each input, never from node names:
    `L['self']._modules['fc']._parameters['weight']` → `fc.weight`. Call this from inside a backend.
    """
    paths = _paths()
    known: dict[str, str] = {}
    names = {}
    for node in gm.graph.find_nodes(op="placeholder"):
        source = getattr(node, "_dynamo_source", None)
        if source is not None and compat.is_module_source(source):
            names[node] = _parameter_path(compat.source_name(source), paths, known)
    return names


def _parameter_path(source: str, paths: dict[int, str], known: dict[str, str]) -> str:
    found = _OWNED.match(source)
    if found is None:  # an item of the module itself
        return source
    owner, name, attribute, rest = found.groups()
    return f"{_path(owner, paths, known)}.{name or attribute}{rest}".removeprefix(".")


def _paths() -> dict[int, str]:
    """The path of each submodule of the compiled module, by `id`."""
    root = compat.compiled_module()
    return {} if root is None else {id(part): path for path, part in root.named_modules()}


def _graphs(gm: GraphModule) -> Iterator[GraphModule]:
    return (part for part in gm.modules() if isinstance(part, GraphModule))


def _path(source: str, paths: dict[int, str], known: dict[str, str]) -> str:
    if source not in known:
        known[source] = _looked_up(source, paths) if _VARIABLE.search(source) else source
    return known[source]


def _looked_up(source: str, paths: dict[int, str]) -> str:
    """The path of module `source`, else e.g. `nets.a.layers.0` for `G['nets']['a'].layers.0`.

    The path of the compiled module itself is "".
    """
    found = compat.value_of(_NUMBER.sub(r".get_submodule('\1')", source))
    if id(found) in paths:
        return paths[id(found)]
    variable = _VARIABLE.search(source)
    assert variable is not None
    callee = compat.callee_of(compat.value_of(variable[0]))
    is_root = paths.get(id(callee)) == "" if paths else variable[1] == "self"
    while "getattr(" in source:
        source = _ATTRIBUTE.sub(r"\1.\2", source)
    source = _MODULES.sub("", source.replace(variable[0], "" if is_root else variable[1]))
    if is_root:
        source = _PARTIAL.sub("", source)
    return _ITEM.sub(lambda item: f".{item[1] or item[2]}", source).removeprefix(".")
