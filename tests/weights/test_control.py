# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

"""ControlNet files: every form people have them in loads, and every way they can be wrong is told in a sentence."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny_models
from instantstyle.errors import WeightsError
from instantstyle.families import FAMILIES
from instantstyle.weights.control import check_family, control_layout, load_control, load_controls
from oracle.paired_unets import diffusers_config

CPU = torch.device("cpu")
Shapes = dict[str, tuple[int, ...]]


@cache
def published(name: str) -> ControlNetModel:
    """diffusers' ControlNet of a family at full size, on the meta device."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**diffusers_config(FAMILIES[name].unet))
        return ControlNetModel.from_unet(unet, load_weights_from_unet=False)


def shapes(net: torch.nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


def same(one: Any, other: Any) -> None:
    mine, others = one.state_dict(), other.state_dict()
    assert mine.keys() == others.keys()
    assert all(torch.equal(mine[name], others[name]) for name in mine)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_layout_is_read_from_shapes(name: str) -> None:
    """At full size, as published: SD1.5's has 361,279,120 parameters, SDXL's 1,251,014,160."""
    there = shapes(published(name))
    check_family(there, FAMILIES[name], "it")
    with torch.device("meta"):
        again: Any = ControlNetModel.from_config(control_layout(there, FAMILIES[name].unet))
    assert shapes(again) == there
    counts = {"sdxl": 1_251_014_160, "sd15": 361_279_120}
    assert sum(tensor.numel() for tensor in again.parameters()) == counts.get(name, 5_795_312)
    for key in ("attention_head_dim", "cross_attention_dim", "addition_time_embed_dim", "norm_num_groups"):
        assert again.config[key] == published(name).config[key]


@pytest.mark.parametrize("small", ["mid", "small"])
def test_so_is_that_of_the_smaller_ones_of_sdxl(small: str) -> None:
    """controlnet-canny-sdxl-1.0-mid has no transformer layers but in its last level, -small no attention at all."""
    config = diffusers_config(FAMILIES["sdxl"].unet)
    kinds = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    fewer: dict[str, Any] = {"down_block_types": kinds, "transformer_layers_per_block": [0, 0, 1]}
    if small == "small":
        fewer = {"down_block_types": ("DownBlock2D",) * 3, "mid_block_type": "UNetMidBlock2D"}
        fewer["transformer_layers_per_block"] = [0, 0, 0]
    with torch.device("meta"):
        net = ControlNetModel(
            **{k: v for k, v in {**config, **fewer}.items() if k not in ("up_block_types", "out_channels")}
        )
        again: Any = ControlNetModel.from_config(control_layout(shapes(net), FAMILIES["sdxl"].unet))
    check_family(shapes(net), FAMILIES["sdxl"], "it")
    assert shapes(again) == shapes(net)
    with pytest.raises(WeightsError, match="is for family sdxl: it has"):
        check_family(shapes(net), FAMILIES["emoji"], "it")


@pytest.mark.parametrize("ours", FAMILIES)
@pytest.mark.parametrize("theirs", FAMILIES)
def test_another_family_is_named(ours: str, theirs: str) -> None:
    if ours == theirs:
        return
    found, needed = FAMILIES[theirs].unet.cross_attention_dim, FAMILIES[ours].unet.cross_attention_dim
    wanted = (
        f"the ControlNet x.safetensors is for family {theirs}: it has text tokens of width {found} where this model, "
        f"of family {ours}, needs {needed}; give a ControlNet made for {ours}"
    )
    with pytest.raises(WeightsError) as refused:
        check_family(shapes(published(theirs)), FAMILIES[ours], "x.safetensors")
    assert str(refused.value) == wanted


@pytest.mark.parametrize("name", ["sdxl", "sd15", "emoji"])
def test_folder_and_single_file_are_the_same_network(name: str, tmp_path: Path) -> None:
    folder, family = tiny_models.controlnet(name), tiny_models.model(name).family
    from_folder = load_control(folder, family)
    expected: Any = ControlNetModel.from_pretrained(folder)
    same(from_folder.net, expected)
    # With nothing beside it: what it is, its tensors say.
    single = Path(shutil.copy(folder / "diffusion_pytorch_model.safetensors", tmp_path / "any name.safetensors"))
    from_file = load_control(single, family)
    same(from_file.net, expected)
    for key in ("attention_head_dim", "norm_num_groups", "use_linear_projection"):
        mine, theirs = from_file.net.config[key], expected.config[key]
        levels = len(family.unet.block_out_channels)
        assert _each(mine, levels) == _each(theirs, levels)
    assert not any(p.requires_grad for p in from_file.net.parameters())


def _each(value: int | list[int] | tuple[int, ...], levels: int) -> tuple[int, ...]:
    return (value,) * levels if isinstance(value, int) else tuple(value)


@pytest.mark.parametrize("prefix", ["control_model.", ""])
def test_the_first_controlnets_names_are_converted(prefix: str, tmp_path: Path) -> None:
    """lllyasviel's files, as he and others published them; the same network as its diffusers form."""
    folder, family = tiny_models.controlnet("sd15"), tiny_models.model("sd15").family
    theirs: Any = ControlNetModel.from_pretrained(folder)
    old = {f"{prefix}{_ldm(name)}": tensor.clone() for name, tensor in theirs.state_dict().items()}
    if prefix:
        old["model.diffusion_model.out.2.bias"] = torch.zeros(4)  # whole checkpoints were published too
    save_file(old, tmp_path / "control.safetensors")
    same(load_control(tmp_path / "control.safetensors", family).net, theirs)
    torch.save(old, tmp_path / "control.pth")
    same(load_control(tmp_path / "control.pth", family).net, theirs)


def _ldm(name: str) -> str:
    """The name of an SD1.5 ControlNet's tensor in the first ControlNets' files, written out from their code.

    cldm/cldm.py: `input_blocks` counts conv_in as 0 and three for each level, two of residual blocks and one that
    makes it smaller; `input_hint_block` has a convolution at every even place.
    """
    first, *rest = name.split(".")
    tail = ".".join(rest)
    resnet = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"}
    resnet |= {"norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
    match first:
        case "conv_in":
            return f"input_blocks.0.0.{tail}"
        case "time_embedding":
            return f"time_embed.{0 if rest[0] == 'linear_1' else 2}.{rest[1]}"
        case "controlnet_cond_embedding":
            number = {"conv_in": 0, "conv_out": 14}.get(rest[0])
            return f"input_hint_block.{2 + 2 * int(rest[1]) if number is None else number}.{rest[-1]}"
        case "controlnet_down_blocks":
            return f"zero_convs.{rest[0]}.0.{rest[1]}"
        case "controlnet_mid_block":
            return f"middle_block_out.0.{tail}"
        case "mid_block":
            place = {"resnets.0": 0, "attentions.0": 1, "resnets.1": 2}[".".join(rest[:2])]
            inside = [resnet[rest[2]], *rest[3:]] if rest[0] == "resnets" else rest[2:]
            return f"middle_block.{place}.{'.'.join(inside)}"
        case _:
            level, kind, number, *inside = rest
            if kind == "downsamplers":
                return f"input_blocks.{3 + 3 * int(level)}.0.op.{inside[-1]}"
            block = 1 + 3 * int(level) + int(number)
            if kind == "attentions":
                return f"input_blocks.{block}.1.{'.'.join(inside)}"
            return f"input_blocks.{block}.0.{resnet[inside[0]]}.{inside[1]}"


def _tensors(name: str = "sdxl") -> dict[str, Tensor]:
    return load_file(tiny_models.controlnet(name) / "diffusion_pytorch_model.safetensors")


WRONG: dict[str, tuple[dict[str, Tensor], str]] = {
    "nothing of the kind": ({"x": torch.zeros(1)}, "is no ControlNet: it has no conv_in.weight"),
    "a T2I-Adapter": ({"body.0.block1.weight": torch.zeros(1)}, "is a T2I-Adapter, which is not supported"),
    "a Control-LoRA": ({"lora_controlnet": torch.zeros(1)}, "is a Control-LoRA, which is not supported"),
    "an IP-Adapter": ({"image_proj.proj.weight": torch.zeros(1)}, "is an IP-Adapter: give it as adapter"),
    "a UNet": ({"conv_in.weight": torch.zeros(1), "up_blocks.0.x": torch.zeros(1)}, "is a UNet"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_controlnet_is_said_to_be_what_it_is(what: str, tmp_path: Path) -> None:
    tensors, said = WRONG[what]
    save_file(tensors, tmp_path / "file.safetensors")
    with pytest.raises(WeightsError, match=said):
        load_control(tmp_path / "file.safetensors", FAMILIES["sdxl"])


def test_damage_is_told(tmp_path: Path) -> None:
    family, file = tiny_models.model("sdxl").family, tmp_path / "file.safetensors"

    def refused(change: dict[str, Tensor | None]) -> str:
        tensors = {k: v for k, v in {**_tensors(), **change}.items() if v is not None}
        save_file(tensors, file)
        with pytest.raises(WeightsError) as error:
            load_control(file, family)
        return str(error.value)

    assert "missing (conv_in.bias)" in refused({"conv_in.bias": None})
    assert "not known (surplus)" in refused({"surplus": torch.zeros(1)})
    assert "conv_in.bias in" in refused({"conv_in.bias": torch.full((16,), torch.nan)})
    assert "ControlNet-Union" in refused({"task_embedding": torch.zeros(6, 16)})
    save_file(_tensors(), file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="truncated"):
        load_control(file, family)
    with pytest.raises(WeightsError, match=r"there is no ControlNet at '\./nowhere': give a folder"):
        load_control("./nowhere", family)
    with pytest.raises(WeightsError, match=r"there is no ControlNet at 'canny\.safetensors'"):
        load_control("canny.safetensors", family)


def test_another_models_controlnet_is_refused_by_load(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is for another UNet: it has text tokens of width 32 where this model"):
        load_control(tiny_models.controlnet("sd15"), FAMILIES["sdxl"])


def test_a_models_folder_may_hold_its_own(tmp_path: Path) -> None:
    family = tiny_models.model("emoji").family
    shutil.copytree(tiny_models.controlnet("emoji"), tmp_path / "controlnet_soft_edge")
    (tmp_path / "controlnet_notes").mkdir()
    own = load_controls({}, tmp_path, family, torch.float32, CPU)
    assert {kind: net.spec for kind, net in own.items()} == {"soft-edge": None}
    given = load_controls({"soft-edge": tiny_models.controlnet("emoji", seed=2)}, tmp_path, family, torch.float32, CPU)
    assert given["soft-edge"].spec == str(tiny_models.controlnet("emoji", seed=2))
    assert not torch.equal(own["soft-edge"].net.conv_in.weight, given["soft-edge"].net.conv_in.weight)


def test_half_precision_files_and_configurations(tmp_path: Path) -> None:
    """`.fp16.safetensors` alone in a folder; and numbers that only the configuration knows are believed."""
    half = {name: tensor.half() for name, tensor in _tensors().items()}
    save_file(half, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    config = json.loads((tiny_models.controlnet("sdxl") / "config.json").read_text())
    config |= {"global_pool_conditions": True, "controlnet_conditioning_channel_order": "bgr"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    net = load_control(tmp_path, tiny_models.model("sdxl").family, dtype=torch.bfloat16).net
    assert net.config.global_pool_conditions
    assert {tensor.dtype for tensor in net.state_dict().values()} == {torch.bfloat16}
    torch.testing.assert_close(net.conv_in.weight.float(), _tensors()["conv_in.weight"], atol=0.02, rtol=0.02)

    """The networks above could not be told apart if they were all zeros where a ControlNet begins with zeros."""
    assert float(_tensors()["controlnet_mid_block.weight"].abs().max()) > 0.1
