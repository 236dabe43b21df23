"""raysense from Python: what `raysense.search`, `raysense.Run` and `raysense.evaluate` do.

Each is the command of the same name, with objects in place of files and data frames in place of text.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from raysense import plugins
from raysense.allocation import Allocation
from raysense.errors import RaysenseError
from raysense.evaluation.evaluator import Evaluator
from raysense.export.write import Exported, export
from raysense.records import Evaluation, EvaluationRequest
from raysense.results import run as results
from raysense.results.pictures import evaluator_of, held_out, noise_of_pictures, thumbnails
from raysense.search.doctor import Diagnosis
from raysense.search.doctor import examine as examine_pipeline
from raysense.search.job import run_study
from raysense.search.save_live_objects import written
from raysense.search.sweep import run_sweep
from raysense.store.disk import Disk
from raysense.study import Study, examine, revise
from raysense.study.checks import checked
from raysense.study.reading import Examined
from raysense.study.remote import settle


class Run(results.Run):
    """A study that was run, finished or not: read its tables, take its winner away.

    Args:
        uri: Its folder, or ``s3://`` address.

    Raises:
        RaysenseError: There is no study, or what is there is damaged or foreign.

    Example:
        >>> run = raysense.Run("reports/reference")
        >>> f"{run.winner.sparsity:.0%} removed, {len(run.candidates())} candidates"  # doctest: +ELLIPSIS
        '...% removed, ... candidates'
    """

    def load_pipeline(self, allocation: str | None = None) -> Any:
        """The pruned ``DiffusionPipeline``, on this machine.

        Args:
            allocation: Content hash of a stored allocation; None for the winner.

        Raises:
            RaysenseError: There is no such allocation, or the dense pipeline is not the one that was measured.
        """
        chosen = self.allocation(allocation or self._winners_key())
        evaluator = evaluator_of(self)
        evaluator.masker.apply(chosen)
        return evaluator.pipeline

    def export(
        self, out: str | Path, *, allocation: str | None = None, compressed: bool = False, force: bool = False
    ) -> Exported:
        """Write an allocation as a folder that ``DiffusionPipeline.from_pretrained`` loads; `raysense export`.

        Args:
            out: The folder to write.
            allocation: Content hash of a stored allocation; None for the winner.
            compressed: Write masks and values instead, for `raysense.export.load_compressed`.
            force: Replace an older export.

        Raises:
            RaysenseError: There is no such allocation, `out` is there already, the pipeline cannot be loaded.
        """
        return export(self.uri, Path(out), allocation=allocation, compressed=compressed, force=force)

    def images(self, allocation: str | None = None, count: int = 8) -> list[Image.Image]:
        """Paint held-out prompts, with the noise that the page's pictures have.

        Args:
            allocation: Content hash of a stored allocation; None for the winner, ``"dense"`` for nothing pruned.
            count: How many prompts, in the order of the held-out set.

        Raises:
            RaysenseError: There is no such allocation, or the pipeline cannot be loaded.
        """
        dense = allocation == "dense"
        chosen = Allocation() if dense else self.allocation(allocation or self._winners_key())
        evaluator = evaluator_of(self)
        prompts = held_out(evaluator.prompts, self.study, count)
        images = evaluator.sample(chosen, prompts, noise_of_pictures(self.study, len(prompts)))
        return [Image.fromarray(pixels) for pixels in thumbnails(images).numpy()]

    def _winners_key(self) -> str:
        if self.winner is None:
            state = "has no winner" if self.finished else "has not finished"
            raise RaysenseError(f"`{self.uri}`: the study {state}; name one of its allocations")
        return self.winner.allocation


def search(
    study: Study | str | Path,
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    address: str | None = None,
    resume: bool = False,
    in_process: bool = False,
    from_run: str | Path | None = None,
    page: bool = True,
    progress: bool = True,
) -> Run:
    """Find the sparsest layer-wise pruning inside a study's quality budget; `python -m raysense.search`.

    Args:
        study: A study, or the path of a study file.
        out: Folder, or ``s3://`` address, for tables, summary and page.
        overrides: ``key=value`` pairs that change the study.
        address: A running Ray cluster's address; None starts Ray on this machine.
        resume: Go on in a folder that already holds evaluations of this study.
        in_process: Measure in this process, one evaluation after another, without Ray: for a live pipeline on one GPU.
        from_run: An earlier run of a study that differs in bounds, budget or strategies only: its rows are taken over
            where they fit, at no cost; their column ``taken_from`` says so.
        page: Write the page, `report.html`, with its pictures.
        progress: Show how far it is, with the time left.

    Returns:
        The run. After Ctrl-C it is not `finished`; the same call with ``resume=True`` goes on.

    Raises:
        RaysenseError: Something you can mend; nothing stored is lost.

    Example:
        >>> run = raysense.search("study.yaml", out="runs/first")  # doctest: +SKIP
        >>> run.winner.sparsity  # doctest: +SKIP
    """
    _refuse_two_places(out, in_process, address)
    ready = prepared(study, overrides, str(out))
    with _warned_if_stopped("search", str(out)):
        run_study(
            ready,
            str(out),
            address=address,
            resume=resume,
            console=Console(quiet=not progress),
            in_process=in_process,
            source=None if from_run is None else str(from_run),
            page=page,
        )
    return Run(str(out))


def sweep(
    study: Study | str | Path,
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    address: str | None = None,
    resume: bool = False,
    in_process: bool = False,
    from_run: str | Path | None = None,
    page: bool = True,
    progress: bool = True,
) -> Run:
    """Measure the points of a study's section `sweep`, and where their curves have their cliffs; `raysense sweep`.

    Args:
        study: A study with a section `sweep`, or the path of a study file.
        out: Folder, or ``s3://`` address, for tables, summary and page; may be that of a search of this study.
        overrides: ``key=value`` pairs that change the study.
        address: A running Ray cluster's address; None starts Ray on this machine.
        resume: Go on in a folder that already holds evaluations of this study; points may have been added.
        in_process: Measure in this process, one evaluation after another, without Ray.
        from_run: An earlier run, a search or a sweep, see `search`.
        page: Write the page, `sweep.html`.
        progress: Show how far it is, with the time left.

    Returns:
        The run: ``run.table("points")``, ``run.table("cliffs")``.

    Raises:
        RaysenseError: Something you can mend; nothing stored is lost.

    Example:
        >>> run = raysense.sweep("search/sweep.yaml", out="runs/sweep")  # doctest: +SKIP
        >>> run.table("cliffs")[["groups", "place", "sparsity"]]  # doctest: +SKIP
    """
    _refuse_two_places(out, in_process, address)
    ready = prepared(study, overrides, str(out))
    with _warned_if_stopped("sweep", str(out)):
        run_sweep(
            ready,
            str(out),
            address=address,
            resume=resume,
            console=Console(quiet=not progress),
            in_process=in_process,
            source=None if from_run is None else str(from_run),
            page=page,
        )
    return Run(str(out))


def _refuse_two_places(out: str | Path, in_process: bool, address: str | None) -> None:
    if not isinstance(out, str | Path) or not str(out):
        raise RaysenseError(f"`out` must be a folder or an s3:// address, but is {out!r}")
    if in_process and address is not None:
        raise RaysenseError(
            "`address` names a Ray cluster, which is not used with `in_process`; give one of them"
        )


@contextmanager
def _warned_if_stopped(command: str, out: str) -> Iterator[None]:
    """Ctrl-C ends a study with a warning that says how to go on, once there is one."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        if Disk(out).read("study.json") is None:
            raise
        said = f"Stopped; nothing stored is lost. Go on with raysense.{command}(…, out={out!r}, resume=True)"
        warnings.warn(str(stopped) or said, stacklevel=4)


