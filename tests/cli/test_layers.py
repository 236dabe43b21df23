"""`raysense layers` reads configurations only: a tree of billions of weights costs no memory for them."""

from __future__ import annotations

import json
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
    # The process says its own peak: what `wait4` and `getrusage` say begins with that of the process that forked it.
    code = (
        "import sys; from pathlib import Path; from raysense.cli import main; status = main(sys.argv[1:]); "
        "print(Path('/proc/self/status').read_text()); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "layers", *settings], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "components   11,901,408,320 parameters" in done.stdout
    peak = 1024 * int(done.stdout.split("VmHWM:")[1].split()[0])
    assert peak < 1.5e9  # of which importing torch, diffusers and transformers is a gigabyte
