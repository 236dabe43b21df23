"""What installed packages offer, read from their files: importing them would load torch."""

from __future__ import annotations

import ast
import importlib.util
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


@cache
def has_class(kind: str, room: str) -> bool:
    """Whether one of diffusers' folders, ``pipelines`` or ``schedulers``, defines a class."""
    return any(True for _ in _files_with(kind, room))


def _files_with(kind: str, room: str) -> Iterator[str]:
    """The texts of the files of one of diffusers' folders that define a class."""
    wanted = f"class {kind}("
    for file in sorted((_folder("diffusers") / room).rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if wanted in text:
            yield text


@cache
def arguments_of(kind: str, room: str, function: str) -> frozenset[str] | None:
    """The arguments of a method of one of diffusers' classes, or None if there is no such class.

    Args:
        kind: The class.
        room: ``pipelines`` or ``schedulers``: diffusers' folder that defines it.
        function: The method.
    """
    for text in _files_with(kind, room):
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and node.name == kind:
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and method.name == function:
                        args = method.args
                        return frozenset(
                            a.arg
                            for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)
                            if a.arg != "self"
                        )
                inherited = (
                    arguments_of(b.id, room, function) for b in node.bases if isinstance(b, ast.Name)
                )
                return next((found for found in inherited if found is not None), None)
    return None


@cache
def schedulers() -> tuple[str, ...]:
    """The classes of diffusers' schedulers."""
    found = (
        node.name
        for file in sorted((_folder("diffusers") / "schedulers").glob("scheduling_*.py"))
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name.endswith("Scheduler")
    )
    return tuple(found)


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
