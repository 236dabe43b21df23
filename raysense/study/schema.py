"""A study: what to prune, how to judge, what to spend. One definition for YAML, flags and API."""

from __future__ import annotations

import functools
import json
import operator
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from raysense.metrics.builtin import SPECS, higher_is_better, spec_of
from raysense.metrics.spec import DERIVED, MetricSpec
from raysense.names import BUNDLED, BUNDLED_PIPELINES, UPDATING, Offload
from raysense.secrets import has_credentials
from raysense.study import plain_yaml, reading
from raysense.study.bounds import BOUNDED, Constraints
from raysense.study.custom_metrics import CustomEntry, CustomMetric, as_custom_metric
from raysense.study.live_objects import LiveObjects, from_python
from raysense.study.section import MetricName, Name, Said, Section, shown, without_new
from raysense.study.sweep import Sweep

Kind = Literal["linear", "conv1d", "conv2d", "conv3d", "transformers_conv1d"]
if TYPE_CHECKING:
    Extra = str
else:
    Extra = Literal[*(name for name, spec in BOUNDED.items() if not spec.always)]

EXTENSIONS = ("budget", "cluster", "name", "offload", "sweep", "track")
"""Parts of a study that may change between a run and its resumption, as no row depends on them."""

PLACES = ("pipeline", "revision", "prompts", "metrics.reference.path")
"""Where something lies that is known by its content: it may be moved."""

LOOKS = "search.earlier_looks"
"""No row depends on it, only how finalists are judged; see `raysense.search.looks`."""

MAX_SEED = 900_000_000_000
"""An image's seed is ten million times the study's and a few millions; tables hold 64 bits."""

MAX_REPLICATE_SEEDS = 1000
"""Seeds that one prompt may have on a rung: those of one replicate; the next replicate's follow."""


class Calibration(Section):
    """What methods that need to see the dense pipeline at work are shown: the study's own denoising loop."""

    prompts: int = Field(32, ge=1, description="first of the search prompts, one image each")
    calls: int = Field(16, ge=1, description="calls of a component that gradients are taken from")
    damping: float = Field(0.01, gt=0, description="added to a Hessian's diagonal, as a share of its mean")
    levels: int = Field(16, ge=1, le=64, description="levels of methods that update weights: a copy each")
    memory_gb: float = Field(4.0, gt=0, description="Hessians held at a time; more passes if they need more")


class Prune(Section):
    """Which weights may be removed, and in which order."""

    components: tuple[str, ...] = Field(
        ("text_encoder", "unet"), min_length=1, strict=False, description="parts of the pipeline to prune"
    )
    include: tuple[str, ...] = Field(
        ("*",),
        min_length=1,
        strict=False,
        description="patterns of layers that may be pruned, such as unet:mid*",
    )
    exclude: tuple[str, ...] = Field((), strict=False, description="patterns of layers that stay dense")
    kinds: tuple[Kind, ...] | None = Field(
        None, strict=False, description="kinds of layers that may be pruned; null for all"
    )
    saliency: str | Annotated[tuple[str, ...], Field(min_length=2, strict=False)] = Field(
        "magnitude", description="a method, or several that compete: by probe, for each component"
    )
    pattern: str | None = Field(None, pattern=r"^[1-9]\d*:[1-9]\d*$", description="n:m, keep n of every m")
    calibration: Calibration = Field(Calibration(), description="see below")
    max_layer_sparsity: float = Field(0.95, gt=0, le=1, description="largest sparsity of any one layer")
    updates_weights: bool = Field(
        False,
        description="`saliency` is a plug-in that updates the weights that stay; its decorator says it",
    )

    @property
    def updates(self) -> bool:
        """Whether the method updates the weights that stay, and so has few levels, each solved once."""
        return self.updates_weights or self.saliency in UPDATING

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        return without_new(dump(self), info, updates_weights=False)

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
            if 1 - keep / of > self.max_layer_sparsity:
                raise ValueError(
                    f"pattern {self.pattern} prunes more than max_layer_sparsity allows; raise it"
                )
        return self


