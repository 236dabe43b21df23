"""One registry: decorators say what reading needs; names, dotted paths and entry points lead to the same object."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import raysense as rs
from raysense import plugins, registry
from raysense.errors import RaysenseError
from raysense.evaluation.identity import dense_identity
from raysense.evaluation.scoring import ImageScorer
from raysense.registry import declaration_of, find, installed, located
from raysense.study import Study, load, parse
from raysense.study.complete import complete
from raysense.study.plugin_checks import declared

SOURCE = """
import raysense as rs
from raysense import metric as measured, saliency
from raysense.registry import strategy

LOWER = False

@rs.metric("blur", higher_is_better=False, label="blur", unit="pixels")
def blur(images, prompts, dense):
    return images.mean((1, 2, 3))

@measured("far", higher_is_better=False, kind="set")
def far(features, reference):
    return float(features.mean())

@measured("plain")
def plain(images, prompts, dense):
    return images.mean((1, 2, 3))

@rs.metric("hidden", higher_is_better=LOWER)
def hidden(images, prompts, dense):
    return images.mean((1, 2, 3))

def undecorated(images, prompts, dense):
    return images.mean((1, 2, 3))

@saliency("updating", updates_weights=True)
def updating(weight, hessian, zeros, kind):
    return weight

@strategy("walk")
def walk(search, known):
    yield search.grid.uniform(0.1)

class other:
    @staticmethod
    def metric(name): return lambda f: f

@other.metric("no")
def not_ours(images, prompts, dense):
    return images
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "own_plugs.py").write_text(SOURCE)
    (tmp_path / "own_again.py").write_text("from own_plugs import far as distance\n")
    before = list(sys.path)
    plugins.make_importable([tmp_path])
    yield tmp_path
    sys.path[:] = before
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def study_of(*overrides: str) -> Study:
    return complete(load(overrides=list(overrides)))


def test_decorators_are_read_from_the_source_and_agree_with_what_they_attach(place: Path) -> None:
    read = {
        name: declared(f"own_plugs.{name}")
        for name in ("blur", "far", "plain", "hidden", "updating", "walk", "undecorated", "not_ours")
    }
    assert not [name for name in sys.modules if name.startswith("own_")], "nothing is imported"
    assert read["undecorated"] is None
    assert read["not_ours"] is None
    for name, seen in read.items():
        attached = declaration_of(find(f"own_plugs.{name}", "here"))
        assert (seen is None) == (attached is None), name
        if seen is not None and attached is not None:
            assert (seen.kind, seen.name) == (attached.kind, attached.name)
            assert attached.facts.items() >= seen.facts.items()
    assert read["hidden"] is not None
    assert "higher_is_better" not in read["hidden"].facts
    assert declared("own_again.distance") == read["far"], "through an import"


def test_a_study_is_filled_in_and_only_where_something_is_said(place: Path) -> None:
    study = study_of(
        "metrics.custom={a: own_plugs.blur, b: own_again.distance, c: own_plugs.plain, d: own_plugs.undecorated, "
        "e: {path: own_plugs.blur, label: mine}}",
        "prune.saliency=own_plugs.updating",
    )
    assert study.model_dump(mode="json")["metrics"]["custom"] == {
        "a": {"path": "own_plugs.blur", "higher_is_better": False, "label": "blur", "unit": "pixels"},
        "b": {"path": "own_again.distance", "higher_is_better": False, "kind": "set"},
        "c": "own_plugs.plain",
        "d": "own_plugs.undecorated",
        "e": {"path": "own_plugs.blur", "higher_is_better": False, "label": "mine", "unit": "pixels"},
    }
    assert study.prune.updates
    assert complete(study) == study
    assert parse(study.model_dump(mode="json")) == study, "as a worker, and a reader, receives it"
    assert study.spec_of("a_rise").label == "blur"
    assert [study.higher_is_better(name) for name in ("a", "b", "c", "d", "clip_score", "kid")] == [
        False, False, True, True, True, False,
    ]  # fmt: skip


def test_studies_as_they_were_keep_their_identity(place: Path) -> None:
    """The definition's plain data, which keys follow from, is what it was before metrics could say more."""
    study = study_of("metrics.custom={sharp: own_plugs.undecorated}", "constraints.custom={sharp: {min: 1}}")
    identity = study.identity()
    assert identity["metrics"]["custom"] == {"sharp": "own_plugs.undecorated"}
    assert identity["constraints"]["custom"] == {"sharp": {"max_drop": None, "min": 1.0}}
    assert "updates_weights" not in identity["prune"]
    other = study_of("metrics.custom={sharp: own_plugs.plain}", "constraints.custom={sharp: {min: 1}}")
    assert other.identity()["metrics"]["custom"] == {"sharp": "own_plugs.plain"}
    assert dense_identity(study, {}) != dense_identity(other, {})


