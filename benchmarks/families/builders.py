"""One small pipeline a family, with random weights, from the installed diffusers' own classes.

Nothing is downloaded. Widths are minute; what the pipeline's code does is what it does at full size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers as d
import torch
import transformers
from torch import nn

from benchmarks.families import parts as p


@dataclass(frozen=True)
class Small:
    """A small pipeline and how it is sampled.

    Attributes:
        build: Makes it.
        size: Height and width, or None for the pipeline's own.
        sampling: More of a study's `sampling`, as its author's example or its remedies have it.
        said: What departs from the plain case, for the table.
        components: What is pruned; found where empty.
        exclude: Layers that raysense asked to leave out.
    """

    build: Callable[[], Any]
    size: int | None = 32
    sampling: Mapping[str, Any] = field(default_factory=dict)
    said: str = ""
    components: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


FAMILIES: dict[str, Small] = {}
"""Pipeline class -> how to build a small one."""


def family(
    kind: str,
    size: int | None = 32,
    said: str = "",
    *,
    components: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    **sampling: Any,
) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Enter a builder under its pipeline's class."""

    def enter(build: Callable[[], Any]) -> Callable[[], Any]:
        FAMILIES[kind] = Small(build, size, sampling, said, components, exclude)
        return build

    return enter


# --- Stable Diffusion and its kin ---------------------------------------------------------------------------


def stable_diffusion(kind: Any, **unet: Any) -> Any:
    """Text enters a U-Net by cross-attention."""
    return kind(
        vae=p.vae(),
        text_encoder=p.clip(),
        tokenizer=p.clip_tokenizer(),
        unet=p.unet(16, attention_head_dim=4, **unet),
        scheduler=p.ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(kind: Any) -> Any:
    """Two text encoders; pooled embeddings and sizes enter with the time."""
    return kind(
        vae=p.vae(),
        text_encoder=p.clip(),
        text_encoder_2=p.clip(projection=True),
        tokenizer=p.clip_tokenizer(),
        tokenizer_2=p.clip_tokenizer(),
        unet=p.unet(
            32,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 2),
            projection_class_embeddings_input_dim=6 * 8 + 16,
        ),
        scheduler=p.ddim(),
    )


def sd3(kind: Any) -> Any:
    """Three text encoders, one of them T5."""
    return kind(
        vae=p.vae(8, **p.PLAIN),
        text_encoder=p.clip(projection=True),
        tokenizer=p.clip_tokenizer(),
        text_encoder_2=p.clip(projection=True),
        tokenizer_2=p.clip_tokenizer(),
        text_encoder_3=p.t5(),
        tokenizer_3=p.t5_tokenizer(),
        transformer=d.SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=8,
            out_channels=8,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=32,
        ),
        scheduler=p.flow(),
    )


family("StableDiffusionPipeline")(lambda: stable_diffusion(d.StableDiffusionPipeline))
family("StableDiffusionPAGPipeline")(lambda: stable_diffusion(d.StableDiffusionPAGPipeline))
family("StableDiffusionXLPipeline")(lambda: sdxl(d.StableDiffusionXLPipeline))
family("StableDiffusionXLPAGPipeline")(lambda: sdxl(d.StableDiffusionXLPAGPipeline))
family("StableDiffusion3Pipeline")(lambda: sd3(d.StableDiffusion3Pipeline))
family("StableDiffusion3PAGPipeline")(lambda: sd3(d.StableDiffusion3PAGPipeline))


@family("LatentConsistencyModelPipeline", guidance=8.5)
def latent_consistency() -> Any:
    """Is told its guidance."""
    made = stable_diffusion(d.StableDiffusionPipeline, time_cond_proj_dim=16)
    parts = {**made.components, "scheduler": d.LCMScheduler()}
    return d.LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)


@family("LDMTextToImagePipeline")
def latent_diffusion() -> Any:
    """The first of its kind."""
    return d.LDMTextToImagePipeline(
        vqvae=p.vae8(),
        bert=p.clip(),
        tokenizer=p.clip_tokenizer(),
        unet=p.unet(16, attention_head_dim=4),
        scheduler=p.ddim(),
    )


def _prior(width: int = 32) -> Any:
    made = d.PriorTransformer(num_attention_heads=2, attention_head_dim=12, embedding_dim=width, num_layers=1)
    made.clip_std = nn.Parameter(torch.ones(made.clip_std.shape))
    return made


@family("StableUnCLIPPipeline", call={"prior_num_inference_steps": 2})
def stable_unclip() -> Any:
    """A prior makes the image embedding that the U-Net is told."""
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
        StableUnCLIPImageNormalizer,
    )

    return d.StableUnCLIPPipeline(
        prior_tokenizer=p.clip_tokenizer(),
        prior_text_encoder=p.clip(32, True),
        prior=_prior(),
        prior_scheduler=d.DDPMScheduler(
            variance_type="fixed_small_log",
            prediction_type="sample",
            clip_sample_range=5.0,
            beta_schedule="squaredcos_cap_v2",
        ),
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=32),
        image_noising_scheduler=d.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=p.clip_tokenizer(),
        text_encoder=p.clip(32),
        unet=p.unet(
            32,
            attention_head_dim=(2, 4),
            class_embed_type="projection",
            projection_class_embeddings_input_dim=64,
            use_linear_projection=True,
        ),
        scheduler=p.ddim(prediction_type="v_prediction"),
        vae=p.vae8(),
    )


