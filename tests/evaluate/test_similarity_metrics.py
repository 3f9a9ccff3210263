"""Similarity metrics against the libraries' own forward, and CSD against a small CLIP encoder written down here."""

import argparse
import csv
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import tiny_models
from cli_runner import Command, command_runner
from instantstyle.errors import WeightsError
from instantstyle.evaluate.csd import load_csd
from instantstyle.evaluate.similarity_metrics import (
    HashedImage,
    SimilarityTask,
    load_clip,
    load_dino,
    measure_similarity,
)
from tiny_models import safetensors, transformers

SIDE, PATCH = 32, 8
CPU = torch.device("cpu")
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
PLACE = {"image_size": SIDE, "patch_size": PATCH}


def _preprocessing(folder: Path, kind: str, **more: object) -> None:
    config = {"image_processor_type": kind, "do_resize": True, "do_rescale": True, "do_normalize": True, **more}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))


def _clip(folder: Path) -> Any:
    tokens = tiny_models.tokenizer(16)
    special = {"bos_token_id": tokens.bos_token_id, "eos_token_id": tokens.eos_token_id}
    text = {**SMALL, "vocab_size": len(tokens), "max_position_embeddings": 16, **special}
    config = transformers.CLIPConfig(text_config=text, vision_config={**SMALL, **PLACE}, projection_dim=24)
    net = transformers.CLIPModel(config).eval()
    net.save_pretrained(folder)
    tokens.save_pretrained(folder)
    square = {"height": SIDE, "width": SIDE}
    _preprocessing(folder, "CLIPImageProcessor", size={"shortest_edge": SIDE}, do_center_crop=True, crop_size=square)
    return net


def _dino(folder: Path, kind: str) -> Any:
    config, cls, more = {
        "vit": ("ViTConfig", "ViTModel", {"add_pooling_layer": False}),
        "dinov2": ("Dinov2Config", "Dinov2Model", {}),
        "dinov2_with_registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", {}),
        "dinov3_vit": ("DINOv3ViTConfig", "DINOv3ViTModel", {}),
    }[kind]
    net = getattr(transformers, cls)(getattr(transformers, config)(**SMALL, **PLACE), **more).eval()
    net.save_pretrained(folder)
    # As DINO's folders have it: squashed, bilinear, ImageNet's numbers.
    colours = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 2}
    _preprocessing(folder, "ViTImageProcessor", size={"height": SIDE, "width": SIDE}, **colours)
    return net


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, 4 * width), gelu=_QuickGELU(), c_proj=nn.Linear(4 * width, width))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class _QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class _Blocks(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(_Block(width) for _ in range(layers)))


