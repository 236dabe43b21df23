"""What can be known of a study without weights, torch or a network: all mistakes at once, and doubts."""

from __future__ import annotations

import difflib
import importlib.util
import math
import os
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raysense import names
from raysense.errors import RaysenseError
from raysense.feasibility import IMAGE_RUNGS
from raysense.hashing import refuse_odd_files
from raysense.metrics.spec import MetricSpec
from raysense.names import BUNDLED, BUNDLED_PIPELINES
from raysense.prompts import coco
from raysense.prompts.sets import check_counts
from raysense.registry import DOTTED
from raysense.study import Examined, Study, bundled_pipeline, bundled_scorer
from raysense.study import weight_files as files
from raysense.study.bounds import BOUNDED
from raysense.study.complete import complete, filled, kind_of_strategy, misfits
from raysense.study.explain import listed
from raysense.study.installed_packages import arguments_of, clip_models, extractors, has_class, schedulers
from raysense.study.plugin_checks import (
    ALLOCATION_RULE,
    ANYTHING,
    EXTRACTOR,
    METRIC,
    SALIENCY,
    SET_METRIC,
    STRATEGY,
    UPDATE,
    declared,
    fault,
)

_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json")


def look(found: Examined[Study], *, needs_weights: bool = True) -> tuple[list[str], list[str]]:
    """All that is wrong with a study, and what is doubtful, a sentence each.

    Args:
        found: The study, and what is known to be wrong already; nothing is said of what stands in its place.
        needs_weights: Whether a pipeline's folder must hold weights; a plan is made from configurations alone.
    """
    mistakes: list[str] = list(found.mistakes)
    doubts: list[str] = []
    if found.study is not None:
        for check in (_prompts, _pipeline, _names, _judges, _biased, _others, _sweep):
            for text in check(found.study, doubts.append):
                if not any(f"`{wrong}" in text for wrong in found.wrong if wrong):
                    mistakes.append(text)
        mistakes += _without_weights(found.study) if needs_weights else ()
        doubts += _doubts(found.study)
    return mistakes, doubts


def checked(found: Examined[Study], *, needs_weights: bool = True) -> tuple[Study, list[str]]:
    """The study that was read, with what its plug-ins' decorators say, and what is doubtful about it.

    Args:
        found: What was read.
        needs_weights: See `look`.

    Raises:
        RaysenseError: All that is wrong with it and can be known without loading anything.
    """
    mistakes, doubts = look(found, needs_weights=needs_weights)
    if found.study is None or mistakes:
        raise RaysenseError(listed(mistakes))
    return complete(found.study), doubts


Doubt = Callable[[str], None]


def _prompts(study: Study, doubt: Doubt) -> Iterator[str]:
    rungs = {name: rung.prompts for name, rung in study.rungs}
    try:
        sets = check_counts(study.prompts, rungs, {"validation": study.rungs.validation.skip})
    except RaysenseError as error:
        yield str(error)
        return
    if sets is not None:
        for note in sets.notes:
            doubt(note)
        held_out = sets.of("validation", rungs["validation"], study.rungs.validation.skip)
        used = {*sets.of("score", rungs["score"]), *held_out}
        for reader, count in too_long(study, [prompt.text for prompt in used]).items():
            doubt(
                f"`prompts`: {count} of {len(used)} prompts are longer than {reader} reads; the rest is cut off"
            )


def _pipeline(study: Study, doubt: Doubt) -> Iterator[str]:
    """The pipeline's folder or file, its components, sizes and call, as far as configurations tell."""
    yield from _single(study)
    yield from _adapters(study)
    try:
        folder = _folder(study)
        if folder is not None:
            refuse_odd_files(folder)
        index = None if folder is None else files.configuration(folder / "model_index.json")
    except RaysenseError as error:
        yield f"`pipeline`: {error}"
        return
    yield from _call(study, index)
    if folder is None or index is None:
        return
    kind = index.get("_class_name")
    if not isinstance(kind, str) or not has_class(kind, "pipelines"):
        yield files.unknown_pipeline(study.pipeline, kind)
    named = {
        name: entry
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and entry[0] and entry[1]
    }
    for wanted in dict.fromkeys((*study.prune.components, *study.search.proportions)):
        field = "prune.components" if wanted in study.prune.components else "search.proportions"
        there = [name for name in named if _is_model(folder / name)]
        if wanted not in named:
            yield f"`{field}` names {wanted!r}, but the pipeline has {', '.join(there) or 'no component'}"
        elif wanted not in there and (folder / wanted).is_dir():
            kind = named[wanted][1]
            yield f"`{field}` names {wanted!r}, a {kind}, which has no weights; there are {', '.join(there)}"
    for name in study.search.proportions:
        if name in named and name not in study.prune.components:
            doubt(f"`search.proportions` has {name!r}, which `prune.components` leaves alone")
    yield from _sizes(study, folder, named)
    yield from files.mistakes_in(folder, named, study.variant, study.pickled)
    if study.revision is not None:
        doubt(f"`revision` is of no use: {study.pipeline} is a folder here")


