import datetime

import pytest
import yaml

from raysense.study.plain_yaml import LARGEST_BYTES, dump, parse

READ = {
    "1e-3": 0.001,
    "1E3": 1000.0,
    "-.5": -0.5,
    "6_000_000": 6_000_000,
    "0x1f": 31,
    "0o17": 15,
    "2:4": "2:4",
    "12:30:45": "12:30:45",
    "no": "no",
    "on": "on",
    "Yes": "Yes",
    "true": True,
    "FALSE": False,
    "~": None,
    '"\\ud83d\\udc08"': "🐈",
    "": None,
    "2024-01-01": "2024-01-01",
    "=": "=",
    "!!str 3": "3",
    "'3'": "3",
}


@pytest.mark.parametrize("text", READ)
def test_values_mean_what_yaml_1_2_says(text: str) -> None:
    found = parse(f"a: {text}")["a"]
    assert found == READ[text]
    assert type(found) is type(READ[text])


REFUSED = {
    "a: 1\nb: {c: 1, c: 2}\na: 2": r"line 2: `b.c` stands twice.*; line 3: `a` stands twice, first in line 1",
    "a: 010": "line 1: 010 is octal in YAML 1.1 and decimal in 1.2",
    "a: " + "9" * 5000: "a number of 5000 digits",
    "a: !!int x": "line 1: 'x' is no int",
    "a: !!timestamp 2024-01-01": "the tag 'timestamp' is not read",
    "a: !!python/object/apply:os.system [ls]": "the tag 'python",
    "a: !mine 3": "the tag '!mine'",
    "a: &a [*a]": "more than 32 levels",
    "[" * 20_000: "nested deeper than 32 levels",
    "1: a": "a key is no text",
    "? {a: 1}\n: b": "a key is no text",
    "a: x\u2028y": "line 1 holds one of the characters",
    "---\na: 1\n---\nb: 2": "single document",
    "a: *b": "undefined alias",
    'a: "\\ud83d"': "line 1: a text holds half of a surrogate pair",
    "a: \x00": "unacceptable character",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_readers_disagree_about_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[text]) as caught:
        parse(text)
    assert len(str(caught.value).splitlines()) == 1


def test_an_alias_bomb_is_small() -> None:
    levels = [
        f"{name}: &{name} [{', '.join(f'*{before}' for _ in range(9))}]"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    with pytest.raises(ValueError, match="more than 50,000 values"):
        parse("a: &a [x]\n" + "\n".join(levels))
    assert parse("a: &a [x, y]\nb: *a") == {"a": ["x", "y"], "b": ["x", "y"]}


def test_the_largest_text_is_read_in_seconds() -> None:
    with pytest.raises(ValueError, match=r"line 2: `k+` stands twice"):
        parse(("k" * 60 + ": b\n") * (LARGEST_BYTES // 64))


TEXTS = (
    "1e-3",
    "2:4",
    "no",
    "0o17",
    "1e3",
    "010",
    "~",
    "",
    " x ",
    "a: b # c",
    "x\u2028\x85\ny",
    "\ufeffé🐈",
    "<<",
    "=",
)


def test_what_is_written_is_read_back_by_either_version() -> None:
    data = {
        "texts": list(TEXTS),
        "numbers": [1, 1e-5, 1e22, -0.5],
        "others": [True, None, {}, []],
        "long": "a  b " * 60,
    }
    assert parse(dump(data)) == data
    assert yaml.safe_load(dump(data)) == data
    assert not any(isinstance(value, datetime.date) for value in yaml.safe_load(dump(["2024-01-01"])))
