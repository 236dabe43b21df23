"""Read a model from a file, from flags, from plain data: all that is wrong is said at once.

`raysense.study.schema` says what a study is and uses this; `raysense.study.load` is what others call.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from raysense import user_files
from raysense.errors import RaysenseError
from raysense.study import paths, plain_yaml
from raysense.study.explain import Location, listed, mistakes_of, without_key_mark
from raysense.study.section import shown

_STAND_INS: Mapping[str, Any] = {"name": "study", "constraints": {"clip_score": {"max_drop": 1.0}}}
"""For what every study must have, so that the rest of one without it can be looked at."""


Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Examined(Generic[Model]):
    """What a definition says, as far as it is right.

    Attributes:
        study: The study, what is wrong left at its default; None if not even that can be had.
        mistakes: All that is wrong, a sentence each.
        wrong: The fields that are left at their defaults, with dots.
    """

    study: Model | None
    mistakes: tuple[str, ...]
    wrong: tuple[str, ...] = ()

    def right(self) -> Model:
        """The study.

        Raises:
            RaysenseError: Something is wrong.
        """
        if self.study is None or self.mistakes:
            raise RaysenseError(listed(self.mistakes))
        return self.study


def examine(model: type[Model], path: Path, base: Path | None, overrides: Sequence[str]) -> Examined[Model]:
    """Read a file that may have mistakes.

    Args:
        model: What the file holds.
        path: The YAML file.
        base: What relative paths in it are relative to; None if it has none.
        overrides: ``key=value`` pairs whose values are YAML. Relative paths in them mean the working folder.

    Raises:
        RaysenseError: The file is missing or no YAML.
    """
    data = _content(path)
    mistakes: list[str] = []
    if base is not None:
        _noting(mistakes, lambda: paths.make_absolute(data, base, of_file=True))
    for override in overrides:
        _noting(mistakes, functools.partial(_override, data, override))
    _noting(mistakes, lambda: paths.make_absolute(data, Path.cwd(), of_file=False))
    found = examined(model, data)
    return replace(found, mistakes=(*mistakes, *found.mistakes))


def _noting(mistakes: list[str], change: Callable[[], None]) -> None:
    try:
        change()
    except RaysenseError as error:
        mistakes.append(str(error))


def revised(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Plain data with some values changed in place, see `examine`.

    Raises:
        RaysenseError: One is no ``key=value``.
    """
    for override in overrides:
        _override(data, override)
    return data


def _content(source: Path) -> dict[str, Any]:
    name = f"{str(source)[:200]}"
    try:
        data = plain_yaml.parse(user_files.read(source, plain_yaml.LARGEST_BYTES).decode("utf-8-sig"))
    except OSError as error:
        raise RaysenseError(
            f"cannot read the study `{name}`: {error.strerror}; give the path of a YAML file"
        ) from None
    except ValueError as error:
        raise RaysenseError(f"the study `{name}` is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise RaysenseError(f"the study `{name}` must be a mapping of keys to values, but is {shown(data)}")
    return data


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RaysenseError(
            f"`--set {override:.200}` must look like key=value, e.g. --set rungs.score.prompts=64"
        )
    name = f"{key:.200}"
    try:
        value = plain_yaml.parse(text)
    except ValueError as error:
        raise RaysenseError(
            f"`--set {name}` must have a YAML value, but got {text!r:.200}: {' '.join(str(error).split())}"
        ) from None
    *parents, last = key.split(".")
    if len(parents) >= plain_yaml.DEEPEST:
        raise RaysenseError(f"`--set {name}` has more than {plain_yaml.DEEPEST} parts")
    for parent in parents:
        inner = data.get(parent)
        if inner is None:
            inner = data[parent] = {}
        if not isinstance(inner, dict):
            raise RaysenseError(f"`--set {name}`: `{parent}` is {shown(inner)}, not a section")
        data = inner
    data[last] = value


def examined(model: type[Model], data: Mapping[str, Any]) -> Examined[Model]:
    """Plain data as a study.

    Checks that compare fields run only where each of them is right by itself; so what is wrong is taken out and the
    rest is checked again, where what follows from having taken it out does not count.
    """
    left: dict[str, Any] = copy.deepcopy(dict(data))
    study: Model | None = None
    mistakes: list[str] = []
    gone: list[Location] = []
    while study is None and len(gone) < 1000:
        try:
            study = model.model_validate(left)
        except ValidationError as error:
            found = mistakes_of(error, model)
            mistakes += [
                text for location, text in found.items() if not any(_follows(location, text, g) for g in gone)
            ]
            # Of an entry of a mapping both the name and the value may be wrong.
            for location in dict.fromkeys(without_key_mark(location) for location in found):
                if not _listed_once(left, location):
                    gone.append(location)
                    _take_out(left, location)
    return Examined(study, tuple(mistakes), tuple(".".join(map(str, location)) for location in gone))


def _follows(location: Location, text: str, gone: Location) -> bool:
    """Whether a mistake may come from something having been taken out."""
    if not location or not gone:  # a check that compares sections
        return not gone or f"{gone[-1]}" in text
    shorter = min(len(location), len(gone))
    return location[:shorter] == gone[:shorter]


def _listed_once(data: dict[str, Any], location: Location) -> bool:
    """Leave repetitions out of a list of texts, so that what else may be wrong with its entries is looked at.

    Returns:
        Whether that was done; a list of one text, many times, stays.
    """
    inner: Any = data
    for key in location[:-1]:
        inner = inner.get(key) if isinstance(inner, dict) else None
    value = inner.get(location[-1]) if location and isinstance(inner, dict) else None
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        return False
    once = list(dict.fromkeys(value))
    if not 1 < len(once) < len(value):
        return False
    inner[location[-1]] = once
    return True


def _take_out(data: dict[str, Any], location: Location) -> None:
    if not location:  # a check that compares these two; one after the other, as the first may be enough
        if data.get("constraints") != _STAND_INS["constraints"]:
            data.pop("constraints", None)
        else:
            data.get("metrics", {}).pop("reference", None)
    inner: Any = data
    path: list[tuple[Any, Any]] = []
    for key in location:
        if not isinstance(inner, dict) or key not in inner:
            break
        path.append((inner, key))
        inner = inner[key]
    if path:
        holder, key = path[-1]
        del holder[key]
    for name, value in _STAND_INS.items():
        if not data.get(name):
            data[name] = copy.deepcopy(value)