# --- Kandinsky, DeepFloyd, Würstchen ------------------------------------------------------------------------


def _kandinsky_unet(**more: Any) -> Any:
    return d.UNet2DConditionModel(
        **{
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 8,
            "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "encoder_hid_dim": 32,
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
            "resnet_time_scale_shift": "scale_shift",
            **more,
        }
    )


def _unclip_scheduler() -> Any:
    return d.UnCLIPScheduler(
        variance_type="fixed_small_log",
        prediction_type="sample",
        num_train_timesteps=1000,
        clip_sample_range=10.0,
    )


def _kandinsky_prior() -> dict[str, Any]:
    return {
        "prior_prior": _prior(),
        "prior_image_encoder": p.clip_vision(),
        "prior_text_encoder": p.clip(32, True),
        "prior_tokenizer": p.clip_tokenizer(),
        "prior_scheduler": _unclip_scheduler(),
        "prior_image_processor": transformers.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
    }


@family("KandinskyCombinedPipeline", 64, call={"prior_num_inference_steps": 2})
def kandinsky() -> Any:
    """A prior, and a U-Net that is told a text embedding of another encoder too."""
    from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP

    pieces = [
        ("<s>", 0.0),
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -2.0),
        *((x, -3.0) for x in p.LETTERS),
    ]
    return d.KandinskyCombinedPipeline(
        text_encoder=MultilingualCLIP(
            MCLIPConfig(
                numDims=32,
                transformerDimensions=32,
                hidden_size=32,
                intermediate_size=37,
                num_attention_heads=4,
                num_hidden_layers=2,
                vocab_size=64,
            )
        ),
        tokenizer=transformers.XLMRobertaTokenizer(vocab=pieces, model_max_length=77),
        unet=_kandinsky_unet(addition_embed_type="text_image", encoder_hid_dim_type="text_image_proj"),
        scheduler=p.ddim(beta_schedule="linear", beta_start=0.00085, beta_end=0.012),
        movq=p.movq(),
        **_kandinsky_prior(),
    )


@family("KandinskyV22CombinedPipeline", 64, call={"prior_num_inference_steps": 2})
def kandinsky22() -> Any:
    """A prior, and a U-Net that is told nothing but an image embedding."""
    return d.KandinskyV22CombinedPipeline(
        unet=_kandinsky_unet(addition_embed_type="image", encoder_hid_dim_type="image_proj"),
        scheduler=p.ddim(beta_schedule="linear", beta_start=0.00085, beta_end=0.012),
        movq=p.movq(),
        **_kandinsky_prior(),
    )


@family("Kandinsky3Pipeline", 64, "pads prompts to the longest: `sampling.batch: 1`", batch=1)
def kandinsky3() -> Any:
    """A U-Net under T5."""
    return d.Kandinsky3Pipeline(
        unet=d.Kandinsky3UNet(
            in_channels=4,
            time_embedding_dim=4,
            groups=2,
            attention_head_dim=4,
            layers_per_block=3,
            block_out_channels=(32, 64),
            cross_attention_dim=4,
            encoder_hid_dim=32,
        ),
        scheduler=d.DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, steps_offset=1, beta_schedule="squaredcos_cap_v2"
        ),
        movq=p.movq(4),
        text_encoder=p.t5(),
        tokenizer=p.t5_tokenizer(),
    )


@family(
    "Kandinsky5T2IPipeline",
    1024,
    "seven sizes only; packs the prompts of a batch: `sampling.batch: 1`",
    batch=1,
    steps=1,
)
def kandinsky5() -> Any:
    """A transformer under Qwen 2.5 and CLIP; its attention is of PyTorch's own making."""
    return d.Kandinsky5T2IPipeline(
        transformer=d.Kandinsky5Transformer3DModel(
            in_visual_dim=16,
            in_text_dim=32,
            in_text_dim2=16,
            time_dim=16,
            out_visual_dim=16,
            patch_size=(1, 2, 2),
            model_dim=16,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=1,
            axes_dims=(1, 1, 2),
            visual_cond=False,
            attention_type="regular",
        ),
        vae=p.vae8(16, **p.PLAIN),
        scheduler=p.flow(shift=7.0),
        text_encoder=p.qwen25vl(32, (2, 2, 4)),
        tokenizer=p.qwen25_processor(),
        text_encoder_2=p.clip(16),
        tokenizer_2=p.clip_tokenizer(),
    )


@family("IFPipeline", call={"clean_caption": False})
def deepfloyd() -> Any:
    """Pixels, not latents."""
    return d.IFPipeline(
        text_encoder=p.t5(),
        tokenizer=p.t5_tokenizer(),
        unet=d.UNet2DConditionModel(
            sample_size=32,
            layers_per_block=1,
            block_out_channels=[16, 32],
            down_block_types=["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
            in_channels=3,
            out_channels=6,
            cross_attention_dim=32,
            encoder_hid_dim=32,
            attention_head_dim=8,
            addition_embed_type="text",
            addition_embed_type_num_heads=2,
            cross_attention_norm="group_norm",
            resnet_time_scale_shift="scale_shift",
            norm_num_groups=8,
            act_fn="gelu",
        ),
        scheduler=d.DDPMScheduler(
            beta_schedule="squaredcos_cap_v2",
            thresholding=True,
            dynamic_thresholding_ratio=0.95,
            sample_max_value=1.0,
            variance_type="learned_range",
        ),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )


def _cascade_unet(**more: Any) -> Any:
    from diffusers.models import StableCascadeUNet

    return StableCascadeUNet(**more)


@family("StableCascadeCombinedPipeline", 128, call={"prior_num_inference_steps": 2})
def stable_cascade() -> Any:
    """A prior in a very small latent space, a decoder, and a VQGAN."""
    from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel

    block = ("SDCascadeResBlock", "SDCascadeTimestepBlock")
    return d.StableCascadeCombinedPipeline(
        tokenizer=p.clip_tokenizer(),
        text_encoder=p.clip(16, True),
        scheduler=d.DDPMWuerstchenScheduler(),
        decoder=_cascade_unet(
            in_channels=4,
            out_channels=4,
            conditioning_dim=64,
            block_out_channels=(16, 32, 64, 64),
            num_attention_heads=(-1, -1, 1, 2),
            down_num_layers_per_block=(1, 1, 1, 1),
            up_num_layers_per_block=(1, 1, 1, 1),
            down_blocks_repeat_mappers=(1, 1, 1, 1),
            up_blocks_repeat_mappers=(3, 3, 2, 2),
            block_types_per_layer=(
                block,
                block,
                (*block, "SDCascadeAttnBlock"),
                (*block, "SDCascadeAttnBlock"),
            ),
            switch_level=None,
            clip_text_pooled_in_channels=16,
            dropout=(0.1,) * 4,
        ),
        vqgan=PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=2),
        prior_tokenizer=p.clip_tokenizer(),
        prior_text_encoder=p.clip(16, True),
        prior_prior=_cascade_unet(
            conditioning_dim=64,
            block_out_channels=(64, 64),
            num_attention_heads=(2, 2),
            down_num_layers_per_block=(1, 1),
            up_num_layers_per_block=(1, 1),
            switch_level=(False,),
            clip_image_in_channels=768,
            clip_text_in_channels=16,
            clip_text_pooled_in_channels=16,
            dropout=(0.1, 0.1),
        ),
        prior_scheduler=d.DDPMWuerstchenScheduler(),
    )


@family("WuerstchenCombinedPipeline", 128, call={"prior_num_inference_steps": 2})
def wuerstchen() -> Any:
    """Stable Cascade's forerunner."""
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING
    from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel, WuerstchenDiffNeXt, WuerstchenPrior

    return AUTO_TEXT2IMAGE_PIPELINES_MAPPING["wuerstchen"](
        tokenizer=p.clip_tokenizer(),
        text_encoder=p.clip(16),
        decoder=WuerstchenDiffNeXt(
            c_cond=16,
            c_hidden=[16, 16, 16, 32],
            nhead=[-1, 1, 1, 1],
            blocks=[1, 1, 1, 1],
            level_config=["CT", "CTA", "CTA", "CTA"],
            inject_effnet=[False, True, True, True],
            clip_embd=16,
        ),
        scheduler=d.DDPMWuerstchenScheduler(),
        vqgan=PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=2),
        prior_tokenizer=p.clip_tokenizer(),
        prior_text_encoder=p.clip(16),
        prior_prior=WuerstchenPrior(c_in=16, c=16, c_cond=16, c_r=16, depth=2, nhead=2),
        prior_scheduler=d.DDPMWuerstchenScheduler(),
    )


# --- transformers under T5 and CLIP -------------------------------------------------------------------------


def _flux(guidance: bool, **more: Any) -> Any:
    return d.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance,
        **more,
    )


def flux(kind: Any, **more: Any) -> Any:
    """Distilled: guidance is one of the transformer's inputs."""
    return kind(
        vae=p.vae(4, **p.PLAIN),
        text_encoder=p.clip(),
        tokenizer=p.clip_tokenizer(),
        text_encoder_2=p.t5(),
        tokenizer_2=p.t5_tokenizer(),
        transformer=_flux(True),
        scheduler=p.flow(),
        **more,
    )


family("FluxPipeline")(lambda: flux(d.FluxPipeline))
family("FluxKontextPipeline", call={"max_area": 1024})(lambda: flux(d.FluxKontextPipeline))


@family("ChromaPipeline")
def chroma() -> Any:
    """Calls its transformer twice a step."""
    return d.ChromaPipeline(
        transformer=d.ChromaTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=[4, 4, 8],
            approximator_hidden_dim=32,
            approximator_layers=1,
            approximator_num_channels=16,
        ),
        vae=p.vae(4, **p.PLAIN),
        scheduler=p.flow(),
        text_encoder=p.t5(),
        tokenizer=p.t5_tokenizer(),
        image_encoder=None,
        feature_extractor=None,
    )


