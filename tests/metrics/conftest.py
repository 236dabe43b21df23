"""Small images and a CLIP of a few thousand parameters that open_clip loads from a folder."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTokenizer


def paint(n: int, seed: int, size: int = 32) -> Tensor:
    """Smooth random images, (n, 3, size, size) in [0, 1], each with colours and shapes of its own."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 5, 5, generator=generator)
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)


@pytest.fixture(scope="session")
def images() -> Tensor:
    return paint(40, seed=0)


@pytest.fixture(scope="session")
def words() -> CLIPTokenizer:
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(vocabulary)},
        merges=[],
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory, words: CLIPTokenizer) -> Path:
    """A random CLIP with a tokenizer of its own, 12 tokens of context and images of 32 pixels."""
    folder = tmp_path_factory.mktemp("clip") / "tiny-clip"
    folder.mkdir()
    text = {"context_length": 12, "vocab_size": len(words), "width": 32, "heads": 2, "layers": 2}
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    shape = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": {**text, "hf_tokenizer_name": "beside"}}
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    config = {"model_cfg": shape, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    words.save_pretrained(folder)
    logging.disable(logging.WARNING)  # the weights are not there yet, and open_clip says so
    torch.manual_seed(0)
    network = open_clip.create_model(f"local-dir:{folder}")
    logging.disable(logging.NOTSET)
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder
