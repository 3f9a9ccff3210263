"""Adapters read as plans ask: what a plan is silent about is never read or held; slim files keep only the rest."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

from instantstyle.blocks import BlockPlan
from instantstyle.errors import WeightsError
from instantstyle.families import SDXL
from instantstyle.weights.adapter import adapter_input_dim, extract_blocks, load_adapter, save_adapter
from instantstyle.weights.lazy_weights import LazyWeights
from oracle.adapters import EMBED_DIM, random_adapter, random_plus
from oracle.paired_unets import TINY_SDXL

STYLE = SDXL.presets["style"]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, random_adapter(TINY_SDXL), TINY_SDXL)
    return path


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_only_the_plan_s_blocks_are_held(ending: str, written: Path) -> None:
    path = written
    if ending == "bin":
        path = written.with_suffix(".bin")
        torch.save(load_file(written), path)
    whole, lazy = load_adapter(path, TINY_SDXL), load_adapter(path, TINY_SDXL, lazy=True)
    assert isinstance(lazy.keys, LazyWeights)
    assert isinstance(lazy.values, LazyWeights)
    checked = {TINY_SDXL.sites[1]}  # the run-time checker of types, on in tests alone, looks at the first of a mapping
    assert set(lazy.keys.held) <= checked
    assert lazy.keys.first_row(TINY_SDXL.sites[1]).shape == (1, TINY_SDXL.cross_attention_dim)
    tokens = whole.image_tokens(torch.ones(1, EMBED_DIM))
    for plan in (STYLE, SDXL.presets["style+layout"]):
        read = lazy.project_kv(tokens, plan, TINY_SDXL)
        expected = whole.project_kv(tokens, plan, TINY_SDXL)
        assert all(torch.equal(read[site][0], keys) for site, (keys, _) in expected.items())
        assert set(lazy.keys.held) - checked == set(lazy.values.held) - checked == set(expected)
    assert list(lazy.keys) == list(whole.keys)


def test_a_slim_file_is_what_the_plan_reads(written: Path) -> None:
    small = written.with_name("slim.safetensors")
    extract_blocks(written, small, STYLE, TINY_SDXL)
    before, after = load_file(written), load_file(small)
    kept = {f"ip_adapter.{n}.to_{kind}_ip.weight" for n in range(69, 88, 2) for kind in "kv"}
    assert set(after) == kept | {name for name in before if name.startswith("image_proj")}
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    with pytest.raises(WeightsError, match=r"speaks at down\.2\.1"):
        extract_blocks(small, written, BlockPlan({"down.2.1": 1.0}), TINY_SDXL)


def test_what_it_reads_is_told_by_its_shapes(written: Path) -> None:
    assert adapter_input_dim(written) == (False, EMBED_DIM)
    save_adapter(written, random_plus(TINY_SDXL), TINY_SDXL)
    assert adapter_input_dim(written) == (True, EMBED_DIM)