class SchedulerChoice(Section):
    """Another scheduler than the pipeline's own, with the pipeline's settings as far as it knows them."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    kind: str = Field(alias="class", pattern=r"^[A-Za-z]\w*$", description="a scheduler of diffusers")
    options: dict[str, Any] = Field({}, description="arguments of its constructor, beside the pipeline's own")

    @field_validator("options")
    @classmethod
    def _plain(cls, value: dict[str, Any]) -> dict[str, Any]:
        return _plain_data(value)


class Sampling(Section):
    """How images are made."""

    steps: int = Field(12, ge=1, description="denoising steps an image")
    guidance: float = Field(2.0, ge=0, description="its strength; 0 and 1 run none; turbo models want 0 or 1")
    batch: int = Field(32, ge=1, description="images sampled side by side")
    height: int | None = Field(None, ge=8, description="of an image, in pixels; the pipeline's own if null")
    width: int | None = Field(None, ge=8, description="of an image, in pixels; the pipeline's own if null")
    max_sequence_length: int | None = Field(
        None,
        ge=1,
        description="tokens of a T5 text encoder (Stable Diffusion 3, FLUX); the pipeline's own default if null",
    )
    call: dict[str, Any] = Field({}, description="more arguments of the pipeline's call, by its own names")
    scheduler: SchedulerChoice | None = Field(None, description="instead of the pipeline's own")

    @field_validator("call")
    @classmethod
    def _more(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, field in CALL_FIELDS.items():
            if name in value:
                raise ValueError(f"must not hold {name!r}: {field}")
        return _plain_data(value)

    @model_validator(mode="after")
    def _once(self) -> Sampling:
        if self.max_sequence_length is not None and "max_sequence_length" in self.call:
            raise ValueError(
                "call holds max_sequence_length, and so does sampling.max_sequence_length; give one of them"
            )
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        return without_new(dump(self), info, call={}, scheduler=None)


CALL_FIELDS = {
    "prompt": "prompts come from `prompts`",
    "num_inference_steps": "set `sampling.steps`",
    "guidance_scale": "set `sampling.guidance`",
    "height": "set `sampling.height`",
    "width": "set `sampling.width`",
    "generator": "noise follows from `seed` and the prompts' ids",
    "latents": "noise follows from `seed` and the prompts' ids",
    "num_images_per_prompt": "a rung's `seeds` say how many images a prompt has",
    "output_type": "images are always pixels in [0, 1]",
    "return_dict": "raysense reads the pipeline's output itself",
}
"""Arguments of a pipeline's call that `sampling.call` must not hold -> what to do instead."""


