"""A training that begins where a model is: with its weights, its count of steps, and silence where it never spoke."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

from instantstyle.blocks import parse_block_plan
from instantstyle.families import EMOJI
from instantstyle.train.emoji.warm_start import provenance, warm_start
from instantstyle.weights.adapter import extract_blocks, load_adapter

SHIPPED = Path(__file__).resolve().parents[2] / "src/instantstyle/assets/emoji"


def test_what_a_model_was_trained_for_is_counted_on(tmp_path: Path) -> None:
    warm_start(tmp_path / "training", SHIPPED, 1)
    what, ran = provenance(tmp_path / "training")
    assert "whose steps are counted here" in what
    row = next(line for line in (SHIPPED / "README.md").read_text("utf-8").splitlines() if line.startswith("| joint |"))
    steps, hours = ran["joint"][0], ran["joint"][1] / 3600
    assert row == f"| joint | {steps:,} | {hours:.2f} |"
    assert provenance(tmp_path) == ("nothing", {})


def test_every_network_of_the_model_is_where_a_stage_begins(tmp_path: Path) -> None:
    warm_start(tmp_path, SHIPPED, 1)
    for stage, file, mark in (
        ("unet", "unet/diffusion_pytorch_model", ""),
        ("joint", "unet/diffusion_pytorch_model", "unet."),
        ("control", "controlnet_canny/diffusion_pytorch_model", ""),
        ("vae", "vae/diffusion_pytorch_model", ""),
        ("clip", "image_encoder/model", "image."),
        ("text", "text_encoder_2/model", "text_2."),
    ):
        state = torch.load(tmp_path / f"{stage}.pt", weights_only=True)["net"]
        shipped = load_file(SHIPPED / f"{file}.safetensors")
        shared = {name for name in shipped if f"{mark}{name}" in state}
        assert len(shared) > len(shipped) / 3, stage
        assert all(torch.equal(state[f"{mark}{name}"], shipped[name].float()) for name in shared), stage


def test_an_adapter_of_fewer_blocks_is_silent_at_the_others(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(SHIPPED, model)
    there = EMOJI.presets["style"]
    extract_blocks(
        SHIPPED / "ip_adapter_style.safetensors",
        tmp_path / "one.safetensors",
        parse_block_plan("up.1.2=1", EMOJI.unet, EMOJI.presets),
        EMOJI.unet,
    )
    shutil.copy(tmp_path / "one.safetensors", model / "ip_adapter_style.safetensors")
    warm_start(tmp_path / "training", model, 1)
    state = torch.load(tmp_path / "training/joint.pt", weights_only=True)["net"]
    one = load_adapter(tmp_path / "one.safetensors", EMOJI.unet)
    sites = [site for site in EMOJI.unet.sites if site.kind == "cross" and there.scale(site)]
    assert len(sites) > len(one.values) == 1
    for number, site in enumerate(sites):
        spoken = one.values[site].float() if site in one.values else torch.zeros(())
        assert torch.equal(state[f"style.values.{number}"], spoken.expand_as(state[f"style.values.{number}"]))
        assert state[f"style.keys.{number}"].any()
