"""A whole checkpoint in one file, .safetensors or .ckpt, as Stability, ComfyUI and A1111 write them, read part by part.

What such a file does not say in words is told from the shapes in it; names are changed into diffusers' by diffusers'
own conversion.  Tokenizers are not in such files: all of them use CLIP's.
"""

import importlib
import itertools
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from instantstyle.errors import WeightsError
from instantstyle.weights.clip_vocab import SIZE
from instantstyle.weights.tensor_files import RenamedTensors, Shapes, TensorFile, open_tensors

ComponentName = Literal["unet", "vae", "text_encoder", "text_encoder_2"]

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP = {"sd15": "cond_stage_model.transformer.", "sdxl": "conditioner.embedders.0.transformer."}
OPEN_CLIP = "conditioner.embedders.1.model."
SIZE_DIM = 256
"""Width of each sinusoid of SDXL's six size numbers."""

_NOISE: Mapping[str, object] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
"""What the schedulers published with SDXL 1.0 and SD 1.5 have in common (their scheduler_config.json)."""


@dataclass(frozen=True)
class SingleFile:
    """A checkpoint's file, known by its header alone; weights are read when a part is asked for."""

    path: Path
    configs: Mapping[str, Mapping[str, Any]]
    """What the JSON files of a folder in diffusers' layout would say, by their names (`unet/config.json`)."""

    @contextmanager
    def unet(self) -> Generator[TensorFile, None, None]:
        """The UNet's tensors by diffusers' names, memory-mapped.  Raises WeightsError for names nobody knows."""
        with _open(self.path) as file:
            own = [name for name in file.shapes if name.startswith(UNET)]
            try:
                marks = {name: torch.empty(file.shapes[name], device="meta") for name in own}
                owner = {id(mark): name for name, mark in marks.items()}
                converted = _diffusers().convert_ldm_unet_checkpoint(marks, self.configs["unet/config.json"])
                names = {new: owner[id(mark)] for new, mark in converted.items()}
            except Exception as e:  # whatever a name or a shape that is not as expected makes of it
                reason = (str(e).splitlines() or [""])[0][:200]
                raise WeightsError(
                    f"the UNet in {self.path} has names or shapes that are not understood: {type(e).__name__} {reason}"
                ) from e
            if left := sorted(set(own) - set(names.values())):
                raise WeightsError(f"{self.path} holds tensors of a UNet that nobody knows: {', '.join(left[:3])}")
            yield RenamedTensors(file, names)

    def tensors(self, part: ComponentName, net: Any) -> dict[str, Tensor]:
        """The tensors of another part for `net`, which may be on the meta device.  Raises WeightsError."""
        prefix = {"vae": VAE, "text_encoder": self._clip, "text_encoder_2": OPEN_CLIP}[part]
        with _open(self.path) as file:
            skipped = re.compile(r".*(position_ids|logit_scale)$|first_stage_model\.(loss|model_ema)\.")
            names = [name for name in file.shapes if name.startswith(prefix) and not skipped.match(name)]
            stored = {name: file.read(name) for name in names}
        if part == "vae":
            vae: dict[str, Tensor] = _diffusers().convert_ldm_vae_checkpoint(stored, self.configs["vae/config.json"])
            if len(vae) < len(stored):
                raise WeightsError(f"{self.path} holds {len(stored) - len(vae)} tensors of a VAE that nobody knows")
            return vae
        if part == "text_encoder":
            converted = _diffusers().convert_ldm_clip_checkpoint(stored)
        else:
            converted = _diffusers().convert_open_clip_checkpoint(net, stored, prefix=OPEN_CLIP)
        # transformers nests the tower one level deeper in the class with a projection than in that without.
        nested = hasattr(net, "text_model")
        return {name if nested else name.removeprefix("text_model."): tensor for name, tensor in converted.items()}

    @property
    def _clip(self) -> str:
        return CLIP["sdxl" if "text_encoder_2/config.json" in self.configs else "sd15"]


@contextmanager
def _open(path: Path) -> Generator[TensorFile, None, None]:
    """The file, or the `state_dict` in it, with the text encoder's names as transformers has spelt them since 4.31.

    Before, `transformer.text_model.encoder` was `transformer.encoder` in some trainers' files.
    """
    with open_tensors(path, inside="state_dict") as file:
        old = re.compile(rf"({'|'.join(map(re.escape, CLIP.values()))})(?=embeddings\.|encoder\.|final_layer_norm\.)")
        if any(old.match(name) for name in file.shapes):
            yield RenamedTensors(file, {old.sub(r"\1text_model.", name): name for name in file.shapes})
        else:
            yield file


