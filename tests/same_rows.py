"""Are the rows of three small studies the same to the bit before and after a change that should not change them?

    python -m tests.same_rows COMMIT        # runs them at COMMIT, in a work tree of its own, and here
    python -m tests.same_rows --dump FILE   # what it runs in each of the two

The studies cover every rung, competing methods, solved weights, shards, and every strategy. Of the rows only seconds,
evaluators' names and dates are left out. Some four minutes on two cores.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from raysense.evaluation.calibration import calibration_cost
from raysense.evaluation.evaluator import Evaluator
from raysense.execution.local import LocalExecutor
from raysense.pipelines.load import load_for, modules_of
from raysense.records import Task
from raysense.search.job import begin_store
from raysense.strategies.rules import closed_forms
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

NOT_COMPARED = ("seconds", "evaluator", "created")


def rows(name: str, folder: str) -> Iterator[str]:
    """All rows of a study, a line each."""
    study = load(overrides=[*BASE, *STUDIES[name]])
    evaluator = Evaluator(study, folder, threads=1)
    inventory, grid = evaluator.inventory, evaluator.grid
    modules = modules_of(load_for(study))
    rules = closed_forms(inventory, grid, modules, study.search.proportions)
    learning = calibration_cost(study, inventory, grid, modules)
    strategy = make_strategy(study, inventory, grid, rules, learning)
    store = begin_store(study, folder, inventory, grid, evaluator.inputs)
    signature, lookahead = evaluator.signature, study.search.lookahead
    outcome = LocalExecutor(evaluator).run(strategy, store, signature=signature, lookahead=lookahead)
    if strategy.error is not None:
        raise strategy.error
    if not outcome.finished:
        raise KeyboardInterrupt
    for table in ("studies", "layers", "allocations", "evaluations", "measures", "samples"):
        found = [
            json.dumps({k: v for k, v in row.items() if k not in NOT_COMPARED}, sort_keys=True)
            for row in store.table(table).to_pylist()
        ]
        yield from (f"{name} {table} {row}" for row in sorted(found))
    for task in (Task(grid.uniform(0.3), "layer"), Task(grid.uniform(0.3), "score", draw=1)):
        measures = evaluator.evaluate(task).measures
        yield f"{name} {task.rung} {[(metric, m.value, m.ci_low, m.ci_high, m.n) for metric, m in measures.items()]}"


def dump(file: Path) -> None:
    """The rows of all studies into a file."""
    with file.open("w", encoding="utf-8") as out:
        for name in STUDIES:
            with tempfile.TemporaryDirectory() as folder:
                out.writelines(f"{line}\n" for line in rows(name, folder))


def main(arguments: list[str]) -> int:
    """Compares; 0 if nothing differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", nargs="?", help="to compare with")
    parser.add_argument("--dump", type=Path, metavar="FILE")
    args = parser.parse_args(arguments)
    if args.dump is not None:
        dump(args.dump)
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
                command = [sys.executable, Path(__file__).resolve(), "--dump", file]
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
