"""A study: what to prune, how to judge, what to spend. One definition for YAML, flags and API.

Importing this module loads neither torch nor Ray, so that ``raysense validate`` answers at once.
"""

from __future__ import annotations

import copy
import difflib
import functools
import json
import operator
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from raysense import places, plain_file, plain_yaml
from raysense.errors import RaysenseError
from raysense.metrics.spec import DERIVED, SPECS

BUNDLED = "bundled"
Kind = Literal["linear", "conv1d", "conv2d", "conv3d", "transformers_conv1d"]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
MetricName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]
DottedPath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*([.:][A-Za-z_]\w*)+$")]
Extra = Literal["cmmd", "precision", "recall", "ssim", "lpips"]

EXTENSIONS = ("budget", "cluster", "name", "track")
"""Parts of a study that may change between a run and its resumption, as no row depends on them."""

PLACES = ("pipeline", "revision", "prompts", "metrics.reference.path")
"""Where something lies that is known by its content: it may be moved."""

MAX_SEED = 900_000_000_000
"""An image's seed is ten million times the study's and a few millions; tables hold 64 bits."""

MAX_DRAW_SEEDS = 1000
"""Seeds that one prompt may have on a rung: those of one draw; the next draw's follow."""

AnyBound = TypeVar("AnyBound", bound=BaseModel)


class _Said(ValueError):
    """A mistake in whole sentences, with the field in it."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _storable(cls, value: Any) -> Any:
        if isinstance(value, tuple) and len(set(value)) < len(value):
            twice = next(entry for entry in value if value.count(entry) > 1)
            raise ValueError(f"must list each entry once, not {twice!r} twice")
        if type(value) is int and value.bit_length() > 63:
            raise ValueError("must fit into 64 bits")
        return value


class Calibration(_Strict):
    """What methods that need to see the dense pipeline at work are shown: the study's own denoising loop."""

    prompts: int = Field(32, ge=1, description="first of the search prompts, one image each")
    calls: int = Field(16, ge=1, description="calls of a component that gradients are taken from")
    damping: float = Field(0.01, gt=0, description="added to a Hessian's diagonal, as a share of its mean")
    levels: int = Field(16, ge=1, le=64, description="levels of methods that update weights: a copy each")
    memory_gb: float = Field(4.0, gt=0, description="Hessians held at a time; more passes if they need more")


class Prune(_Strict):
    """Which weights may be removed, and in which order."""

    components: tuple[str, ...] = Field(("text_encoder", "unet"), min_length=1, strict=False)
    include: tuple[str, ...] = Field(("*",), min_length=1, strict=False)
    exclude: tuple[str, ...] = Field((), strict=False)
    kinds: tuple[Kind, ...] | None = Field(None, strict=False)
    saliency: str | Annotated[tuple[str, ...], Field(min_length=2, strict=False)] = Field(
        "magnitude", description="a method, or several that compete: by probe, for each component"
    )
    pattern: str | None = Field(None, pattern=r"^[1-9]\d*:[1-9]\d*$", description="n:m, keep n of every m")
    calibration: Calibration = Calibration()
    cap: float = Field(0.95, gt=0, le=1, description="largest sparsity of any one layer")

    @property
    def methods(self) -> tuple[str, ...]:
        """The saliency method, or those that compete."""
        return (self.saliency,) if isinstance(self.saliency, str) else self.saliency

    @model_validator(mode="after")
    def _pattern_within_cap(self) -> Prune:
        if self.pattern is not None:
            keep, of = map(int, self.pattern.split(":"))
            if keep >= of:
                raise ValueError(f"pattern must keep fewer than all, such as 2:4, but is {self.pattern}")
            if 1 - keep / of > self.cap:
                raise ValueError(f"pattern {self.pattern} prunes more than cap allows; raise cap")
        return self


class Sampling(_Strict):
    """How images are made."""

    steps: int = Field(12, ge=1)
    guidance: float = Field(2.0, ge=1)
    batch: int = Field(32, ge=1)
    height: int | None = Field(None, ge=8)
    width: int | None = Field(None, ge=8)
    max_sequence_length: int | None = Field(
        None,
        ge=1,
        description="tokens of a T5 text encoder (Stable Diffusion 3, FLUX); the pipeline's own default if null",
    )


class Clip(_Strict):
    """The open_clip model behind the CLIP score."""

    model: str = BUNDLED
    pretrained: str | None = None


