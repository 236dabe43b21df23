"""What charts share: colours by name, classes with their thresholds, names of blocks along the network."""

from __future__ import annotations

from pathlib import Path

from raysense.names import STRATEGIES
from raysense.results.charts.common import COLOURS, block_starts, colour_of, strategy_colours
from raysense.results.charts.sensitivity_map import CLASSES, DAMAGE, class_of
from raysense.results.run import Run

REFERENCE = Path(__file__).parents[2] / "reports" / "reference"


def test_a_strategy_has_one_colour_in_every_chart() -> None:
    assert {*STRATEGIES, "dense", "joint"} <= set(COLOURS)
    assert len(set(COLOURS.values())) == len(COLOURS)
    assert strategy_colours(["lamp", "solver"]).to_dict()["range"] == [COLOURS["lamp"], COLOURS["solver"]]
    assert strategy_colours(["mine", "lamp"]).to_dict()["range"] == [colour_of("mine"), COLOURS["lamp"]]


def test_classes_of_damage_stand_with_their_thresholds() -> None:
    assert CLASSES == [
        "free: below 0.0005",
        "slight: 0.0005 to 0.005",
        "noticeable: 0.005 to 0.05",
        "over the cliff: 0.05 to 0.5",
        "destroyed: 0.5 and more",
    ]
    assert [class_of(limit * 0.99) for limit, _, _ in DAMAGE] == CLASSES
    assert class_of(0.0005) == CLASSES[1]


def test_blocks_stand_where_their_first_layer_does() -> None:
    run = Run(str(REFERENCE))
    layers, starts = run.layers(), block_starts(run)
    assert [position for _, position in starts] == sorted(position for _, position in starts)
    for name, position in starts:
        block = layers.loc[layers["position"] == position, "block"].item()
        assert block.endswith(name)
