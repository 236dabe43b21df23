"""What a study may call things. Plain names, so that `raysense validate` knows them without torch."""

from typing import Literal

BUNDLED = "bundled"
"""The pipeline, the scorer and the prompts inside the package."""

BUNDLED_PIPELINES = {BUNDLED: "pipeline", "bundled-transformer": "transformer"}
"""Pipelines inside the package: what `pipeline` may say -> folder under ``raysense/bundled``."""

ALLOCATION_RULES = ("uniform", "per_component", "linear_uniform", "erk", "global", "lamp")
"""Allocation rules that need the weights alone, see `raysense.strategies.rules`."""

OWL, OWL_BLOCK = "owl", "owl_block"
OUTLIERS = {OWL: "outlier_ratio/", OWL_BLOCK: "block_outlier_ratio/"}
"""Allocation rules that need statistics whatever the method: by layer, and as published by block -> what the names of
the measures that they allocate by begin with; a layer's address follows. A calibration has them."""

UNIFORM = "uniform"
SOLVER = "solver"
JOINT = "joint"
"""What the joint search finds; it runs after the solver, unless `search.rounds` is 0."""

RANDOM, SWITCHES, TPE, EVOPRESS = "random", "switches", "tpe", "evopress"
ITERATIVE = (JOINT, RANDOM, SWITCHES, TPE, EVOPRESS)
"""Strategies that learn from one measurement to the next; all but the first are there to be compared with."""

STRATEGIES = (*ALLOCATION_RULES, *OUTLIERS, SOLVER, *ITERATIVE[1:])
"""What `search.strategies` may list."""

SWEEP_RULES = ("uniform", "erk", "global", "lamp", *OUTLIERS)
"""How a sweep may share a group's total out among its layers."""

ERRORS_OF = {"layer": ("layer_error",), "probe": ("probe_error", "text_error")}
"""What the rungs without images measure."""

SALIENCIES = ("magnitude", "random", "wanda", "wanda_tensor", "taylor")
"""Methods that score weights, see `raysense.pruning.saliency`."""

UPDATING: dict[str, bool] = {"sparsegpt": False, "obs_diff": True}
"""Methods of `raysense.pruning.obs`, which update the weights that stay and so have no scores: name -> whether the
denoising steps of their Hessians are weighted."""

EFFICIENTNET = "efficientnet-lite0"
"""The bundled feature extractor; ``efficientnet-lite0-SIZE`` for another input size, a multiple of 32."""

Offload = Literal["none", "model", "sequential"]
"""Where weights wait that a GPU has no room for; see `raysense.pipelines.offload`."""

FEATURES_OF = {
    EFFICIENTNET: 1280,
    "inception-v3-compat": 2048,
    "dinov2-vit-s-14": 384,
    "dinov2-vit-b-14": 768,
    "dinov2-vit-l-14": 1024,
    "dinov2-vit-g-14": 1536,
    "clip-vit-b-32": 512,
    "clip-vit-b-16": 512,
    "clip-vit-l-14": 768,
}
"""How many features these extractors give an image."""

OPEN_CLIP = "open_clip:"
LOCAL = "local-dir:"
HUB = "hf-hub:"

REFERENCES = (".csv", ".jsonl", ".npz", ".parquet")
"""What the file of a reference ends with: tables of images, or saved statistics."""

TRACKERS = {"mlflow": "mlflow", "tensorboard": "tensorboardX"}
"""What each key of `track` needs to be importable; the extra has the key's name."""

RENAMED = {
    "budget.max_cost": "budget.max_nfe",
    "cluster.images_per_part": "cluster.images_per_shard",
    "metrics.frechet": "metrics.features",
    "prune.cap": "prune.max_layer_sparsity",
    "search.strategies: recipe": "search.strategies: linear_uniform",
}
"""Keys, and entries of lists, of study files before 0.3.0 -> what they are called now."""


def renamed(old: str) -> str:
    """What to say of a key or an entry that has another name now; an empty text for any other."""
    return f"`{old}` is called `{RENAMED[old]}` since raysense 0.3.0" if old in RENAMED else ""