def _plain_data(value: dict[str, Any]) -> dict[str, Any]:
    """`value`, if it is made of what YAML and JSON can say."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"must be plain values, lists and mappings ({error})") from None
    return value


class Lora(Section):
    """A low-rank adapter that is added to the weights before anything is measured."""

    path: str = Field(min_length=1, description="a .safetensors file")
    weight: float = Field(1.0, description="its strength")


class Clip(Section):
    """The open_clip model behind the CLIP score."""

    model: str = Field(BUNDLED, description="open_clip's name, hf-hub:ID, local-dir:FOLDER, or bundled")
    pretrained: str | None = Field(
        None, description="which published weights of a named model, such as openai"
    )


class Features(Section):
    """The feature extractor behind the Fréchet distance, KID, precision, recall and closeness."""

    extractor: str = Field(
        "efficientnet-lite0",
        description="torch-fidelity's name, efficientnet-lite0-SIZE, open_clip:MODEL, or a dotted path",
    )


class Reference(Section):
    """What the distribution metrics compare with; dense images of other seeds unless a path is given."""

    path: str | None = Field(
        None,
        description="folder of images, .parquet/.jsonl/.csv table, .npz statistics, or coco-train2017: the photographs "
        "of the search captions of that name, which `raysense prepare` fetches",
    )
    limit: int | None = Field(None, ge=2, description="use only the first so many images")

    @property
    def is_saved(self) -> bool:
        """Whether only a mean and a covariance are known: enough for the Fréchet distance, not for others."""
        return self.path is not None and self.path.lower().endswith(".npz")


def _of_ones_own(name: str) -> str:
    if name in SPECS:
        raise ValueError(f"must not reuse the name {name!r} of a metric of raysense's own")
    if name.endswith(DERIVED):
        raise ValueError(
            f"must not name a metric {name!r}: raysense itself gives the endings {', '.join(DERIVED)}"
        )
    if name in _taken():
        raise ValueError(
            f"must not name a metric {name!r}: a column of the tables has that name; choose another one"
        )
    return name


class Metrics(Section):
    """Which networks judge, and by what beside the default metrics and those that `constraints` bounds."""

    clip: Clip = Field(Clip(), description="see below")
    features: Features = Field(Features(), description="see below")
    reference: Reference = Field(Reference(), description="see below")
    also: tuple[Extra, ...] = Field((), strict=False, description="metrics that are measured without a bound")
    custom: dict[Annotated[MetricName, AfterValidator(_of_ones_own)], CustomEntry] = Field(
        default_factory=dict,
        description="name: package.module.function, or a section; see docs/guides/plugins.md",
    )

    @property
    def own(self) -> dict[str, CustomMetric]:
        """The metrics of `custom`."""
        return {name: as_custom_metric(entry) for name, entry in self.custom.items()}


def _taken() -> set[str]:
    """Names that stand beside metrics in tables and data frames."""
    from raysense.store.schema import (  # not at once: few studies have metrics of their own
        DENOMINATORS,
        TABLES,
    )

    columns = {column for table in TABLES.values() for column in table.names}
    shares = {f"sparsity_{name.removeprefix('n_')}" for name in DENOMINATORS}
    return {*columns, *shares, "sparsity"}


class LayerRung(Section):
    """Error of the pruned layers' own outputs on the dense pipeline's inputs; the denoiser itself does not run."""

    prompts: int = Field(2, ge=2, description="first of the search prompts")
    timesteps: int = Field(2, ge=1, description="spread over the denoising steps")


class ProbeRung(Section):
    """Denoiser-output error against the dense pipeline on cached inputs; no sampling loop."""

    prompts: int = Field(16, ge=2, description="first of the search prompts")
    timesteps: int = Field(4, ge=1, description="spread over the denoising steps")
    tilt: float = Field(
        0.0,
        ge=-8,
        le=8,
        description="weight of a timestep: exp(tilt x position), +1/2 the noisiest, -1/2 the last",
    )


class ImageRung(Section):
    """Images are sampled and judged."""

    prompts: int = Field(ge=8, description="how many, from the first on")
    seeds: int = Field(
        1, ge=1, le=MAX_REPLICATE_SEEDS, description="images a prompt, each with its own noise"
    )

    @property
    def left_out(self) -> int:
        """Prompts of its set that stand before its own and are not used."""
        return 0


class ValidationRung(ImageRung):
    """Images of held-out prompts are sampled and judged."""

    skip: int = Field(
        0, ge=0, description="held-out prompts that are left out before them: fresh ones for another look"
    )

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        return without_new(dump(self), info, skip=0)

    @property
    def left_out(self) -> int:
        """See `skip`."""
        return self.skip


class Rungs(Section):
    """The fidelities, cheapest first; each one's prompts are a prefix of the next one's, except validation's."""

    layer: LayerRung = Field(LayerRung(), description="error of the layers' own outputs")
    probe: ProbeRung = Field(ProbeRung(), description="error of the denoiser's output")
    preview: ImageRung = Field(
        ImageRung(prompts=32), description="a few images: hopeless candidates stop here"
    )
    score: ImageRung = Field(ImageRung(prompts=128), description="the images that the search decides by")
    validation: ValidationRung = Field(
        ValidationRung(prompts=256), description="held-out prompts: only what passes here can win"
    )

    @model_validator(mode="after")
    def _nested(self) -> Rungs:
        if not (self.preview.prompts <= self.score.prompts and self.preview.seeds <= self.score.seeds):
            raise ValueError("preview must have at most the prompts and seeds of score: rungs are nested")
        return self


class Search(Section):
    """How the allocation is looked for."""

    granularity: Literal["component", "block", "layer"] = Field(
        "layer", description="what gets a sensitivity curve and a level of its own"
    )
    levels: int = Field(8, ge=2, le=64, description="most points of a group's sensitivity curve")
    strategies: tuple[str, ...] = Field(
        ("uniform", "global", "lamp", "erk", "solver"),
        min_length=1,
        strict=False,
        description="how candidates are made; docs/explanation/methods.md lists them",
    )
    proportions: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {},
        description="component -> its part in the ratios of `per_component` and `linear_uniform`; 1 where missing",
    )
    objective: Literal["additive", "minimax"] = Field(
        "additive", description="what the solver keeps least: the sum of the groups' damages, or the largest"
    )
    bisections: int = Field(
        6, ge=1, le=20, description="steps of each strategy's search for its largest total"
    )
    rounds: int = Field(2, ge=0, description="the joint search judges rounds x offspring candidates; 0: none")
    offspring: int = Field(
        8, ge=1, description="its candidates under way at once: the more, the less each knows of others"
    )
    finalists: int = Field(
        4, ge=1, description="totals up to a strategy's best that are tested on held-out prompts"
    )
    beyond: int = Field(
        4,
        ge=0,
        le=20,
        description="totals beyond it, 2.5 % of it apart, tested there as long as all before passed and budget is left",
    )
    compare: bool = Field(
        False, description="validate the best of every strategy, not only the best of all and the uniform one"
    )
    lookahead: int = Field(6, ge=1, description="W: ask t sees only results up to t - W")
    earlier_looks: int = Field(
        0,
        ge=0,
        le=1000,
        description="how often the held-out prompts were looked at before, beside what raysense counts itself",
    )

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        return without_new(dump(self), info, earlier_looks=0, beyond=4)