def _single(study: Study) -> Iterator[str]:
    """A single file of weights, and the configuration that goes with it."""
    path = study.pipeline
    if not os.path.isfile(path):
        if study.config is not None:
            yield f"`config` belongs to a single file of weights, but `pipeline` is {path:.200}; leave it out"
        return
    try:
        files.single_file(Path(path), study.pickled)
    except RaysenseError as error:
        yield str(error)
    is_path = study.config is not None and os.path.isabs(study.config)
    if is_path and not os.path.isfile(os.path.join(str(study.config), "model_index.json")):
        yield f"`config`: there is no {study.config:.200} with a model_index.json"


def _adapters(study: Study) -> Iterator[str]:
    for number, lora in enumerate(study.lora):
        if not os.path.isfile(lora.path):
            yield f"`lora.{number}.path`: there is no file {lora.path:.200}; give a .safetensors file"
            continue
        try:
            if lora.path.lower().endswith(files.SAFE):
                files.tensor_names(Path(lora.path))
            else:
                yield f"`lora.{number}.path` must be a .safetensors file, but is {lora.path:.200}"
        except RaysenseError as error:
            yield f"`lora.{number}.path`: {error}"


def _call(study: Study, index: Mapping[str, Any] | None) -> Iterator[str]:
    """What `sampling` hands to the pipeline's call and to a scheduler, by their own signatures."""
    sampling = study.sampling
    if sampling.scheduler is not None:
        options = arguments_of(sampling.scheduler.kind, "schedulers", "__init__")
        if options is None:
            close = difflib.get_close_matches(sampling.scheduler.kind, schedulers(), n=3)
            remedy = f"did you mean {', '.join(close)}?" if close else "such as DDIMScheduler"
            yield (
                f"`sampling.scheduler.class` {sampling.scheduler.kind!r} is no scheduler of the installed diffusers "
                f"({remedy})"
            )
        for name in sampling.scheduler.options:
            if options is not None and name not in options:
                yield (
                    f"`sampling.scheduler.options`: {sampling.scheduler.kind} has no {name!r}; it has "
                    f"{', '.join(sorted(options))}"
                )
    kind = None if index is None else index.get("_class_name")
    wanted = [*sampling.call, *(["max_sequence_length"] if sampling.max_sequence_length is not None else [])]
    if (
        not wanted
        or not isinstance(kind, str)
        or (known := arguments_of(kind, "pipelines", "__call__")) is None
    ):
        return
    for name in wanted:
        if name not in known:
            field = "sampling.call" if name in sampling.call else "sampling"
            close = difflib.get_close_matches(name, sorted(known), n=1)
            takes = (
                f"did you mean `{close[0]}`?"
                if close
                else f"it takes {', '.join(sorted(known - {'prompt'}))}"
            )
            yield f"`{field}.{name}`: {kind} takes no {name}; {takes}"


def _without_weights(study: Study) -> Iterator[str]:
    """Components that are configured, but whose weights are not in the pipeline's folder."""
    try:
        folder = _folder(study)
    except RaysenseError:
        return  # said already
    if folder is None:
        return
    for name in study.prune.components:
        if _is_model(folder / name) and not _has_weights(folder / name):
            yield (
                f"`pipeline`: `{folder / name}` has a configuration, but no weights ({', '.join(_WEIGHTS[:2])}); "
                "download them, or only `raysense plan` it"
            )