class _Tower(nn.Module):
    """CLIP's visual tower without projection (arXiv 2103.00020), under OpenAI's names."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((SIDE // PATCH) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = _Blocks(width, layers)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.conv1(pixels).flatten(2).permute(2, 0, 1)  # [positions, n, width]: not the batch first
        first = self.class_embedding.expand(1, patches.shape[1], -1)
        x = self.ln_pre(torch.cat([first, patches]) + self.positional_embedding[:, None])
        return self.ln_post(self.transformer.resblocks(x)[0])


class _Csd(nn.Module):
    def __init__(self, width: int = 128, layers: int = 2) -> None:
        super().__init__()
        self.backbone = _Tower(width, layers)
        self.last_layer_style = nn.Parameter(torch.randn(width, 96))
        self.last_layer_content = nn.Parameter(torch.randn(width, 96))
        for name, tensor in self.named_parameters():  # pictures, norms and biases are told apart too
            if "ln_" in name or name.endswith("bias"):
                tensor.data += 0.3 * torch.randn_like(tensor)
            elif "resblocks" in name or "conv1" in name:
                tensor.data *= 3
            elif "embedding" in name:
                tensor.data *= 0.3

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(pixels)
        return features @ self.last_layer_style, features @ self.last_layer_content


def _checkpoint(net: nn.Module) -> dict[str, Any]:
    """As the training script of CSD saves it: from several GPUs, with its optimiser and its arguments."""
    arguments = argparse.Namespace(arch="vit_large", lr=np.float64(0.003), seed=4, eval_k=[1, 10], resume=None)
    state = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1).state_dict()
    return {"model_state_dict": state, "opt_bb": optimiser, "iter": 80000, "args": arguments}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A folder of random weights of every kind, and the networks that were saved there."""
    torch.manual_seed(3)  # pyright: ignore[reportUnknownMemberType]
    folder = tmp_path_factory.mktemp("weights")
    csd = _Csd().eval()
    torch.save(_checkpoint(csd), folder / "csd.pth")
    safetensors.save_file(csd.state_dict(), folder / "csd.safetensors")
    return {"folder": folder, "clip": _clip(folder / "clip"), "dino": _dino(folder / "dino", "vit"), "csd": csd}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three pictures of three shapes, and a copy of the reference as another file."""
    folder = tmp_path_factory.mktemp("pictures")
    sizes = {"drawn": (48, 48), "reference": (70, 40), "truth": (33, 60)}
    for seed, (name, size) in enumerate(sizes.items()):
        tiny_models.picture(seed).resize(size, Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    Image.open(folder / "reference.png").save(folder / "copy.bmp")
    return {path.stem: path for path in folder.iterdir()}


def _similarity_task(shown: dict[str, Path], name: str = "drawn", prompt: str | None = None) -> SimilarityTask:
    return SimilarityTask(
        HashedImage.of(shown[name]), prompt, HashedImage.of(shown["reference"]), HashedImage.of(shown["truth"])
    )


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(nn.functional.cosine_similarity(a.double(), b.double(), dim=-1))


def _images(shown: dict[str, Path]) -> list[Image.Image]:
    return [Image.open(shown[name]).convert("RGB") for name in ("drawn", "reference", "truth")]


@torch.no_grad()
def test_clip_is_what_transformers_own_forward_gives(weights: dict[str, Any], shown: dict[str, Path]) -> None:
    folder: Path = weights["folder"] / "clip"
    prompts = ["a cat", "a red house in the dog"]
    drawn = [_similarity_task(shown, prompt=prompts[0]), _similarity_task(shown, "truth", prompts[1])]
    columns = measure_similarity([load_clip(folder, CPU)], drawn)
    # Each picture and text by itself, in the network as it was before it was saved, by logits and embeddings.
    processor = transformers.CLIPImageProcessorPil.from_pretrained(folder)
    tokenizer = tiny_models.tokenizer(16)
    eyes = [processor(images=image, return_tensors="pt") for image in _images(shown)]
    outs = [
        weights["clip"](**pixels, **tokenizer(prompts[i % 2], return_tensors="pt")) for i, pixels in enumerate(eyes)
    ]
    scale = float(weights["clip"].logit_scale.exp())
    truth_of_second = weights["clip"](**eyes[2], **tokenizer(prompts[1], return_tensors="pt"))
    assert list(columns) == ["CLIP-T", "CLIP-I to reference", "CLIP-I to truth"]
    assert columns["CLIP-T"] == pytest.approx(
        [float(out.logits_per_image) / scale for out in (outs[0], truth_of_second)], abs=1e-5
    )
    a, b, c = (out.image_embeds for out in outs)
    assert columns["CLIP-I to reference"] == pytest.approx([_cosine(a, b), _cosine(c, b)], abs=1e-5)
    assert columns["CLIP-I to truth"] == pytest.approx([_cosine(a, c), 1], abs=1e-5)
    assert len({round(value, 3) for column in columns.values() for value in column}) >= 4, "they can be told apart"


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vit", "dinov2", "dinov2_with_registers", "dinov3_vit"])
def test_dino_is_the_class_token_of_each_kind(kind: str, shown: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(5)  # pyright: ignore[reportUnknownMemberType]
    net = _dino(tmp_path, kind)
    columns = measure_similarity([load_dino(tmp_path, CPU)], [_similarity_task(shown)])
    # The preprocessing by hand: squashed, bilinear, ImageNet's numbers.
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    small = [image.resize((SIDE, SIDE), Image.Resampling.BILINEAR) for image in _images(shown)]
    pixels = torch.stack([torch.tensor(np.asarray(each)).permute(2, 0, 1) / 255 for each in small])
    a, b, c = net((pixels - mean) / std).last_hidden_state[:, 0]
    assert list(columns) == ["DINO to reference", "DINO to truth"]
    assert [float(x[0]) for x in columns.values()] == pytest.approx([_cosine(a, b), _cosine(a, c)], abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("file", ["csd.pth", "csd.safetensors"])
def test_csd_is_clips_tower_with_two_heads(weights: dict[str, Any], shown: dict[str, Path], file: str) -> None:
    columns = measure_similarity([load_csd(weights["folder"] / file, CPU)], [_similarity_task(shown)])
    # Resize's short side bicubic, the middle cut out, CLIP's numbers.
    pixels: list[Tensor] = []
    for image in _images(shown):
        scale = SIDE / min(image.size)
        width, height = (int(side * scale) for side in image.size)
        left, top = (width - SIDE) // 2, (height - SIDE) // 2
        cut = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + SIDE, top + SIDE))
        pixels.append(torch.tensor(np.asarray(cut)).permute(2, 0, 1) / 255)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    style, content = weights["csd"]((torch.stack(pixels) - mean) / std)
    expected = {
        f"CSD {name} to {whose}": _cosine(vectors[0], vectors[at])
        for name, vectors in (("style", style), ("content", content))
        for at, whose in ((1, "reference"), (2, "truth"))
    }
    assert {name: float(column[0]) for name, column in columns.items()} == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 3) for value in expected.values()}) == 4, "they can be told apart"


def test_a_copy_of_the_reference_scores_exactly_1(weights: dict[str, Any], shown: dict[str, Path]) -> None:
    folder: Path = weights["folder"]
    sights = [load_clip(folder / "clip", CPU), load_dino(folder / "dino", CPU), load_csd(folder / "csd.pth", CPU)]
    ticks: list[tuple[int, int]] = []
    tasks = [_similarity_task(shown, "copy"), _similarity_task(shown)]
    columns = measure_similarity(sights, tasks, lambda done, of: ticks.append((done, of)))
    to_reference = {name: column for name, column in columns.items() if name.endswith("to reference")}
    assert len(to_reference) == 4
    assert all(copied == 1 > drawn for copied, drawn in to_reference.values()), "one copied, one drawn"
    assert ticks[-1] == (9, 9), "three networks, three different pictures: the copy is not looked at again"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """The command line in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return command_runner(monkeypatch, capsys)


