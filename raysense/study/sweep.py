"""The section `sweep` of a study: which points are measured where no search chooses them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from raysense.feasibility import IMAGE_RUNGS
from raysense.study.section import Name, Said, Section

AnyRung = Literal["layer", "probe", "preview", "score", "validation"]
Share = Annotated[float, Field(gt=0, le=1)]
Rule = str | dict[str, str]


class PointSet(Section):
    """Points of a sweep: every combination of what is listed."""

    name: Name | None = Field(None, description="of the set; its number if null")
    over: Literal["component", "block", "layer", "kind"] = Field(
        "component",
        description="what is pruned alone, group by group; a kind is a component's, such as unet:linear",
    )
    only: tuple[str, ...] = Field(
        ("*",), min_length=1, strict=False, description="patterns of groups, such as unet:mid*"
    )
    sparsity: tuple[Share, ...] = Field(
        (), strict=False, description="shares of the group's own weights that leave"
    )
    zeros: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (),
        strict=False,
        description="instead of `sparsity`: weights that leave each group; smaller groups are left out",
    )
    together: tuple[dict[str, Annotated[float, Field(ge=0, le=1)]], ...] = Field(
        (),
        strict=False,
        description="instead of these: components, blocks, layers or kinds that are pruned at once, "
        "each with its share",
    )
    saliency: tuple[Rule, ...] = Field(
        (),
        strict=False,
        description="methods, or mappings from components to methods; the study's own if empty, and where missing",
    )
    rules: tuple[Rule, ...] = Field(
        ("uniform",),
        min_length=1,
        strict=False,
        description="how a group's total is shared out among its layers: uniform, erk, global, lamp, owl, "
        "owl_block or the dotted path of one of your own; or a mapping from groups to these, uniform where missing",
    )
    steps: tuple[Annotated[tuple[float, float], Field(strict=False)], ...] = Field(
        (),
        strict=False,
        description="parts of the trajectory in which the denoiser is pruned, such as [0, 0.5]: its first half; all of "
        "it if empty",
    )
    rung: AnyRung | None = Field(None, description="where it is measured; `sweep.rung` if null")

    @field_validator("steps")
    @classmethod
    def _parts(cls, value: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        for begin, end in value:
            if not 0 <= begin < end <= 1:
                raise ValueError(f"must hold parts from 0 to 1, each from less to more, not {[begin, end]}")
        return value

    @field_validator("together")
    @classmethod
    def _some(cls, value: tuple[dict[str, float], ...]) -> tuple[dict[str, float], ...]:
        if any(not any(shares.values()) for shares in value):
            raise ValueError("must prune something in each entry")
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> PointSet:
        if sum(map(bool, (self.sparsity, self.zeros, self.together))) != 1:
            raise ValueError("must hold one of `sparsity`, `zeros` and `together`")
        if self.together and (self.over != "component" or self.only != ("*",)):
            raise ValueError("holds `together`, which names its groups itself; leave `over` and `only` out")
        return self


class Cliffs(Section):
    """Finds each curve's knee and collapse by measuring between its points."""

    measure: str | None = Field(
        None,
        description="the loss that tells; clip_score_drop, or probe_error and layer_error without images",
    )
    within: float = Field(0.01, ge=0.002, le=0.2, description="how far on either side the place may be open")
    most: int = Field(8, ge=1, le=64, description="points a curve, beside its own")


class Screen(Section):
    """Finds groups that damage more together than apart: random balanced subsets, not all pairs."""

    over: Literal["component", "block", "layer", "kind"] = Field("block", description="what is combined")
    only: tuple[str, ...] = Field(("*",), min_length=1, strict=False, description="patterns of groups")
    sparsity: Share = Field(description="of every group that is pruned in a run")
    runs: int | None = Field(
        None, ge=8, description="subsets; three times the groups, or 24 if that is more, if null"
    )
    rung: AnyRung | None = Field(None, description="where it is measured; `sweep.rung` if null")
    measure: str | None = Field(None, description="the loss that tells, as for `cliffs`")


class Sweep(Section):
    """Points that `raysense sweep` measures; nothing of it decides a row, so it may change on ``--resume``."""

    rung: AnyRung = Field("score", description="where points are measured")
    points: tuple[PointSet, ...] = Field((), strict=False, description="see below")
    cliffs: Cliffs | None = Field(None, description="see below; null: only the points that are listed")
    screen: Screen | None = Field(None, description="see below; null for none")

    @model_validator(mode="after")
    def _something(self) -> Sweep:
        if not self.points and self.screen is None:
            raise ValueError("must hold `points` or `screen`")
        for number, one in enumerate(self.points):
            rung = one.rung or self.rung
            if one.steps and rung not in IMAGE_RUNGS:
                raise Said(
                    f"`sweep.points.{number}.steps` prunes for a part of the trajectory, which the rung {rung} lacks; "
                    f"use {', '.join(IMAGE_RUNGS)}"
                )
        return self

    def rung_of(self, part: PointSet | Screen) -> str:
        """Where a part of the sweep is measured."""
        return part.rung or self.rung

    @property
    def rungs(self) -> tuple[str, ...]:
        """All rungs that are measured on."""
        parts: list[PointSet | Screen] = [*self.points, *([self.screen] if self.screen else [])]
        return tuple(dict.fromkeys(self.rung_of(part) for part in parts))

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that are named."""
        found = [name for one in self.points for entry in one.saliency for name in rules_in(entry)]
        return tuple(dict.fromkeys(found))

    @property
    def rules(self) -> tuple[str, ...]:
        """The allocation rules that are named."""
        found = [rule for one in self.points for entry in one.rules for rule in rules_in(entry)]
        return tuple(dict.fromkeys(found))


def rules_in(entry: Rule) -> tuple[str, ...]:
    """The names in an entry of `PointSet.rules` or `PointSet.saliency`."""
    return (entry,) if isinstance(entry, str) else tuple(entry.values())


def in_words(entry: Rule) -> str:
    """An entry of `PointSet.rules` or `PointSet.saliency` in one text: ``text_encoder: owl, unet: uniform``."""
    return entry if isinstance(entry, str) else ", ".join(f"{key}: {entry[key]}" for key in sorted(entry))


def by_component(method: str) -> dict[str, str]:
    """Component -> method, of what `in_words` made of a mapping; empty for the name of a method."""
    return dict(part.split(": ") for part in method.split(", ")) if ": " in method else {}


IMAGE_LOSS = "clip_score_drop"
"""The loss that tells where there are images."""


def losses_on(rung: str) -> str:
    """The loss that tells on a rung unless the study says another."""
    return IMAGE_LOSS if rung in IMAGE_RUNGS else f"{rung}_error"


def loss_on(sweep: Sweep | None, rung: str) -> str:
    """The loss that tells where the cliff of a curve on a rung is; of a study whose `sweep` is gone, the usual one."""
    cliffs = sweep.cliffs if sweep else None
    return (cliffs.measure if cliffs else None) or losses_on(rung)
