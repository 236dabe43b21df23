"""Tokenizers, text encoders, VAEs and schedulers, small and random: what the small pipelines are put together from."""

from __future__ import annotations

import string
from typing import Any

import diffusers
import transformers

LETTERS = string.ascii_lowercase
BYTES = 300
"""Vocabulary of the text encoders whose tokens are bytes."""

MARKS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<think>",
    "</think>",
)
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# --- tokenizers ---------------------------------------------------------------------------------------------


def clip_tokenizer(length: int = 77) -> Any:
    """Letters, and letters that end a word."""
    pieces = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=length)


def t5_tokenizer(length: int = 256) -> Any:
    """Letters."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *LETTERS]
    vocabulary = [(piece, -float(number)) for number, piece in enumerate(pieces)]
    return transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=length)


def gemma_tokenizer(**more: Any) -> Any:
    """Letters."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return transformers.GemmaTokenizer(vocab=vocabulary, merges=[], **more)


def byte_tokenizer(length: int = 4096) -> Any:
    """Every byte is a token; a chat template as Qwen's."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    pieces = [*bytes_to_unicode().values(), *MARKS]
    made = transformers.Qwen2Tokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)},
        merges=[],
        model_max_length=length,
        unk_token=MARKS[0],
        pad_token=MARKS[0],
        eos_token=MARKS[2],
    )
    made.add_special_tokens({"additional_special_tokens": list(MARKS[1:7])})
    made.chat_template = CHAT
    return made


def bert_tokenizer() -> Any:
    """Letters."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return transformers.BertTokenizer(vocab=vocabulary, model_max_length=77)


def qwen25_processor() -> Any:
    """For text and pictures, as Qwen 2.5's."""
    return transformers.Qwen2_5_VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(),
        tokenizer=byte_tokenizer(),
        video_processor=transformers.Qwen2VLVideoProcessor(),
        chat_template=CHAT,
    )


def qwen3_processor() -> Any:
    """For text and pictures, as Qwen 3's."""
    return transformers.Qwen3VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(),
        tokenizer=byte_tokenizer(),
        video_processor=transformers.Qwen3VLVideoProcessor(),
        chat_template=CHAT,
    )


# --- text encoders ------------------------------------------------------------------------------------------


def clip(width: int = 16, projection: bool = False, length: int = 77) -> Any:
    """CLIP's text model."""
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return kind(
        transformers.CLIPTextConfig(
            vocab_size=54,
            hidden_size=width,
            intermediate_size=32,
            projection_dim=width,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=length,
            bos_token_id=52,
            eos_token_id=53,
            pad_token_id=53,
        )
    )


def clip_vision(width: int = 32) -> Any:
    """CLIP's image model."""
    return transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=width,
            image_size=32,
            projection_dim=width,
            intermediate_size=32,
            num_attention_heads=4,
            num_hidden_layers=2,
            patch_size=8,
        )
    )


def t5(width: int = 32, vocabulary: int = 30) -> Any:
    """T5's encoder."""
    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=vocabulary, d_model=width, d_kv=8, d_ff=48, num_layers=2, num_heads=2, use_cache=False
        )
    )


def umt5(width: int = 32) -> Any:
    """UMT5's encoder."""
    return transformers.UMT5EncoderModel(
        transformers.UMT5Config(
            vocab_size=30, d_model=width, d_kv=8, d_ff=48, num_layers=2, num_heads=2, use_cache=False
        )
    )


def gemma2(width: int = 16, vocabulary: int = 32) -> Any:
    """Gemma 2."""
    return transformers.Gemma2Model(
        transformers.Gemma2Config(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    )


def qwen3(kind: str = "Qwen3Model", layers: int = 2) -> Any:
    """Qwen 3."""
    config = transformers.Qwen3Config(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=BYTES,
        max_position_embeddings=4096,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    return getattr(transformers, kind)(config)


_ROPE = {"rope_type": "default", "type": "default"}
_PICTURES = {
    "image_token_id": 261,
    "video_token_id": 262,
    "vision_start_token_id": 259,
    "vision_end_token_id": 260,
}


def qwen25vl(width: int = 16, section: tuple[int, ...] = (1, 1, 2)) -> Any:
    """Qwen 2.5 for text and pictures."""
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "hidden_size": width,
            "intermediate_size": 16,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "vocab_size": BYTES,
            "rope_scaling": {"mrope_section": list(section), **_ROPE},
            "rope_theta": 1000000.0,
            "pad_token_id": None,
            "bos_token_id": None,
            "eos_token_id": None,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": width,
        },
        vision_token_id=261,
        **_PICTURES,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def qwen3vl(kind: str = "Qwen3VLModel", layers: int = 2, width: int = 16) -> Any:
    """Qwen 3 for text and pictures."""
    config = transformers.Qwen3VLConfig(
        text_config={
            "hidden_size": width,
            "intermediate_size": 16,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "vocab_size": BYTES,
            "rope_scaling": {"mrope_section": [1, 1, 2], **_ROPE},
            "rope_theta": 1000000.0,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": width,
            "deepstack_visual_indexes": [0],
        },
        **_PICTURES,
    )
    return getattr(transformers, kind)(config)


# --- what decodes images ------------------------------------------------------------------------------------


def vae(channels: int = 4, **options: Any) -> Any:
    """Halves the sides once."""
    return diffusers.AutoencoderKL(
        **{
            "block_out_channels": (8, 16),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "latent_channels": channels,
            "norm_num_groups": 4,
            "sample_size": 32,
            **options,
        }
    )


def vae8(channels: int = 4, **options: Any) -> Any:
    """Divides the sides by eight."""
    return vae(
        channels,
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
        layers_per_block=1,
        **options,
    )


PLAIN = {"shift_factor": 0.06, "use_quant_conv": False, "use_post_quant_conv": False}


def flux2_vae() -> Any:
    """FLUX.2's."""
    return diffusers.AutoencoderKLFlux2(
        sample_size=32,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def qwen_vae() -> Any:
    """Qwen-Image's."""
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def wan_vae(**more: Any) -> Any:
    """Wan's, for videos."""
    return diffusers.AutoencoderKLWan(
        **{
            "base_dim": 4,
            "z_dim": 16,
            "dim_mult": [1, 1, 1, 1],
            "num_res_blocks": 1,
            "temperal_downsample": [False, True, True],
            **more,
        }
    )


def dc_vae() -> Any:
    """Sana's: divides the sides by 32."""
    return diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock",) * 6,
        decoder_block_types=("ResBlock",) * 6,
        encoder_block_out_channels=(4,) * 6,
        decoder_block_out_channels=(4,) * 6,
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
    )


def movq(levels: int = 2) -> Any:
    """Kandinsky's."""
    return diffusers.VQModel(
        block_out_channels=[32] * (levels - 1) + [64],
        down_block_types=[*["DownEncoderBlock2D"] * (levels - 1), "AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D", *["UpDecoderBlock2D"] * (levels - 1)],
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )


# --- denoisers and schedulers that several share -------------------------------------------------------------


def unet(context: int, **options: Any) -> Any:
    """Stable Diffusion's."""
    return diffusers.UNet2DConditionModel(
        **{
            "sample_size": 16,
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": context,
            "norm_num_groups": 8,
            **options,
        }
    )


def flow(**more: Any) -> Any:
    """Flow matching."""
    return diffusers.FlowMatchEulerDiscreteScheduler(**more)


def ddim(**more: Any) -> Any:
    """DDIM, as Stable Diffusion has it."""
    return diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **more)
