"""The stages of training, in order: autoencoder, decoder, scorer (independent), diffusion, export.

``unpack`` puts the committed weights where the stages look for theirs, so that training can go on from them.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import open_clip
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import models
from .beds import UNET, Bed
from .loop import graphed, train
from .world import Painter, Scene, attributes, objects, scenes

BUNDLE = Path(__file__).parents[1] / "raysense" / "bundled"
CHECKPOINTS = Path(__file__).parent / "checkpoints"
"""Committed weights of beds that are not finished."""


def to_tensor(images: NDArray[np.uint8], device: str = "cpu") -> Tensor:
    """uint8 (n, h, w, 3) to float in [-1, 1], channels-last (n, 3, h, w)."""
    tensor = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    return tensor.contiguous(memory_format=torch.channels_last)


def _draw(rng: np.random.Generator, pool: list[Scene], count: int) -> list[Scene]:
    return [pool[i] for i in rng.choice(len(pool), count, replace=count > len(pool))]


def _difference(restored: Tensor, images: Tensor) -> Tensor:
    """L1 of the pixels and of the slopes between neighbours in both directions."""
    slope_x, slope_y = ((restored.diff(dim=d) - images.diff(dim=d)).abs().mean() for d in (2, 3))
    return (restored - images).abs().mean() + slope_x + slope_y


def autoencoder(
    *, emoji: Path, out: Path, device: str, steps: int = 4500, batch: int = 64, learning_rate: float = 2e-3
) -> None:
    """L1 + image-gradient loss, a light KL term; latents come out near unit scale by its scaling factor."""
    painter, pool = Painter(emoji), scenes(held_out=False)
    vae = models.autoencoder().to(device, memory_format=torch.channels_last)
    vae.set_attn_processor(AttnProcessor())

    @torch.compile
    def loss_of(images: Tensor, noise: Tensor) -> Tensor:
        mean, log_variance = vae.quant_conv(vae.encoder(images)).float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        latent = mean + (0.5 * log_variance).exp() * noise
        restored = vae.decoder(vae.post_quant_conv(latent)).float()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=(1, 2, 3)).mean()
        return cast(Tensor, _difference(restored, images) + 1e-6 * divergence)

    def loss_at(rng: np.random.Generator) -> Tensor:
        images = to_tensor(painter.batch(_draw(rng, pool, batch), rng), device)
        return loss_of(images, torch.randn(batch, 4, 8, 8, device=device))

    weights = train(
        vae,
        loss_at,
        steps=steps,
        learning_rate=learning_rate,
        checkpoint=out / "autoencoder.pt",
        device=device,
    )
    vae.load_state_dict(weights)
    vae.eval()
    rng = np.random.default_rng(1)
    with torch.inference_mode():
        images = to_tensor(painter.batch(_draw(rng, pool, 512), rng), device)
        deviation = float(vae.encode(images).latent_dist.mean.std())
        error = float((vae(images).sample - images).abs().mean())
    vae.register_to_config(scaling_factor=1 / deviation)
    vae.save_pretrained(out / "vae")
    print(f"autoencoder: latent deviation {deviation:.3f}, mean absolute error {error:.4f} of a range of 2")


def decoder(
    *, emoji: Path, out: Path, device: str, steps: int = 1200, batch: int = 64, learning_rate: float = 1e-3
) -> None:
    """Sharpen the decoder alone, the encoder and thus the latents as they are.

    L1 + image gradients, and a patch discriminator (hinge loss, features matched) whose weight makes its pull on
    the image as strong as that of the first two, as VQGAN does (Esser et al. 2021). Latents carry a little noise,
    because a U-Net's are never quite right.
    """
    painter, pool = Painter(emoji), scenes(held_out=False)
    vae = AutoencoderKL.from_pretrained(out / "vae").to(device, memory_format=torch.channels_last)
    vae.set_attn_processor(AttnProcessor())
    encode = torch.compile(lambda images: vae.quant_conv(vae.encoder(images)).float().chunk(2, dim=1)[0])
    both = nn.ModuleDict(
        {"decoder": vae.decoder, "post": vae.post_quant_conv, "critic": models.Critic().to(device)}
    ).to(memory_format=torch.channels_last)
    critic = cast(models.Critic, both["critic"])
    decode = torch.compile(lambda latent: vae.decoder(vae.post_quant_conv(latent)).float())
    unit = 1 / float(vae.config.scaling_factor)

    def loss_at(rng: np.random.Generator) -> Tensor:
        images = to_tensor(painter.batch(_draw(rng, pool, batch), rng), device)
        with torch.no_grad():
            latent = encode(images)
            spread = 0.1 * unit * torch.rand(batch, 1, 1, 1, device=device)
            latent = latent + spread * torch.randn_like(latent)
        restored: Tensor = decode(latent.contiguous(memory_format=torch.channels_last))
        plain = _difference(restored, images)
        # The critic judges here, and does not learn: its weights are constants of this term.
        fixed = {name: weight.detach() for name, weight in critic.named_parameters()}
        verdict, seen = functional_call(critic, fixed, (restored,))
        with torch.no_grad():
            wanted = critic(images)[1]
        matched = sum(((a - b).abs().mean() for a, b in zip(seen, wanted, strict=True)), torch.zeros(()))
        sharp = matched - verdict.mean()
        pull, pull_sharp = (torch.autograd.grad(t, restored, retain_graph=True)[0] for t in (plain, sharp))
        wish = pull + pull.norm() / pull_sharp.norm().clamp_min(1e-8) * pull_sharp
        on_real, on_restored = critic(images)[0], critic(restored.detach())[0]
        lesson = F.relu(1 - on_real).mean() + F.relu(1 + on_restored).mean()
        # The first term's gradient is `wish` at the image; its value is made that of the plain loss.
        pulled = (restored * wish).sum()
        return cast(Tensor, pulled + (plain - pulled).detach() + lesson)

    weights = train(
        both,
        loss_at,
        steps=steps,
        learning_rate=learning_rate,
        checkpoint=out / "decoder.pt",
        device=device,
    )
    both.load_state_dict(weights)
    vae.eval()
    vae.save_pretrained(out / "vae")


def _contrast(rng: np.random.Generator, batch: int) -> list[Scene]:
    """A half shares its attributes, a quarter its object; the rest is random."""
    names, rest = list(objects()), attributes()
    same = rest[rng.integers(len(rest))]
    alike = [Scene(names[i], *same) for i in rng.permutation(len(names))[: batch // 2]]
    name = names[rng.integers(len(names))]
    alike += [Scene(name, *rest[i]) for i in rng.permutation(len(rest))[: batch // 4]]
    chosen = {s for s in alike if not s.held_out}
    pool = scenes(held_out=False)
    while len(chosen) < batch:
        chosen.add(pool[rng.integers(len(pool))])
    return sorted(chosen)


def _roughen(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Slight blur or noise for some images, so that the scorer judges content and not sharpness."""
    if rng.random() < 0.5:
        amount = float(rng.uniform(0, 0.6))
        images = images.lerp(F.avg_pool2d(images, 3, 1, 1, count_include_pad=False), amount)
    return images + float(rng.uniform(0, 0.12)) * torch.randn_like(images)