def open_single_file(path: Path) -> SingleFile:
    """Read a checkpoint's header.  Raises WeightsError, saying what the file is, when it is not SDXL's or SD1.5's."""
    with _open(path) as file:
        shapes, metadata = file.shapes, file.metadata
        alphas = file.read("alphas_cumprod") if "alphas_cumprod" in shapes else None
    xl = any(name.startswith(OPEN_CLIP) for name in shapes)
    prefix = CLIP["sdxl" if xl else "sd15"]
    _check_kind(shapes, path, prefix)
    _check_marks(shapes, path)
    try:
        unet = unet_layout(shapes, UNET)
        clip = _clip_layout(shapes, prefix + "text_model.")
        configs: dict[str, Mapping[str, Any]] = {
            "unet/config.json": unet,
            "vae/config.json": _vae_layout(shapes, *((0.13025, 1024) if xl else (0.18215, 512))),
            "text_encoder/config.json": clip | {"hidden_act": "quick_gelu", "architectures": ["CLIPTextModel"]},
            "scheduler/scheduler_config.json": _schedule(shapes, metadata, xl, _ends_in_noise(alphas, path)),
            "model_index.json": {"force_zeros_for_empty_prompt": xl},
        }
        if xl:
            configs["text_encoder_2/config.json"] = _open_clip_layout(shapes)
    except KeyError as e:
        raise WeightsError(f"the checkpoint {path} is incomplete: it has no tensor {e.args[0]!r}") from e
    except (IndexError, ValueError, TypeError, StopIteration) as e:
        raise WeightsError(f"the checkpoint {path} has tensors of unexpected shapes: {e}") from e
    return SingleFile(path, configs)