class Frechet(_Strict):
    """The feature extractor behind the Fréchet distance, KID, precision, recall and closeness."""

    extractor: str = "efficientnet-lite0"


class Reference(_Strict):
    """What the distribution metrics compare with; dense images of other seeds unless a path is given."""

    path: str | None = Field(
        None, description="folder of images, .parquet/.jsonl/.csv table, or .npz statistics"
    )
    limit: int | None = Field(None, ge=2, description="use only the first so many images")

    @property
    def is_saved(self) -> bool:
        """Whether only a mean and a covariance are known: enough for the Fréchet distance, not for others."""
        return self.path is not None and self.path.lower().endswith(".npz")


class Metrics(_Strict):
    """Which networks judge, and by what beside the default metrics and those that `constraints` bounds."""

    clip: Clip = Clip()
    frechet: Frechet = Frechet()
    reference: Reference = Reference()
    also: tuple[Extra, ...] = Field((), strict=False)
    custom: dict[MetricName, DottedPath] = Field(
        default_factory=dict, description="name: package.module.function; see raysense/metrics/custom.py"
    )

    @model_validator(mode="after")
    def _apart(self) -> Metrics:
        for name in self.custom:
            if name in SPECS:
                raise ValueError(f"custom must not reuse the name {name!r} of a metric of raysense's own")
            if name.endswith(DERIVED):
                raise ValueError(
                    f"custom must not name a metric {name!r}: raysense itself gives the endings {', '.join(DERIVED)}"
                )
            if name in _taken():
                raise ValueError(
                    f"custom must not name a metric {name!r}: a column of the tables has that name; choose another one"
                )
        return self


def _taken() -> set[str]:
    """Names that stand beside metrics in tables and data frames."""
    from raysense.store.schema import (  # not at once: few studies have metrics of their own
        DENOMINATORS,
        TABLES,
    )

    columns = {column for table in TABLES.values() for column in table.names}
    shares = {f"sparsity_{name.removeprefix('n_')}" for name in DENOMINATORS}
    return {*columns, *shares, "sparsity"}


class ClipScoreBound(_Strict):
    """Bounds on the mean CLIP score (cosine)."""

    max_drop: float | None = Field(None, ge=0, description="dense minus pruned, paired by prompt and seed")
    min: float | None = Field(None, ge=-1, le=1)

    @model_validator(mode="after")
    def _one(self) -> ClipScoreBound:
        return _some_bound(self)


class DistanceBound(_Strict):
    """Bounds on the Fréchet distance, KID or CMMD to the reference."""

    max_rise: float | None = Field(None, ge=0, description="pruned minus dense, against the same reference")
    max: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _one(self) -> DistanceBound:
        return _some_bound(self)


class ShareBound(_Strict):
    """Bounds on precision or recall, shares of images."""

    max_drop: float | None = Field(
        None, ge=0, le=1, description="dense minus pruned, against the same reference"
    )
    min: float | None = Field(None, ge=0, le=1)

    @model_validator(mode="after")
    def _one(self) -> ShareBound:
        return _some_bound(self)


class ClosenessBound(_Strict):
    """Bound on the mean likeness (feature cosine, SSIM) of pruned and dense image of the same noise."""

    min: float = Field(ge=-1, le=1)


class UnlikenessBound(_Strict):
    """Bound on the mean LPIPS distance between pruned and dense image of the same noise."""

    max: float = Field(ge=0)


class CustomBound(_Strict):
    """Bounds on the mean of a metric of the user's own, higher being better."""

    max_drop: float | None = Field(None, ge=0, description="dense minus pruned, paired by prompt and seed")
    min: float | None = None

    @model_validator(mode="after")
    def _one(self) -> CustomBound:
        return _some_bound(self)


def _some_bound(bound: AnyBound) -> AnyBound:
    if all(value is None for value in dict(bound).values()):
        raise ValueError(f"must set one of {', '.join(dict(bound))}")
    return bound