def scorer(
    *, emoji: Path, out: Path, device: str, steps: int = 3100, batch: int = 128, learning_rate: float = 1e-3
) -> None:
    """CLIP's contrastive loss, through open_clip, on batches with hard negatives of both kinds."""
    words, folder = models.tokenizer(), out / "scorer"
    models.write_scorer_config(folder, words)
    (folder / "open_clip_model.safetensors").unlink(missing_ok=True)
    clip = open_clip.create_model(f"local-dir:{folder}").to(device)
    compiled = torch.compile(clip)
    tokenize, painter = open_clip.get_tokenizer(f"local-dir:{folder}"), Painter(emoji)

    def loss_at(rng: np.random.Generator) -> Tensor:
        chosen = _contrast(rng, batch)
        images = _roughen(to_tensor(painter.batch(chosen, rng), device), rng)
        texts = tokenize([scene.caption for scene in chosen]).to(device)
        # The fused attention kernel's backward pass is slower than plain matrix products at these sizes.
        with sdpa_kernel(SDPBackend.MATH):
            image, text, scale = compiled(images, texts)  # type: ignore[no-untyped-call]
        logits = (scale.clamp(max=100.0) * image @ text.T).float()
        labels = torch.arange(len(chosen), device=device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    train(
        clip,
        loss_at,
        steps=steps,
        learning_rate=learning_rate,
        checkpoint=out / "scorer.pt",
        weight_decay=0.1,
        device=device,
    )


def _latents(painter: Painter, pool: list[Scene], out: Path, device: str, views: int = 4) -> Tensor:
    """Every training scene painted ``views`` times and encoded: (len(pool), views, 4, 8, 8), cached on disk."""
    cache = out / "latents.pt"
    if cache.exists():
        return cast(Tensor, torch.load(cache, weights_only=True))
    vae = AutoencoderKL.from_pretrained(out / "vae").to(device, memory_format=torch.channels_last)
    rng, chunks = np.random.default_rng(7), []
    with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16):
        for start in range(0, len(pool), 64):
            chosen = [scene for scene in pool[start : start + 64] for _ in range(views)]
            latent = vae.encode(to_tensor(painter.batch(chosen, rng), device)).latent_dist.mean
            scaled = (latent.float() * vae.config.scaling_factor).half().cpu()
            chunks.append(scaled.reshape(-1, views, *scaled.shape[1:]))
    partial = cache.with_suffix(f".{os.getpid()}")  # each of several processes writes its own
    torch.save(torch.cat(chunks), partial)
    os.replace(partial, cache)
    return torch.cat(chunks)


