"""Small random models in diffusers' folder format, made on the spot with a fixed seed: SDXL's, SD1.5's and our layout.

Every network is a diffusers or transformers class with a shrunken configuration and random weights, so a test may load
the same folder with diffusers and with us and compare.  The adapter's weights are large, so that a style can be seen.
"""

import atexit
import importlib
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import tiny_transformers
from instantstyle.loading import load
from instantstyle.model import Model

# Configurations below are deliberately unlike the types these libraries declare for their own defaults.
diffusers: Any = importlib.import_module("diffusers")
safetensors: Any = importlib.import_module("safetensors.torch")
transformers: Any = importlib.import_module("transformers")

WORDS = ("a", "cat", "dog", "house", "red", "blue", "of", "in", "the", "picture", "ink", "drawing")
PICTURE = 64
"""Side of the pictures the small models make, in pixels."""


def sdxl(folder: Path, *, seed: int = 0) -> Path:
    """SDXL's layout in small: four latent channels, epsilon prediction, Euler, zeros for an empty negative prompt."""
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
    pooled = 24
    _texts(folder, (16, None), (16, pooled), length=77)
    _unet(folder, latents=4, context=32, pooled=pooled, depths=[1, 1, 2])
    _vae(folder, latents=4)
    _vision(folder, pooled, side=32)
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    diffusers.EulerDiscreteScheduler(**config, timestep_spacing="leading").save_pretrained(folder / "scheduler")
    return _finish(folder, "StableDiffusionXLPipeline", pooled, 32, zeros=True)


def emoji(folder: Path, *, seed: int = 0) -> Path:
    """The built-in model's layout: 32 latent channels, 192 wide pooled text, v-prediction from pure noise."""
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
    pooled = 192
    _texts(folder, (16, None), (16, pooled), length=24)
    _unet(folder, latents=32, context=32, pooled=pooled, depths=[1, 1, 1])
    _vae(folder, latents=32)
    _vision(folder, pooled, side=64)
    diffusers.DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    ).save_pretrained(folder / "scheduler")
    (folder / "vocabulary.json").write_text(json.dumps(["cat", "dog", "house"]))
    return _finish(folder, "StableDiffusionXLPipeline", pooled, 32, zeros=False)


def sd15(folder: Path, *, seed: int = 0) -> Path:
    """SD1.5's layout in small: one text encoder without projection, 1x1 convolutions around the transformers."""
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
    _texts(folder, (32, None), length=77)
    diffusers.UNet2DConditionModel(
        sample_size=PICTURE // 8,
        block_out_channels=(16, 32, 32, 32),
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=32,
    ).save_pretrained(folder / "unet")
    _vae(folder, latents=4)
    _vision(folder, 24, side=32)
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    diffusers.DDIMScheduler(**config, clip_sample=False, set_alpha_to_one=False).save_pretrained(folder / "scheduler")
    return _finish(folder, "StableDiffusionPipeline", 24, 32, zeros=None)


def flux(folder: Path, *, seed: int = 0, guidance_embeds: bool = True) -> Path:
    """Flux' layout in small: CLIP and T5, two blocks of each kind, a schedule shifted by the picture's size."""
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
    _texts(folder, (20, None), length=77)
    _t5(folder, 24, "_2")
    config = {"in_channels": 64, "pooled_projection_dim": 20, "guidance_embeds": guidance_embeds}
    tiny_transformers.flux(**config).save_pretrained(folder / "transformer")
    _flow_vae(folder)
    shifts: dict[str, Any] = {"use_dynamic_shifting": True, "shift": 3.0} if guidance_embeds else {"shift": 1.0}
    diffusers.FlowMatchEulerDiscreteScheduler(**shifts).save_pretrained(folder / "scheduler")
    parts = {"text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"}
    parts |= {"text_encoder_2": "T5EncoderModel", "tokenizer_2": "T5Tokenizer"}
    return _index(folder, "FluxPipeline", "FluxTransformer2DModel", parts)


