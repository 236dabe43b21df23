"""Is a plug-in there, and can it be called as raysense will? Files are read; none of the user's code is run.

What only running would tell (a foreign decorator, a call, a compiled module) is taken on trust: the first use tells.
What raysense's own decorators say is read too (`declared`), as far as it is written as plain values.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.machinery
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from raysense.registry import Declaration, Kind

_DEEPEST = 8
"""Imports from one module to the next that are followed."""


@dataclass(frozen=True)
class Use:
    """How raysense calls a plug-in.

    Attributes:
        what: What it is, in words.
        arguments: Their names, for people; positional unless `by_name`.
        by_name: They are given by name.
        may_be_class: Calling a class gives what is wanted.
        unchecked: How it will be called is not known yet.
    """

    what: str
    arguments: tuple[str, ...]
    by_name: bool = False
    may_be_class: bool = False
    unchecked: bool = False

    def __str__(self) -> str:
        """As in a sentence."""
        equals = "=…" if self.by_name else ""
        return f"{self.what} is called with ({', '.join(name + equals for name in self.arguments)})"


METRIC = Use("a metric", ("images", "prompts", "dense"))
SET_METRIC = Use("a metric of the set", ("features", "reference"))
SALIENCY = Use("a saliency", ("weight", "known"))
UPDATE = Use("a method that updates weights", ("weight", "hessian", "zeros", "kind"))
STRATEGY = Use("a search strategy", ("search", "known"))
ALLOCATION_RULE = Use("an allocation rule", ("inventory", "grid", "zeros"))
ANYTHING = Use("a plug-in", ("…",), unchecked=True, may_be_class=True)
EXTRACTOR = Use("an extractor", ("device", "batch"), by_name=True, may_be_class=True)


def fault(path: str, use: Use, deep: int = 0) -> str:
    """Why the object at a dotted path cannot serve, or an empty string.

    Args:
        path: ``package.module.name`` or ``package.module:name``.
        use: How it will be called.
        deep: How many imports have been followed.
    """
    module, _, name = path.replace(":", ".").rpartition(".")
    if (own := _interpreters_own(module)) is not None:
        return _of_object(getattr(own, name, None), path, use)
    place = _place_of(path)
    if isinstance(place, str):
        return place
    faults = [_of_node(node, name, place, use, deep) for node in place.nodes]
    return "" if not faults or "" in faults else faults[-1]  # under `if` and `try` any of them may be the one


def declared(path: str, deep: int = 0) -> Declaration | None:
    """What raysense's decorator says of the object at a dotted path, read from its source.

    Args:
        path: ``package.module.name`` or ``package.module:name``.
        deep: How many imports have been followed.

    Returns:
        Its declaration, with those of its facts that are plain values; None where none is seen.
    """
    module, _, name = path.replace(":", ".").rpartition(".")
    place = _place_of(path) if _interpreters_own(module) is None else ""
    for node in [] if isinstance(place, str) else place.nodes:
        assert not isinstance(place, str)
        found: Declaration | None = None
        if isinstance(node, ast.ImportFrom) and deep < _DEEPEST:
            found = declared(_imported(node, name, place.package), deep + 1)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found = next(filter(None, (_declaration(d, place.bindings) for d in node.decorator_list)), None)
        if found is not None:
            return found
    return None


def _declaration(decorator: ast.expr, bindings: list[tuple[str, ast.AST]]) -> Declaration | None:
    """What one of raysense's decorators says; None for any other one."""
    if not isinstance(decorator, ast.Call):
        return None
    function, root = decorator.func, decorator.func
    while isinstance(root, ast.Attribute):
        root = root.value
    if not isinstance(root, ast.Name):
        return None
    source = next((node for name, node in bindings if name == root.id), None)
    if isinstance(source, ast.ImportFrom) and (source.module or "").partition(".")[0] == "raysense":
        kind = next(alias.name for alias in source.names if (alias.asname or alias.name) == root.id)
    elif isinstance(source, ast.Import) and any(a.name.startswith("raysense") for a in source.names):
        kind = ""
    else:
        return None
    kind = function.attr if isinstance(function, ast.Attribute) else kind
    if kind not in get_args(Kind):
        return None
    given = {"name": decorator.args[0]} if decorator.args else {}
    given |= {keyword.arg: keyword.value for keyword in decorator.keywords if keyword.arg}
    facts: dict[str, Any] = {}
    for name, value in given.items():
        with contextlib.suppress(ValueError):
            facts[name] = ast.literal_eval(value)
    return Declaration(kind, str(facts.pop("name", "")), facts)  # type: ignore[arg-type]


