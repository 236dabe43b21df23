"""What README and docs tell people to type, read and believe is run here, or looked up where it was measured."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest
import yaml

import raysense as rs
from raysense.cli import _parser
from raysense.pipelines.load import load_pipeline
from raysense.registry import declaration_of
from raysense.results.run import Run
from raysense.study import parse
from raysense.testing import check_metric, check_strategy
from tests.conftest import REFERENCE

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("docs/**/*.md"),
        *(ROOT / folder / "README.md" for folder in (".", "reports", "raysense/bundled")),
        *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md")),
    ]
)
RUN = "reports/runs/quickstart"
"""The study that the pages speak of; the committed one stands in for it."""

MEASUREMENTS = ROOT / "docs/explanation/measurements.md"

PLACEHOLDERS = ("my_study.yaml", "my/pipeline", "captions", "RUN", "STUDY", "FILE", "DIR", "…", "s3://")
"""What a reader puts his own in place of."""


@dataclass(frozen=True)
class Block:
    page: Path
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.text.strip().splitlines()[0][:40]}"


def _blocks() -> Iterator[Block]:
    for page in PAGES:
        for found in re.finditer(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            yield Block(page, found[1], found[2])


BLOCKS = list(_blocks())


def _commands(text: str) -> Iterator[list[str]]:
    """The commands of ours in a block or a line: ``raysense …`` and ``python -m …``."""
    for line in text.replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line.removeprefix("$ "), comments=True)
        except ValueError:  # a sentence, a drawing
            continue
        for start in (word for word in range(len(words)) if words[word] == "--"):
            words = words[start + 1 :]
            break
        if words[:1] == ["raysense"] or words[1:2] == ["-m"]:
            yield words


def _inline() -> Iterator[tuple[Path, str]]:
    """Spans of code in the prose."""
    for page in PAGES:
        prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for found in re.finditer(r"`([^`]+)`", prose):
            yield page, " ".join(found[1].split())


TYPED = sorted(
    {(str(page.relative_to(ROOT)), shlex.join(words)) for page, text in
     [*((block.page, block.text) for block in BLOCKS if not block.language), *_inline()] for words in _commands(text)}
)  # fmt: skip


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "sql"], ids=str)
def test_a_query_answers_what_its_comment_asks(block: Block) -> None:
    comment = block.text.splitlines()[0]
    text = block.text.replace(RUN, str(REFERENCE))
    found = (
        Run(str(REFERENCE)).sql(text) if "raysense query" in comment else duckdb.sql(text.rstrip(" ;\n")).df()
    )
    assert len(found), comment
    if "with 40 to 60 %" in comment:
        assert found["removed"].between(0.4, 0.6).all()
        assert found["probe_error"].is_monotonic_decreasing
        curves = Run(str(REFERENCE)).sensitivity().query("metric == 'probe_error' and 0.4 <= sparsity <= 0.6")
        assert found["group"].iloc[0] == curves.loc[curves["value"].idxmax(), "group"]
        assert len(found) == min(10, len(curves))
    elif "that passed on held-out prompts" in comment:
        assert (found["budget_used"] <= 1).all()
        summary = Run(str(REFERENCE)).summary
        assert summary is not None
        assert found["allocation"].iloc[0] == summary["allocation"]
        assert found["percent_removed"].iloc[0] == pytest.approx(
            100 * summary["sparsity_components"], abs=0.05
        )
    else:
        pytest.fail(f"say here what holds of the answer to {comment!r}")


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=str)
def test_python_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples/plugins"))
    names: dict[str, Any] = {}
    if "pipe" in block.text:
        names |= {"pipe": load_pipeline("bundled"), "captions": ["a goat", "a red tractor"] * 300}
    # A search takes minutes; the study that is committed stands in for what this one would give. Few images will do.
    text = re.sub(r"rs\.search\(.*?\)(?=\s|$)", f"rs.Run({RUN!r})", block.text).replace(RUN, str(REFERENCE))
    text = text.replace("study).feasible", "study, rung='preview').feasible")
    exec(text.replace('"pruned"', repr(str(tmp_path / "pruned"))), names)
    if block.page.name == "plugins.md":  # a plug-in that keeps its contract, or a test that passes
        declared = [one for one in names.values() if declaration_of(one)]
        tests = [one for name, one in names.items() if name.startswith("test_")]
        assert declared + tests
        for one in declared:
            {"metric": check_metric, "strategy": check_strategy}[declaration_of(one).kind](one)
        for test in tests:
            test()
    elif "run.export" in block.text:
        assert isinstance(names["study"], rs.Study)
        assert (tmp_path / "pruned/model_index.json").exists()
    elif "pipe" in names:
        assert isinstance(names["study"], rs.Study)
    else:
        measures = names["measures"]
        assert isinstance(measures, pd.DataFrame)
        assert "clip_score_drop" in set(measures["metric"])


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=str)
def test_a_study_is_one(block: Block) -> None:
    fields = yaml.safe_load(block.text)
    missing = {} if "constraints" in fields else {"constraints": {"clip_score": {"max_drop": 0.01}}}
    parse({"name": "s", **missing, **fields})


@pytest.mark.parametrize(("page", "command"), TYPED)
def test_a_command_is_one(page: str, command: str) -> None:
    words = shlex.split(command)
    if command == "raysense" or words[1:3] == ["-m", "pytest"]:
        return  # the command's own name, in a sentence; not ours
    if words[0] == "raysense":
        name, arguments = None, words[1:]
    elif words[2] == "raysense.search":
        name, arguments = "search", words[3:]
    else:
        assert _source(words[2]), command
        return
    if name is None and (len(arguments) < 2 or arguments[-1] == "…"):
        assert arguments[0] in _parser(None).format_help(), command  # the command's name alone, in a sentence
        return
    parsed = _parser(name).parse_args([word for word in arguments if word != "…"])
    for value in vars(parsed).values():
        for path in [value] if isinstance(value, Path | str) else []:
            ours = str(path).startswith(("search/", "reports/", "deploy/", "docs/"))
            if (
                ours
                and not str(path).startswith("reports/runs/")
                and not any(p in str(path) for p in PLACEHOLDERS)
            ):
                assert (ROOT / path).exists(), f"{page}: {command}: there is no {path}"


def test_every_target_of_make_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        spans = [*re.findall(r"`make ([a-z-]+)", text), *re.findall(r"^(?:\$ )?make ([a-z-]+)", text, re.M)]
        assert set(spans) <= targets, page


def test_every_link_and_every_path_leads_somewhere() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (page.parent / link).exists(), f"{page}: {link}"
        for path in re.findall(
            r"`((?:raysense|docs|tests|reports|search|deploy|benchmarks|training)/[\w./-]+)`", text
        ):
            made = path.startswith(("reports/runs", "training/runs", "training/checkpoints"))
            there = any((folder / path).exists() for folder in (ROOT, ROOT / "raysense", page.parent))
            assert made or there, f"{page}: `{path}`"


def _source(module: str) -> Path | None:
    """A module's file; not imported, as torch takes its time."""
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def test_every_module_that_is_named_is_there() -> None:
    for page in PAGES:
        for name in re.findall(
            r"`((?:raysense|benchmarks|training)(?:\.[A-Za-z_]+)+)", page.read_text(encoding="utf-8")
        ):
            while _source(name) is None:
                name, _, last = name.rpartition(".")
                assert name, f"{page}: there is no {last}"
                source = _source(name)
                if source is not None:
                    # The last: what a package hands on when it is first asked for.
                    pattern = rf'^(def|class) {last}\b|^{last}\b|^    "{last}": "raysense\.'
                    defined = re.search(pattern, source.read_text(), re.M)
                    assert defined, f"{page}: {name} has no {last}"