def too_long(study: Study, texts: Sequence[str]) -> dict[str, int]:
    """Who cuts how many texts off, of those whose tokenizers lie here: the pipeline's, and the CLIP model's."""
    readers: dict[str, tuple[Path, int]] = {}
    try:
        folder = _folder(study)
        for tokenizer in sorted(folder.glob("tokenizer*/tokenizer.json")) if folder else ():
            limit = files.configuration(tokenizer.with_name("tokenizer_config.json")).get("model_max_length")
            if isinstance(limit, int):
                readers[f"the pipeline's `{tokenizer.parent.name}`"] = (tokenizer, limit)
        model = study.metrics.clip.model
        scorer = bundled_scorer() if model == BUNDLED else Path(model.removeprefix(names.LOCAL))
        if model == BUNDLED or model.startswith(names.LOCAL):
            settings = (
                files.configuration(scorer / "open_clip_config.json").get("model_cfg", {}).get("text_cfg", {})
            )
            readers["the CLIP model"] = (scorer / "tokenizer.json", settings.get("context_length", 77))
    except RaysenseError:
        pass  # said where the pipeline and the CLIP model are looked at
    counts = {reader: _longer(file, limit, texts) for reader, (file, limit) in readers.items()}
    return {reader: count for reader, count in counts.items() if count}


def _longer(tokenizer: Path, limit: int, texts: Sequence[str]) -> int:
    if not tokenizer.is_file():
        return 0
    from tokenizers import Tokenizer

    try:
        reading = Tokenizer.from_file(str(tokenizer))
    except Exception:  # of the library's own making; loading the tokenizer will say it
        return 0
    reading.no_truncation()
    reading.no_padding()
    return sum(len(tokens.ids) > limit for tokens in reading.encode_batch(list(texts)))


def _folder(study: Study) -> Path | None:
    """The folder with the pipeline's configuration, or None where it is on the hub, or not known before loading."""
    if study.pipeline in BUNDLED_PIPELINES:
        return bundled_pipeline(study.pipeline)
    path = study.pipeline
    if os.path.isdir(path):
        if not os.path.isfile(os.path.join(path, "model_index.json")):
            raise RaysenseError(
                f"`{path}` has no model_index.json; give a folder in diffusers' format, as `save_pretrained` writes it"
            )
        return Path(path)
    if os.path.exists(path):
        return None
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", path, re.ASCII) or len(path) > 96:
        raise RaysenseError(
            f"there is no folder `{path:.200}`, and it is no hub id (`organisation/name`) either"
        )
    return None


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or _has_weights(folder)


def _has_weights(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in _WEIGHTS)


def _sizes(study: Study, folder: Path, named: Container[str]) -> Iterator[str]:
    try:
        unit = _unit(folder, named)
    except RaysenseError:
        return  # loading will say it; nothing is known of sizes
    one = study.sampling.height is None, study.sampling.width is None
    if "unet" in named and any(one) and not all(one):
        there, missing = ("width", "height") if one[0] else ("height", "width")
        yield (
            f"`sampling.{there}` stands without `sampling.{missing}`, and Stable Diffusion then makes its own size; "
            "give both"
        )
    for field in ("height", "width"):
        pixels = getattr(study.sampling, field)
        if pixels is not None and pixels % unit:
            near = max(unit, round(pixels / unit) * unit)
            yield (
                f"`sampling.{field}` must be a multiple of {unit} for this pipeline, such as {near}, but is {pixels}"
            )


def _unit(folder: Path, named: Container[str]) -> int:
    """What heights and widths are multiples of: the VAE's factor, and the transformer's patches of latents."""
    vae = files.configuration(folder / "vae/config.json") if "vae" in named else {}
    stages = next(
        (
            len(vae[key]) - 1
            for key in ("encoder_block_out_channels", "block_out_channels", "dim_mult")
            if isinstance(vae.get(key), list) and vae[key]
        ),
        0,
    )
    factor: int = 2**stages
    if "unet" in named:
        return math.lcm(8, factor) if vae else 1  # diffusers' U-Net pipelines refuse what 8 does not divide
    if "transformer" not in named or not vae:
        return 1
    transformer = files.configuration(folder / "transformer/config.json")
    patch, latent = transformer.get("patch_size"), vae.get("latent_channels")
    if not isinstance(patch, int) or patch < 1:
        return factor
    if patch == 1 and isinstance(latent, int) and transformer.get("in_channels") == 4 * latent:
        patch = 2  # FLUX and its kin: two by two latents are one token, outside the transformer
    return int(factor * patch)


def _names(study: Study, doubt: Doubt) -> Iterator[str]:
    try:
        study = filled(study)
        yield from misfits(study)
    except RaysenseError as error:
        yield str(error)
        return
    yield from _strategies(study)
    known = (*names.SALIENCIES, *names.UPDATING)
    for name in study.prune.methods:
        if "." in name or ":" in name:
            if wrong := fault(name, UPDATE if study.prune.updates_weights else SALIENCY):
                yield f"`prune.saliency`: {name!r} {wrong}"
        elif name not in known:
            choice = ", ".join(known)
            yield f"`prune.saliency` has the unknown method {name!r}; choose from {choice}, or give a dotted path"
    alone = [name for name in study.prune.methods if name in names.UPDATING]
    if alone and len(study.prune.methods) > 1:
        yield f"`prune.saliency`: {alone[0]} updates the weights that stay and cannot compete; name it alone"
    for name, metric in study.metrics.own.items():
        if not DOTTED.fullmatch(metric.path):
            yield f"`metrics.custom.{name}`: no installed plug-in is called {metric.path!r}; give a dotted path"
        elif wrong := fault(metric.path, SET_METRIC if metric.of_set else METRIC):
            yield f"`metrics.custom.{name}`: {metric.path!r} {wrong}"


def _strategies(study: Study) -> Iterator[str]:
    """Entries of `search.strategies` that are no strategy of raysense's own."""
    for name in study.search.strategies:
        if name in names.STRATEGIES:
            continue
        if said_now := names.renamed(f"search.strategies: {name}"):
            yield said_now
            continue
        if not DOTTED.fullmatch(name):
            yield (
                f"`search.strategies` has the unknown entry {name!r}; there are {', '.join(sorted(names.STRATEGIES))}, "
                "and dotted paths"
            )
            continue
        wrong = fault(name, ANYTHING)
        if not wrong:
            try:
                wrong = fault(name, STRATEGY if kind_of_strategy(name) == "strategy" else ALLOCATION_RULE)
            except RaysenseError as error:
                yield str(error)
        if wrong:
            yield f"`search.strategies`: {name!r} {wrong}"


def _judges(study: Study, doubt: Doubt) -> Iterator[str]:
    clip, extractor = study.metrics.clip, study.metrics.features.extractor
    if wrong := _clip("metrics.clip.model", clip.model, clip.pretrained):
        yield wrong
    field = "metrics.features.extractor"
    if extractor.startswith(names.OPEN_CLIP):
        model, _, pretrained = extractor.removeprefix(names.OPEN_CLIP).partition("@")
        if wrong := _clip(field, model, pretrained or None):
            yield wrong
    elif extractor == names.EFFICIENTNET or extractor in extractors():
        return
    elif extractor.startswith(f"{names.EFFICIENTNET}-"):
        size = extractor.removeprefix(f"{names.EFFICIENTNET}-")
        if not re.fullmatch("[1-9][0-9]{1,4}", size) or int(size) % 32:
            yield f"`{field}`: the size of {extractor!r} must be a multiple of 32, such as {names.EFFICIENTNET}-96"
    elif "." in extractor or ":" in extractor:
        if wrong := fault(extractor, EXTRACTOR):
            yield f"`{field}`: {extractor!r} {wrong}"
    else:
        choice = ", ".join((names.EFFICIENTNET, *extractors()))
        yield f"`{field}` is unknown: {extractor!r}; choose {choice}, open_clip:MODEL@PRETRAINED, or a dotted path"


def _clip(field: str, model: str, pretrained: str | None) -> str:
    """What is wrong with the name of an open_clip model, or an empty string."""
    if model == BUNDLED or model.startswith((names.LOCAL, names.HUB)):
        if pretrained:
            return f"`{field}` {model!r} names its weights itself; leave `pretrained` ({pretrained!r}) out"
        folder = model.removeprefix(names.LOCAL)
        if folder != model and not os.path.isfile(os.path.join(folder, "open_clip_config.json")):
            return f"`{field}`: there is no `{folder}` with an open_clip_config.json"
        if folder != model:
            try:
                refuse_odd_files(Path(folder))
            except RaysenseError as error:
                return f"`{field}`: {error}"
        return ""
    known = clip_models()
    if ":" in model or model.replace("/", "-") not in known:
        near = [name for name in known if name.casefold() == model.replace("/", "-").casefold()]
        remedy = f"did you mean {near[0]!r}?" if near else f"{names.HUB}… and {names.LOCAL}… are read too"
        return f"`{field}` {model!r} is no model of open_clip's ({remedy})"
    tags = known[model.replace("/", "-")]
    if pretrained is None:
        return f"`{field}` {model!r} needs `pretrained`, one of {', '.join(tags) or 'a file of weights'}"
    if pretrained.lower().replace("-", "_") not in tags and not os.path.isfile(pretrained):
        choice = ", ".join(tags) or "none"
        return f"`{field}` {model!r} has no weights {pretrained!r}; there are {choice}, or give a file"
    return ""


def _others(study: Study, doubt: Doubt) -> Iterator[str]:
    reference = study.metrics.reference.path
    if reference is not None and reference != coco.NAME:
        field = "`metrics.reference.path`"
        if not os.path.exists(reference):
            yield f"{field}: there is no {reference:.200}; give a folder, a table or .npz"
        elif not os.path.isdir(reference) and (
            Path(reference).suffix.lower() not in names.REFERENCES or not os.path.isfile(reference)
        ):
            yield f"{field} must be a folder or one of {', '.join(names.REFERENCES)}, but is {reference:.200}"
    for key, package in names.TRACKERS.items():
        if getattr(study.track, key) is not None and importlib.util.find_spec(package) is None:
            yield (
                f"`track.{key}` needs the package {package}, which is not installed: pip install 'raysense[{key}]', "
                f"or leave `track.{key}` out"
            )


def _biased(study: Study, doubt: Doubt) -> Iterator[str]:
    """A distance that too few images make blind, without another bound that sees what it does not.

    Below as many images as features the Fréchet distance rewards features that are drawn together: all of them times
    0.7 on 160 images was measured as 23.9 [10, 38] where the true rise is 87.
    """
    bounded = study.constraints.bounded()
    sound = [n for n, s in BOUNDED.items() if _sees_damage(s)]
    for name, spec in bounded.items():
        needed = _needed(study, spec)
        few = {rung: n for rung, n in _images(study).items() if n < needed}
        if few and not any(map(_sees_damage, bounded.values())):
            said = " and ".join(f"{n:,} images of the {rung} rung" for rung, n in few.items())
            yield (
                f"`constraints.{name}` stands alone on the {said}, and below as many images as features it rewards "
                f"images that are drawn together: give each of these rungs {needed:,}, or bound "
                f"{' or '.join(sound)} too"
            )


def _sweep(study: Study, doubt: Doubt) -> Iterator[str]:
    """The section `sweep`: shares within the cap; components, methods, rules and measures that there are."""
    sweep, prune = study.sweep, study.prune
    if sweep is None:
        return
    cap, there = prune.max_layer_sparsity, set(prune.components)
    for number, one in enumerate(sweep.points):
        field = f"sweep.points.{number}"
        shares = [*one.sparsity, *(share for entry in one.together for share in entry.values())]
        if shares and max(shares) > cap:
            yield (
                f"`{field}` asks for {max(shares):g}, more than `prune.max_layer_sparsity` {cap:g} allows; ask for "
                "less or raise it"
            )
        named = [group for entry in one.together for group in entry]
        named += [
            group for entry in (*one.rules, *one.saliency) if not isinstance(entry, str) for group in entry
        ]
        for group in dict.fromkeys(named):
            if group.split(":")[0] not in there:
                yield (
                    f"`{field}` names {group!r}, but `prune.components` has {', '.join(prune.components)}; add the "
                    "component there, or leave it out here"
                )
    for name in sweep.methods:
        yield from _sweep_method(study, name)
    mapped = [entry for one in sweep.points for entry in one.saliency if not isinstance(entry, str)]
    if mapped and (len(prune.methods) > 1 or prune.updates):
        yield (
            "`sweep`: a mapping from components to methods needs a `prune.saliency` that is one method and updates no "
            "weights"
        )
    for rule in sweep.rules:
        if rule not in names.SWEEP_RULES and (wrong := _sweep_rule(rule)):
            yield f"`sweep`: {wrong}"
    yield from _sweep_measures(study)


def _sweep_rule(rule: str) -> str:
    """Why a plug-in cannot be a sweep's rule, or an empty text."""
    if not DOTTED.fullmatch(rule):
        return f"there is no rule {rule!r} within a group; there are {', '.join(names.SWEEP_RULES)}, and dotted paths"
    if wrong := fault(rule, ALLOCATION_RULE):
        return f"{rule!r} {wrong}"
    found = declared(rule)
    if found is None or found.kind != "allocation_rule":
        return f"{rule!r} must be decorated with `@raysense.allocation_rule(…)` where it is defined"
    return ""


def _sweep_method(study: Study, name: str) -> Iterator[str]:
    """What is wrong with a method of a sweep."""
    if name in study.prune.methods:
        return
    if name in names.UPDATING and not study.prune.updates:
        yield (
            f"`sweep`: {name} updates the weights that stay and solves each level once, so layers have few levels: set "
            f"`prune.saliency` to {name} and name the others in `sweep`"
        )
    elif name not in (*names.SALIENCIES, *names.UPDATING):
        yield (
            f"`sweep`: there is no method {name!r}; choose from {', '.join((*names.SALIENCIES, *names.UPDATING))}, or "
            "the study's own `prune.saliency`, which may be a plug-in"
        )


def _sweep_measures(study: Study) -> Iterator[str]:
    """Measures that tell cliffs and interactions, on the rungs where they are asked."""
    sweep = study.sweep
    assert sweep is not None
    measured = {name: study.spec_of(name) for name in (*study.measured(), *study.metrics.own)}
    losses = sorted(f"{name}{spec.relative}" for name, spec in measured.items() if spec.relative)
    wanted = (
        [("sweep.cliffs", sweep.cliffs.measure, set(map(sweep.rung_of, sweep.points)))]
        if sweep.cliffs
        else []
    )
    if sweep.screen:
        wanted.append(("sweep.screen", sweep.screen.measure, {sweep.rung_of(sweep.screen)}))
    for field, measure, rungs in wanted:
        for rung in sorted(rungs) if measure is not None else ():
            known = losses if rung in IMAGE_RUNGS else list(names.ERRORS_OF[rung])
            if measure not in known:
                base = str(measure).rpartition("_")[0]
                saved = study.metrics.reference.is_saved and base in BOUNDED and BOUNDED[base].needs_images
                reason = (
                    f"`metrics.reference.path` is {study.metrics.reference.path!r}, saved statistics: {base} needs the "
                    "reference's images"
                    if saved
                    else f"on the rung {rung} there are {', '.join(known)}; others are measured where `metrics.also` "
                    "lists them"
                )
                yield f"`{field}.measure` is {measure!r}, which is not measured: {reason}"


def _sees_damage(spec: MetricSpec) -> bool:
    """Whether a metric is sound on few images and compares with the dense images, or with their distribution."""
    return not spec.needs_full_sample and (spec.dense is not None or (spec.kind == "set" and spec.always))


def _images(study: Study) -> dict[str, int]:
    """The number of images of each rung that decides."""
    rungs = {"score": study.rungs.score, "validation": study.rungs.validation}
    return {name: rung.prompts * rung.seeds for name, rung in rungs.items()}


def _needed(study: Study, spec: MetricSpec) -> int:
    """Images below which a metric is biased so that it misleads: as many as features, where it is biased at all."""
    if not spec.biased_below:
        return 0
    extractor = study.metrics.features.extractor
    known = [
        n for name, n in names.FEATURES_OF.items() if extractor == name or extractor.startswith(f"{name}-")
    ]
    return known[0] if known else spec.biased_below


def _doubts(study: Study) -> list[str]:
    doubts = []
    bounded = study.constraints.bounded()
    distances = [name for name, spec in bounded.items() if spec.kind == "set" and spec.relative == "_rise"]
    if distances and not any(spec.kind == "image" for spec in bounded.values()):
        images = ", ".join(name for name, spec in BOUNDED.items() if spec.kind == "image" and spec.always)
        doubts.append(
            f"`constraints.{distances[0]}` stands without a bound on each image ({images}): a distance between "
            "distributions is not monotone and can improve while images stop showing what the prompt says"
        )
    for name, spec in bounded.items():
        if min(_images(study).values()) < _needed(study, spec):
            doubts.append(
                f"`constraints.{name}` stands on fewer images than {study.metrics.features.extractor} has features: "
                "its unit is that of the bias, and the figure compares with none at another number of images"
            )
        if spec.caution:
            doubts.append(f"`constraints` bounds {name}: {spec.caution}")
    commit = study.revision is not None and len(study.revision) == 40
    if study.pipeline not in BUNDLED_PIPELINES and not os.path.exists(study.pipeline) and not commit:
        doubts.append(
            f"`revision` names no commit of {study.pipeline}: a push to the hub changes the study; `raysense prepare` "
            "says which commit to pin"
        )
    return doubts