def unet_layout(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """What `unet/config.json` would say of a UNet with the original names.  Raises KeyError for what is missing."""
    own = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    levels: list[list[int]] = [[]]
    """For each resolution, the blocks of the way down that belong to it."""
    for i in range(1, _count(own, "input_blocks.")):
        if f"input_blocks.{i}.0.op.weight" in own:
            levels.append([])
        else:
            levels[-1].append(i)
    channels = [own[f"input_blocks.{level[0]}.0.out_layers.3.weight"][0] for level in levels]
    depths = [_count(own, f"input_blocks.{level[0]}.1.transformer_blocks.") for level in levels]
    block = next(level[0] for level, depth in zip(levels, depths, strict=True) if depth)
    linear = len(own[f"input_blocks.{block}.1.proj_in.weight"]) == 2
    layout: dict[str, Any] = {
        "in_channels": own["input_blocks.0.0.weight"][1],
        "out_channels": own["out.2.weight"][0],
        "block_out_channels": channels,
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "layers_per_block": len(levels[0]),
        "transformer_layers_per_block": [max(1, depth) for depth in depths],
        # Not in the shapes: 64 numbers a head since SD 2, eight heads before it.
        "attention_head_dim": [max(1, width // 64) for width in channels] if linear else 8,
        "cross_attention_dim": own[f"input_blocks.{block}.1.transformer_blocks.0.attn2.to_k.weight"][1],
        "use_linear_projection": linear,
        "norm_num_groups": 32,
    }
    if "label_emb.0.0.weight" in own:
        layout |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": SIZE_DIM,
            "projection_class_embeddings_input_dim": own["label_emb.0.0.weight"][1],
        }
    return layout


def vision_layout(shapes: Shapes) -> dict[str, Any]:
    """The configuration of a CLIP image tower with its projection, from transformers' names.  Raises KeyError."""
    width, _, patch, _ = shapes["vision_model.embeddings.patch_embedding.weight"]
    places = shapes["vision_model.embeddings.position_embedding.weight"][0]
    return {
        "hidden_size": width,
        "intermediate_size": shapes["vision_model.encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _count(shapes, "vision_model.encoder.layers."),
        # Not in the shapes: ViT-L, H and bigG have 16 heads all three, and only OpenAI's ViT-L the quick GELU.
        "num_attention_heads": 16,
        "hidden_act": "quick_gelu" if width == 1024 else "gelu",
        "patch_size": patch,
        "image_size": round((places - 1) ** 0.5) * patch,
        "projection_dim": shapes["visual_projection.weight"][0],
    }


def _check_kind(shapes: Shapes, path: Path, clip: str) -> None:
    """Raises WeightsError, saying what the file is, when it is no whole checkpoint of a supported family."""
    holds = {
        "a UNet": any(name.startswith(UNET) for name in shapes),
        "a VAE": any(name.startswith(VAE) for name in shapes),
        "CLIP's text encoder": any(name.startswith(f"{clip}text_model.") for name in shapes),
    }
    if all(holds.values()):
        return
    kind = _recognized_kind(shapes)
    lacks = [what for what, there in holds.items() if not there]
    if kind is None and len(lacks) < len(holds):
        kind = f"has {', '.join(what for what, there in holds.items() if there)} and no {', no '.join(lacks)}"
        kind += ": give the whole checkpoint, or a folder in diffusers' layout"
    raise WeightsError(
        f"{path} is no checkpoint of SDXL or SD1.5: it {kind or f'begins with a tensor {next(iter(shapes), None)!r}'}"
    )


_EDM_MARKS: Mapping[str, str] = {
    "edm_mean": "Playground 2.5",
    "edm_std": "Playground 2.5",
    "edm_vpred.sigma_max": "CosXL",
    "edm_vpred.sigma_min": "CosXL",
}
"""Tensors by which ComfyUI's supported_models.py knows checkpoints that were trained with EDM's noise levels."""
_KNOWN_SCALARS = re.compile(r"v_pred$|ztsnr$|model_ema\.|.*(logit_scale|num_batches_tracked|global_step|epoch|logvar)$")


def _check_marks(shapes: Shapes, path: Path) -> None:
    """Raises WeightsError for marker tensors that say of the checkpoint what is not supported, or not known, here."""
    if (mark := next((mark for mark in _EDM_MARKS if mark in shapes), None)) is not None:
        raise WeightsError(
            f"{path} is a checkpoint of {_EDM_MARKS[mark]} (it holds {mark}), whose noise schedule (EDM) is not "
            "supported"
        )
    parts = (UNET, VAE, "cond_stage_model.", "conditioner.")
    scalars = [name for name, shape in shapes.items() if shape in ((), (0,), (1,)) and not name.startswith(parts)]
    if unknown := [name for name in scalars if not _KNOWN_SCALARS.match(name)]:
        raise WeightsError(
            f"{path} is marked by {', '.join(unknown[:3])}, which is not known here and may change what its UNet "
            "predicts: give it as a folder in diffusers' layout"
        )


def _ends_in_noise(alphas: Tensor | None, path: Path) -> bool:
    """Whether the noise schedule that old checkpoints hold, `alphas_cumprod`, is the published one with zero SNR.

    Raises WeightsError when it is neither that nor the published one.
    """
    if alphas is None:
        return False
    config = {name: value for name, value in _NOISE.items() if name in ("beta_schedule", "beta_start", "beta_end")}
    ddim = importlib.import_module("diffusers").DDIMScheduler
    for zero_snr in (False, True):
        published: Tensor = ddim(**config, rescale_betas_zero_snr=zero_snr).alphas_cumprod
        if alphas.shape == published.shape and torch.allclose(alphas.float(), published, atol=2e-3):
            return zero_snr
    raise WeightsError(f"{path} holds a noise schedule (alphas_cumprod) that is not Stable Diffusion's: not supported")


def _recognized_kind(shapes: Shapes) -> str | None:
    """What another kind of file is, where that can be told."""
    names = list(shapes)
    telling = {
        "is an IP-Adapter: give it as adapter": r"image_proj\.|ip_adapter\.",
        "is a LoRA: give it as lora": r"lora_(unet|te)|.*\.lora_(A|B|down|up)\.|.*lora_(down|up)\.weight",
        "is a ControlNet: give it as a control": r"control_model\.|controlnet_cond_embedding\.|controlnet_",
        "is an IP-Adapter as trained: give it as adapter": r"(module\.)?(image_proj_model|adapter_modules)\.",
        "is an image encoder: give it as image encoder": r"vision_model\.|visual_projection\.",
        "is SDXL's refiner, which takes no style": r"conditioner\.embedders\.0\.model\.",
        "is of Stable Diffusion 2": r"cond_stage_model\.model\.",
        "is of Stable Diffusion 3": r".*joint_blocks\.",
        "is of Flux": r".*double_blocks\.",
        "is of Stable Cascade": r".*(clip_txt_mapper|clf\.1\.weight|effnet_mapper)",
        "is of a diffusion transformer": r".*(transformer_blocks\.0\.attn\.|t_embedder\.|x_embedder\.)",
        "is quantised by bitsandbytes": r".*\.(absmax|quant_map|quant_state)",
        "is a UNet alone: give the whole checkpoint": r"(diffusion_model\.|unet\.)?(input_blocks|output_blocks)\.",
        "is a UNet in diffusers' names: give the folder it came in": r"(unet\.)?(down_blocks|up_blocks)\.",
        "is a textual inversion": r"string_to_param|emb_params$|clip_[lg]$",
        "is a T2I-Adapter": r"(adapter\.)?body\.\d",
        "is a text encoder alone": r"(text_model|encoder\.block)\.",
        "is a VAE alone": r"(encoder|decoder)\.(conv_in|mid|down|up)",
    }
    return next((what for what, pattern in telling.items() if any(re.match(pattern, name) for name in names)), None)


def _vae_layout(shapes: Shapes, scaling: float, side: int) -> dict[str, Any]:
    own = {name.removeprefix(VAE): shape for name, shape in shapes.items() if name.startswith(VAE)}
    levels = _count(own, "encoder.down.")
    return {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": [own[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in range(levels)],
        "layers_per_block": _count(own, "encoder.down.0.block."),
        "latent_channels": own["decoder.conv_in.weight"][1],
        "norm_num_groups": 32,
        "scaling_factor": scaling,
        "sample_size": side,
    }


def _clip_layout(shapes: Shapes, prefix: str) -> dict[str, Any]:
    places, width = shapes[f"{prefix}embeddings.position_embedding.weight"]
    layers = _count(shapes, f"{prefix}encoder.layers.")
    wide = shapes[f"{prefix}encoder.layers.0.mlp.fc1.weight"][0]
    return _text_layout(shapes[f"{prefix}embeddings.token_embedding.weight"][0], places, width, layers, wide)


def _open_clip_layout(shapes: Shapes) -> dict[str, Any]:
    places, width = shapes[f"{OPEN_CLIP}positional_embedding"]
    layers = _count(shapes, f"{OPEN_CLIP}transformer.resblocks.")
    wide = shapes[f"{OPEN_CLIP}transformer.resblocks.0.mlp.c_fc.weight"][0]
    layout = _text_layout(shapes[f"{OPEN_CLIP}token_embedding.weight"][0], places, width, layers, wide)
    projection = shapes[f"{OPEN_CLIP}text_projection"][1]
    return layout | {
        "hidden_act": "gelu",
        "projection_dim": projection,
        "architectures": ["CLIPTextModelWithProjection"],
    }


def _text_layout(words: int, places: int, width: int, layers: int, wide: int) -> dict[str, Any]:
    if words != SIZE:
        raise WeightsError(f"its text encoder knows {words} tokens, and CLIP's vocabulary has {SIZE}")
    return {
        "vocab_size": words,
        "max_position_embeddings": places,
        "hidden_size": width,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // 64),  # so in every CLIP text tower there is
        "bos_token_id": 0,
        "eos_token_id": 2,  # as published, which transformers reads as: the highest number, which ends a text
        "pad_token_id": 1,
    }


def _schedule(shapes: Shapes, metadata: Mapping[str, str], xl: bool, ends_in_noise: bool) -> dict[str, Any]:
    """The scheduler that was published with the family, with what the file says of its training.

    Velocity and a schedule that ends in pure noise are marked by the tensors `v_pred` and `ztsnr`, which ComfyUI reads
    too, by the metadata that the ModelSpec standard names, or by a schedule that the file itself holds.
    """
    velocity = "v_pred" in shapes or metadata.get("modelspec.prediction_type", "").lower() in ("v", "v_prediction")
    given: dict[str, Any] = {
        **_NOISE,
        "_class_name": "EulerDiscreteScheduler" if xl else "PNDMScheduler",
        "prediction_type": "v_prediction" if velocity else "epsilon",
        "timestep_spacing": "leading",
    }
    if "ztsnr" in shapes or ends_in_noise:
        # PNDM cannot begin in pure noise; with trailing steps the first is where training's noise ends.
        given |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        given |= {} if xl else {"_class_name": "DDIMScheduler"}
    return given


def _count(shapes: Shapes, prefix: str) -> int:
    """How many numbers follow a prefix, counted from 0 up to the first that is not there."""
    numbers = {name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)}
    return next(i for i in itertools.count() if str(i) not in numbers)


def _diffusers() -> Any:
    return importlib.import_module("diffusers.loaders.single_file_utils")