def sd35(folder: Path, *, seed: int = 0) -> Path:
    """SD3.5 medium's layout in small: two CLIPs and T5, a second attention in the first block, a fixed shift."""
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
    _texts(folder, (16, 8), (16, 12), length=77)
    _t5(folder, 40, "_3")
    config = {"in_channels": 16, "out_channels": 16, "joint_attention_dim": 40, "pooled_projection_dim": 20}
    tiny_transformers.sd3(**config).save_pretrained(folder / "transformer")
    _flow_vae(folder)
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    parts = {f"text_encoder{each}": "CLIPTextModelWithProjection" for each in ("", "_2")}
    parts |= {f"tokenizer{each}": "CLIPTokenizer" for each in ("", "_2")}
    parts |= {"text_encoder_3": "T5EncoderModel", "tokenizer_3": "T5Tokenizer"}
    return _index(folder, "StableDiffusion3Pipeline", "SD3Transformer2DModel", parts)


def schnell(folder: Path, *, seed: int = 0) -> Path:
    """Flux schnell's layout in small: no guidance that the network reads, and no shift."""
    return flux(folder, seed=seed, guidance_embeds=False)


@cache
def folder(name: str) -> Path:
    """The folder of one of the models above, made once and removed when the tests are over."""
    path = Path(tempfile.mkdtemp(prefix="instantstyle-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    makers = {"sdxl": sdxl, "emoji": emoji, "sd15": sd15, "flux": flux, "schnell": schnell, "sd35": sd35}
    return makers[name](path)


@cache
def controlnet(name: str, *, seed: int = 1) -> Path:
    """A random ControlNet for one of the models above, its zero convolutions random too, in diffusers' format."""
    path = folder(name) / f".controlnet-{seed}"
    net = diffusers.ControlNetModel.from_unet(diffusers.UNet2DConditionModel.from_pretrained(folder(name) / "unet"))
    make = torch.Generator().manual_seed(seed)
    for tensor in net.parameters():
        spread = 1 / tensor[0].numel() ** 0.5 if tensor.ndim > 1 else 0.2
        tensor.data = torch.randn(tensor.shape, generator=make) * spread + float(tensor.ndim == 1)
    net.save_pretrained(path)
    return path


@cache
def model(name: str) -> Model:
    """One of the models above, loaded once: networks are never changed, so tests may share them."""
    return load(folder(name))


def picture(seed: int = 0, side: int = 48) -> Image.Image:
    """A picture of coloured noise."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (6, 6, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).resize((side, side), Image.Resampling.BICUBIC)


def tokenizer(length: int) -> Any:
    """A byte-level tokenizer that knows WORDS whole and spells the rest."""
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[str] = []
    for word in WORDS:
        left = word[0] if len(word) > 1 else f"{word}</w>"
        for i, letter in enumerate(word[1:], start=2):
            right = f"{letter}</w>" if i == len(word) else letter
            merge = f"{left} {right}"
            if merge not in merges:
                merges.append(merge)
                vocabulary.append(left + right)
            left += right
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    return transformers.CLIPTokenizer(vocab=ids, merges=pairs, model_max_length=length)


def _texts(folder: Path, *towers: tuple[int, int | None], length: int) -> None:
    for i, (width, projection) in enumerate(towers):
        suffix = f"_{i + 1}" if i else ""
        tokens = tokenizer(length)
        config = transformers.CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=projection or width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=length,
            bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
            initializer_factor=2.0,
        )
        net = (
            transformers.CLIPTextModel(config)
            if projection is None
            else transformers.CLIPTextModelWithProjection(config)
        )
        net.save_pretrained(folder / f"text_encoder{suffix}")
        tokens.save_pretrained(folder / f"tokenizer{suffix}")


@cache
def flux_adapter(kind: str) -> Path:
    """A folder with a random adapter of XLabs' or InstantX' kind for the small Flux, and what it reads pictures with.

    Files: adapter.safetensors, image_encoder, and for XLabs' content_encoder, a text tower of the same CLIP.
    """
    path = Path(tempfile.mkdtemp(prefix="instantstyle-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    make, width, context, embed = torch.Generator().manual_seed(7), 32, 24, 12
    shapes: dict[str, tuple[int, ...]]
    torch.manual_seed(8)  # pyright: ignore[reportUnknownMemberType]
    if kind == "xlabs":
        _vision(path, embed, side=32)
        _texts(path, (16, embed), length=77)
        (path / "text_encoder").rename(path / "content_encoder")
        (path / "tokenizer").rename(path / "content_encoder" / "tokenizer")
        at = "double_blocks.{}.processor.ip_adapter_double_stream_{}_proj"
        shapes = {"ip_adapter_proj_model.proj.weight": (4 * context, embed)}
        shapes |= {"ip_adapter_proj_model.proj.bias": (4 * context,)}
        shapes |= {f"ip_adapter_proj_model.norm.{part}": (context,) for part in ("weight", "bias")}
        layers = [at.format(block, each) for block in range(2) for each in "kv"]
        shapes |= {f"{name}.weight": (width, context) for name in layers} | {
            f"{name}.bias": (width,) for name in layers
        }
    else:
        config = transformers.SiglipVisionConfig(
            hidden_size=embed,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        )
        transformers.SiglipVisionModel(config).save_pretrained(path / "image_encoder")
        shapes = {"image_proj.proj.0.weight": (20, embed), "image_proj.proj.0.bias": (20,)}
        shapes |= {"image_proj.proj.2.weight": (6 * context, 20), "image_proj.proj.2.bias": (6 * context,)}
        shapes |= {f"image_proj.norm.{part}": (context,) for part in ("weight", "bias")}
        shapes |= {f"ip_adapter.{n}.to_{each}_ip.weight": (width, context) for n in range(4) for each in "kv"}
    tensors = {
        name: torch.randn(shape, generator=make) * (0.3 if len(shape) > 1 else 0.5) for name, shape in shapes.items()
    }
    safetensors.save_file(tensors, path / "adapter.safetensors")
    return path


@cache
def flux_with_adapter(kind: str) -> Model:
    """The small Flux with such an adapter."""
    files = flux_adapter(kind)
    content = files / "content_encoder" if kind == "xlabs" else None
    return load(
        folder("flux"),
        adapter=files / "adapter.safetensors",
        image_encoder=files / "image_encoder",
        content_encoder=content,
    )


@cache
def sd35_adapter() -> Path:
    """A folder with a random adapter of InstantX' kind for the small SD3.5, adapter.bin, and its image_encoder."""
    path = Path(tempfile.mkdtemp(prefix="instantstyle-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    torch.manual_seed(9)  # pyright: ignore[reportUnknownMemberType]
    config = transformers.SiglipVisionConfig(
        hidden_size=12, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    transformers.SiglipVisionModel(config).save_pretrained(path / "image_encoder")
    kinds: Any = importlib.import_module("diffusers.models.attention_processor")
    layers: dict[str, torch.Tensor] = {}
    for n in range(4):
        one = tiny_transformers.drawn(kinds.SD3IPAdapterJointAttnProcessor2_0(32, 32, 16, timesteps_emb_dim=64), seed=n)
        layers |= {f"{n}.{name}": tensor for name, tensor in one.state_dict().items()}
    embeddings: Any = importlib.import_module("diffusers.models.embeddings")
    net = embeddings.IPAdapterTimeImageProjection(12, 32, 64, depth=4, heads=1, num_queries=6, timestep_in_dim=16)
    published = {"ln0": "0.norm1", "ln1": "0.norm2", "attn.to_q": "0.to_q", "attn.to_kv": "0.to_kv"}
    published |= {"attn.to_out.0": "0.to_out", "adaln_norm": "1.0", "ff.net.0.proj": "1.1", "ff.net.2": "1.3"}
    published |= {"adaln_proj": "2.1"}
    projection: dict[str, torch.Tensor] = {}
    for name, tensor in tiny_transformers.drawn(net, seed=70).state_dict().items():
        for ours, theirs in published.items() if name.startswith("layers.") else ():
            name = name.replace(f".{ours}.", f".{theirs}.")
        projection[name] = tensor
    torch.save({"image_proj": projection, "ip_adapter": layers}, path / "adapter.bin")
    return path


def _t5(folder: Path, width: int, suffix: str) -> None:
    letters = [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz,."]
    known = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((f"▁{word}", -1.0) for word in WORDS)]
    tokens = transformers.T5Tokenizer(vocab=known + letters, extra_ids=0)
    config = transformers.T5Config(
        vocab_size=len(tokens),
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        initializer_factor=3.0,
    )
    transformers.T5EncoderModel(config).save_pretrained(folder / f"text_encoder{suffix}")
    tokens.save_pretrained(folder / f"tokenizer{suffix}")


def _flow_vae(folder: Path) -> None:
    """A VAE of Flux' and Stable Diffusion 3's kind: sixteen channels, shifted, without convolutions around latents."""
    _vae(folder, latents=16, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False)


def _index(folder: Path, pipeline: str, transformer: str, encoders: dict[str, str]) -> Path:
    index: dict[str, Any] = {
        "_class_name": pipeline,
        "_diffusers_version": "0.38.0",
        "transformer": ["diffusers", transformer],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "image_encoder": [None, None],
        "feature_extractor": [None, None],
        **{name: ["transformers", kind] for name, kind in encoders.items()},
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def _unet(folder: Path, *, latents: int, context: int, pooled: int, depths: list[int]) -> None:
    size_dim = 8
    diffusers.UNet2DConditionModel(
        sample_size=PICTURE // 8,
        in_channels=latents,
        out_channels=latents,
        block_out_channels=(16, 32, 32),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=depths,
        attention_head_dim=(1, 2, 4),
        cross_attention_dim=context,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=size_dim,
        projection_class_embeddings_input_dim=pooled + 6 * size_dim,
    ).save_pretrained(folder / "unet")


def _vae(folder: Path, *, latents: int, **more: Any) -> None:
    net = diffusers.AutoencoderKL(
        latent_channels=latents,
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=PICTURE,
        scaling_factor=0.5,
        **more,
    )
    net.save_pretrained(folder / "vae")


def _vision(folder: Path, projection: int, *, side: int) -> None:
    config = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        projection_dim=projection,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=side,
        patch_size=8,
        initializer_factor=2.0,
    )
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")
    (folder / "feature_extractor").mkdir()
    preprocessing = {
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": side},
    }
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(preprocessing))


def adapter_tensors(folder: Path, embed: int, context: int, *, tokens: int = 4) -> dict[str, torch.Tensor]:
    """A random IP-Adapter for the UNet in `folder`, as published files name its tensors."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    tensors = {
        "image_proj.proj.weight": torch.randn(tokens * context, embed) / embed**0.5,
        "image_proj.proj.bias": torch.randn(tokens * context),
        "image_proj.norm.weight": 1 + 0.1 * torch.randn(context),
        "image_proj.norm.bias": 0.1 * torch.randn(context),
    }
    names = list(unet.attn_processors)
    for n, name in enumerate(names):
        if name.endswith("attn2.processor"):
            width = unet.get_submodule(name.removesuffix(".processor")).get_parameter("to_q.weight").shape[0]
            tensors[f"ip_adapter.{n}.to_k_ip.weight"] = torch.randn(width, context) / context**0.5
            tensors[f"ip_adapter.{n}.to_v_ip.weight"] = 2 * torch.randn(width, context) / context**0.5
    return tensors


def _finish(folder: Path, pipeline: str, embed: int, context: int, *, zeros: bool | None) -> Path:
    safetensors.save_file(adapter_tensors(folder, embed, context), folder / "ip_adapter.safetensors")
    index: dict[str, Any] = {
        "_class_name": pipeline,
        "_diffusers_version": "0.38.0",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", json.loads((folder / "scheduler/scheduler_config.json").read_text())["_class_name"]],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "feature_extractor": [None, None],
    }
    if zeros is None:
        index |= {"safety_checker": [None, None], "requires_safety_checker": False}
    else:
        index |= {
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "force_zeros_for_empty_prompt": zeros,
        }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder
