"""A study with all that is said of its plug-ins in it, so that reading its results never imports their code.

Names of entry points become dotted paths, and what decorators say of metrics and methods is filled in where the study
itself says nothing. Sources are read; none of the user's code is run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raysense.errors import RaysenseError
from raysense.names import EFFICIENTNET, OPEN_CLIP, SALIENCIES, STRATEGIES, SWEEP_RULES, UPDATING
from raysense.registry import DOTTED, Declaration, Kind, located
from raysense.study.explain import listed
from raysense.study.installed_packages import extractors
from raysense.study.plugin_checks import declared
from raysense.study.schema import Study


def complete(study: Study) -> Study:
    """The study with what its plug-ins' decorators say; itself where it has no plug-ins.

    Raises:
        RaysenseError: A bound points the wrong way, or a decorator says what does not fit; all that is wrong.
    """
    found = filled(study)
    if mistakes := list(misfits(found)):
        raise RaysenseError(listed(mistakes))
    return found


def filled(study: Study) -> Study:
    """The study with what its plug-ins' decorators say, whether or not that fits.

    Raises:
        RaysenseError: Something is decorated as another kind of plug-in than it is named as.
    """
    data = study.model_dump(mode="json")
    metrics, prune, search = data["metrics"], data["prune"], data["search"]
    metrics["custom"] = {name: _metric(name, entry) for name, entry in metrics["custom"].items()}
    methods = [_path(name, "saliency", (*SALIENCIES, *UPDATING)) for name in study.prune.methods]
    prune["saliency"] = methods[0] if len(methods) == 1 else methods
    if any(said("prune.saliency", name, "saliency").facts.get("updates_weights") for name in methods):
        prune["updates_weights"] = True
    search["strategies"] = [_strategy(name) for name in study.search.strategies]
    for points in data.get("sweep", {}).get("points", ()):
        points["rules"] = [_rules(entry) for entry in points["rules"]]
    extractor = study.metrics.features.extractor
    if not extractor.startswith((OPEN_CLIP, EFFICIENTNET)) and extractor not in extractors():
        metrics["features"]["extractor"] = _path(extractor, "extractor")
    before = study.model_dump(mode="json")
    changed = {part: data[part] for part in data if data[part] != before[part]}
    # Not parsed anew: a study may hold a live pipeline, which plain data does not.
    sections = {part: type(getattr(study, part)).model_validate(plain) for part, plain in changed.items()}
    return study.model_copy(update=sections)


def said(field: str, name: str, kind: Kind) -> Declaration:
    """What the decorator of a plug-in says, as far as its source shows; nothing for any other name.

    Raises:
        RaysenseError: It is another kind of plug-in.
    """
    found = declared(name) if DOTTED.fullmatch(name) else None
    if found is None:
        return Declaration(kind, name)
    if found.kind != kind:
        raise RaysenseError(
            f"`{field}`: {name!r} is decorated as {_words(found.kind)}, but named as {_words(kind)}"
        )
    return found


def kind_of_strategy(name: str) -> Kind:
    """Whether an entry of `search.strategies` that is a dotted path is a strategy or an allocation rule.

    Raises:
        RaysenseError: Its source shows neither.
    """
    found = declared(name)
    if found is None or found.kind not in ("strategy", "allocation_rule"):
        raise RaysenseError(
            f"`search.strategies`: {name!r} must be decorated with `@raysense.strategy(…)` or "
            "`@raysense.allocation_rule(…)` where it is defined"
        )
    return found.kind


def misfits(study: Study) -> Iterator[str]:
    """What is wrong with a complete study's use of its plug-ins, a sentence each."""
    for name, bound in study.constraints.custom.items():
        metric = study.metrics.own[name]
        right, wrong = ("max_drop", "min"), ("max_rise", "max")
        way, other = ("higher", "lower") if metric.up else ("lower", "higher")
        if not metric.up:
            right, wrong = wrong, right
        for field in wrong:
            if getattr(bound, field) is not None:
                instead = right[wrong.index(field)]
                yield (
                    f"`constraints.custom.{name}.{field}` is for a metric of which {other} is better, but of {name} "
                    f"{way} is; use `{instead}`, or set `metrics.custom.{name}.higher_is_better`"
                )
    for name, metric in study.metrics.own.items():
        if metric.of_set and study.metrics.reference.is_saved:
            yield (
                f"`metrics.reference.path` is {study.metrics.reference.path!r}, saved statistics, which {name}, a "
                "metric of the set, cannot be measured against; give the reference's images"
            )
    if study.prune.updates_weights and len(study.prune.methods) > 1:
        yield "`prune.saliency`: a method that updates the weights that stay cannot compete; name it alone"
    if study.prune.updates_weights and study.prune.pattern:
        yield f"`prune.pattern`: {study.prune.saliency}, a plug-in that updates weights, knows no pattern; leave it out"
    for name in study.search.strategies:
        own = DOTTED.fullmatch(name) is not None and (found := declared(name)) is not None
        if own and found is not None and found.kind == "strategy" and not study.search.rounds:
            yield f"`search.rounds` is 0, which leaves the strategy {name} no candidate; raise it"


def _metric(name: str, entry: Any) -> Any:
    """An entry of `metrics.custom` with what its decorator says; a path alone if that is all there is."""
    given = {"path": entry} if isinstance(entry, str) else dict(entry)
    given["path"] = _path(given["path"], "metric")
    facts = said(f"metrics.custom.{name}", given["path"], "metric").facts
    usual = {"higher_is_better": True, "kind": "image"}
    given = {**{fact: value for fact, value in facts.items() if value not in ("", usual.get(fact))}, **given}
    return given["path"] if isinstance(entry, str) and set(given) == {"path"} else given


def _strategy(name: str) -> str:
    if name in STRATEGIES:
        return name
    return located(name, "strategy") or located(name, "allocation_rule") or name


def _rules(entry: Any) -> Any:
    """An entry of a sweep's rules: a name, or a mapping from groups to names."""
    if isinstance(entry, str):
        return _path(entry, "allocation_rule", SWEEP_RULES)
    return {group: _rules(name) for group, name in entry.items()}


def _path(name: str, kind: Kind, known: tuple[str, ...] = ()) -> str:
    """The dotted path behind a name that is not one of raysense's own; the name where there is none."""
    return name if name in known else located(name, kind) or name


def _words(kind: Kind) -> str:
    words = kind.replace("_", " ")
    return f"an {words}" if words[0] in "ae" else f"a {words}"
