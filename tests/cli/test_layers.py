"""`raysense layers` reads configurations only: a tree of billions of weights costs no memory for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel


def flux_configuration(folder: Path) -> None:
    """A pipeline folder without weights, whose transformer has the size of FLUX.1's."""
    build: Any = FluxTransformer2DModel
    few = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 32, "num_attention_heads": 2}
    small = build(**few, axes_dims_rope=(8, 12, 12))
    small.save_config(folder / "transformer")
    path = folder / "transformer/config.json"
    full = {"num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128, "num_attention_heads": 24}
    full |= {"axes_dims_rope": [16, 56, 56], "guidance_embeds": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | full))
    FlowMatchEulerDiscreteScheduler().save_config(folder / "scheduler")
    index: dict[str, Any] = {"_class_name": "FluxPipeline"}
    index |= {"transformer": ["diffusers", "FluxTransformer2DModel"]}
    index |= {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}
    missing = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    index |= {name: [None, None] for name in missing}
    (folder / "model_index.json").write_text(json.dumps(index))


def test_layers_of_twelve_billion_weights_from_their_configuration(tmp_path: Path) -> None:
    flux_configuration(tmp_path)
    settings = ["--pipeline", str(tmp_path), "--set", "prune.components=[transformer]"]
    with (tmp_path / "said").open("w+") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "raysense.cli", "layers", *settings], stdout=out, stderr=subprocess.STDOUT
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        said = out.read()
    assert process.returncode == 0, said
    assert "components   11,901,408,320 parameters" in said
    assert used.ru_maxrss * 1024 < 1.5e9  # of which importing torch, diffusers and transformers is a gigabyte