class Budget(Section):
    """What may be spent."""

    max_nfe: int | None = Field(None, ge=1, description="number of function evaluations (NFE); hard")
    max_hours: float | None = Field(None, gt=0, description="hours of evaluators at work; hard")
    max_price: float | None = Field(None, gt=0, description="hours at work x price_per_hour; hard")
    price_per_hour: float | None = Field(None, gt=0, description="of one evaluator, in any currency")

    @model_validator(mode="after")
    def _priced(self) -> Budget:
        if self.max_price is not None and self.price_per_hour is None:
            raise ValueError("max_price needs price_per_hour, the price of an evaluator's hour")
        return self


class Cluster(Section):
    """What one evaluator holds, and how many there are."""

    evaluators: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="at most so many at once; auto for as many as the cluster holds"
    )
    cpus_per_evaluator: float = Field(1.0, gt=0, description="CPU cores of each")
    gpus_per_evaluator: float = Field(
        0.0, ge=0, le=1, description="1, or the part of one that each gets: a pipeline runs on one GPU"
    )
    images_per_shard: int = Field(
        128,
        ge=1,
        description="evaluations with more images are sampled in shards, by whichever evaluator is free",
    )
    patience: float = Field(
        1800.0, gt=0, description="seconds that nodes may take to come before a study gives up"
    )