def pixart(kind: Any, alpha: bool = False) -> Any:
    """T5 and cross-attention."""
    return kind(
        vae=p.vae8(),
        text_encoder=p.t5(),
        tokenizer=p.t5_tokenizer(),
        transformer=d.PixArtTransformer2DModel(
            sample_size=32,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=4,
            cross_attention_dim=32,
            caption_channels=32,
            in_channels=4,
            out_channels=8,
            use_additional_conditions=False,
        ),
        scheduler=d.DDIMScheduler(clip_sample=False),
    )


_NO_BINS = {"use_resolution_binning": False}
family("PixArtAlphaPipeline", 64, call={**_NO_BINS, "clean_caption": False})(
    lambda: pixart(d.PixArtAlphaPipeline)
)
family("PixArtSigmaPipeline", 64, call={**_NO_BINS, "clean_caption": False})(
    lambda: pixart(d.PixArtSigmaPipeline)
)
family("PixArtSigmaPAGPipeline", 64, call={**_NO_BINS, "clean_caption": False})(
    lambda: pixart(d.PixArtSigmaPAGPipeline)
)


def sana(kind: Any, scheduler: Any = None, **more: Any) -> Any:
    """Gemma, linear attention, an autoencoder that divides by 32."""
    return kind(
        vae=p.dc_vae(),
        text_encoder=p.gemma2(),
        tokenizer=p.gemma_tokenizer(),
        transformer=d.SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=32,
            patch_size=1,
            **more,
        ),
        scheduler=scheduler or p.flow(),
    )


_SANA = {"use_resolution_binning": False, "complex_human_instruction": None, "clean_caption": False}
family("SanaPipeline", 128, call=_SANA)(lambda: sana(d.SanaPipeline))
family("SanaPAGPipeline", 128, call=_SANA)(lambda: sana(d.SanaPAGPipeline))
family("SanaSprintPipeline", 128, call=_SANA)(
    lambda: sana(
        d.SanaSprintPipeline, d.SCMScheduler(), guidance_embeds=True, qk_norm="rms_norm_across_heads"
    )
)


@family("AuraFlowPipeline", 64)
def aura_flow() -> Any:
    """UMT5."""
    return d.AuraFlowPipeline(
        transformer=d.AuraFlowTransformer2DModel(
            sample_size=32,
            patch_size=2,
            in_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=32,
            out_channels=4,
            pos_embed_max_size=256,
        ),
        text_encoder=p.umt5(),
        tokenizer=p.t5_tokenizer(),
        vae=p.vae8(),
        scheduler=p.flow(),
    )


def hunyuan_dit(kind: Any) -> Any:
    """BERT and T5."""
    return kind(
        transformer=d.HunyuanDiT2DModel(
            sample_size=128,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            in_channels=4,
            cross_attention_dim=32,
            cross_attention_dim_t5=32,
            pooled_projection_dim=16,
            hidden_size=24,
            activation_fn="gelu-approximate",
        ),
        vae=p.vae8(),
        scheduler=d.DDPMScheduler(),
        text_encoder=transformers.BertModel(
            transformers.BertConfig(
                vocab_size=40,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=37,
            )
        ),
        tokenizer=p.bert_tokenizer(),
        text_encoder_2=p.t5(),
        tokenizer_2=p.t5_tokenizer(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


family("HunyuanDiTPipeline", 128, call=_NO_BINS)(lambda: hunyuan_dit(d.HunyuanDiTPipeline))
family("HunyuanDiTPAGPipeline", 128, call=_NO_BINS)(lambda: hunyuan_dit(d.HunyuanDiTPAGPipeline))


@family("CogView3PlusPipeline")
def cogview3() -> Any:
    """T5."""
    return d.CogView3PlusPipeline(
        transformer=d.CogView3PlusTransformer2DModel(
            patch_size=2,
            in_channels=4,
            num_layers=1,
            attention_head_dim=4,
            num_attention_heads=2,
            out_channels=4,
            text_embed_dim=32,
            time_embed_dim=8,
            condition_dim=2,
            pos_embed_max_size=32,
            sample_size=16,
        ),
        vae=p.vae(),
        scheduler=d.CogVideoXDDIMScheduler(),
        text_encoder=p.t5(),
        tokenizer=p.t5_tokenizer(),
    )


@family("BriaPipeline")
def bria() -> Any:
    """T5."""
    from diffusers.pipelines.bria import BriaPipeline

    return BriaPipeline(
        transformer=d.BriaTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=None,
            axes_dims_rope=[0, 4, 4],
        ),
        vae=p.vae(4, shift_factor=0.0),
        scheduler=p.flow(),
        text_encoder=p.t5(),
        tokenizer=p.t5_tokenizer(),
    )


class _NoGuard:
    """Cosmos refuses to run without its guard, a package of its own; this lets everything pass."""

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video

    def to(self, *args: Any, **kwargs: Any) -> None:
        pass


# --- transformers under language models ---------------------------------------------------------------------


@family("CogView4Pipeline", said="pads prompts to the longest without a mask: `sampling.batch: 1`", batch=1)
def cogview4() -> Any:
    """GLM."""
    return d.CogView4Pipeline(
        transformer=d.CogView4Transformer2DModel(
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=4,
            num_attention_heads=4,
            out_channels=4,
            text_embed_dim=32,
            time_embed_dim=8,
            condition_dim=4,
        ),
        vae=p.vae(),
        scheduler=p.flow(
            base_shift=0.25,
            max_shift=0.75,
            base_image_seq_len=256,
            use_dynamic_shifting=True,
            time_shift_type="linear",
        ),
        text_encoder=transformers.GlmModel(
            transformers.GlmConfig(
                hidden_size=32,
                intermediate_size=8,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=8,
                vocab_size=p.BYTES,
                pad_token_id=0,
            )
        ),
        tokenizer=p.clip_tokenizer(1024),
    )


@family("LuminaPipeline", 64)
def lumina() -> Any:
    """Gemma."""
    return d.LuminaPipeline(
        transformer=d.LuminaNextDiT2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            hidden_size=24,
            num_layers=2,
            num_attention_heads=3,
            num_kv_heads=1,
            multiple_of=16,
            ffn_dim_multiplier=None,
            norm_eps=1e-5,
            learn_sigma=True,
            qk_norm=True,
            cross_attention_dim=16,
            scaling_factor=1.0,
        ),
        vae=p.vae8(),
        scheduler=p.flow(),
        tokenizer=p.clip_tokenizer(256),
        text_encoder=transformers.GemmaForCausalLM(
            transformers.GemmaConfig(
                vocab_size=54,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
            )
        ),
    )


