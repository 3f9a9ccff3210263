"""Whatever does not go together is told in a sentence that names what was found and what is needed (`pairings`)."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

import checkpoints
import tiny_models
from cli.pairings import PAIRINGS
from cli_runner import Command, command_runner
from instantstyle.networks.image_projection import Resampler
from instantstyle.request.style_card import SUFFIX

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, with this numpy

Shapes = dict[str, tuple[int, ...]]


def adapter(embed: int, context: int, layers: dict[int, int]) -> Shapes:
    """A base adapter's tensors; `layers` are the widths of some attention layers by their published numbers."""
    return {
        "image_proj.proj.weight": (4 * context, embed),
        "image_proj.proj.bias": (4 * context,),
        "image_proj.norm.weight": (context,),
        "image_proj.norm.bias": (context,),
    } | {f"ip_adapter.{n}.to_{kind}_ip.weight": (width, context) for n, width in layers.items() for kind in "kv"}


FILES: dict[str, Shapes] = {
    # Of published files those names and shapes that tell what they are.
    "sd15-adapter": adapter(1024, 768, {1: 320}),
    "sdxl-adapter": adapter(1280, 2048, {1: 640}),
    "faceid": {"image_proj.proj.0.weight": (1024, 512), "ip_adapter.0.to_q_lora.down.weight": (128, 640)},
    "sd15-lora": {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 768),
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight": (320, 4),
    },
    "flux-lora": {"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": (4, 3072)},
    "loha": {"lora_unet_down_blocks_1_attentions_0_proj_in.hada_w1_a": (4, 4)},
    "second": {
        "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": (2, 16),
        "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight": (16, 2),
    },
    "sd15-control": {
        "conv_in.weight": (320, 4, 3, 3),
        "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3),
        "controlnet_mid_block.weight": (1, 1, 1, 1),
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (320, 768),
        **{f"down_blocks.{i}.resnets.0.conv1.weight": (w, 1, 1, 1) for i, w in enumerate((320, 640, 1280, 1280))},
    },
    "t2i": {"body.0.block1.weight": (1,)},
    "flux": {"double_blocks.0.img_attn.norm.key_norm.scale": (1,)},
    "refiner": {
        "model.diffusion_model.input_blocks.0.0.weight": (1, 1, 1, 1),
        "conditioner.embedders.0.model.ln_final.weight": (1,),
    },
    "unet-only": {"model.diffusion_model.input_blocks.0.0.weight": (1, 1, 1, 1)},
}


def random(shapes: Shapes) -> dict[str, Tensor]:
    make = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=make) for name, shape in shapes.items()}


def base_adapter(folder: Path, embed: int, **others: Any) -> dict[str, Tensor]:
    torch.manual_seed(1)  # pyright: ignore[reportUnknownMemberType]
    return tiny_models.adapter_tensors(folder, embed, **others)


def plus(tensors: dict[str, Tensor], context: int) -> dict[str, Tensor]:
    """An adapter's layers behind a Plus projection of ViT-H's hidden states."""
    module = Resampler(1280, context, 4, dim=32, depth=1, heads=1)
    layers = {name: tensor for name, tensor in tensors.items() if name.startswith("ip_adapter.")}
    return layers | {f"image_proj.{name}": tensor for name, tensor in module.state_dict().items()}


def vision(folder: Path, projection: int) -> None:
    config = tiny_models.transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        projection_dim=projection,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=16,
        patch_size=8,
    )
    tiny_models.transformers.CLIPVisionModelWithProjection(config).save_pretrained(folder)


def unet_of(folder: Path, channels: int) -> None:
    """SDXL in small with a UNet that reads so many channels."""
    shutil.copytree(tiny_models.folder("sdxl"), folder)
    config = json.loads((folder / "unet/config.json").read_text())
    torch.manual_seed(2)  # pyright: ignore[reportUnknownMemberType]
    net = tiny_models.diffusers.UNet2DConditionModel.from_config(config | {"in_channels": channels})
    net.save_pretrained(folder / "unet")


class Code:
    """A pickle's trap: whoever loads it as pickle does makes a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("was-here",)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every file that the rows name."""
    here, sdxl = tmp_path_factory.mktemp("pairings"), tiny_models.folder("sdxl")
    tiny_models.picture(1).save(here / "ref.png")
    for name, shapes in FILES.items():
        save_file(random(shapes), here / f"{name}.safetensors")
    flat = load_file(here / "sdxl-adapter.safetensors")
    nested: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in flat.items():
        part, inner = name.split(".", 1)
        nested[part][inner] = tensor
    torch.save(nested, here / "sdxl-adapter.bin")
    own = load_file(sdxl / "ip_adapter.safetensors")
    torch.save({**nested, "extra": Code()}, here / "code.bin")
    (here / "short.safetensors").write_bytes((sdxl / "ip_adapter.safetensors").read_bytes()[:1000])
    (here / "page.safetensors").write_text("<!DOCTYPE html><title>404</title>" * 20)
    save_file(own | {"image_proj.norm.bias": own["image_proj.norm.bias"] * torch.nan}, here / "nan.safetensors")
    save_file(base_adapter(sdxl, 1024, context=32), here / "vit-h.safetensors")
    save_file(plus(own, 32), here / "plus.safetensors")
    numbers = sorted({int(name.split(".")[1]) for name in own if name.startswith("ip_adapter.")})
    style = {f"ip_adapter.{numbers[-3]}."}  # any but all of them
    slim = {n: t for n, t in own.items() if n.startswith(("image_proj.", *style))}
    save_file(slim, here / "style-only.safetensors")
    vision(here / "bigg", 1280)
    vision(here / "vit-h", 1024)
    nets = checkpoints.write(here / "dreams.safetensors", "sd15")
    nets["unet"].save_pretrained(here / "dreams/unet")
    save_file(plus(base_adapter(here / "dreams", 8, context=64), 64), here / "plus-dreams.safetensors")
    shutil.copytree(sdxl, here / "one-tower", ignore=shutil.ignore_patterns("text_encoder_2"))
    unet_of(here / "edits", 8)
    unet_of(here / "inpainting", 9)
    shutil.copy(Path(tiny_models.__file__).parent.parent / f"src/instantstyle/assets/styles/neon{SUFFIX}", here)
    (here / f"neon{SUFFIX}").rename(here / f"ink{SUFFIX}")
    return here


@pytest.fixture
def command(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line in that folder."""
    monkeypatch.chdir(place)
    return command_runner(monkeypatch, capsys)


@pytest.mark.parametrize("what", PAIRINGS)
def test_what_does_not_go_together_is_a_sentence(what: str, command: Command, place: Path) -> None:
    row = PAIRINGS[what]
    stands = {
        "SDXL": tiny_models.folder("sdxl"),
        "SD15": tiny_models.folder("sd15"),
        "DREAMS": place / "dreams.safetensors",
    }
    words = [str(stands.get(word, word)) for word in row.flags.split()]
    before = {path.name for path in place.iterdir()}
    said = command("generate", "a cat", "--out", "cat.png", "--steps", "1", *words)
    assert said.code == row.code, said.err
    line = said.err.strip().splitlines()[-1]
    assert row.says in line
    assert line.startswith("error: " if row.code else "warning: ")
    assert "Traceback" not in said.err
    assert "mistake of ours" not in said.err
    assert len(line) < 700
    assert {path.name for path in place.iterdir()} - before == (set() if row.code else {"cat.png"})
    (place / "cat.png").unlink(missing_ok=True)
