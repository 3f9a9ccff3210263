"""Adapter files: both formats, parts of them, and every way they can be wrong, each told in a sentence."""

import os
import pickle
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from instantstyle.blocks import BlockPlan
from instantstyle.errors import OutputError, WeightsError
from instantstyle.families import SD15, SDXL
from instantstyle.networks.unet import UNet
from instantstyle.weights import tensor_files
from instantstyle.weights.adapter import Adapter, load_adapter, save_adapter
from oracle.adapters import EMBED_DIM, random_adapter, random_plus
from oracle.paired_unets import TINY_SD15, TINY_SDXL

STYLE = SDXL.presets["style"]
STYLE_NUMBERS = list(range(69, 88, 2))
"""Of SDXL's style block in published files (tests/oracle holds the numbering to diffusers')."""


def _nested(flat: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """As published in .bin files."""
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in flat.items():
        part, inner = name.split(".", 1)
        parts[part][inner] = tensor
    return parts


def _equal(a: Adapter, b: Adapter) -> bool:
    pairs = (a.projection.state_dict(), b.projection.state_dict()), (a.keys, b.keys), (a.values, b.values)
    states = [({str(name): t for name, t in x.items()}, {str(name): t for name, t in y.items()}) for x, y in pairs]
    return all(x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x) for x, y in states)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A whole SDXL adapter's file."""
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, random_adapter(TINY_SDXL), TINY_SDXL)
    return path


@pytest.fixture
def flat(written: Path) -> dict[str, Tensor]:
    """What is in it."""
    return load_file(written)