def evaluate(
    study: Study | str | Path,
    allocation: Allocation | Mapping[str, float] | float,
    rung: str = "score",
    *,
    overrides: Sequence[str] = (),
    cache: str | Path | None = None,
) -> Evaluation:
    """Measure one allocation in this process; no Ray, no search. `raysense try` for a strategy.

    Args:
        study: A study, or the path of a study file.
        allocation: Levels; or sparsity by component, block or layer, e.g. ``{"unet": 0.5, "unet:mid_block": 0.2}``,
            the longest matching name counts; or one sparsity for every layer.
        rung: ``layer``, ``probe``, ``preview``, ``score`` or ``validation``.
        overrides: ``key=value`` pairs that change the study.
        cache: Folder for dense references and statistics, to be used again; None for a temporary one.

    Returns:
        Counted zeros, and every measure with its interval, extractor and sample size.

    Raises:
        RaysenseError: The study, the rung or the allocation cannot be used.

    Example:
        >>> study = raysense.Study(constraints={"clip_score": {"max_drop": 0.01}})
        >>> raysense.evaluate(study, {"unet": 0.4}, rung="layer").measures["layer_error"].value > 0
        True
    """
    with tempfile.TemporaryDirectory(prefix="raysense-evaluate-") as scratch:
        place = str(cache or scratch)
        ready = prepared(study, overrides, place)
        rungs = dict(ready.rungs)
        if rung not in rungs:
            raise RaysenseError(f"`rung` is {rung!r}, but must be one of {', '.join(rungs)}")
        evaluator = Evaluator(ready, place)
        return evaluator.evaluate(EvaluationRequest(levels_of(evaluator, allocation), rung))


