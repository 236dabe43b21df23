"""Code of the user's own, named by dotted path: where it is imported from, what it consists of, how it travels.

A study may name a metric, a feature extractor and a saliency by dotted path. They are imported from the study's folder,
the working folder, or wherever Python finds them. Nothing is imported here: files are found and read.
"""

from __future__ import annotations

import ast
import atexit
import contextlib
import importlib
import importlib.util
import logging
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysense.errors import RaysenseError
from raysense.hashing import content_key
from raysense.registry import DOTTED
from raysense.study import Study

log = logging.getLogger("raysense")


@dataclass(frozen=True)
class Sources:
    """The files that a plug-in consists of.

    Attributes:
        root: The folder that it is imported from.
        files: Name below `root` -> content.
        installed: It came with an installed package, which workers have too.
    """

    root: Path
    files: Mapping[str, str]
    installed: bool

    @property
    def hash(self) -> str:
        """Changes with any of the files."""
        return content_key(sorted(self.files.items()))


def make_importable(folders: Iterable[Path | str]) -> None:
    """Let plug-ins be imported from these folders; installed packages of the same name come first."""
    for folder in folders:
        place = str(Path(folder).resolve())
        if place not in sys.path:
            sys.path.append(place)
    importlib.invalidate_caches()


def named_by(study: Study) -> list[str]:
    """The dotted paths that a complete study names, see `raysense.study.complete`.

    Not a sweep's rules: only the driver calls them, and the allocations that they give are what rows depend on.
    """
    extractor = study.metrics.features.extractor
    names = [metric.path for metric in study.metrics.own.values()]
    names += [*study.prune.methods, *study.search.strategies]
    if not extractor.startswith("open_clip:"):
        names.append(extractor)
    return sorted({name for name in names if DOTTED.fullmatch(name)})


def code_of(study: Study) -> list[str]:
    """Whose code runs where this study does, in words: its plug-ins with their places, and weights that are pickled."""
    found = []
    rules = study.sweep.rules if study.sweep else ()
    for name in dict.fromkeys((*named_by(study), *filter(DOTTED.fullmatch, rules))):
        module = name.replace(":", ".").partition(".")[0]
        with contextlib.suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(module)
            found.append(f"{name} ({spec.origin})" if spec is not None and spec.origin else name)
    if study.pickled:
        found.append(f"pickled weights of {study.pipeline}")
    return found


def sources(path: str) -> Sources:
    """What the plug-in at a dotted path consists of: its module and all that it imports from beside it.

    Of an installed package only what belongs to the package itself.

    Raises:
        RaysenseError: There is no such module, or a file of it cannot be read.
    """
    module = path.replace(":", ".").rpartition(".")[0]
    top = module.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not (spec.has_location or spec.submodule_search_locations):
        raise RaysenseError(
            f"{path!r} cannot be imported (there is no module {top!r}); put it beside the study or into the working "
            "folder, or install it"
        )
    places = list(spec.submodule_search_locations or [])
    root = Path(places[0] if places else str(spec.origin)).resolve().parent
    installed = any(
        root == Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib")
    )
    return Sources(root, _collected(module, root, top if installed else ""), installed)


def packed(paths: Iterable[str]) -> dict[str, Any]:
    """What `unpack` needs on another machine: folders and sources of all that is not installed."""
    found = [source for source in map(sources, paths) if not source.installed]
    return {
        "folders": sorted({str(source.root) for source in found}),
        "files": {name: text for source in found for name, text in source.files.items()},
    }


def unpack(record: Mapping[str, Any]) -> None:
    """Let the plug-ins be imported: from where they were, or else from copies in a folder for this process's life."""
    folders, files = record.get("folders", []), record.get("files", {})
    make_importable(folder for folder in folders if Path(folder).is_dir())
    if all(any((Path(folder) / name).is_file() for folder in folders) for name in files):
        return
    place = Path(tempfile.mkdtemp(prefix="raysense-plugins-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    for name, text in files.items():
        target = (place / name).resolve()
        if place.resolve() not in target.parents:
            raise RaysenseError(
                f"a plug-in's file is called {name!r}, outside its folder; the store is damaged"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    make_importable([place])


def _collected(module: str, root: Path, within: str) -> dict[str, str]:
    """Name -> content of a module's file, its packages' and those that they import, as far as they lie below `root`."""
    found: dict[str, str] = {}
    seen: set[str] = set()
    wanted = [module]
    while wanted:
        name = wanted.pop()
        if (
            name in seen
            or (within and name.partition(".")[0] != within)
            or name.partition(".")[0] == "raysense"
        ):
            continue
        seen.add(name)
        wanted += [name.rpartition(".")[0]] if "." in name else []
        file = _file_of(name, root)
        if file is None:
            continue
        try:
            text = file.read_text(encoding="utf-8")
            tree = ast.parse(text)
        except (OSError, ValueError, SyntaxError) as error:
            raise RaysenseError(f"the plug-in's file `{file}` cannot be read: {error}") from None
        found[file.relative_to(root).as_posix()] = text
        wanted += _imports(tree, name if file.name == "__init__.py" else name.rpartition(".")[0])
    return found


def _file_of(module: str, root: Path) -> Path | None:
    place = root.joinpath(*module.split("."))
    for file in (place / "__init__.py", place.with_name(f"{place.name}.py")):
        if file.is_file():
            return file
    return None


def _imports(tree: ast.Module, package: str) -> list[str]:
    """The modules that a file may import, wherever in it; names imported from a module may be modules too."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, (base, node.module or "")))
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return [name for name in names if name]
