import csv
import itertools
import json
import os
from pathlib import Path

import pytest

from raysense.errors import RaysenseError
from raysense.prompts.sets import check_counts, load_prompts


def test_bundled_prompts_are_disjoint_and_enough() -> None:
    sets = load_prompts("bundled")
    assert len(sets.search) >= 500
    assert len(sets.validation) >= 500
    assert not {p.text for p in sets.search} & {p.text for p in sets.validation}


def test_rungs_are_nested() -> None:
    sets = load_prompts("bundled")
    assert sets.of("score", 50)[:20] == sets.of("preview", 20)
    assert not set(sets.of("validation", 20)) & set(sets.search)


def _texts(path: Path) -> list[str]:
    """All texts of a file without splits, in file order."""
    sets = load_prompts(str(path))
    pairs = itertools.zip_longest(sets.search, sets.validation)
    return [prompt.text for pair in pairs for prompt in pair if prompt is not None]


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


USUAL = {
    "captions_source.tsv": "id\timage_id\tcaption\theight\n7\t1\ta cat\t512\n8\t2\ta dog\t512\n",
    "PartiPrompts.tsv": "Prompt\tCategory\na cat\tBasic\na dog\tBasic\n",
    "DrawBench.csv": "Prompts,Category\na cat,Basic\na dog,Basic\n",
    "european.csv": "Prompt;Category\na cat;Basic\na dog;Basic\n",
    "excel.csv": "\ufeffprompt\r\na cat\r\na dog\r\n",
    "lines.txt": "a cat\na dog\n\n",
    "windows.txt": "\ufeffa cat\r\na dog",
    "list.json": '["a cat", "a dog"]',
    "objects.json": '[{"text": "a cat"}, {"text": "a dog"}]',
    "mjhq.json": '{"x1": {"category": "b", "prompt": "a cat"}, "x2": {"category": "b", "prompt": "a dog"}}',
    "lines.json": '{"prompt": "a cat"}\n{"prompt": "a dog"}\n',
    "captions_val2017.json": json.dumps(
        {
            "images": [],
            "annotations": [
                {"image_id": 5, "id": 50, "caption": "a cat"},
                {"image_id": 5, "id": 51, "caption": "one cat"},
                {"image_id": 9, "id": 52, "caption": "a dog"},
            ],
        }
    ),
    "caption.jsonl": '{"caption": "a cat"}\n\n{"caption": "a dog"}\r\n',
    "strings.jsonl": '"a cat"\n"a dog"\n',
    "prompt_goes_first.csv": "text,prompt\nx,a cat\ny,a dog\n",
}