def doctor(study: Study | str | Path, *, overrides: Sequence[str] = ()) -> Diagnosis:
    """Try everything that a study takes for granted on its pipeline; `raysense doctor` for a pipeline alone.

    Args:
        study: A study, or the path of a study file.
        overrides: ``key=value`` pairs that change the study.

    Returns:
        Its findings; `Diagnosis.is_well` says whether nothing is wrong.

    Raises:
        RaysenseError: The study cannot be used, or its pipeline is refused before anything is measured.
    """
    with tempfile.TemporaryDirectory(prefix="raysense-doctor-") as place:
        return examine_pipeline(prepared(study, overrides, place))


def levels_of(evaluator: Evaluator, wanted: Allocation | Mapping[str, float] | float) -> Allocation:
    """Sparsities as levels.

    Raises:
        RaysenseError: A name fits no layer, or a sparsity is no share.
    """
    grid, cap = evaluator.grid, evaluator.study.prune.max_layer_sparsity
    if isinstance(wanted, Allocation):
        grid.validate(wanted)
        return wanted
    shares = dict(wanted) if isinstance(wanted, Mapping) else {"": wanted}
    for name, share in shares.items():
        if not isinstance(name, str) or isinstance(share, bool) or not isinstance(share, int | float):
            raise RaysenseError(
                "`allocation` must be an Allocation, one sparsity, or a mapping of names to sparsities, but holds "
                f"{name!r}: {share!r:.80}"
            )
        if not 0 <= share <= 1:
            raise RaysenseError(
                f"`allocation`: the sparsity of {name or 'all layers'} must be 0 to 1, but is {share}"
            )
        if share > cap:
            raise RaysenseError(
                f"`allocation`: the sparsity of {name or 'all layers'} is {share}, more than "
                f"`prune.max_layer_sparsity` {cap:g} allows; ask for less or raise it"
            )
    used: set[str] = set()
    levels: dict[str, int] = {}
    for address in grid.addresses:
        fitting = [
            name
            for name in shares
            if not name or address == name or address.startswith((f"{name}:", f"{name}."))
        ]
        if fitting:
            name = max(fitting, key=len)
            used.add(name)
            levels[address] = grid.level_for(address, shares[name])
    if unknown := sorted(set(shares) - used):
        known = ", ".join(sorted({address.partition(":")[0] for address in grid.addresses}))
        raise RaysenseError(
            f"`allocation` names {unknown[0]!r}, which fits no studied layer (components: {known})"
        )
    return Allocation({address: level for address, level in levels.items() if level})


def prepared(study: Study | str | Path, overrides: Sequence[str], out: str) -> Study:
    """A study as the commands have it: read, live objects written to files, all that can be known checked.

    Raises:
        RaysenseError: All that is wrong with it and can be known without loading anything.
    """
    # As on the command line, a plug-in beside the study or in the working folder is found.
    plugins.make_importable([*([] if isinstance(study, Study) else [Path(study).parent]), Path.cwd()])
    if not isinstance(study, Study | str | Path):
        raise RaysenseError(f"`study` must be a Study or the path of a study file, but is {study!r:.80}")
    found = (
        Examined(revise(written(study, out), overrides), ())
        if isinstance(study, Study)
        else examine(Path(study), overrides)
    )
    ready, doubts = checked(found)
    for doubt in filter(None, [*doubts, settle(ready)]):
        warnings.warn(doubt, stacklevel=3)
    return ready