class Constraints(_Strict):
    """The quality budget. All must hold, each with its whole 95 % interval."""

    clip_score: ClipScoreBound | None = None
    frechet: DistanceBound | None = None
    kid: DistanceBound | None = None
    cmmd: DistanceBound | None = None
    precision: ShareBound | None = None
    recall: ShareBound | None = None
    closeness: ClosenessBound | None = None
    ssim: ClosenessBound | None = None
    lpips: UnlikenessBound | None = None
    custom: dict[MetricName, CustomBound] = Field(
        default_factory=dict, description="by name of a metric in metrics.custom"
    )

    @model_validator(mode="after")
    def _any(self) -> Constraints:
        if not any(dict(self).values()):
            raise ValueError(f"must name at least one of {', '.join(dict(self))}")
        return self

    def bounds(self) -> list[Bound]:
        """Every single bound, as (measure, direction, limit)."""
        by_metric = {metric: (metric, bound) for metric, bound in self if metric != "custom"}
        by_metric |= {f"custom.{name}": (name, bound) for name, bound in self.custom.items()}
        found: list[Bound] = []
        for place, (metric, bound) in by_metric.items():
            for field, limit in dict(bound or ()).items():
                if limit is not None:
                    measure = metric + {"max_drop": "_drop", "max_rise": "_rise"}.get(field, "")
                    found.append(Bound(f"constraints.{place}.{field}", measure, field != "min", limit))
        return found


class Bound:
    """One bound of the quality budget.

    Attributes:
        field: Where the study states it, e.g. ``constraints.clip_score.max_drop``.
        measure: The measure it binds, e.g. ``clip_score_drop``.
        is_upper: True for "at most", False for "at least".
        limit: The bound, in the measure's unit.
    """

    __slots__ = ("field", "is_upper", "limit", "measure")

    def __init__(self, field: str, measure: str, is_upper: bool, limit: float) -> None:
        self.field, self.measure, self.is_upper, self.limit = field, measure, is_upper, limit

    def margin(self, low: float, high: float) -> float:
        """How far the interval stays inside the bound; negative when it does not clear it."""
        return self.limit - high if self.is_upper else low - self.limit


class LayerRung(_Strict):
    """Error of the pruned layers' own outputs on the dense pipeline's inputs; the denoiser itself does not run."""

    prompts: int = Field(2, ge=2)
    timesteps: int = Field(2, ge=1)


class ProbeRung(_Strict):
    """Denoiser-output error against the dense pipeline on cached inputs; no sampling loop."""

    prompts: int = Field(16, ge=2)
    timesteps: int = Field(4, ge=1)
    tilt: float = Field(
        0.0,
        ge=-8,
        le=8,
        description="weight of a timestep: exp(tilt x position), +1/2 the noisiest, -1/2 the last",
    )


class ImageRung(_Strict):
    """Images are sampled and judged."""

    prompts: int = Field(ge=8)
    seeds: int = Field(1, ge=1, le=MAX_DRAW_SEEDS)


class Rungs(_Strict):
    """The fidelities, cheapest first; each one's prompts are a prefix of the next one's, except validation's."""

    layer: LayerRung = LayerRung()
    probe: ProbeRung = ProbeRung()
    preview: ImageRung = ImageRung(prompts=32)
    score: ImageRung = ImageRung(prompts=128)
    validation: ImageRung = ImageRung(prompts=256)

    @model_validator(mode="after")
    def _nested(self) -> Rungs:
        if not (self.preview.prompts <= self.score.prompts and self.preview.seeds <= self.score.seeds):
            raise ValueError("preview must have at most the prompts and seeds of score: rungs are nested")
        return self


class Search(_Strict):
    """How the allocation is looked for."""

    granularity: Literal["component", "block", "layer"] = "layer"
    levels: int = Field(8, ge=2, le=64, description="most points of a group's sensitivity curve")
    strategies: tuple[str, ...] = Field(("uniform", "global", "lamp", "erk", "solver"), strict=False)
    proportions: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {}, description="component -> its part in the ratios of `per_component` and `recipe`; 1 where missing"
    )
    objective: Literal["additive", "minimax"] = Field(
        "additive", description="what the solver keeps least: the sum of the groups' damages, or the largest"
    )
    bisections: int = Field(6, ge=1, le=20)
    rounds: int = Field(2, ge=0, description="joint search judges rounds x offspring candidates; 0: none")
    offspring: int = Field(8, ge=1)
    finalists: int = Field(4, ge=1)
    compare: bool = Field(
        False, description="validate the best of every strategy, not only the best of all and the uniform one"
    )
    lookahead: int = Field(6, ge=1, description="W: ask t sees only results up to t - W")


class Budget(_Strict):
    """What may be spent."""

    max_cost: int | None = Field(None, ge=1, description="denoiser sample-forwards; hard")
    max_hours: float | None = Field(None, gt=0, description="hours of evaluators at work; hard")
    max_price: float | None = Field(None, gt=0, description="hours at work x price_per_hour; hard")
    price_per_hour: float | None = Field(None, gt=0, description="of one evaluator, in any currency")

    @model_validator(mode="after")
    def _priced(self) -> Budget:
        if self.max_price is not None and self.price_per_hour is None:
            raise ValueError("max_price needs price_per_hour, the price of an evaluator's hour")
        return self


