"""YAML as data and back: version 1.2's core schema, so that a text stays a text.

YAML 1.1, which PyYAML reads, makes 124 of ``2:4``, false of ``no``, a date of ``2024-01-01`` and a text of ``1e-3``.
Here numbers are decimal (``6_000_000``, ``1e-3``, ``0x1f``), ``true`` and ``false`` alone are truth values, keys are
texts and stand once, tags and anchors cannot make anything else, and what is written is read back by either version
alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

LARGEST_BYTES = 1 << 16
"""PyYAML needs a second for so many, if they are all brackets; a study has two thousand."""
LARGEST_NODES = 50_000
DEEPEST = 32
_TAG = "tag:yaml.org,2002:"
_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_INT = re.compile(r"(?:[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+)\Z")
_FLOAT = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
)
_BREAKS = "\x85\u2028\u2029"
"""Ends of lines in YAML 1.1, but not in 1.2, nor in any editor."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012  # PyYAML's own way

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._deep = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Stops early: PyYAML's time grows with the square of the depth."""
        self._deep += 1
        if self._deep > DEEPEST:
            raise yaml.YAMLError(f"it is nested deeper than {DEEPEST} levels")
        try:
            return super().compose_node(parent, index)
        finally:
            self._deep -= 1


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _kind, _pattern, _first in (
    ("null", _NULL, ["~", "n", "N", ""]),
    ("bool", _BOOL, list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _kind, _pattern, _first)


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = text.isprintable() and not any(character in text for character in _BREAKS)
    return dumper.represent_scalar(_TAG + "str", text, style=None if plain else '"')


_Dumper.add_representer(str, _text_node)


def dump(data: Any) -> str:
    """Plain data as YAML that `parse` reads back to equal data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def parse(text: str) -> Any:
    """The data of a YAML text.

    Raises:
        ValueError: It is no YAML, or says something twice or in a way that readers disagree about; all of it in one
            line, each with its line in the text.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if any(character in line for character in _BREAKS):
            raise ValueError(f"line {number} holds one of the characters U+0085, U+2028, U+2029; take it out")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
        reading = _Reading()
        data = None if node is None else reading.plain(node, "", DEEPEST)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        reason = " ".join(filter(None, (error.context, error.problem)))
        raise ValueError(f"{line}{' '.join(reason.split())[:300]}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())[:300]) from None
    if reading.mistakes:
        raise ValueError("; ".join(reading.mistakes))
    return data


class _Reading:
    """One walk over a text's nodes; keeps what is wrong with them."""

    def __init__(self) -> None:
        self.mistakes: list[str] = []
        self._left = LARGEST_NODES

    def plain(self, node: yaml.Node, place: str, deep: int) -> Any:
        """A node's data. An alias is walked anew each time it is used, so that no bomb fits into the count."""
        self._left -= 1
        if deep <= 0 or self._left <= 0:
            words = f"{DEEPEST} levels" if deep <= 0 else f"{LARGEST_NODES:,} values, repetitions counted"
            raise yaml.YAMLError(f"it has more than {words}")
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, place, deep)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.plain(entry, place, deep - 1) for entry in node.value]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        return self._wrong(
            node, f"the tag {node.tag.removeprefix(_TAG)!r} is not read; write the value plainly"
        )

    def _mapping(self, node: yaml.MappingNode, place: str, deep: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            is_text = isinstance(key_node, yaml.ScalarNode) and key_node.tag == _TAG + "str"
            if not is_text:
                self._wrong(
                    key_node, f"a key {f'of `{place}` ' if place else ''}is no text; put it in quotes"
                )
                continue
            key, line = self._text(key_node), key_node.start_mark.line + 1
            name = f"{place}.{key}" if place else key
            if key in lines:
                self._wrong(key_node, f"`{name:.80}` stands twice, first in line {lines[key]}; keep one")
            lines.setdefault(key, line)
            found[key] = self.plain(value_node, name, deep - 1)
        return found

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        kind, text = node.tag.removeprefix(_TAG), str(node.value)
        if kind == "str":
            return self._text(node)
        if kind not in _KINDS:
            return self._wrong(node, f"the tag {kind!r} is not read; write the value plainly")
        pattern, value_of = _KINDS[kind]
        if not pattern.match(text):
            return self._wrong(node, f"{text!r:.40} is no {kind}")
        if kind == "int" and re.match(r"[-+]?0[0-9_]", text):
            return self._wrong(
                node, f"{text:.40} is octal in YAML 1.1 and decimal in 1.2; leave the zeros out"
            )
        if kind == "int" and len(text) > 64:
            return self._wrong(node, f"a number of {len(text)} digits; 64 bits have at most 19")
        return value_of(text.replace("_", ""))

    def _text(self, node: yaml.Node) -> str:
        """A text; two escapes that are one character, as JSON writes it, become that character."""
        text = str(node.value)
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            self._wrong(node, "a text holds half of a surrogate pair; mend it")
            return ""

    def _wrong(self, node: yaml.Node, words: str) -> None:
        if len(self.mistakes) < 50:
            self.mistakes.append(f"line {node.start_mark.line + 1}: {words}")


def _integer(text: str) -> int:
    return int(text[2:], 8 if text[1] == "o" else 16) if text[:2] in ("0o", "0x") else int(text)


def _number(text: str) -> float:
    # Python wants no dot before inf and nan.
    return float(text.replace(".", "", 1) if text[-1] in "fFnN" else text)


_KINDS: Mapping[str, tuple[re.Pattern[str], Callable[[str], Any]]] = {
    "null": (_NULL, lambda text: None),
    "bool": (_BOOL, lambda text: text.lower() == "true"),
    "int": (_INT, _integer),
    "float": (_FLOAT, _number),
}
