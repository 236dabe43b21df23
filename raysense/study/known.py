"""What installed packages offer, read from their files: importing them would load torch."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path


@cache
def extractors() -> tuple[str, ...]:
    """The feature extractors that are registered with torch-fidelity, in its order."""
    return tuple(
        call.args[0].value
        for call in _calls(_parsed("torch_fidelity", "registry.py"), "register_feature_extractor")
        if call.args and isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str)
    )


@cache
def clip_models() -> dict[str, tuple[str, ...]]:
    """open_clip's built-in models, each with the names of its published weights."""
    tree = _parsed("open_clip", "pretrained.py")
    tables = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found: dict[str, tuple[str, ...]] = {
        file.stem: () for file in sorted((_folder("open_clip") / "model_configs").glob("*.json"))
    }
    models = tables["_PRETRAINED"]
    assert isinstance(models, ast.Dict)
    for key, value in zip(models.keys, models.values, strict=True):
        assert isinstance(key, ast.Constant)
        assert isinstance(key.value, str)
        entries = dict(_entries(tables[value.id] if isinstance(value, ast.Name) else value))
        found[key.value] = tuple(entries)
        quick = tuple(tag for tag, entry in entries.items() if _is_quick(entry))
        if quick:
            found[f"{key.value}-quickgelu"] = quick
    return found


def defined(path: str) -> str:
    """Why the object at a dotted path cannot be had, or an empty string: files are read, nothing is imported."""
    module, _, name = path.replace(":", ".").rpartition(".")
    spec, searched = None, list(sys.path)
    done: list[str] = []
    for part in module.split("."):
        done.append(part)
        here = ".".join(done)
        if here in sys.builtin_module_names:
            return ""
        spec = importlib.machinery.PathFinder.find_spec(here, searched)
        if spec is None:
            return f"there is no module {here!r}; check the name, the study's folder and PYTHONPATH"
        searched = list(spec.submodule_search_locations or [])
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return ""  # compiled, or a package without a file: only importing would tell
    try:
        tree = ast.parse(Path(spec.origin).read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        return f"{spec.origin} cannot be read: {' '.join(str(error).split())}"
    names = set(_bound(tree.body))
    if name in names or "*" in names or "__getattr__" in names:
        return ""
    if importlib.machinery.PathFinder.find_spec(f"{module}.{name}", searched):
        return f"{name!r} is a module; name a function in it"
    return f"{spec.origin} defines no {name!r}"


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)  # of a package's top, which imports nothing
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _parsed(package: str, file: str) -> ast.Module:
    return ast.parse((_folder(package) / file).read_bytes())


def _calls(tree: ast.Module, function: str) -> Iterator[ast.Call]:
    for node in tree.body:
        call = node.value if isinstance(node, ast.Expr) else None
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == function:
            yield call


def _entries(table: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(table, ast.Call):
        yield from ((keyword.arg, keyword.value) for keyword in table.keywords if keyword.arg)
    elif isinstance(table, ast.Dict):
        for key, value in zip(table.keys, table.values, strict=True):
            if isinstance(key, ast.Constant):
                yield str(key.value), value


def _is_quick(entry: ast.expr) -> bool:
    return isinstance(entry, ast.Call) and any(
        keyword.arg == "quick_gelu"
        and isinstance(keyword.value, ast.Constant)
        and keyword.value.value is True
        for keyword in entry.keywords
    )


def _bound(body: list[ast.stmt]) -> Iterator[str]:
    """The names that a module's own statements bind, those under `if`, `try` and `with` included."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
            continue
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                yield inner.id
            elif isinstance(inner, (ast.FunctionDef, ast.ClassDef)):
                yield inner.name
            elif isinstance(inner, (ast.Import, ast.ImportFrom)):
                yield from (alias.asname or alias.name.partition(".")[0] for alias in inner.names)
