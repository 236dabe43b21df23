"""Every key of a study is described once, in the schema; the page and the editors' file follow from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from raysense.study import Study
from raysense.study.describe import _models, json_schema, markdown

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs/reference"


def test_the_committed_pages_are_what_the_schema_says() -> None:
    assert (PAGES / "study.md").read_text(encoding="utf-8") == markdown(), "raysense schema --markdown"
    assert (PAGES / "study.schema.json").read_text(encoding="utf-8") == json_schema(), "raysense schema"


def fields(model: type[BaseModel]) -> Iterator[tuple[str, str | None]]:
    for name, field in model.model_fields.items():
        yield f"{model.__name__}.{name}", field.description
        for inner in _models(field.annotation):
            yield from fields(inner)


def test_every_key_says_what_it_means() -> None:
    assert [name for name, description in fields(Study) if not description] == []


@pytest.mark.parametrize("file", sorted(ROOT.glob("search/*.yaml")), ids=lambda file: file.name)
def test_editors_accept_the_ready_studies_and_find_a_wrong_key(file: Path) -> None:
    first = file.read_text(encoding="utf-8").splitlines()[0]
    assert first == "# yaml-language-server: $schema=../docs/reference/study.schema.json"
    data, schema = yaml.safe_load(file.read_text(encoding="utf-8")), json.loads(json_schema())
    jsonschema.validate(data, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data | {"prunes": {}}, schema)
