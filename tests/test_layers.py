"""The house stands: imports go down only, nothing imports in a circle, functions and classes fit on a page.

Read off the sources, without importing them. Imports inside functions count too, those for type checkers do not.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "raysense"

ROOMS = (
    (
        "secrets",
        "errors",
        "hashing",
        "names",
        "registry",
        "hub",
        "child_process",
        "user_files",
        "temporary_folders",
        "terminal",
        "allocation",
        "records",
    ),
    ("prompts",),
    ("metrics",),
    ("feasibility",),
    ("store",),
    ("study",),
    ("plugins",),
    ("pruning",),
    ("pipelines",),
    ("evaluation",),
    ("strategies",),
    ("execution",),
    ("results",),
    ("export",),
    ("search",),
    ("testing",),
    ("cli",),
)
"""From the ground up: a module may import from its own room and from those before it."""

LONGEST_FUNCTION, LONGEST_CLASS = 60, 250
REASON = "# long:"
"""Written above a longer class, with why it stays whole. There is none for functions: they are split."""


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> int:
    """Where a module stands; a program's entry stands on top."""
    if module == "raysense":
        return 0
    if module.endswith("__main__"):
        return len(ROOMS)
    first = module.split(".")[1]
    if first == "bundled":
        return 0
    return next(number for number, rooms in enumerate(ROOMS) if first in rooms)


def imports_of(tree: ast.AST) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """Modules of the package that a source imports, with the names taken from each, and the line."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from imports_of(other)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: imports are absolute"
            yield node.module or "", tuple(alias.name for alias in node.names), node.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, (), node.lineno
        else:
            yield from imports_of(node)


def imported(path: Path) -> dict[str, int]:
    """Module of the package -> the line that imports it."""
    found: dict[str, int] = {}
    for module, names, line in imports_of(ast.parse(path.read_text(encoding="utf-8"))):
        if module.split(".")[0] == "raysense":
            below = {f"{module}.{name}" for name in names} & SOURCES.keys()
            for one in below or {module}:
                found.setdefault(one, line)
    return found


GRAPH: Mapping[str, Mapping[str, int]] = {module: imported(path) for module, path in SOURCES.items()}


def test_every_module_has_a_room() -> None:
    for module in SOURCES:
        room_of(module)
    known = set(itertools.chain(*ROOMS))
    assert {module.split(".")[1] for module in SOURCES if "." in module} - {"bundled"} == known


def test_imports_go_down_only() -> None:
    upward = [
        f"{SOURCES[module].relative_to(ROOT)}:{line} imports {other}"
        for module, others in GRAPH.items()
        for other, line in others.items()
        if room_of(other) > room_of(module)
    ]
    assert not upward, "\n".join(upward)


def test_nothing_imports_in_a_circle() -> None:
    try:
        TopologicalSorter({module: set(others) - {module} for module, others in GRAPH.items()}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_functions_and_classes_fit_on_a_page() -> None:
    long = []
    for path in SOURCES.values():
        lines = path.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            most = LONGEST_CLASS if isinstance(node, ast.ClassDef) else LONGEST_FUNCTION
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            beside = [lines[node.lineno - 1], *lines[max(0, first - 2) : first - 1]]
            reasons = [line.partition(REASON)[2].strip() for line in beside]
            excused = isinstance(node, ast.ClassDef) and any(reasons)
            if length > most and not excused:
                long.append(
                    f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines, at most {most}"
                )
    assert not long, "\n".join(long)


EACH_A_FILE = {"raysense/cli", "raysense/metrics/builtin", "raysense/results/charts"}
"""Folders of which every file is one of a kind; architecture.md names the folder alone."""


def rooms_of_the_page() -> dict[str, set[str]]:
    """Room -> the files that the tree in architecture.md names in it; those at the package's top under no name."""
    page = (ROOT / "docs/explanation/architecture.md").read_text(encoding="utf-8")
    tree = page[page.index("```\nraysense/\n") :]
    named: dict[str, set[str]] = {"": set()}
    room = ""
    for line in tree[: tree.index("\ndeploy/")].splitlines()[2:]:
        if re.match(r"  \S", line):
            folder = re.match(r"  (\w+)/", line)
            room = folder[1] if folder else ""
            named.setdefault(room, set())
        named[room] |= set(re.findall(r"\b\w+\.py\b", line))
    return named


def test_architecture_names_every_file_in_its_room() -> None:
    there: dict[str, set[str]] = {"": set()}
    for path in SOURCES.values():
        inside = path.relative_to(PACKAGE).parts
        room = "" if len(inside) == 1 else inside[0]
        there.setdefault(room, set())
        if not path.stem.startswith("__") and path.parent.relative_to(ROOT).as_posix() not in EACH_A_FILE:
            there[room].add(path.name)
    named = rooms_of_the_page()
    named["cli"].discard("common.py")
    missing = {room: files - named.get(room, set()) for room, files in there.items()}
    gone = {room: files - there.get(room, set()) for room, files in named.items()}
    assert not any(missing.values()), f"docs/explanation/architecture.md lacks {missing}"
    assert not any(gone.values()), f"docs/explanation/architecture.md names what is not there: {gone}"