def _is_read(found: Declaration | None, decorator: ast.expr) -> bool:
    """Whether a decorator is raysense's, and all that it says is written as plain values."""
    return (
        found is not None and isinstance(decorator, ast.Call) and len(found.facts) == len(decorator.keywords)
    )


@dataclass(frozen=True)
class _Place:
    """Where a module binds a name.

    Attributes:
        nodes: The statements and values that it is bound to; none where only running would tell.
        bindings: All names that the module's own statements bind.
        package: What its relative imports start from.
    """

    nodes: list[ast.AST]
    bindings: list[tuple[str, ast.AST]]
    package: str


def _place_of(path: str) -> _Place | str:
    """Where the object at a dotted path is defined, or what is wrong with it; an empty text if nothing is known."""
    module, _, name = path.replace(":", ".").rpartition(".")
    spec, searched = None, list(sys.path)
    done: list[str] = []
    for part in module.split("."):
        done.append(part)
        here = ".".join(done)
        spec = importlib.machinery.PathFinder.find_spec(here, searched)
        if spec is None:
            return _missing(f"there is no module {here!r}; check the name, the study's folder and PYTHONPATH")
        searched = list(spec.submodule_search_locations or [])
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return ""  # compiled, or a package without a file: only importing would tell
    try:
        tree = ast.parse(Path(spec.origin).read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        return _missing(f"{spec.origin} cannot be read: {' '.join(str(error).split())}")
    found = list(_bindings(tree.body))
    bound_to = [node for bound, node in found if bound == name]
    if bound_to:
        return _Place(bound_to, found, module if searched else module.rpartition(".")[0])
    if {"*", "__getattr__"} & {bound for bound, _ in found}:
        return ""
    if importlib.machinery.PathFinder.find_spec(f"{module}.{name}", searched):
        return _a_module(name)
    return _missing(f"{spec.origin} defines no {name!r}")


def _interpreters_own(module: str) -> ModuleType | None:
    """A module of the interpreter's own that is loaded already, or that runs no code when it is."""
    if module in sys.builtin_module_names:
        return importlib.import_module(module)
    return sys.modules.get(module) if module.partition(".")[0] in sys.stdlib_module_names else None


def _missing(why: str) -> str:
    return f"cannot be imported: {why}"


def _a_module(name: str) -> str:
    return f"names the module {name!r}; name a function in it"


def _of_object(found: object, path: str, use: Use) -> str:
    """What is wrong with an object of a module that is part of the interpreter."""
    if found is None:
        return _missing(f"there is no {path!r}")
    if isinstance(found, ModuleType):
        return _a_module(path)
    if not callable(found):
        return f"is {_an(type(found).__name__)}, which cannot be called; {use}"
    if isinstance(found, type) and not use.may_be_class:
        return f"is a class; name a function: {use}"
    return _of_signature(found, use)


def _of_signature(function: Callable[..., object], use: Use) -> str:
    if use.unchecked:
        return ""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions have none
        return ""
    try:
        if use.by_name:
            signature.bind(**dict.fromkeys(use.arguments))
        else:
            signature.bind(*use.arguments)
    except TypeError as error:
        return f"cannot be called so ({error}); {use}"
    return ""


def _imported(node: ast.ImportFrom, name: str, package: str) -> str:
    """The dotted path that a name is imported from."""
    alias = next(a for a in node.names if (a.asname or a.name) == name)
    base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    return ".".join(filter(None, (*base, node.module or "", alias.name)))


def _of_node(node: ast.AST, name: str, place: _Place, use: Use, deep: int) -> str:
    """What is wrong with what a module's own statement binds a name to."""
    if isinstance(node, ast.Import):
        alias = next(a for a in node.names if (a.asname or a.name.partition(".")[0]) == name)
        return _a_module(alias.name)
    if isinstance(node, ast.ImportFrom):
        return fault(_imported(node, name, place.package), use, deep + 1) if deep < _DEEPEST else ""
    if isinstance(node, ast.AsyncFunctionDef):
        return f"is a coroutine; name a plain function: {use}"
    if isinstance(node, ast.FunctionDef):
        known = [d for d in node.decorator_list if _is_read(_declaration(d, place.bindings), d)]
        return "" if len(known) < len(node.decorator_list) else _of_arguments(node.args, use)
    if isinstance(node, ast.Lambda):
        return _of_arguments(node.args, use)
    if isinstance(node, ast.ClassDef):
        return _of_class(node, use)
    if isinstance(node, _VALUES):
        return f"is no function, but a value; {use}"
    return ""


_VALUES = (
    ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.JoinedStr, ast.ListComp, ast.DictComp, ast.SetComp,
    ast.GeneratorExp, ast.Compare, ast.BinOp,
)  # fmt: skip


def _of_class(node: ast.ClassDef, use: Use) -> str:
    if use.unchecked:
        return ""
    if not use.may_be_class:
        return f"is a class; name a function: {use}"
    made = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
    if made and not made[-1].decorator_list:
        return _of_arguments(made[-1].args, use, bound=1)
    if not made and not node.bases and not node.keywords and not node.decorator_list:
        return f"takes no arguments; {use}"
    return ""


def _of_arguments(taken: ast.arguments, use: Use, bound: int = 0) -> str:
    """What is wrong with a function's arguments.

    Args:
        taken: As they are written.
        use: How it will be called.
        bound: Leading arguments that Python gives, such as `self`.
    """
    parameters: list[inspect.Parameter] = []
    kinds = inspect.Parameter
    plain: list[tuple[ast.arg, Any]] = [(a, kinds.POSITIONAL_ONLY) for a in taken.posonlyargs]
    plain += [(a, kinds.POSITIONAL_OR_KEYWORD) for a in taken.args]
    first = len(plain) - len(taken.defaults)
    for number, (argument, kind) in enumerate(plain):
        default = None if number >= first else kinds.empty
        parameters.append(kinds(argument.arg, kind, default=default))
    if taken.vararg:
        parameters.append(kinds(taken.vararg.arg, kinds.VAR_POSITIONAL))
    for argument, value in zip(taken.kwonlyargs, taken.kw_defaults, strict=True):
        parameters.append(
            kinds(argument.arg, kinds.KEYWORD_ONLY, default=None if value is not None else kinds.empty)
        )
    if taken.kwarg:
        parameters.append(kinds(taken.kwarg.arg, kinds.VAR_KEYWORD))

    def stand_in() -> None: ...

    stand_in.__signature__ = inspect.Signature(parameters[bound:])  # type: ignore[attr-defined]
    return _of_signature(stand_in, use)


def _an(name: str) -> str:
    return f"{'an' if name[:1] in 'aeiou' else 'a'} {name}"


def _bindings(body: list[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    """Names that a module's own statements bind, those under `if`, `try` and `with` included, each with what to."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name, node
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from ((alias.asname or alias.name.partition(".")[0], node) for alias in node.names)
            continue
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    yield target.id, node.value
                else:
                    yield from ((n.id, target) for n in ast.walk(target) if isinstance(n, ast.Name))
            continue
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                yield inner.id, inner
            elif isinstance(inner, (ast.FunctionDef, ast.ClassDef)):
                yield inner.name, inner
            elif isinstance(inner, (ast.Import, ast.ImportFrom)):
                yield from ((alias.asname or alias.name.partition(".")[0], inner) for alias in inner.names)
