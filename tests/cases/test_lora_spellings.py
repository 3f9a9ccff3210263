"""Spellings of plain LoRAs: each is read as what it is, and what is no plain LoRA is called by its name."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

import tiny_models
from instantstyle.errors import InputError, WeightsError
from instantstyle.loading import load
from instantstyle.weights.lora import parse_lora, read_lora

KOHYA = ("lora_down.weight", "lora_up.weight")
PEFT = ("lora_A.weight", "lora_B.weight")
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0"


def networks(family: str) -> dict[str, Any]:
    model = tiny_models.model(family)
    return {part: net for part, net in model.networks.items() if part in ("unet", "text_encoder", "text_encoder_2")}


def write(path: Path, family: str, names: dict[str, tuple[str, str]], halves: tuple[str, str] = KOHYA) -> Path:
    """A LoRA of rank 2 under given names, for modules (network, name) of a small model."""
    tensors: dict[str, torch.Tensor] = {}
    for name, (part, module) in names.items():
        weight = networks(family)[part].get_parameter(f"{module}.weight")
        tensors[f"{name}.{halves[0]}"] = torch.randn(2, *weight.shape[1:])
        tensors[f"{name}.{halves[1]}"] = torch.randn(len(weight), 2, *(1,) * (weight.ndim - 2))
    save_file(tensors, path / "lora.safetensors")
    return path / "lora.safetensors"


UNET = {
    "add_embedding.linear_1": "label_emb.0.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "mid_block.attentions.0.proj_in": "middle_block.1.proj_in",
    "mid_block.resnets.1.conv1": "middle_block.2.in_layers.2",
    "down_blocks.0.resnets.1.conv2": "input_blocks.2.0.out_layers.3",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
    f"{ATTENTION}.attn1.to_out.0": "input_blocks.4.1.transformer_blocks.0.attn1.to_out.0",
    f"{ATTENTION}.ff.net.0.proj": "input_blocks.4.1.transformer_blocks.0.ff.net.0.proj",
    "up_blocks.1.attentions.2.proj_out": "output_blocks.5.1.proj_out",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
    "up_blocks.2.resnets.0.conv_shortcut": "output_blocks.6.0.skip_connection",
}
"""Modules of SDXL's UNet by diffusers' names, and by the original ones."""
PREFIXES = (
    "unet.",
    "unet.base_model.model.",
    "base_model.model.unet.",
    "lora_unet_",
    "lycoris_",
    "diffusion_model.",
    "model.diffusion_model.",
    "",
)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("halves", [KOHYA, PEFT, ("lora_A.default.weight", "lora_B.default.weight")])
@pytest.mark.parametrize("original", [False, True])
def test_prefixes_blocks_and_halves_in_any_combination(
    prefix: str, halves: tuple[str, str], original: bool, tmp_path: Path
) -> None:
    flat = prefix.endswith("_")
    spelt = {f"{prefix}{name.replace('.', '_') if flat else name}": module for module, name in _names(original)}
    path = write(tmp_path, "sdxl", {name: ("unet", module) for name, module in spelt.items()}, halves)
    read = read_lora(path, networks("sdxl"), tiny_models.model("sdxl").family.unet)
    assert set(read) == {"unet"}
    assert set(read["unet"]) == {f"{module}.weight" for module in UNET}


def _names(original: bool) -> list[tuple[str, str]]:
    return [(module, name if original else module) for module, name in UNET.items()]


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("lora_unet_output_blocks_2_1_conv", "up_blocks.0.upsamplers.0.conv"),  # no attention in this block
        ("lora_unet_output_blocks_5_2_conv", "up_blocks.1.upsamplers.0.conv"),
        ("lora_unet_input_blocks_9_0_op", "down_blocks.2.downsamplers.0.conv"),
        ("unet.output_blocks.11.1.proj_in", "up_blocks.3.attentions.2.proj_in"),
        ("lora_unet_middle_block_1_proj_out", "mid_block.attentions.0.proj_out"),
    ],
)
def test_original_names_of_sd15(name: str, module: str, tmp_path: Path) -> None:
    path = write(tmp_path, "sd15", {name: ("unet", module)})
    assert list(read_lora(path, networks("sd15"), tiny_models.model("sd15").family.unet)["unet"]) == [
        f"{module}.weight"
    ]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", "text_encoder"),
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", "text_encoder"),
        ("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", "text_encoder_2"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", "text_encoder"),
        ("text_encoder_2.encoder.layers.0.self_attn.to_q", "text_encoder_2"),
        ("text_encoder.base_model.model.text_model.encoder.layers.0.self_attn.q_proj", "text_encoder"),
        ("base_model.model.text_model.encoder.layers.0.self_attn.q_proj", "text_encoder"),
    ],
)
def test_text_encoders(name: str, part: str, tmp_path: Path) -> None:
    module = next(n for n, _ in networks("sdxl")[part].named_modules() if n.endswith("layers.0.self_attn.q_proj"))
    path = write(tmp_path, "sdxl", {name: (part, module)})
    read = read_lora(path, networks("sdxl"), tiny_models.model("sdxl").family.unet)
    assert {p: list(factors) for p, factors in read.items()} == {part: [f"{module}.weight"]}


def test_alphas_go_with_their_matrices(tmp_path: Path) -> None:
    tensors = {"unet.mid_block.attentions.0.proj_in.alpha": torch.tensor(8.0)}
    for half, shape in zip(("lora_down", "lora_up"), ((2, 64), (64, 2)), strict=True):
        width = networks("sdxl")["unet"].get_parameter("mid_block.attentions.0.proj_in.weight").shape[0]
        tensors[f"unet.mid_block.attentions.0.proj_in.{half}.weight"] = torch.ones(
            *(width if side == 64 else side for side in shape)
        )
    save_file(tensors, tmp_path / "lora.safetensors")
    read = read_lora(tmp_path / "lora.safetensors", networks("sdxl"), tiny_models.model("sdxl").family.unet)
    assert read["unet"]["mid_block.attentions.0.proj_in.weight"].scale == 4


X = "lora_unet_mid_block_attentions_0_proj_in"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((f"{X}.lora_down.weight", f"{X}.lora_up.weight", f"{X}.dora_scale"), "DoRA"),
        ((f"{X}.lora_A.weight", f"{X}.lora_B.weight", f"{X}.lora_magnitude_vector.weight"), "DoRA"),
        ((f"{X}.hada_w1_a", f"{X}.hada_w1_b"), "LoHa"),
        ((f"{X}.lokr_w1", f"{X}.lokr_w2"), "LoKr"),
        ((f"{X}.lora_down.weight", f"{X}.lora_mid.weight", f"{X}.lora_up.weight"), "Tucker"),
        ((f"{X}.oft_blocks",), "OFT"),
        ((f"{X}.a1.weight", f"{X}.b1.weight"), "GLoRA"),
        ((f"{X}.weight", f"{X}.on_input"), "IA3"),
        ((f"{X}.diff",), "full difference"),
        ((f"{X}.w_norm", f"{X}.b_norm"), "norms"),
        ((f"{X}.lora_down.weight", "bundle_emb.ink.string_to_param.*"), "textual inversion"),
        ((f"{X}.lora_B.bias", f"{X}.lora_B.weight"), "biases"),
        ((f"{X}.alpha",), "without its other half"),
        ((f"{X}.lora_down.weight", "unet.mid_block.attentions.0.proj_in.lora_A.weight"), "says twice"),
        (("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight",), "diffusion transformer"),
        (("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight",), "diffusion transformer"),
        (("diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight",), "diffusion transformer"),
        (("lora_unet_mid_block_attentions_0_proj_inn.lora_down.weight",), "did you mean"),
        (("unet.mid_block.attentions.0.transformer_blocks.9.attn1.to_q.lora_A.weight",), "of family sdxl"),
    ],
)
def test_what_it_is_instead(names: tuple[str, ...], message: str, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({name: torch.zeros(2, 2) if not name.endswith("alpha") else torch.tensor(1.0) for name in names}, path)
    with pytest.raises(WeightsError, match=message) as refusal:
        read_lora(path, networks("sdxl"), tiny_models.model("sdxl").family.unet)
    assert message == "of family sdxl" or "family sdxl" not in str(refusal.value)


def test_one_part_of_a_b_lora(tmp_path: Path) -> None:
    """SDXL's two blocks, arXiv 2403.14572: `FILE:style` and `FILE:content` together are the whole file."""
    blocks = {"content": "up_blocks.0.attentions.0", "style": "up_blocks.0.attentions.1"}
    modules = [f"{block}.transformer_blocks.0.attn1.to_q" for block in blocks.values()]
    path = write(tmp_path, "sdxl", {f"unet.{module}": ("unet", module) for module in modules}, PEFT)
    bare = tiny_models.model("sdxl").unet
    whole = load(tiny_models.folder("sdxl"), loras=[(path, 0.5)]).unet
    for part, other in itertools.permutations(blocks):
        model = load(tiny_models.folder("sdxl"), loras=[parse_lora(f"{path}:0.5:{part}")])
        assert model.loras == ((f"{path}:{part}", 0.5),)
        for name in (f"{module}.weight" for module in modules):
            expected = whole if name.startswith(blocks[part]) else bare
            assert torch.equal(model.unet.get_parameter(name), expected.get_parameter(name))
        assert blocks[other] != blocks[part]


def test_a_part_that_the_file_does_not_have(tmp_path: Path) -> None:
    module = "up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q"
    path = write(tmp_path, "sdxl", {f"unet.{module}": ("unet", module)}, PEFT)
    with pytest.raises(WeightsError, match=r"no content part: it changes up\.0\.1, and the content .* is in up\.0\.0"):
        load(tiny_models.folder("sdxl"), loras=[(f"{path}:content", 1.0)])
    with pytest.raises(InputError, match="no part 'styl' \\(did you mean 'style'"):
        parse_lora(f"{path}:0.5:styl")
    with pytest.raises(InputError, match="no part 'styl'"):
        parse_lora(f"{path}:styl")