@pytest.mark.parametrize("make", [random_adapter, random_plus])
def test_a_file_gives_back_what_was_saved(make: Callable[..., Adapter], tmp_path: Path) -> None:
    saved, path = make(TINY_SDXL), tmp_path / "adapter.safetensors"
    save_adapter(path, saved, TINY_SDXL)
    loaded = load_adapter(path, TINY_SDXL)
    assert _equal(saved, loaded)
    assert (loaded.embed_dim, loaded.token_count, loaded.is_plus) == (EMBED_DIM, saved.token_count, make is random_plus)
    assert not any(p.requires_grad for p in loaded.projection.parameters())
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_names_and_shapes_are_published(flat: dict[str, Tensor]) -> None:
    layers = {f"ip_adapter.{n}.to_{kind}_ip.weight" for n in range(1, 140, 2) for kind in "kv"}
    projection = {f"image_proj.{name}" for name in ("proj.weight", "proj.bias", "norm.weight", "norm.bias")}
    assert set(flat) == layers | projection
    assert flat["ip_adapter.1.to_k_ip.weight"].shape == (64, 48)
    assert flat["ip_adapter.69.to_v_ip.weight"].shape == (96, 48)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_nested_pickle_is_the_same_adapter(zipped: bool, flat: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "adapter.bin"
    torch.save(_nested(flat), path, _use_new_zipfile_serialization=zipped)
    assert _equal(load_adapter(path, TINY_SDXL), random_adapter(TINY_SDXL))


def test_the_format_is_told_by_content_not_by_name(written: Path) -> None:
    renamed = written.rename(written.with_suffix(".bin"))
    assert _equal(load_adapter(renamed, TINY_SDXL), random_adapter(TINY_SDXL))


def test_only_what_the_plan_names_is_read(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    @contextmanager
    def counting(*args: Any, **kwargs: Any) -> Any:
        opened: Any = safe_open(*args, **kwargs)
        with opened as handle:

            def get_tensor(name: str) -> Tensor:
                read.append(name)
                return handle.get_tensor(name)

            yield SimpleNamespace(
                keys=handle.keys, get_slice=handle.get_slice, get_tensor=get_tensor, metadata=handle.metadata
            )

    monkeypatch.setattr(tensor_files, "safe_open", counting)
    adapter = load_adapter(written, TINY_SDXL, plan=STYLE)
    assert {name for name in read if name.startswith("ip_adapter")} == {
        f"ip_adapter.{n}.to_{kind}_ip.weight" for n in STYLE_NUMBERS for kind in "kv"
    }
    assert len(read) == 2 * len(STYLE_NUMBERS) + 4
    assert {site.module for site in adapter.keys} == {site.module for site in adapter.values} == {"up.0.1"}


def test_precise_reads_the_block_it_pushes_away_from(written: Path) -> None:
    adapter = load_adapter(written, TINY_SDXL, plan=SDXL.presets["precise"])
    assert {site.module for site in adapter.keys} == {"up.0.1", "down.2.1"}


def test_a_style_only_file_serves_style_and_nothing_else(written: Path) -> None:
    small = written.with_name("style.safetensors")
    save_adapter(small, load_adapter(written, TINY_SDXL, plan=STYLE), TINY_SDXL)
    adapter = load_adapter(small, TINY_SDXL)
    assert list(adapter.keys) == [TINY_SDXL.sites[n] for n in STYLE_NUMBERS]
    tokens = adapter.image_tokens(torch.ones(1, EMBED_DIM))
    assert list(adapter.project_kv(tokens, STYLE, TINY_SDXL)) == list(adapter.keys)
    sentence = r"the plan speaks at down\.2\.1, which the adapter.* has no weights for: it has up\.0\.1"
    both = SDXL.presets["style+layout"]
    with pytest.raises(WeightsError, match=sentence):
        load_adapter(small, TINY_SDXL, plan=both)
    with pytest.raises(WeightsError, match=sentence):
        adapter.project_kv(tokens, both, TINY_SDXL)


def test_reading_projects_tokens_where_the_plan_is_not_zero() -> None:
    adapter, plan = random_adapter(TINY_SDXL), BlockPlan({"up.0": 0.0, "mid": -0.5}, negative={"down.1.0": 1.0})
    tokens = adapter.image_tokens(torch.randn(3, EMBED_DIM, generator=torch.Generator().manual_seed(1)))
    assert tokens.shape == (3, 4, 48)
    read = adapter.project_kv(tokens, plan, TINY_SDXL)
    assert {site.module for site in read} == {"mid", "down.1.0"}
    for site, (keys, values) in read.items():
        heads = 3 if site.module == "mid" else 2
        assert keys.shape == values.shape == (3, heads, 4, 32)
        torch.testing.assert_close(keys.transpose(1, 2).flatten(2), tokens @ adapter.keys[site].T)
        torch.testing.assert_close(values.transpose(1, 2).flatten(2), tokens @ adapter.values[site].T)


def test_image_keys_fit_the_text_keys_of_the_unet() -> None:
    for config in (TINY_SDXL, TINY_SD15):
        adapter = random_adapter(config)
        image = adapter.project_kv(adapter.image_tokens(torch.ones(2, EMBED_DIM)), BlockPlan({"all": 1.0}), config)
        text = UNet(config).precompute_kv(torch.ones(2, 4, config.cross_attention_dim))
        assert list(image) == list(text)
        assert all(image[site][0].shape == text[site][0].shape for site in text)


def test_weights_come_in_the_dtype_asked_for(written: Path) -> None:
    adapter = load_adapter(written, TINY_SDXL, plan=STYLE, dtype=torch.bfloat16)
    tensors = [*adapter.projection.parameters(), *adapter.keys.values(), *adapter.values.values()]
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}


def test_an_adapter_in_training_learns_and_is_saved_without_its_graph(tmp_path: Path) -> None:
    base = random_adapter(TINY_SD15)
    keys = {site: torch.nn.Parameter(weight) for site, weight in base.keys.items()}
    adapter = Adapter(base.projection.requires_grad_(True), keys, base.values, EMBED_DIM, 4)
    read = adapter.project_kv(adapter.image_tokens(torch.ones(1, EMBED_DIM)), SD15.presets["all"], TINY_SD15)
    torch.stack([k.square().mean() for k, _ in read.values()]).sum().backward()  # pyright: ignore[reportUnknownMemberType]
    assert all(p.grad is not None and p.grad.any() for p in (*keys.values(), *adapter.projection.parameters()))
    save_adapter(tmp_path / "trained.safetensors", adapter, TINY_SD15)
    assert _equal(load_adapter(tmp_path / "trained.safetensors", TINY_SD15), base)


def _load(path: Path, **options: Any) -> str:
    """What is said when it cannot be loaded."""
    with pytest.raises(WeightsError) as caught:
        load_adapter(path, TINY_SDXL, **options)
    return str(caught.value)


def test_sd15s_adapter_on_sdxl(tmp_path: Path) -> None:
    sd15: dict[str, Tensor] = {
        "image_proj.proj.weight": torch.zeros(4 * 768, 8),
        "image_proj.proj.bias": torch.zeros(4 * 768),
    }
    sd15 |= {f"image_proj.norm.{kind}": torch.zeros(768) for kind in ("weight", "bias")}
    sd15 |= {f"ip_adapter.1.to_{kind}_ip.weight": torch.zeros(320, 768) for kind in "kv"}
    save_file(sd15, tmp_path / "ip-adapter_sd15.safetensors")
    with pytest.raises(WeightsError) as caught:
        load_adapter(tmp_path / "ip-adapter_sd15.safetensors", SDXL.unet)
    assert "text tokens are 768 wide (family sd15), but this UNet's are 2048 wide (family sdxl)" in str(caught.value)
    assert load_adapter(tmp_path / "ip-adapter_sd15.safetensors", SD15.unet).token_count == 4


@pytest.mark.parametrize(
    ("trained", "given", "sentence"),
    [
        (1024, 1280, "1024 wide (OpenCLIP ViT-H/14), but the image encoder gives 1280 wide (OpenCLIP ViT-bigG/14)"),
        (1280, 1024, "1280 wide (OpenCLIP ViT-bigG/14), but the image encoder gives 1024 wide (OpenCLIP ViT-H/14)"),
        (1024, 77, "1024 wide (OpenCLIP ViT-H/14), but the image encoder gives 77 wide"),
    ],
)
def test_another_encoder_is_named(trained: int, given: int, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, random_adapter(TINY_SDXL, embed_dim=trained), TINY_SDXL)
    assert sentence in _load(path, embed_dim=given)
    adapter = load_adapter(path, TINY_SDXL, embed_dim=trained)
    with pytest.raises(WeightsError) as caught:
        adapter.image_tokens(torch.zeros(1, given))
    assert sentence in str(caught.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["ip_adapter.69.to_k_ip.weight", "image_proj.norm.bias"])
def test_a_weight_that_is_no_number_is_named(name: str, value: float, flat: dict[str, Tensor], tmp_path: Path) -> None:
    flat[name].view(-1)[3] = value
    save_file(flat, tmp_path / "adapter.safetensors")
    assert f"{name} in {tmp_path / 'adapter.safetensors'} holds NaN or infinity" in _load(
        tmp_path / "adapter.safetensors"
    )
    torch.save(_nested(flat), tmp_path / "adapter.bin")
    assert f"{name} in" in _load(tmp_path / "adapter.bin")


def _without(*names: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda flat: {name: tensor for name, tensor in flat.items() if name not in names}


def _with(**tensors: Tensor) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda flat: flat | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


def _only(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda flat: {name: tensor for name, tensor in flat.items() if name.startswith(prefix)}


WEIGHT = torch.zeros(64, 48)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_only("ip_adapter"), "is no IP-Adapter file: it has no tensor named image_proj.*"),
        (_only("image_proj"), "has a projection but not one tensor named ip_adapter.N.to_k_ip.weight"),
        (
            _without("ip_adapter.69.to_v_ip.weight"),
            "has ip_adapter.69.to_k_ip.weight but no ip_adapter.69.to_v_ip.weight",
        ),
        (
            _with(ip_adapter__2__to_k_ip__weight=WEIGHT),
            "no cross-attention number 2: they are the odd numbers up to 139",
        ),
        (_with(ip_adapter__141__to_k_ip__weight=WEIGHT), "no cross-attention number 141"),
        (
            _with(ip_adapter__69__to_k_ip__weight=WEIGHT),
            "has shape [64, 48], but up.0.1.0.cross of this UNet needs [96, 48]",
        ),
        (
            _with(ip_adapter__69__to_k_ip__bias=WEIGHT),
            "named ip_adapter.69.to_k_ip.bias: this is no part of an IP-Adapter",
        ),
        (_with(ip_adapter__0__to_q_lora__up__weight=WEIGHT), "FaceID adapters are not supported"),
        (_with(unet=WEIGHT), "holds a tensor named unet: this is no part of an IP-Adapter"),
        (_without("image_proj.norm.bias"), "image_proj.norm.bias in"),
        (_with(image_proj__proj__bias=torch.zeros(191)), "image_proj.proj.bias in"),
        (_with(image_proj__extra=WEIGHT), "has shape [64, 48], but no such tensor belongs there"),
        (_without("image_proj.proj.weight"), "has a projection of another kind"),
        (_with(image_proj__proj__weight=torch.zeros(3)), "is incomplete or of wrong shapes"),
        (_with(image_proj__latents=torch.zeros(1, 4, 8)), "is incomplete or of wrong shapes"),
        (_with(image_proj__proj__weight=torch.zeros(192, 20, dtype=torch.int32)), "holds int32, no floating point"),
    ],
)
def test_a_file_that_does_not_fit_says_where(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], sentence: str, flat: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file(change(flat), tmp_path / "adapter.safetensors")
    assert sentence in _load(tmp_path / "adapter.safetensors")