NAMES = {
    "raysense, joint search": "joint", "raysense, solver alone": "solver",
    "EvoPress, from the sparsest rule": "evopress", "TPE, from all rules": "tpe",
    "LAMP": "lamp", "Taylor scores with an integer programme": "taylor",
    "stage-wise, four stages by depth": "stages", "one ratio for all layers": "uniform", "OWL, layer by layer": "owl",
    "OWL as published, by the block": "owl_block", "`Linear` layers, one ratio a component": "linear_uniform",
}  # fmt: skip
"""A strategy on the page -> in the rows."""


def test_the_comparison_is_what_the_benchmark_measured() -> None:
    """The table of strategies, number by number, from the committed rows' summary; and what is said of an older one."""
    page = MEASUREMENTS.read_text(encoding="utf-8")
    summary = (ROOT / "reports/benchmarks/search-short/summary.md").read_text(encoding="utf-8")
    reached = re.findall(
        r"^\| ([\w-]+) \| 0\.01 \| \d \| (\w+) \| ([\d.]+)% \[[^|]*\| ([\d,]+) \|", summary, re.M
    )
    over = re.findall(r"^\| ([\w-]+) \| 0\.01 \| (\w+) \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \|", summary, re.M)
    shares = {(bed, name): (float(share), nfe) for bed, name, share, nfe in reached}
    ratios = {(bed, name): [ratio, f"[{low}, {high}]"] for bed, name, ratio, low, high in over}
    rows = [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in page.splitlines()]
    found = {row[0]: row for row in rows if row[0] in NAMES and len(row) == 7}
    assert found.keys() == NAMES.keys()
    for shown, name in NAMES.items():
        for bed, first in (("bundled", 1), ("bundled-transformer", 4)):
            share, nfe, ratio = found[shown][first : first + 3]
            assert (float(share.removesuffix(" %")), nfe) == shares[bed, name]
            assert ratio == " ".join(ratios.get((bed, name), []))

    before = (ROOT / "reports/benchmarks/search-cpu/summary.md").read_text(encoding="utf-8")
    ratios = {
        (m[1], ""): [m[2], f"[{m[3]}, {m[4]}]"]
        for m in re.finditer(r"^\| 0\.01 \| ([\w ,]+) \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \|", before, re.M)
    }
    said = re.search(
        r"gave ([\d.]+) (\[[^]]+\]) over TPE, ([\d.]+) over LAMP, ([\d.]+) over one ratio",
        " ".join(page.split()),
    )
    assert said is not None
    assert [*ratios["tpe", ""], ratios["lamp", ""][0], ratios["uniform", ""][0]] == list(said.groups())
    assert ratios["cost to reach, best iterative", ""][0] == "0.10"