class Track(Section):
    """Where else the study's numbers are shown while it runs, through Ray Tune's callbacks.

    docs/explanation/execution.md says how.
    """

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
        if self.mlflow is not None and has_credentials(self.mlflow):
            # Said without the value: the definition stands in tables and on the page, a password must not.
            raise Said(
                "`track.mlflow` holds a password, which would stand in the study's tables and page; leave it out and "
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        if self.tensorboard is not None and "://" in self.tensorboard:
            raise Said(f"`track.tensorboard` must be a folder, but got {shown(self.tensorboard)}")
        if self.experiment is not None and self.mlflow is None:
            raise Said("`track.experiment` names an experiment of MLflow; set `track.mlflow` too")
        return self


class _Readable(type(BaseModel)):  # type: ignore[misc]
    """Makes ``Study(...)`` accept what Python has and YAML has not, and refuse in the same sentences as a file."""

    def __call__(cls, **given: Any) -> Any:
        data, live = from_python(given)
        study: Any = reading.examined(cls, data).right()
        study._live = live
        return study


class Study(Section, metaclass=_Readable):
    """One complete run. Every field of a study file, with its default.

    In Python `pipeline` may also be a loaded ``DiffusionPipeline`` and `prompts` a list of texts; `raysense.search`
    writes both beside the study once. Sections are mappings, as in YAML, or their own classes::

        study = raysense.Study(pipeline=pipe, prompts=texts, constraints={"clip_score": {"max_drop": 0.003}})
        study = raysense.Study.load("study.yaml", ["rungs.score.prompts=64"])

    Raises:
        RaysenseError: A key is unknown, a value is out of range: all that is wrong, each with its remedy.
    """

    if (
        TYPE_CHECKING
    ):  # what `_Readable` takes, beside what the fields say: plain mappings, live objects, no name

        def __init__(self, **given: Any) -> None: ...

    _live: LiveObjects = PrivateAttr(default_factory=LiveObjects)

    name: Name = Field(description="of the study, and of its folder")
    pipeline: str = Field(
        BUNDLED,
        description="hub id, folder in diffusers' format, single file, bundled or bundled-transformer",
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="of the weights")
    variant: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_-]+$", description="weight files of this name only, such as fp16"
    )
    config: str | None = Field(
        None,
        min_length=1,
        description="of a single file: folder or hub id of a pipeline with its configuration, and with the components "
        "that the file does not hold; diffusers' guess if null",
    )
    lora: tuple[Lora, ...] = Field(
        (), strict=False, description="adapters, added to the weights in this order"
    )
    pickled: bool = Field(
        False,
        description="read weights that are pickled (.bin, .ckpt): loading them can run code of their author",
    )
    channels_last: bool = Field(
        False, description="convolutions with channels innermost: faster on most GPUs"
    )
    compile: bool = Field(
        False, description="torch.compile the denoiser; pays off over hundreds of evaluations"
    )
    offload: Offload = Field(
        "none",
        description="weights wait in the host's memory: whole components (model) or layers (sequential)",
    )
    prompts: str = Field(BUNDLED, description="file of captions, coco-train2017, or bundled")
    prune: Prune = Field(Prune(), description="see below")
    sampling: Sampling = Field(Sampling(), description="see below")
    metrics: Metrics = Field(Metrics(), description="see below")
    constraints: Constraints = Field(description="see below")
    rungs: Rungs = Field(Rungs(), description="see below")
    search: Search = Field(Search(), description="see below")
    sweep: Sweep | None = Field(None, description="see below; what `raysense sweep` measures")
    budget: Budget = Field(Budget(), description="see below")
    cluster: Cluster = Field(Cluster(), description="see below")
    track: Track = Field(Track(), description="see below")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="all noise of the study follows from it")

    @model_validator(mode="after")
    def _measurable(self) -> Study:
        if self.offload != "none" and self.compile:
            raise Said(
                f"`offload` is {self.offload!r}, but `compile` needs the weights to stay where they are; leave one of "
                "them out"
            )
        for name in self.constraints.custom:
            if name not in self.metrics.custom:
                known = ", ".join(self.metrics.custom) or "none yet"
                raise Said(
                    f"`constraints.custom.{name}` bounds a metric that `metrics.custom` does not define (known "
                    f"there: {known}); add `metrics.custom.{name}: package.module.function`"
                )
        if self.metrics.reference.is_saved:
            for metric in (name for name, spec in BOUNDED.items() if spec.needs_images):
                if getattr(self.constraints, metric, None) is not None or metric in self.metrics.also:
                    raise Said(
                        f"`metrics.reference.path` is {self.metrics.reference.path!r}, saved statistics, which "
                        f"{metric} cannot be measured against; give the reference's images"
                    )
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        return without_new(
            dump(self), info, variant=None, config=None, lora=[], pickled=False, offload="none", sweep=None
        )

    @property
    def own_specs(self) -> dict[str, MetricSpec]:
        """What is known of each metric of `metrics.custom`."""
        return {name: metric.spec(name) for name, metric in self.metrics.own.items()}

    def spec_of(self, measure: str) -> MetricSpec:
        """What is known of a measure's metric, one of the study's own included."""
        return spec_of(measure, self.own_specs)

    def higher_is_better(self, measure: str) -> bool:
        """Which way is good for a measure; drops and rises are losses."""
        return higher_is_better(measure, self.own_specs)

    @classmethod
    def load(cls, path: str | Path | None = None, overrides: Sequence[str] = ()) -> Study:
        """Read a study file.

        Args:
            path: The YAML file; None for the quickstart study. Relative paths in it mean beside it.
            overrides: ``key=value`` pairs, e.g. ``rungs.score.prompts=64``; values are YAML.

        Raises:
            RaysenseError: The file is missing or no YAML, a key is unknown, a value is out of range.
        """
        file = Path(path) if path is not None else quickstart()
        return reading.examine(cls, file, file.parent if path is not None else None, overrides).right()

    @property
    def live(self) -> LiveObjects:
        """The objects that it was given in place of a pipeline's and a prompt file's names."""
        return self._live

    def measured(self) -> tuple[str, ...]:
        """The metrics of an image rung, those of `metrics.custom` left out."""
        chosen = [
            name
            for name, spec in BOUNDED.items()
            if spec.always or name in self.metrics.also or getattr(self.constraints, name, None) is not None
        ]
        saved = self.metrics.reference.is_saved
        return tuple(name for name in chosen if not (saved and SPECS[name].needs_images))

    def identity(self) -> dict[str, Any]:
        """What decides the rows, beside contents: the definition less what may be changed on ``--resume``."""
        definition = self.model_dump(mode="json")
        for extension in EXTENSIONS:
            definition.pop(extension, None)
        for place in (*PLACES, LOOKS):
            *sections, last = place.split(".")
            functools.reduce(operator.getitem, sections, definition).pop(last, None)
        for section, field in (("clip", "model"), ("clip", "pretrained"), ("features", "extractor")):
            values = definition["metrics"][section]
            values[field] = _without_folder(values[field])
        return definition

    def to_yaml(self) -> str:
        """The study as YAML, defaults included; `load` reads it back to an equal study."""
        return plain_yaml.dump(self.model_dump(mode="json", context={"every_field": True}))


def bundled_pipeline(name: str = BUNDLED) -> Path:
    """A pipeline inside the package, by one of `BUNDLED_PIPELINES`."""
    return Path(str(files("raysense.bundled") / BUNDLED_PIPELINES[name]))


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