@pytest.mark.parametrize("keep", [0, 1, 9, 500, 0.5, 0.999])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_a_truncated_file_is_a_sentence(kind: str, keep: float, flat: dict[str, Tensor], tmp_path: Path) -> None:
    whole, path = tmp_path / "whole", tmp_path / "adapter"
    if kind == "safetensors":
        save_file(flat, whole)
    else:
        torch.save(_nested(flat), whole, _use_new_zipfile_serialization=kind == "zip")
    content = whole.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    assert ("is empty" if keep == 0 else "is truncated") in _load(path)


class Code:
    """What a hostile pickle does when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_with_code_is_refused_and_not_run(flat: dict[str, Tensor], tmp_path: Path) -> None:
    path, trace = tmp_path / "adapter.bin", tmp_path / "was-here"
    torch.save({**_nested(flat), "extra": Code(trace)}, path)
    assert "holds something other than tensors, which could run code, and is not loaded" in _load(path)
    path.write_bytes(pickle.dumps({"image_proj": Code(trace)}, protocol=2))
    assert "could run code" in _load(path)
    path.write_bytes(pickle.dumps({"image_proj": Code(trace)}, protocol=5))
    assert "no weight file of torch" in _load(path)
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists(), "the trap is a real one"


@pytest.mark.parametrize("content", [{"image_proj": [1, 2]}, [torch.zeros(2)], {"image_proj": {"proj": "words"}}])
def test_a_pickle_of_other_things_is_a_sentence(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "adapter.bin")
    assert "is no dictionary of tensors" in _load(tmp_path / "adapter.bin")


def test_no_file_a_folder_and_words(tmp_path: Path) -> None:
    assert "there is no weight file at" in _load(tmp_path / "none.safetensors")
    assert "cannot read the weight file" in _load(tmp_path)
    (tmp_path / "words.safetensors").write_text("no weights but words" * 20)
    assert "is truncated, damaged, or no weight file at all" in _load(tmp_path / "words.safetensors")


def test_what_cannot_be_written_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .* there is no folder"):
        save_adapter(tmp_path / "no" / "adapter.safetensors", random_adapter(TINY_SD15), TINY_SD15)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .* it is a folder"):
        save_adapter(tmp_path / "folder", random_adapter(TINY_SD15), TINY_SD15)
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