@family("Lumina2Pipeline")
def lumina2() -> Any:
    """Gemma 2."""
    return d.Lumina2Pipeline(
        transformer=d.Lumina2Transformer2DModel(
            sample_size=4,
            patch_size=2,
            in_channels=4,
            hidden_size=32,
            num_layers=2,
            num_attention_heads=4,
            num_kv_heads=2,
            multiple_of=16,
            ffn_dim_multiplier=None,
            norm_eps=1e-5,
            scaling_factor=1.0,
            axes_dim_rope=[4, 2, 2],
            cap_feat_dim=16,
        ),
        vae=p.vae8(4, **p.PLAIN),
        scheduler=p.flow(),
        tokenizer=p.gemma_tokenizer(),
        text_encoder=p.gemma2(),
    )


def z_image_transformer(**more: Any) -> Any:
    """Lists of tensors in, lists out."""
    made = d.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        norm_eps=1e-5,
        qk_norm=True,
        cap_feat_dim=16,
        rope_theta=256.0,
        t_scale=1000.0,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 64, 64],
        **more,
    )
    with torch.no_grad():
        made.x_pad_token.fill_(1)
        made.cap_pad_token.fill_(1)
    return made


@family("ZImagePipeline")
def z_image() -> Any:
    """Qwen 3."""
    return d.ZImagePipeline(
        transformer=z_image_transformer(),
        vae=p.vae(16, **p.PLAIN),
        scheduler=p.flow(),
        text_encoder=p.qwen3(),
        tokenizer=p.byte_tokenizer(),
    )


@family(
    "ZImageOmniPipeline",
    said="what never runs is named in `prune.exclude`",
    components=("text_encoder", "transformer"),
    exclude=("siglip*",),
)
def z_image_omni() -> Any:
    """For pictures too."""
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    transformer = z_image_transformer(siglip_feat_dim=16)
    with torch.no_grad():
        transformer.siglip_pad_token.fill_(1)
    return AUTO_TEXT2IMAGE_PIPELINES_MAPPING["z-image-omni"](
        transformer=transformer,
        vae=p.vae(16, **p.PLAIN),
        scheduler=p.flow(),
        text_encoder=p.qwen3(),
        tokenizer=p.byte_tokenizer(),
        siglip=transformers.Siglip2VisionModel(
            transformers.Siglip2VisionConfig(
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_patches=16,
                patch_size=8,
            )
        ),
        siglip_processor=transformers.Siglip2ImageProcessor(),
    )


def flux2_transformer(text: int) -> Any:
    """FLUX.2's."""
    return d.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=text,
        timestep_guidance_channels=256,
        axes_dims_rope=[4, 4, 4, 4],
        guidance_embeds=text == 0,
    )


def flux2_klein(kind: Any, layers: int = 28) -> Any:
    """Qwen 3; three of its layers are read."""
    return kind(
        transformer=flux2_transformer(48),
        text_encoder=p.qwen3("Qwen3ForCausalLM", layers),
        tokenizer=p.byte_tokenizer(),
        scheduler=p.flow(),
        vae=p.flux2_vae(),
    )


family("Flux2KleinPipeline")(lambda: flux2_klein(d.Flux2KleinPipeline))
family("Flux2KleinKVPipeline", guidance=1.0)(lambda: flux2_klein(d.Flux2KleinKVPipeline))


