"""Are the rows of three small studies the same to the bit before and after a change that should not change them?

    python -m tests.same_rows COMMIT                      # runs them at COMMIT, in a work tree of its own, and here
    python -m tests.same_rows COMMIT --only vae           # one of them
    python -m tests.same_rows --dump FILE                 # what it runs in each of the two

The studies cover every rung, competing methods, solved weights, shards, and every strategy. Of the rows only seconds,
evaluators' names, dates and the study's own definition are left out. Columns and study keys that have another name
today are compared under today's; keys of rows follow from a fixed signature, so that they can be compared too. Some
four minutes on two cores.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raysense import names, records
from raysense.evaluation.calibration import calibration_cost
from raysense.evaluation.evaluator import Evaluator
from raysense.execution.local import LocalExecutor
from raysense.pipelines.load import load_for, modules_of
from raysense.search.job import begin_store
from raysense.strategies.rules import built_in_rules
from raysense.strategies.schedule import make_strategy
from raysense.study import load

BASE = (
    "search.granularity=component", "rungs.probe={prompts: 4, timesteps: 2}", "rungs.preview.prompts=8",
    "rungs.score.prompts=24", "rungs.validation.prompts=24", "sampling.steps=2", "search.bisections=2",
    "search.levels=3", "search.finalists=2", "search.rounds=1", "search.offspring=2", "search.lookahead=2",
    "constraints={clip_score: {max_drop: 0.05}, frechet: {max_rise: 400}}", "prune.calibration.prompts=4",
)  # fmt: skip

STUDIES = {
    "competing": [
        "prune.saliency=[magnitude, wanda]", "cluster.images_per_shard=10", "search.compare=true",
        "search.strategies=[uniform, lamp, owl, solver, random, switches, tpe, evopress]", "metrics.also=[cmmd, ssim]",
    ],
    "vae": [
        "prune.components=[unet, vae]", "search.strategies=[uniform]", "search.rounds=0",
    ],
    "solved": [
        "prune.saliency=sparsegpt", "search.strategies=[uniform, solver]", "metrics.also=[precision, recall]",
        "sampling.batch=8",
    ],
}  # fmt: skip

NOT_COMPARED = ("seconds", "evaluator", "created", "definition", "signature", "versions", "raysense_version")

SIGNATURE = "the same before and after"

COLUMNS = {
    "low": "ci_low", "high": "ci_high", "cost": "nfe", "draw": "replicate", "question": "trial", "trial": "ray_trial",
}  # fmt: skip
"""Columns of older trees -> what they are called today."""


def in_this_tree(override: str) -> str:
    """A ``key=value`` of today with the key that the tree under test knows."""
    known = getattr(names, "RENAMED", {})
    key, _, value = override.partition("=")
    older = {"cluster.images_per_shard": "cluster.images_per_part"}
    return f"{key if older.get(key, '') in ('', *known) else older[key]}={value}"


def renamed(row: dict[str, Any]) -> str:
    """A row as one line under today's names, without what may differ."""
    today = (
        {COLUMNS.get(name, name): value for name, value in row.items()}
        if "draw" in row or "low" in row
        else row
    )
    if today.get("rung") in ("part", "shard"):  # the rung's name is part of the key
        today = {**today, "key": "", "rung": "shard", "trial": today["trial"].replace("/part ", "/shard ")}
    return json.dumps({k: v for k, v in today.items() if k not in NOT_COMPARED}, sort_keys=True)


def rows(name: str, folder: str) -> Iterator[str]:
    """All rows of a study, a line each."""
    study = load(overrides=[in_this_tree(override) for override in (*BASE, *STUDIES[name])])
    evaluator = Evaluator(study, folder, threads=1)
    inventory, grid = evaluator.inventory, evaluator.grid
    modules = modules_of(load_for(study))
    rules = built_in_rules(inventory, grid, modules, study.search.proportions)
    learning = calibration_cost(study, inventory, grid, modules)
    strategy = make_strategy(study, inventory, grid, rules, learning)
    store = begin_store(study, folder, inventory, grid, evaluator.inputs)
    lookahead = study.search.lookahead
    outcome = LocalExecutor(evaluator).run(strategy, store, signature=SIGNATURE, lookahead=lookahead)
    if strategy.error is not None:
        raise strategy.error
    if not outcome.finished:
        raise KeyboardInterrupt
    for table in ("studies", "layers", "allocations", "evaluations", "measures", "samples"):
        yield from (f"{name} {table} {row}" for row in sorted(map(renamed, store.table(table).to_pylist())))
    request = getattr(records, "EvaluationRequest" if hasattr(records, "EvaluationRequest") else "Task")
    for rung, replicate in (("layer", 0), ("score", 1)):
        measures = evaluator.evaluate(request(grid.uniform(0.3), rung, replicate)).measures
        values = {metric: renamed(asdict(measure)) for metric, measure in measures.items()}
        yield f"{name} {rung} {json.dumps(values, sort_keys=True)}"


def dump(file: Path, only: Sequence[str]) -> None:
    """The rows of the studies into a file."""
    with file.open("w", encoding="utf-8") as out:
        for name in only:
            with tempfile.TemporaryDirectory() as folder:
                out.writelines(f"{line}\n" for line in rows(name, folder))


def main(arguments: list[str]) -> int:
    """Compares; 0 if nothing differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", nargs="?", help="to compare with")
    parser.add_argument("--dump", type=Path, metavar="FILE")
    parser.add_argument(
        "--only", nargs="+", choices=list(STUDIES), default=list(STUDIES), help="some of them"
    )
    args = parser.parse_args(arguments)
    if args.dump is not None:
        dump(args.dump, args.only)
        return 0
    if args.commit is None:
        parser.error("give a commit")
    here = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder, "tree")
        subprocess.run(
            ["git", "worktree", "add", "--quiet", "--detach", there, args.commit], cwd=here, check=True
        )
        try:
            found = []
            for tree in (there, here):
                file = Path(folder, f"{len(found)}.txt")
                command = [sys.executable, Path(__file__).resolve(), "--dump", file, "--only", *args.only]
                # Each tree's own package, and this module: it need not be there yet.
                subprocess.run(command, env={**os.environ, "PYTHONPATH": str(tree)}, cwd=tree, check=True)
                found.append(file.read_text(encoding="utf-8").splitlines())
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", there], cwd=here, check=True)
    before, after = found
    for line in list(difflib.unified_diff(before, after, args.commit, "here", lineterm="", n=0))[:20]:
        print(line[:400])
    print(
        f"{len(before):,} rows before, {len(after):,} now: {'the same' if before == after else 'NOT the same'}"
    )
    return int(before != after)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