def test_the_command_reads_prompts_and_writes_tables(
    command: Command, weights: dict[str, Any], shown: dict[str, Path]
) -> None:
    folder: Path = weights["folder"]
    small = tiny_models.folder("emoji")
    drawn = command("generate", "a cat", "--model", small, "--steps", "1", "--out", "cat.png")
    assert drawn.code == 0, drawn.err
    flags = ("--clip", folder / "clip", "--csd", folder / "csd.pth", "--device", "cpu")
    table = ("cat.png", shown["drawn"], "--reference", shown["reference"])
    done = command("similarity", *table, *flags, "--out", "table.csv")
    assert done.code == 0, done.err
    assert "does not say how it was made" in done.err
    assert "reward copied content" in done.err
    lines = done.out.splitlines()
    assert lines[0] == "| picture | CLIP-T | CLIP-I to reference | CSD style to reference | CSD content to reference |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| cat.png", f"| {shown['drawn']}", "| mean"]
    rows = list(csv.DictReader(Path("table.csv").read_text().splitlines()))
    given = command("similarity", "cat.png", "--prompt", "a cat", *flags[:2], "--device", "cpu", "--out", "table.md")
    assert [row["CLIP-T"] for row in rows][1] == ""
    assert f"| cat.png | {float(rows[0]['CLIP-T']):.3f} |" in given.out
    assert Path("table.md").read_text().startswith(given.out)
    each = ("--truth", shown["truth"], "--truth", shown["drawn"], "--csd", folder / "csd.safetensors")
    assert "| 1.000 | 1.000 |" in command("similarity", "cat.png", shown["drawn"], *each, "--device", "cpu").out


def _without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