class Cluster(_Strict):
    """What one evaluator holds, and how many there are."""

    evaluators: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    cpus_per_evaluator: float = Field(1.0, gt=0)
    gpus_per_evaluator: float = Field(0.0, ge=0)
    images_per_part: int = Field(
        128,
        ge=1,
        description="evaluations with more images are sampled in parts, by whichever evaluator is free",
    )
    patience: float = Field(
        1800.0, gt=0, description="seconds that nodes may take to come before a study gives up"
    )


class Track(_Strict):
    """Where else the study's numbers are shown while it runs, through Ray Tune's callbacks: docs/execution.md."""

    mlflow: str | None = Field(
        None, min_length=1, description="tracking address: http://server:5000, sqlite:///mlflow.db"
    )
    experiment: Name | None = Field(None, description="MLflow's experiment; the study's name if missing")
    tensorboard: str | None = Field(None, min_length=1, description="folder for event files")

    @property
    def wanted(self) -> bool:
        """Whether anything is to be shown."""
        return self.mlflow is not None or self.tensorboard is not None

    @model_validator(mode="after")
    def _showable(self) -> Track:
        if self.mlflow is not None and re.search(r"://[^/@]*:[^/@]*@", self.mlflow):
            # Said without the value: the definition stands in tables and on the page, a password must not.
            raise _Said(
                "`track.mlflow` holds a password, which would stand in the study's tables and page; leave it out and "
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        if self.tensorboard is not None and "://" in self.tensorboard:
            raise _Said(f"`track.tensorboard` must be a folder, but got {_show(self.tensorboard)}")
        if self.experiment is not None and self.mlflow is None:
            raise _Said("`track.experiment` names an experiment of MLflow; set `track.mlflow` too")
        return self


class Study(_Strict):
    """One complete run. Every field of a study file, with its default."""

    name: Name
    pipeline: str = BUNDLED
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    channels_last: bool = Field(
        False, description="convolutions with channels innermost: faster on most GPUs"
    )
    compile: bool = Field(
        False, description="torch.compile the denoiser; pays off over hundreds of evaluations"
    )
    prompts: str = BUNDLED
    prune: Prune = Prune()
    sampling: Sampling = Sampling()
    metrics: Metrics = Metrics()
    constraints: Constraints
    rungs: Rungs = Rungs()
    search: Search = Search()
    budget: Budget = Budget()
    cluster: Cluster = Cluster()
    track: Track = Track()
    seed: int = Field(0, ge=0, le=MAX_SEED)

    @model_validator(mode="after")
    def _measurable(self) -> Study:
        for name in self.constraints.custom:
            if name not in self.metrics.custom:
                known = ", ".join(self.metrics.custom) or "none yet"
                raise _Said(
                    f"`constraints.custom.{name}` bounds a metric that `metrics.custom` does not define (known "
                    f"there: {known}); add `metrics.custom.{name}: package.module.function`"
                )
        if self.metrics.reference.is_saved:
            for metric in (name for name, spec in SPECS.items() if spec.needs_images):
                if getattr(self.constraints, metric, None) is not None or metric in self.metrics.also:
                    raise _Said(
                        f"`metrics.reference.path` is {self.metrics.reference.path!r}, saved statistics, which "
                        f"{metric} cannot be measured against; give the reference's images"
                    )
        return self

    def measured(self) -> tuple[str, ...]:
        """The metrics of an image rung, those of `metrics.custom` left out."""
        chosen = [
            name
            for name, spec in SPECS.items()
            if spec.always or name in self.metrics.also or getattr(self.constraints, name, None) is not None
        ]
        saved = self.metrics.reference.is_saved
        return tuple(name for name in chosen if not (saved and SPECS[name].needs_images))

    def identity(self) -> dict[str, Any]:
        """What decides the rows, beside contents: the definition less what may be changed on ``--resume``."""
        definition = self.model_dump(mode="json")
        for extension in EXTENSIONS:
            del definition[extension]
        for place in PLACES:
            *sections, last = place.split(".")
            del functools.reduce(operator.getitem, sections, definition)[last]
        for section, field in (("clip", "model"), ("clip", "pretrained"), ("frechet", "extractor")):
            values = definition["metrics"][section]
            values[field] = _without_folder(values[field])
        return definition

    def to_yaml(self) -> str:
        """The study as YAML, defaults included; `load` reads it back to an equal study."""
        return plain_yaml.dump(self.model_dump(mode="json"))


def bundled_pipeline() -> Path:
    """The pipeline inside the package."""
    return Path(str(files("raysense.bundled") / "pipeline"))


def bundled_scorer() -> Path:
    """The CLIP model inside the package."""
    return Path(str(files("raysense.bundled") / "scorer"))


def _without_folder(value: str | None) -> str | None:
    """A network's name; of one that lies in a folder or file only that, as it is known by its content."""
    if value is None:
        return None
    kind, mark, _ = value.partition("local-dir:")
    return kind + mark if mark else ("a file" if os.path.isabs(value) else value)


def quickstart() -> Path:
    """The default study, inside the package."""
    return Path(str(files("raysense.bundled") / "quickstart.yaml"))


def load(path: Path | None = None, overrides: Sequence[str] = ()) -> Study:
    """Read a study file.

    Args:
        path: The YAML file; None for the quickstart study. Relative paths in it mean beside it.
        overrides: ``key=value`` pairs, e.g. ``rungs.score.prompts=64``; values are YAML. Relative paths in them mean
            the working folder.

    Raises:
        RaysenseError: The file is missing or no YAML, a key is unknown, a value is out of range: all that is wrong.
    """
    return examine(path, overrides).right()


@dataclass(frozen=True)
class Examined:
    """What a definition says, as far as it is right.

    Attributes:
        study: The study, what is wrong left at its default; None if not even that can be had.
        mistakes: All that is wrong, a sentence each.
        wrong: The fields that are left at their defaults, with dots.
    """

    study: Study | None
    mistakes: tuple[str, ...]
    wrong: tuple[str, ...] = ()

    def right(self) -> Study:
        """The study.

        Raises:
            RaysenseError: Something is wrong.
        """
        if self.study is None or self.mistakes:
            raise RaysenseError(listed(self.mistakes))
        return self.study


def examine(path: Path | None = None, overrides: Sequence[str] = ()) -> Examined:
    """Read a study file that may have mistakes; see `load`.

    Raises:
        RaysenseError: The file is missing or no YAML.
    """
    data = _content(path or quickstart())
    mistakes: list[str] = []
    if path is not None:
        _noting(mistakes, lambda: places.make_absolute(data, path.parent, of_file=True))
    for override in overrides:
        _noting(mistakes, functools.partial(_override, data, override))
    _noting(mistakes, lambda: places.make_absolute(data, Path.cwd(), of_file=False))
    found = _examined(data)
    return replace(found, mistakes=(*mistakes, *found.mistakes))


def _noting(mistakes: list[str], change: Callable[[], None]) -> None:
    try:
        change()
    except RaysenseError as error:
        mistakes.append(str(error))


def revise(study: Study, overrides: Sequence[str]) -> Study:
    """The study with some values changed; see `load`."""
    data = study.model_dump(mode="json")
    for override in overrides:
        _override(data, override)
    return parse(data)


def parse(data: Mapping[str, Any]) -> Study:
    """Build a study from plain data; see `load`."""
    return _examined(data).right()


def listed(mistakes: Sequence[str]) -> str:
    """Mistakes as one line."""
    lines = [" ".join(mistake.split()) for mistake in mistakes]
    return lines[0] if len(lines) == 1 else f"{len(lines)} mistakes: " + "; ".join(lines)


def _content(source: Path) -> dict[str, Any]:
    name = f"{str(source)[:200]}"
    try:
        data = plain_yaml.parse(plain_file.read(source, plain_yaml.LARGEST_BYTES).decode("utf-8-sig"))
    except OSError as error:
        raise RaysenseError(
            f"cannot read the study `{name}`: {error.strerror}; give the path of a YAML file"
        ) from None
    except ValueError as error:
        raise RaysenseError(f"the study `{name}` is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise RaysenseError(f"the study `{name}` must be a mapping of keys to values, but is {_show(data)}")
    return data


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RaysenseError(
            f"`--set {override:.200}` must look like key=value, e.g. --set rungs.score.prompts=64"
        )
    shown = f"{key:.200}"
    try:
        value = plain_yaml.parse(text)
    except ValueError as error:
        raise RaysenseError(
            f"`--set {shown}` must have a YAML value, but got {text!r:.200}: {' '.join(str(error).split())}"
        ) from None
    *parents, last = key.split(".")
    if len(parents) >= plain_yaml.DEEPEST:
        raise RaysenseError(f"`--set {shown}` has more than {plain_yaml.DEEPEST} parts")
    for parent in parents:
        inner = data.get(parent)
        if inner is None:
            inner = data[parent] = {}
        if not isinstance(inner, dict):
            raise RaysenseError(f"`--set {shown}`: `{parent}` is {_show(inner)}, not a section")
        data = inner
    data[last] = value


_PLAINER = {
    "Input should be ": "",
    "greater than or equal to": "≥",
    "less than or equal to": "≤",
    "greater than": ">",
    "less than": "<",
}


_Location = tuple[int | str, ...]

_STAND_INS: Mapping[str, Any] = {"name": "study", "constraints": {"clip_score": {"max_drop": 1.0}}}
"""For what every study must have, so that the rest of one without it can be looked at."""


def _examined(data: Mapping[str, Any]) -> Examined:
    """Plain data as a study.

    Checks that compare fields run only where each of them is right by itself; so what is wrong is taken out and the
    rest is checked again, where what follows from having taken it out does not count.
    """
    left: dict[str, Any] = copy.deepcopy(dict(data))
    study: Study | None = None
    mistakes: list[str] = []
    gone: list[_Location] = []
    while study is None and len(gone) < 1000:
        try:
            study = Study.model_validate(left)
        except ValidationError as error:
            found = _mistakes(error)
            mistakes += [
                text for location, text in found.items() if not any(_follows(location, text, g) for g in gone)
            ]
            for location in found:
                gone.append(location)
                _take_out(left, location)
    return Examined(study, tuple(mistakes), tuple(".".join(map(str, location)) for location in gone))


def _follows(location: _Location, text: str, gone: _Location) -> bool:
    """Whether a mistake may come from something having been taken out."""
    if not location or not gone:  # a check that compares sections
        return not gone or f"{gone[-1]}" in text
    shorter = min(len(location), len(gone))
    return location[:shorter] == gone[:shorter]


def _take_out(data: dict[str, Any], location: _Location) -> None:
    if not location:  # a check that compares these two
        data.pop("constraints", None)
        data.get("metrics", {}).pop("reference", None)
    inner: Any = data
    path: list[tuple[Any, Any]] = []
    for key in location:
        if not isinstance(inner, dict) or key not in inner:
            break
        path.append((inner, key))
        inner = inner[key]
    if path:
        holder, key = path[-1]
        del holder[key]
    for name, value in _STAND_INS.items():
        if not data.get(name):
            data[name] = copy.deepcopy(value)


def _mistakes(error: ValidationError) -> dict[_Location, str]:
    """What pydantic found, a sentence a field."""
    by_field: dict[_Location, list[Any]] = {}
    for mistake in error.errors():
        # Unions add the names of their branches to the location; users know only the keys.
        keys = tuple(
            part
            for part in mistake["loc"]
            if not str(part).startswith(("constrained-", "literal[", "tuple["))
        )
        by_field.setdefault(keys, []).append(mistake)
    return {location: _sentence(location, branches) for location, branches in by_field.items()}


def _sentence(location: _Location, branches: Sequence[Any]) -> str:
    field = ".".join(f"{part!s:.80}" for part in location)
    first, value = branches[0], _show(branches[0]["input"])
    said = first.get("ctx", {}).get("error")
    if isinstance(said, _Said):
        return str(said)
    if first["type"] == "extra_forbidden":
        known = _keys_at(first["loc"][:-1])
        close = difflib.get_close_matches(str(location[-1])[:80], known, n=1)
        remedy = f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(known)}"
        return f"`{field}` is not a key of a study ({remedy})"
    if first["type"] == "missing":
        return f"`{field}` is required, but missing"
    message = " or ".join(dict.fromkeys(m["msg"].removeprefix("Value error, ") for m in branches))
    message = re.sub(r"^[A-Z]\w+ should ", "must ", message)
    for words, sign in _PLAINER.items():
        message = message.replace(words, sign)
    remedy = "; write true or false" if first["type"] == "bool_type" else ""
    return f"`{field or 'study'}` {message}, but got {value}{remedy}"


def _keys_at(location: _Location) -> list[str]:
    model: Any = Study
    for part in location:
        if part not in model.model_fields:
            continue  # the user's own name in a mapping whose values are sections
        annotation = model.model_fields[part].annotation
        options = getattr(annotation, "__args__", (annotation,))
        model = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(model.model_fields)


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "…"