@family("Flux2Pipeline")
def flux2() -> Any:
    """Mistral 3."""
    tokenizer = p.byte_tokenizer()
    processor = transformers.PixtralProcessor(
        image_processor=transformers.PixtralImageProcessor(patch_size=6),
        tokenizer=tokenizer,
        patch_size=6,
        chat_template=p.CHAT,
        image_token=p.MARKS[5],
        image_break_token=p.MARKS[3],
        image_end_token=p.MARKS[4],
    )
    config = transformers.Mistral3Config(
        text_config={
            "model_type": "mistral",
            "vocab_size": p.BYTES,
            "hidden_size": 16,
            "intermediate_size": 37,
            "max_position_embeddings": 4096,
            "num_attention_heads": 4,
            "num_hidden_layers": 30,
            "num_key_value_heads": 2,
            "head_dim": 4,
            "sliding_window": None,
            "pad_token_id": 0,
            "bos_token_id": 0,
            "eos_token_id": 258,
        },
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "intermediate_size": 37,
            "image_size": 30,
            "patch_size": 6,
            "num_channels": 3,
            "head_dim": 4,
        },
        image_token_index=261,
        vision_feature_layer=-1,
    )
    return d.Flux2Pipeline(
        transformer=d.Flux2Transformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=48,
            timestep_guidance_channels=256,
            axes_dims_rope=[4, 4, 4, 4],
        ),
        text_encoder=transformers.Mistral3ForConditionalGeneration(config),
        tokenizer=processor,
        vae=p.flux2_vae(),
        scheduler=p.flow(),
    )


@family("QwenImagePipeline")
def qwen_image() -> Any:
    """Qwen 2.5, of which the vision tower and the head never run."""
    return d.QwenImagePipeline(
        transformer=d.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=3,
            joint_attention_dim=16,
            guidance_embeds=False,
            axes_dims_rope=(8, 4, 4),
        ),
        vae=p.qwen_vae(),
        scheduler=p.flow(),
        text_encoder=p.qwen25vl(),
        tokenizer=p.byte_tokenizer(),
    )


@family(
    "QwenImage21Pipeline",
    said="transparent images, laid on white; one prompt a call: `sampling.batch: 1`",
    exclude=("*visual*",),
    batch=1,
)
def qwen_image21() -> Any:
    """Qwen 3; one interleaved sequence of text and image."""
    return d.QwenImage21Pipeline(
        transformer=d.QwenImage21Transformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            context_in_dim=16,
            axes_dims_rope=(4, 6, 6),
        ),
        vae=d.AutoencoderKLQwenImage21(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, False, False, False],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        scheduler=p.flow(),
        text_encoder=p.qwen3vl("Qwen3VLForConditionalGeneration"),
        processor=p.qwen3_processor(),
    )


@family("Krea2Pipeline")
def krea2() -> Any:
    """Qwen 3 for pictures too; several of its layers are read."""
    return d.Krea2Pipeline(
        transformer=d.Krea2Transformer2DModel(
            in_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=32,
            timestep_embed_dim=8,
            text_hidden_dim=16,
            num_text_layers=3,
            text_num_attention_heads=2,
            text_num_key_value_heads=1,
            text_intermediate_size=16,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 2, 2),
            rope_theta=1000.0,
        ),
        vae=p.qwen_vae(),
        scheduler=p.flow(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=6400,
        ),
        text_encoder=p.qwen3vl(),
        tokenizer=p.byte_tokenizer(),
        text_encoder_select_layers=(0, 1, 2),
    )


@family("NucleusMoEImagePipeline")
def nucleus() -> Any:
    """Qwen 3 for pictures too."""
    return d.NucleusMoEImagePipeline(
        transformer=d.NucleusMoEImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=4,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
            moe_enabled=False,
            capacity_factors=[8.0, 8.0],
        ),
        vae=p.qwen_vae(),
        scheduler=p.flow(),
        text_encoder=p.qwen3vl("Qwen3VLForConditionalGeneration", 8),
        processor=p.qwen3_processor(),
    )


@family(
    "OmniGenPipeline",
    said="what never runs is named in `prune.exclude`",
    exclude=("patch_embedding.input_image_proj",),
)
def omnigen() -> Any:
    """The language model is the denoiser."""
    return d.OmniGenPipeline(
        transformer=d.OmniGenTransformer2DModel(
            hidden_size=16,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=32,
            num_layers=1,
            in_channels=4,
            time_step_dim=4,
            rope_scaling={"long_factor": [1, 2], "short_factor": [1, 2]},
            vocab_size=p.BYTES,
            pad_token_id=0,
            pos_embed_max_size=32,
        ),
        vae=p.vae8(),
        scheduler=p.flow(invert_sigmas=True, num_train_timesteps=1),
        tokenizer=p.byte_tokenizer(),
    )


@family("OvisImagePipeline")
def ovis() -> Any:
    """Qwen 3."""
    return d.OvisImagePipeline(
        transformer=d.OvisImageTransformer2DModel(
            patch_size=1,
            in_channels=16,
            out_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 4, 8),
        ),
        vae=p.vae(4, **p.PLAIN),
        scheduler=p.flow(),
        tokenizer=p.byte_tokenizer(),
        text_encoder=p.qwen3(),
    )