def _with(name: str, make: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {**state, name: make(state[name])}


def _and(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {**state, name: torch.zeros(128, 96)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("last_layer_style"), "is no CSD: it lacks last_layer_style"),
        (_without("backbone.ln_pre.bias"), "pre_layrnorm.bias"),
        (_with("backbone.ln_post.bias", lambda x: x * float("nan")), "NaN or infinity"),
        (_with("last_layer_content", lambda x: x[:64].clone()), "of wrong shape"),
        (_with("last_layer_content", lambda x: 0 * x), "no direction"),
        (_with("backbone.conv1.weight", lambda x: x[:100].clone()), "not as wide"),
        (_with("backbone.positional_embedding", lambda x: x[:12].clone()), "position_embedding"),
        (_and("backbone.proj"), "1 not known"),
    ],
)
def test_what_is_no_csd_is_a_sentence(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    message: str,
    weights: dict[str, Any],
    shown: dict[str, Path],
    tmp_path: Path,
) -> None:
    safetensors.save_file(change(weights["csd"].state_dict()), tmp_path / "csd.safetensors")
    with pytest.raises(WeightsError, match=message):
        measure_similarity([load_csd(tmp_path / "csd.safetensors", CPU)], [_similarity_task(shown)])


class _Evil:
    def __reduce__(self) -> Any:
        return print, ("run",)


def test_a_checkpoint_that_could_run_code_is_refused(
    weights: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({**_checkpoint(weights["csd"]), "extra": _Evil()}, tmp_path / "csd.pth")
    with pytest.raises(WeightsError, match="could run code"):
        load_csd(tmp_path / "csd.pth", CPU)
    assert capsys.readouterr().out == ""


def test_damaged_folders_are_sentences(weights: dict[str, Any], shown: dict[str, Path], tmp_path: Path) -> None:
    nan, net = tmp_path / "nan", _dino(tmp_path / "dino", "dinov2")
    net.layernorm.bias.data[3] = float("nan")
    net.save_pretrained(nan)
    with pytest.raises(WeightsError, match=r"no nan/preprocessor_config\.json"):
        load_dino(nan, CPU)
    _preprocessing(nan, "ViTImageProcessor", size={"height": SIDE, "width": SIDE})
    with pytest.raises(WeightsError, match=r"layernorm\.bias .* NaN or infinity"):
        load_dino(nan, CPU)
    with pytest.raises(WeightsError, match="of the kind 'dinov2', not clip"):
        load_clip(nan, CPU)
    with pytest.raises(WeightsError, match="of the kind 'clip', not vit or dinov2"):
        load_dino(weights["folder"] / "clip", CPU)
    _dino(tmp_path / "vit", "vit")
    _preprocessing(tmp_path / "vit", "ViTImageProcessor", size={"height": 40, "width": 40})
    with pytest.raises(WeightsError, match="does not take what its preprocessing gives"):
        measure_similarity([load_dino(tmp_path / "vit", CPU)], [_similarity_task(shown)])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("drawn",), 2, "give --clip FOLDER, --dino FOLDER or --csd FILE"),
        (("drawn", "--dino", "x", "--prompt", "a cat"), 2, "give --prompt, --reference or --truth"),
        (("drawn", "--clip", "x"), 2, "nothing to compare with"),
        (("drawn", "--clip", "x", "--prompt", "a cat"), 1, "there is no folder 'x'"),
        (("drawn", "--csd", "x.pth", "--reference", "drawn"), 1, "there is no weight file at x.pth"),
        (("drawn", "--csd", "drawn", "--reference", "drawn"), 1, "no weight file at all"),
        (("none.png", "--dino", "x", "--reference", "drawn"), 2, "there is no picture at"),
        (("drawn", "--dino", "x", "--truth", "none.png"), 2, "there is no picture at"),
        (("drawn", "--dino", "x", "--reference", "drawn", "--reference", "drawn"), 2, "1 pictures and 2 --reference"),
        (("drawn", "--dino", "x", "--reference", "drawn", "--out", "a.txt"), 2, "a .csv or .md file"),
        (("drawn", "--dino", "x", "--reference", "drawn", "--out", "no/a.md"), 1, "there is no folder 'no'"),
        (("drawn", "--dino", "x", "--reference", "drawn", "--device", "gpu9"), 2, "there is no device"),
    ],
)
def test_bad_input_is_a_sentence(
    command: Command, shown: dict[str, Path], arguments: tuple[str, ...], code: int, message: str
) -> None:
    ended = command("similarity", *(shown.get(each, each) for each in arguments))
    assert ended.code == code, ended.err
    assert f"error: {message}" in ended.err or message in ended.err.rpartition("error: ")[2]
    assert not list(Path.cwd().iterdir())
