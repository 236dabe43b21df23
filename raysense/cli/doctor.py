"""`raysense doctor`: is a pipeline measured rightly?"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from raysense.cli.common import warn
from raysense.errors import RaysenseError
from raysense.study import Study, load
from raysense.study.remote import settle

SUMMARY = "try everything that a study takes for granted on a pipeline, before anything is spent"

ENDINGS = (".yaml", ".yml")


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = (
        "Load, sample, prune, restore and export a pipeline as a study would, and say of each thing that a study takes "
        "for granted whether it holds. Exit status 0: all of it; 1: something is wrong; 2: the pipeline is refused."
    )
    parser.add_argument(
        "pipeline",
        metavar="PIPELINE",
        help="`bundled`, a folder, a single file, a hub id, or a study (.yaml)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="how it is sampled and pruned, e.g. sampling.steps=4; by default two steps, all but what decodes images",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings there too")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit status."""
    study = _study(args.pipeline, args.set)
    warn([settle(study)])
    from raysense.search.doctor import components_to_prune, examine
    from raysense.store.disk import write_file

    if not args.pipeline.endswith(ENDINGS) and not any(s.startswith("prune.components=") for s in args.set):
        from raysense.pipelines.origin import Origin

        chosen = components_to_prune(Origin.of(study))
        if not chosen:
            raise RaysenseError(f"`pipeline`: `{args.pipeline}` has nothing to prune")
        study = study.model_copy(update={"prune": study.prune.model_copy(update={"components": chosen})})
    found = examine(study, lambda one: print(f"{one.verdict:15} {one.check:28} {one.told}", flush=True))
    if args.json is not None:
        write_file(args.json, f"{json.dumps(found.to_dict(), indent=2)}\n".encode(), "--json")
    count = sum(one.verdict == "wrong" for one in found.findings)
    print(
        f"{found.kind}: {'all of it holds' if found.is_well else f'{count} of {len(found.findings)} are wrong'}"
    )
    return 0 if found.is_well else 1


def _study(pipeline: str, overrides: list[str]) -> Study:
    if pipeline.endswith(ENDINGS):
        return load(Path(pipeline), overrides)
    return load(None, [f"pipeline={pipeline}", "sampling.steps=2", "sampling.batch=2", *overrides])