@family("PRXPipeline", 64, "one prompt a call: `sampling.batch: 1`", batch=1, call=_NO_BINS)
def prx() -> Any:
    """Gemma."""
    return d.PRXPipeline(
        transformer=d.PRXTransformer2DModel(
            patch_size=1,
            in_channels=4,
            context_in_dim=16,
            hidden_size=8,
            mlp_ratio=2.0,
            num_heads=2,
            depth=1,
            axes_dim=[2, 2],
        ),
        vae=p.vae8(4, **p.PLAIN),
        scheduler=p.flow(),
        text_encoder=p.gemma2(),
        tokenizer=p.gemma_tokenizer(model_max_length=64),
        default_sample_size=512,
    )


@family("PRXPixelPipeline", said="one prompt a call: `sampling.batch: 1`", batch=1, call=_NO_BINS)
def prx_pixel() -> Any:
    """Pixels, not latents; Qwen 3."""
    return d.PRXPixelPipeline(
        transformer=d.PRXTransformer2DModel(
            patch_size=1,
            in_channels=3,
            context_in_dim=16,
            hidden_size=8,
            mlp_ratio=2.0,
            num_heads=2,
            depth=1,
            axes_dim=[2, 2],
            bottleneck_size=8,
            resolution_embeds=True,
        ),
        scheduler=p.flow(),
        text_encoder=p.qwen3(),
        tokenizer=p.byte_tokenizer(),
        prompt_max_tokens=32,
    )


@family("ErnieImagePipeline")
def ernie() -> Any:
    """Qwen 3 in the place of its own encoder."""
    return d.ErnieImagePipeline(
        transformer=d.ErnieImageTransformer2DModel(
            hidden_size=32,
            num_attention_heads=2,
            num_layers=2,
            ffn_hidden_size=32,
            in_channels=16,
            out_channels=16,
            text_in_dim=16,
            rope_axes_dim=(4, 6, 6),
        ),
        vae=p.flux2_vae(),
        text_encoder=p.qwen3(),
        tokenizer=p.byte_tokenizer(),
        scheduler=p.flow(),
    )


@family(
    "HiDreamImagePipeline", None, "makes a million pixels whatever is asked (here 16,384, by a small VAE)"
)
def hidream() -> Any:
    """Four text encoders, and experts."""
    encoder = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=p.BYTES,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            pad_token_id=0,
        )
    )
    return d.HiDreamImagePipeline(
        transformer=d.HiDreamImageTransformer2DModel(
            patch_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_channels=[32, 16],
            text_emb_dim=32,
            num_routed_experts=4,
            num_activated_experts=2,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(32, 32),
            llama_layers=(0, 1),
        ),
        vae=p.vae(
            4,
            shift_factor=0.1159,
            block_out_channels=(4,),
            down_block_types=("DownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",),
            norm_num_groups=2,
            layers_per_block=1,
        ),
        scheduler=p.flow(),
        text_encoder=p.clip(16, True, 128),
        tokenizer=p.clip_tokenizer(),
        text_encoder_2=p.clip(16, True, 128),
        tokenizer_2=p.clip_tokenizer(),
        text_encoder_3=p.t5(),
        tokenizer_3=p.t5_tokenizer(),
        text_encoder_4=encoder,
        tokenizer_4=p.byte_tokenizer(),
    )


@family(
    "HunyuanImagePipeline",
    said="its second text encoder reads only what stands in quotes; what never runs is named in `prune.exclude`",
    components=("text_encoder", "transformer"),
    exclude=("*visual*",),
)
def hunyuan_image() -> Any:
    """Qwen 2.5 and ByT5; guidance is a component."""
    guider = d.AdaptiveProjectedMixGuidance
    return d.HunyuanImagePipeline(
        transformer=d.HunyuanImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=4,
            attention_head_dim=8,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=(1, 1),
            text_embed_dim=32,
            text_embed_2_dim=32,
            rope_axes_dim=(4, 4),
        ),
        vae=d.AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(32, 64, 64, 64),
            layers_per_block=1,
            scaling_factor=0.476986,
            spatial_compression_ratio=8,
            sample_size=128,
        ),
        scheduler=p.flow(shift=7.0),
        text_encoder=p.qwen25vl(32, (2, 2, 4)),
        tokenizer=p.byte_tokenizer(),
        text_encoder_2=p.t5(32, 400),
        tokenizer_2=transformers.ByT5Tokenizer(),
        guider=guider(adaptive_projected_guidance_start_step=0),
        ocr_guider=guider(adaptive_projected_guidance_start_step=0),
    )


@family("Ideogram4Pipeline", call={"guidance_schedule": None, "max_sequence_length": 128})
def ideogram4() -> Any:
    """A second transformer for what is not asked; Qwen 3, of which thirteen layers are read."""
    from diffusers.pipelines.ideogram4.pipeline_ideogram4 import QWEN3_VL_ACTIVATION_LAYERS

    def transformer() -> Any:
        return d.Ideogram4Transformer2DModel(
            in_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            intermediate_size=32,
            adaln_dim=16,
            llm_features_dim=len(QWEN3_VL_ACTIVATION_LAYERS) * 16,
            rope_theta=10_000,
            mrope_section=(2, 1, 1),
            norm_eps=1e-5,
        )

    return d.Ideogram4Pipeline(
        scheduler=p.flow(),
        vae=p.flux2_vae(),
        text_encoder=p.qwen3vl(layers=max(QWEN3_VL_ACTIVATION_LAYERS) + 1),
        tokenizer=p.byte_tokenizer(),
        transformer=transformer(),
        unconditional_transformer=transformer(),
    )


