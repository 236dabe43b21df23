"""Train the bundled models: ``python -m training {autoencoder,decoder,scorer,diffusion,export,keep,unpack} …``.

Each stage goes on from its last checkpoint; ``--help`` lists the settings. See
``docs/explanation/bundled-pipeline.md``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from . import stages
from .beds import BEDS

SHARED = ("autoencoder", "decoder", "scorer")
OF_A_BED = ("diffusion", "export", "keep", "unpack")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("stage", choices=(*SHARED, *OF_A_BED))
    parser.add_argument(
        "--emoji", type=Path, required=True, help="unpacked npm package emoji-datasource-google"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("training/runs"), help="checkpoints (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, help="training steps (default: the stage's own)")
    parser.add_argument("--batch", type=int, help="images a step (default: the stage's own)")
    parser.add_argument("--learning-rate", type=float, help="peak learning rate (default: the stage's own)")
    parser.add_argument(
        "--minutes", type=float, help="diffusion: end after so long, the learning rate falling over the time"
    )
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--bed",
        default="bundled",
        choices=BEDS,
        help="which pipeline, for diffusion, export, keep and unpack (default: %(default)s)",
    )
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    stage = getattr(stages, args.stage)
    chosen = {
        k: v for k, v in vars(args).items() if k in ("steps", "batch", "learning_rate") and v is not None
    }
    if args.stage in OF_A_BED:
        chosen["bed"] = BEDS[args.bed]
    if args.stage == "diffusion":
        chosen["minutes"] = args.minutes
    stage(emoji=args.emoji / "img/google/64", out=args.out, device=args.device, **chosen)


if __name__ == "__main__":
    main()
