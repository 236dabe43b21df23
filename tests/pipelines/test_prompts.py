import json
from pathlib import Path

import pytest

from raysense.errors import RaysenseError
from raysense.pipelines.prompts import load_prompts


def test_bundled_prompts_are_disjoint_and_enough() -> None:
    sets = load_prompts("bundled")
    assert len(sets.search) >= 500
    assert len(sets.validation) >= 500
    assert not {p.text for p in sets.search} & {p.text for p in sets.validation}


def test_rungs_are_nested() -> None:
    sets = load_prompts("bundled")
    assert sets.of("score", 50)[:20] == sets.of("preview", 20)
    assert not set(sets.of("validation", 20)) & set(sets.search)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_files(tmp_path: Path, kind: str) -> None:
    import pandas as pd

    frame = pd.DataFrame({"prompt": ["a", "b", "c"], "id": ["1", "2", "3"]})
    path = tmp_path / f"p.{kind}"
    if kind == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif kind == "csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    sets = load_prompts(str(path))
    assert [p.text for p in sets.search] == ["a", "c"]
    assert [p.id for p in sets.validation] == ["2"]


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(RaysenseError, match="cannot read"):
        load_prompts(str(tmp_path / "none.jsonl"))
    with pytest.raises(RaysenseError, match=r"must be `bundled`, `coco-train2017` or a \.jsonl"):
        load_prompts("prompts.txt")
    path = tmp_path / "p.jsonl"
    path.write_text("{")
    with pytest.raises(RaysenseError, match="damaged"):
        load_prompts(str(path))
    path.write_text("[1]\n")
    with pytest.raises(RaysenseError, match="damaged"):
        load_prompts(str(path))
    path.write_text(json.dumps({"text": "a"}))
    with pytest.raises(RaysenseError, match="no text in the column `prompt`"):
        load_prompts(str(path))
    path.write_text("\n".join(json.dumps({"id": 1, "prompt": "a"}) for _ in range(2)))
    with pytest.raises(RaysenseError, match="stands twice"):
        load_prompts(str(path))
    path.write_text(json.dumps({"prompt": "a", "split": "train"}))
    with pytest.raises(RaysenseError, match="split must be"):
        load_prompts(str(path))
    with pytest.raises(RaysenseError, match=r"`rungs\.score\.prompts` must be ≤"):
        load_prompts("bundled").of("score", 10**6)