@family("LongCatImagePipeline", call={"enable_prompt_rewrite": False})
def longcat() -> Any:
    """Qwen 2.5."""
    return d.LongCatImagePipeline(
        scheduler=p.flow(use_dynamic_shifting=True),
        vae=p.vae(16, **p.PLAIN),
        text_encoder=p.qwen25vl(),
        tokenizer=p.byte_tokenizer(),
        text_processor=p.qwen25_processor(),
        transformer=d.LongCatImageTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=[4, 4, 8],
        ),
    )


@family("BriaFiboPipeline")
def bria_fibo() -> Any:
    """SmolLM 3, each layer of which enters a block."""
    return d.BriaFiboPipeline(
        transformer=d.BriaFiboTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            text_encoder_dim=16,
            pooled_projection_dim=None,
            axes_dims_rope=[0, 4, 4],
        ),
        vae=p.wan_vae(
            base_dim=4,
            decoder_base_dim=4,
            out_channels=12,
            in_channels=12,
            patch_size=2,
            scale_factor_spatial=16,
        ),
        scheduler=p.flow(),
        text_encoder=transformers.SmolLM3ForCausalLM(
            transformers.SmolLM3Config(
                vocab_size=128_256,
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                pad_token_id=0,
                bos_token_id=257,
                eos_token_id=258,
            )
        ),
        tokenizer=p.byte_tokenizer(),
    )


@family("BriaFibo2Pipeline")
def bria_fibo2() -> Any:
    """Qwen 3, of which bundles of layers are read."""
    return d.BriaFibo2Pipeline(
        transformer=d.BriaFibo2Transformer2DModel(
            in_channels=4,
            patch_size=2,
            dim=32,
            n_layers=6,
            n_refiner_layers=1,
            n_heads=2,
            cap_feat_dim=48,
            injection_layer_ids=(1, 2, 3, 4, 5),
            perceiver_num_layers=1,
            min_num_gist_tokens=8,
            max_num_gist_tokens=16,
            gist_step=4,
            gist_min_text_len=8,
            gist_max_text_len=64,
            axes_dims=(4, 6, 6),
            axes_lens=(2048, 64, 64),
        ),
        scheduler=p.flow(),
        vae=p.flux2_vae(),
        text_encoder=p.qwen3vl("Qwen3VLForConditionalGeneration", 36),
        processor=p.qwen3_processor(),
    )


@family("Cosmos2TextToImagePipeline")
def cosmos2() -> Any:
    """T5, a video transformer for one frame."""
    return d.Cosmos2TextToImagePipeline(
        transformer=d.CosmosTransformer3DModel(
            in_channels=16,
            out_channels=16,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            mlp_ratio=2,
            text_embed_dim=32,
            adaln_lora_dim=4,
            max_size=(4, 32, 32),
            patch_size=(1, 2, 2),
            rope_scale=(2.0, 1.0, 1.0),
            concat_padding_mask=True,
            extra_pos_embed_type="learnable",
        ),
        vae=p.wan_vae(),
        scheduler=p.flow(use_karras_sigmas=True),
        text_encoder=p.t5(),
        tokenizer=p.t5_tokenizer(),
        safety_checker=_NoGuard(),
    )


def dreamlite(kind: Any) -> Any:
    """A small U-Net under Qwen 3; one prompt a call."""
    return kind(
        text_encoder=p.qwen3vl("Qwen3VLForConditionalGeneration"),
        tokenizer=p.byte_tokenizer(),
        processor=p.qwen3_processor(),
        vae=d.AutoencoderTiny(
            encoder_block_out_channels=(16, 16),
            decoder_block_out_channels=(16, 16),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
            latent_channels=4,
        ),
        unet=d.DreamLiteUNetModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
            up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"),
            block_out_channels=(32, 64),
            cross_attention_dim=16,
            attention_head_dim=8,
            layers_per_block=1,
            norm_num_groups=8,
            transformer_layers_per_block=1,
        ),
        scheduler=p.flow(),
    )


family("DreamLitePipeline", 64, "one prompt a call: `sampling.batch: 1`", batch=1)(
    lambda: dreamlite(d.DreamLitePipeline)
)
family("DreamLiteMobilePipeline", 64, "one prompt a call: `sampling.batch: 1`", batch=1, guidance=1.0)(
    lambda: dreamlite(d.DreamLiteMobilePipeline)
)


def awake(pipeline: Any) -> Any:
    """The pipeline with weights that begin as zeros made random: they would hide every effect."""
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            for weight in part.eval().parameters():
                if not weight.any():
                    nn.init.normal_(weight, std=0.1)
    return pipeline