WRONG = {
    "constraints.custom.a.max_drop": (
        ["metrics.custom.a=own_plugs.blur", "constraints.custom.a.max_drop=1"],
        "of a lower is; use `max_rise`",
    ),
    "constraints.custom.a.max": (
        ["metrics.custom.a=own_plugs.plain", "constraints.custom.a.max=1"],
        "of a higher is; use `min`",
    ),
    "a strategy for a metric": (["metrics.custom.a=own_plugs.walk"], "is decorated as a strategy"),
    "no room for a strategy": (
        ["search.strategies=[uniform, own_plugs.walk]", "search.rounds=0"],
        "leaves the strategy own_plugs.walk no candidate",
    ),
    "an update that competes": (
        ["prune.saliency=[magnitude, own_plugs.updating]"],
        "updates the weights that stay cannot compete",
    ),
    "an update by a pattern": (
        ["prune.saliency=own_plugs.updating", "prune.pattern=2:4"],
        "knows no pattern",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_refused(what: str, place: Path) -> None:
    overrides, words = WRONG[what]
    with pytest.raises(RaysenseError, match=words):
        study_of(*overrides)


def test_a_set_metric_needs_the_references_images(place: Path) -> None:
    (place / "saved.npz").write_bytes(b"")
    with pytest.raises(RaysenseError, match="saved statistics, which far"):
        study_of(
            "constraints={clip_score: {max_drop: 1}}",  # the quickstart's KID needs images too
            "metrics.custom.far=own_plugs.far",
            f"metrics.reference.path={place / 'saved.npz'}",
        )


def test_what_the_source_hides_is_refused_when_it_is_imported(place: Path) -> None:
    study = study_of("metrics.custom.a=own_plugs.hidden")
    with pytest.raises(RaysenseError, match=r"says higher_is_better=False.*higher_is_better: false"):
        ImageScorer(study)
    ImageScorer(study_of("metrics.custom.a={path: own_plugs.hidden, higher_is_better: false}"))


def test_entry_points_are_known_without_importing(place: Path) -> None:
    package = place / "own_package-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: own-package\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(
        "[raysense.plugins]\nblurred = own_plugs:blur\nwalking = own_plugs:walk\nmoved = own_plugs:updating\n"
    )
    installed.cache_clear()
    try:
        study = study_of(
            "metrics.custom.a=blurred", "search.strategies=[uniform, walking]", "prune.saliency=moved"
        )
        assert not [name for name in sys.modules if name.startswith("own_")]
        assert study.metrics.own["a"].path == "own_plugs:blur"
        assert study.metrics.own["a"].up is False
        assert study.search.strategies == ("uniform", "own_plugs:walk")
        assert study.prune.saliency == "own_plugs:updating"
        assert plugins.named_by(study) == ["own_plugs:blur", "own_plugs:updating", "own_plugs:walk"]
    finally:
        installed.cache_clear()


def test_names_of_this_process(place: Path) -> None:
    find("own_plugs.walk", "here")
    assert located("walk", "strategy") == "own_plugs:walk"
    assert located("walk", "metric") == ""
    assert located("a.b", "metric") == "a.b"
    rs.metric("inner")(lambda images, prompts, dense: images)
    with pytest.raises(RaysenseError, match="is defined in a function"):
        located("inner", "metric")


def test_importing_tells_why_it_failed(place: Path) -> None:
    (place / "own_broken.py").write_text("1 / 0\n")
    with pytest.raises(
        RaysenseError, match=r"metrics\.custom\.x: 'own_broken\.f' cannot be imported: .*ZeroDivision"
    ):
        find("own_broken.f", "metrics.custom.x")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: rs.metric("m", kind="sets"), "`kind` must be 'image' or 'set'"),
        (lambda: rs.saliency("s", needs=["hessians"]), "`needs` has 'hessians'"),
        (lambda: rs.saliency("s", needs=["inputs"], updates_weights=True), "gets Hessians"),
        (lambda: rs.strategy("no name"), "letters, digits and underscores"),
    ],
)
def test_decorators_refuse_what_they_cannot_mean(make, words: str) -> None:
    with pytest.raises(RaysenseError, match=words):
        make()


def test_decorating_loads_no_torch() -> None:
    program = (
        "import sys, json, raysense as rs; rs.strategy('a')(lambda search, known: None); "
        "print(json.dumps([name in sys.modules for name in ('torch', 'ray', 'pydantic', 'numpy')]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [False] * 4


def test_the_examples_in_the_docstrings_run() -> None:
    found = doctest.testmod(registry)
    assert found.failed == 0
    assert found.attempted >= 5
