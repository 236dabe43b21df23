"""The training loop: several processes are one training."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training.loop import train

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from tests.training.test_loop import fit
average = fit(Path(sys.argv[1]))
Path(sys.argv[1], f"{torch.distributed.get_rank()}.json").write_text(json.dumps(average))
"""


def fit(folder: Path, processes: int = 1) -> list[float]:
    """Fit a line to points; a loss over the batches that so many processes draw."""
    torch.manual_seed(0)
    line, steps = nn.Linear(3, 1), itertools.count()

    def loss_at(rng: np.random.Generator) -> Tensor:
        step = next(steps)
        others = [np.random.default_rng([step, 2026, process]) for process in range(1, processes)]
        points = torch.from_numpy(np.stack([each.normal(size=(8, 3)) for each in (rng, *others)])).float()
        wanted = points @ torch.tensor([1.0, 2.0, 3.0]) + 1
        return (line(points)[..., 0].float() - wanted).square().mean()

    weights = train(line, loss_at, steps=210, learning_rate=0.02, checkpoint=folder / "line.pt")
    return [float(value) for weight in weights.values() for value in weight.flatten()]


@pytest.mark.long
def test_two_processes_are_one_training_on_the_batches_of_both(tmp_path: Path) -> None:
    (tmp_path / "fit.py").write_text(SCRIPT)
    root = Path(__file__).parents[2]
    two = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    subprocess.run(
        [sys.executable, *two, tmp_path / "fit.py", tmp_path],
        check=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    together, alone = fit(tmp_path / "together", processes=2), fit(tmp_path / "alone")
    assert first == second
    assert first == pytest.approx(together, abs=0.005)
    assert first != pytest.approx(alone, abs=0.02)
