"""The shapes of the bundled models; everything is a stock diffusers, transformers or open_clip class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .world import RESOLUTION, scenes

MAX_TOKENS = 24
START, END = "<|startoftext|>", "<|endoftext|>"

SCORER = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": RESOLUTION, "layers": 4, "width": 128, "head_width": 32, "patch_size": 4},
    "text_cfg": {
        "context_length": MAX_TOKENS,
        "width": 128,
        "heads": 4,
        "layers": 3,
        "hf_tokenizer_name": "tokenizer files beside this one",
    },
}


def tokenizer(vocabulary_size: int = 900, max_tokens: int = MAX_TOKENS) -> CLIPTokenizer:
    """A CLIP tokenizer whose byte-pair merges are learned from the captions of the training scenes."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    trained.train_from_iterator(
        (scene.caption for scene in scenes(held_out=False)),
        trainers.BpeTrainer(vocab_size=vocabulary_size, end_of_word_suffix="</w>", show_progress=False),
    )
    model = json.loads(trained.to_str())["model"]
    # The trainer numbers letters that end a word in an order that differs from process to process; ours is fixed.
    letters = sorted(
        (token for token in model["vocab"] if len(token.removesuffix("</w>")) == 1),
        key=lambda token: (token.endswith("</w>"), token),
    )
    pairs = [tuple(pair) for pair in model["merges"]]
    vocabulary = {token: number for number, token in enumerate([*letters, *(a + b for a, b in pairs)])}
    # The end token comes last: CLIP pools the text at the highest id.
    for special in (START, END):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=pairs,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END,
        model_max_length=max_tokens,
    )


def text_encoder(words: CLIPTokenizer) -> CLIPTextModel:
    """Two CLIP layers of width 96: small, so that its captions need all of it."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=96,
            intermediate_size=384,
            projection_dim=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )


def autoencoder() -> AutoencoderKL:
    """32×32×3 images to 8×8×4 latents."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=RESOLUTION,
    )


class Critic(nn.Module):
    """A patch discriminator: (n, 3, 32, 32) -> verdicts (n, 1, 8, 8) and the features of its layers."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 48, 96, 160)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(i, o, 4 if stride == 2 else 3, stride, 1),
                nn.GroupNorm(8, o) if i > 3 else nn.Identity(),
                nn.LeakyReLU(0.2),
            )
            for i, o, stride in zip(widths, widths[1:], (1, 2, 2), strict=False)
        )
        self.verdict = nn.Conv2d(widths[-1], 1, 3, 1, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Higher verdicts: more like a real image."""
        features = []
        for stage in self.stages:
            images = stage(images)
            features.append(images)
        return self.verdict(images), features


def unet() -> UNet2DConditionModel:
    """Text enters once, on the way down to the inner 4×4 level, and there is no middle block.

    All that an image owes to its caption passes through every block after that: none can stand idle.
    """
    return UNet2DConditionModel(
        sample_size=RESOLUTION // 4,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type=None,
        up_block_types=("UpBlock2D", "UpBlock2D"),
        block_out_channels=(80, 128),
        layers_per_block=1,
        transformer_layers_per_block=2,
        only_cross_attention=True,  # at 4×4 self-attention did next to nothing
        cross_attention_dim=96,
        attention_head_dim=4,  # diffusers: the number of heads
        time_embedding_dim=128,
        norm_num_groups=16,
        use_linear_projection=True,
    )


def scheduler() -> DPMSolverMultistepScheduler:
    """DPM-Solver++(2M) over DDPM's linear schedule, whose last step is almost pure noise.

    Stable Diffusion's own schedule leaves a signal of 0.07 there; in 8×8 latents that would give away the mean
    colour during training and miss it when sampling.
    """
    return DPMSolverMultistepScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        steps_offset=1,
        prediction_type="v_prediction",
        algorithm_type="dpmsolver++",
        timestep_spacing="trailing",
    )


def write_scorer_config(folder: Path, words: CLIPTokenizer) -> None:
    """Write ``open_clip_config.json`` and the tokenizer, so that ``local-dir:`` finds a whole model."""
    folder.mkdir(parents=True, exist_ok=True)
    shape: dict[str, Any] = json.loads(json.dumps(SCORER))
    shape["text_cfg"]["vocab_size"] = len(words)
    preprocess = {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
    text = json.dumps({"model_cfg": shape, "preprocess_cfg": preprocess}, indent=2)
    (folder / "open_clip_config.json").write_text(text + "\n")
    words.save_pretrained(folder)