RESULT = re.compile(
    r"([\d.]+)% of the parameters of the studied.*?([\d,]+) zeros.*?That is ([\d.]+)×.*?\(([\d.]+)%\)", re.S
)


def test_the_results_of_runs_agree_with_readme() -> None:
    """The runs that are shown: their ratios and shares belong to the same counts, and are README's."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    runs = RESULT.findall(MEASUREMENTS.read_text(encoding="utf-8"))
    assert len(runs) == 2
    for share, zeros, gain, uniform in runs:
        assert float(share) / float(uniform) == pytest.approx(float(gain), abs=0.01)
        for shown in (f"**{share} %**", f"| {uniform} % | {gain} |"):
            assert shown in readme
        assert int(zeros.replace(",", "")) > 0


@pytest.mark.parametrize(("number", "folder"), [(0, "quickstart"), (1, "transformer")])
def test_the_committed_runs_are_those_that_are_quoted(number: int, folder: str) -> None:
    summary = Run(str(ROOT / "reports" / folder)).summary
    assert summary is not None
    share, zeros, gain, uniform = RESULT.findall(MEASUREMENTS.read_text(encoding="utf-8"))[number]
    assert int(zeros.replace(",", "")) == summary["zeros"]
    assert float(share) == pytest.approx(100 * summary["sparsity_components"], abs=0.05)
    assert float(uniform) == pytest.approx(100 * summary["uniform"]["sparsity_components"], abs=0.05)
    assert float(gain) == pytest.approx(summary["gain_over_uniform"], abs=0.005)


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


def test_the_page_of_public_names_has_them_all_and_no_other() -> None:
    """`docs/reference/python.md` is built from the docstrings; what it names is `raysense.__all__`."""
    page = (ROOT / "docs/reference/python.md").read_text(encoding="utf-8")
    named = re.findall(r"^\.\. auto(?:function|class|exception):: (raysense[\w.]+)", page, re.M)
    homes = {name.rpartition(".")[2]: name.rpartition(".")[0] for name in named}
    assert len(homes) == len(named), "a name twice"
    assert set(homes) == set(rs.__all__) - {"__version__"}
    for name, home in homes.items():
        assert home == rs._HOMES[name], f"{home}.{name}"