@pytest.mark.parametrize("name", USUAL)
def test_the_fields_usual_files_just_work(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(USUAL[name], encoding="utf-8", newline="")
    assert _texts(tmp_path / name) == ["a cat", "a dog"]


def test_ids_come_along_in_any_form(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"id": i, "prompt": f"p{i}"}) + "\n" for i in range(4)))
    assert [p.id for p in load_prompts(str(path)).search] == ["0", "2"]
    path = tmp_path / "p.tsv"
    path.write_text("ID\tCaption\tSplit\n0\ta\tsearch\n1\tb\tValidation\n")
    assert [p.id for p in load_prompts(str(path)).validation] == ["1"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c", "\x0c"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "txt"])
def test_only_a_newline_ends_a_line(tmp_path: Path, separator: str, kind: str) -> None:
    text = f"a ghost{separator}on a hill"
    quoted = json.dumps(text, ensure_ascii=separator < " ")  # JSON wants control characters escaped
    content = {
        "jsonl": f'{{"prompt": {quoted}}}\n{{"prompt": "b"}}\n',
        "json": f'[{quoted}, "b"]',
        "txt": f"{text}\nb\n",
    }.get(kind, f"prompt\n{text}\nb\n")
    (tmp_path / f"p.{kind}").write_text(content, encoding="utf-8")
    assert _texts(tmp_path / f"p.{kind}") == [text, "b"]


def test_a_prompt_may_be_long_and_hold_quotes_and_line_breaks(tmp_path: Path) -> None:
    long = 'a "red" ball, ' * 20_000
    path = tmp_path / "p.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["prompt"], [long], ["two\nlines"]])
    limit = csv.field_size_limit()
    assert _texts(path) == [long, "two\nlines"]
    assert csv.field_size_limit() == limit
    assert load_prompts(str(path)).notes == ("`prompts`: 1 of 2 prompts hold line breaks; is that meant?",)


def test_equal_texts_stay_on_one_side(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("a\na\nb\nA \nb\nc\ncafe\u0301\ncafé\n", encoding="utf-8")
    sets = load_prompts(str(path))
    assert [p.text for p in sets.search] == ["a", "a", "A ", "c"]
    assert [p.text for p in sets.validation] == ["b", "b", "cafe\u0301", "café"]
    assert "4 of 8 prompts repeat" in sets.notes[0]


def test_a_held_out_text_that_was_searched_on_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    rows = [{"prompt": "A red  ball", "split": "search"}, {"prompt": "x", "split": "search"}]
    rows += [{"prompt": "a red ball", "split": "validation"}, {"prompt": "y", "split": "validation"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RaysenseError, match=r"1 text stands both .*'A red  ball' in rows 1 and 3"):
        load_prompts(str(path))


REFUSED = {
    "rows longer than the header": ("p.csv", "prompt\na cat\na cat, asleep\n", r"row 2 has 2 cells.* quotes"),
    "rows shorter than the header": ("p.csv", "id,prompt,split\n1,a,search\n2,a c", "row 2 has 2 cells"),
    "a quote never closed": ("p.csv", 'prompt\na\n"b\nc\n', "row 2: its double quote is never closed"),
    "a quote closed by another row": (
        "p.csv",
        'prompt\n"b\n' + "c\n" * 30 + 'a 5" nail\n',
        "row 1: .* expected",
    ),
    "a quote closed at the end of a row": (
        "p.csv",
        'prompt\n"b\n' + "c\n" * 30 + 'a "\n',
        "row 1 holds 31 line breaks",
    ),
    "a blank cell": ("p.csv", 'prompt\na\n""\n', "row 2: the prompt is blank"),
    "an empty line": ("p.csv", "prompt\na\n\nb\n", "row 2: the prompt is blank"),
    "an empty line in a text": ("p.txt", "a\n\nb\n", "row 2: the prompt is blank"),
    "white space": ("p.jsonl", '{"prompt": "\\u00a0\\u200b"}', "row 1: the prompt is blank"),
    "null": ("p.jsonl", '{"prompt": null}', "row 1 has no text in the column `prompt`, but None"),
    "a number": ("p.jsonl", '{"prompt": 1984}', "row 1 has no text in the column `prompt`, but 1984"),
    "a row without it": ("p.jsonl", '{"prompt": "a"}\n{"caption": "b"}', "row 2 has no text"),
    "two columns": ("p.csv", "caption,text\na,b\n", "'caption' and 'text' may both be meant"),
    "two cases": ("p.csv", "prompt,Prompt\na,b\n", "'prompt' and 'Prompt' may both be meant"),
    "a column twice": ("p.csv", "prompt,prompt\na,b\n", "'prompt' more than once"),
    "no column": ("p.csv", "title,n\na,1\n", r"no column is called `prompt`.*'title', 'n'"),
    "nothing": ("p.txt", "", "there are no prompts in it"),
    "a header alone": ("p.csv", "prompt\n", "there are no prompts in it"),
    "ids 1 and '1'": ("p.jsonl", '{"id": 1, "prompt": "a"}\n{"id": "1", "prompt": "b"}', "rows 1 and 2"),
    "an id that a row without one has": (
        "p.jsonl",
        '{"prompt": "a"}\n{"id": "000000", "prompt": "b"}',
        "id '000000' stands twice, in rows 1 and 2",
    ),
    "an id that is a list": ("p.jsonl", '{"id": [1], "prompt": "a"}', "row 1: an id must be"),
    "a split by half": (
        "p.jsonl",
        '{"prompt": "a", "split": "search"}\n{"prompt": "b"}',
        "row 2 has no split, but others have",
    ),
    "a key twice": ("p.jsonl", '{"prompt": "a", "prompt": "b"}', "line 1: the key 'prompt' stands twice"),
    "half of a pair": ("p.jsonl", '{"prompt": "a \\ud800"}', "row 1: .* surrogate"),
    "deep": ("p.jsonl", "[" * 200_000, "damaged"),
    "a carriage return": ("p.txt", "a\rb\r", "line 1 holds a carriage return"),
    "not a list": ("p.json", "3", "must hold a list"),
    "no captions": ("p.json", '{"annotations": [{"id": 1}]}', "annotation 1 has no `image_id`"),
    "no UTF-8": ("p.txt", b"a\ncaf\xe9\n", "line 2 is not UTF-8"),
    "UTF-16": ("p.csv", "prompt\na\n".encode("utf-16"), "it is UTF-16"),
    "UTF-16 without a mark": ("p.csv", "prompt\na\n".encode("utf-16-le"), "NUL character: if it is UTF-16"),
    "no Parquet": ("p.parquet", b"PAR1", "damaged or no .parquet"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_be_read_in_two_ways_is_refused_with_its_place(tmp_path: Path, case: str) -> None:
    name, content, words = REFUSED[case]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RaysenseError, match=words) as caught:
        load_prompts(str(tmp_path / name))
    assert len(str(caught.value).splitlines()) == 1
    assert str(tmp_path / name) in str(caught.value)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.txt")
    with pytest.raises(RaysenseError, match="no plain file"):
        load_prompts(str(tmp_path / "p.txt"))


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(RaysenseError, match="cannot read"):
        load_prompts(str(tmp_path / "none.jsonl"))
    with pytest.raises(RaysenseError, match=r"must be `bundled`, `coco-train2017` or a \.jsonl"):
        load_prompts("prompts.xlsx")
    path = tmp_path / "p.jsonl"
    path.write_text("{")
    with pytest.raises(RaysenseError, match="damaged"):
        load_prompts(str(path))
    path.write_text("[1]\n")
    with pytest.raises(RaysenseError, match="damaged"):
        load_prompts(str(path))
    path.write_text("\n".join(json.dumps({"id": 1, "prompt": "a"}) for _ in range(2)))
    with pytest.raises(RaysenseError, match="stands twice"):
        load_prompts(str(path))
    path.write_text(json.dumps({"prompt": "a", "split": "train"}))
    with pytest.raises(RaysenseError, match="split must be"):
        load_prompts(str(path))
    with pytest.raises(RaysenseError, match=r"`rungs\.score\.prompts` must be ≤"):
        load_prompts("bundled").of("score", 10**6)
    with pytest.raises(RaysenseError, match=r"`rungs\.score\.prompts` .*; `rungs\.validation\.prompts` must"):
        check_counts("bundled", {"preview": 8, "score": 10**6, "validation": 10**6})
    path.write_text("a cat\n" * 600)
    path.rename(tmp_path / "same.txt")
    with pytest.raises(
        RaysenseError, match=r"`rungs.validation.prompts` is 8, but .* no validation prompts: .* texts"
    ):
        check_counts(str(tmp_path / "same.txt"), {"score": 8, "validation": 8})


def test_what_text_encoders_cut_off_is_counted() -> None:
    from raysense.pipelines.load import load_pipeline
    from raysense.pipelines.text_cache import cut_off

    pipeline = load_pipeline("bundled")
    texts = ["a big ghost", "a ghost and " * 12, "a ghost and " * 13]
    assert cut_off(pipeline, texts) == {"tokenizer": 2}
    assert cut_off(pipeline, texts[:1]) == {}


def test_held_out_prompts_may_begin_later() -> None:
    sets = load_prompts("bundled")
    assert sets.of("validation", 8, 160) == sets.validation[160:168]
    with pytest.raises(
        RaysenseError, match=r"`rungs.validation.skip` 596 and .* 8 need 604 .* there are 600"
    ):
        sets.of("validation", 8, 596)
    with pytest.raises(RaysenseError, match="need 604"):
        check_counts("bundled", {"validation": 8}, {"validation": 596})