def diffusion(
    *,
    emoji: Path,
    out: Path,
    device: str,
    bed: Bed,
    steps: int | None = None,
    batch: int = 64,
    learning_rate: float | None = None,
    minutes: float | None = None,
) -> None:
    """A bed's denoiser and text encoders together, from scratch, on latents; one caption in ten empty."""
    pool, words = scenes(held_out=False), bed.tokenizer()
    latents = _latents(Painter(emoji), pool, out, device)
    tokens = words(
        [scene.caption for scene in pool] + [""],
        padding="max_length",
        max_length=words.model_max_length,
        return_tensors="pt",
    ).input_ids.to(device)
    torch.manual_seed(0)
    parts = bed.parts(words).to(device).to(memory_format=torch.channels_last)
    place = out / bed.name
    place.mkdir(parents=True, exist_ok=True)
    if (place / "diffusion-start.pt").exists():
        start = torch.load(place / "diffusion-start.pt", map_location=device, weights_only=True)
        parts.load_state_dict(start)
    parts.train()
    loss_of = bed.loss(parts)

    def draw(rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        row = torch.from_numpy(rng.integers(len(pool), size=batch))
        clean = latents[row, torch.from_numpy(rng.integers(latents.shape[1], size=batch))].float()
        caption = tokens[torch.from_numpy(np.where(rng.random(batch) < 0.1, len(pool), row))]
        # One noise level from each of `batch` equal slices: less noise in the loss than independent draws.
        quantile = torch.from_numpy((np.arange(batch) + rng.random(batch)) / batch).float()
        clean = clean.to(device).contiguous(memory_format=torch.channels_last)
        noise = torch.randn_like(clean)
        return clean, noise, quantile.to(device), caption.to(device)

    if device == "cuda":
        loss_of = graphed(loss_of, parts, draw(np.random.default_rng(0)))

    train(
        parts,
        lambda rng: loss_of(*draw(rng)),
        steps=steps or bed.steps,
        learning_rate=learning_rate or bed.learning_rate,
        checkpoint=place / "diffusion.pt",
        device=device,
        minutes=minutes,
    )


def unpack(*, emoji: Path, out: Path, device: str, bed: Bed) -> None:
    """Put the committed weights where the stages look for theirs: training goes on from them.

    An unfinished bed goes on from its checkpoint under ``training/checkpoints``, a finished one from its pipeline,
    one of which nothing is committed starts from nothing.
    """
    del emoji, device
    AutoencoderKL.from_pretrained(BUNDLE / UNET.folder / "vae").save_pretrained(out / "vae")
    parts = bed.parts(bed.tokenizer())
    unfinished = CHECKPOINTS / f"{bed.name}.safetensors"
    if unfinished.exists():
        parts.load_state_dict(load_file(unfinished))
    elif (BUNDLE / bed.folder).exists():
        for name, part in parts.items():
            kind: Any = type(part)
            part.load_state_dict(kind.from_pretrained(BUNDLE / bed.folder / name).float().state_dict())
    (out / bed.name).mkdir(parents=True, exist_ok=True)
    torch.save(parts.state_dict(), out / bed.name / "diffusion-start.pt")
    shutil.copytree(BUNDLE / "scorer", out / "scorer", dirs_exist_ok=True)
    torch.save(load_file(BUNDLE / "scorer" / "open_clip_model.safetensors"), out / "scorer-average.pt")


def keep(*, emoji: Path, out: Path, device: str, bed: Bed) -> None:
    """Write the averaged weights of an unfinished bed to ``training/checkpoints``, in fp16, for `unpack`."""
    del emoji, device
    CHECKPOINTS.mkdir(exist_ok=True)
    average = {k: v.half().contiguous() for k, v in _average(out / bed.name, "diffusion").items()}
    save_file(average, CHECKPOINTS / f"{bed.name}.safetensors")
    (CHECKPOINTS / f"{bed.name}.safetensors").chmod(0o644)


def assembled(bed: Bed, out: Path) -> DiffusionPipeline:
    """The pipeline that the averaged weights of the last checkpoint make."""
    words = bed.tokenizer()
    parts = bed.parts(words)
    parts.load_state_dict(_average(out / bed.name, "diffusion"))
    parts.eval()
    return bed.assemble(parts, words, AutoencoderKL.from_pretrained(out / "vae"))


def export(*, emoji: Path, out: Path, device: str, bed: Bed) -> None:
    """Put what has been trained so far under ``raysense/bundled``, in fp16: a bed, the scorer, the prompts."""
    del emoji, device
    folder = BUNDLE / bed.folder
    assembled(bed, out).to(dtype=torch.float16).save_pretrained(folder)
    _describe(folder / "vae", _name_or_path=None)  # a path of this machine
    # Plain `from_pretrained` gives transformers' parts the type written here and diffusers' parts float32.
    for encoder in folder.glob("text_encoder*"):
        _describe(encoder, dtype="float32")
    _export_scorer(out)
    _export_prompts()


def _describe(component: Path, **changes: str | None) -> None:
    """Change a component's configuration; None takes an entry out."""
    file = component / "config.json"
    config = json.loads(file.read_text()) | changes
    kept = {key: value for key, value in config.items() if key not in changes or value is not None}
    file.write_text(json.dumps(kept, indent=2) + "\n")


def _export_scorer(out: Path) -> None:
    models.write_scorer_config(BUNDLE / "scorer", models.tokenizer())
    half = {
        k: v.half().contiguous() if v.is_floating_point() else v for k, v in _average(out, "scorer").items()
    }
    save_file(half, BUNDLE / "scorer" / "open_clip_model.safetensors")
    (BUNDLE / "scorer" / "open_clip_model.safetensors").chmod(0o644)


def _export_prompts() -> None:
    rng = np.random.default_rng(11)
    pool = scenes(held_out=True)
    order = rng.permutation(len(pool))
    with (BUNDLE / "prompts.jsonl").open("w") as file:
        for position, index in enumerate(order[:1200]):
            split = "search" if position < 600 else "validation"
            row = {"id": f"emoji-{index:04d}", "prompt": pool[index].caption, "split": split}
            file.write(json.dumps(row) + "\n")


def _average(out: Path, stage: str) -> dict[str, Tensor]:
    """The averaged weights of a stage's last checkpoint; where it has none, those that `unpack` put there."""
    checkpoint = out / f"{stage}.pt"
    if not checkpoint.exists():
        return dict(torch.load(out / f"{stage}-average.pt", map_location="cpu", weights_only=True))
    average = torch.load(checkpoint, map_location="cpu", weights_only=True)["average"]
    return {k.removeprefix("module."): v for k, v in average.items() if k.startswith("module.")}
