# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false

"""From pictures to an adapter file: what learns, what it learns from, resumed to the bit, read by diffusers."""

import csv
import multiprocessing
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline

from instantstyle.blocks import BlockPlan
from instantstyle.errors import InputError
from instantstyle.loading import load
from instantstyle.model import Model
from instantstyle.train.adapter import TrainableAdapter
from instantstyle.train.adapter_run import AdapterTrainingJob, throughput_line, train_adapter_job
from instantstyle.train.data.dataset import BatchSampler, FeatureDataset
from instantstyle.train.data.feature_cache import FeatureConfig, compute_features, write_manifest
from instantstyle.train.data.sources import find_shards
from instantstyle.train.objective import AdapterLoss, LossConfig, NoiseSchedule
from instantstyle.train.tracking import read_metrics
from instantstyle.train.trainer import MicroBatch, TrainingConfig
from instantstyle.weights.adapter import load_adapter
from tiny_models import folder as model_folder
from tiny_models import model as made
from train import gallery

pytestmark = pytest.mark.filterwarnings("ignore:__array__")  # diffusers' Euler scheduler under a newer NumPy
SETTINGS = TrainingConfig(steps=6, batch=2, lr=1e-3, log_every=2)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gallery's features, computed by a first job of one step."""
    root = tmp_path_factory.mktemp("job")
    job = asked(gallery.tars(root / "data"), root / "first.safetensors", training_config=replace(SETTINGS, steps=1))
    assert train_adapter_job(job) == job.out
    return job.folder / "features"


def asked(data: Path, out: Path, **more: Any) -> AdapterTrainingJob:
    fields: dict[str, Any] = {"training_config": SETTINGS, "model": str(model_folder("sdxl")), "device": "cpu"}
    fields["feature_config"] = FeatureConfig(square=True)
    return AdapterTrainingJob(data=str(data), out=out, **fields | more)


def losses(job: AdapterTrainingJob) -> list[dict[str, str]]:
    return read_metrics(job.folder / "losses.csv")


def test_what_was_stopped_gives_the_losses_of_what_was_not(features: Path, tmp_path: Path) -> None:
    whole = asked(features, tmp_path / "whole.safetensors", sheet_every=6)
    train_adapter_job(whole)
    parts = asked(features, tmp_path / "parts.safetensors", training_config=replace(SETTINGS, steps=4))
    train_adapter_job(parts)
    # Rows that a killed run wrote after its last checkpoint are written anew.
    with (parts.folder / "losses.csv").open("a", newline="") as file:
        csv.writer(file).writerows([(5, 1.0, 1.0, 1.0), (6, 1.0)])
    train_adapter_job(replace(parts, training_config=SETTINGS))
    assert [row["step"] for row in losses(whole)] == list("123456")
    assert losses(parts) == losses(whole)
    config = made("sdxl").family.unet
    both = [load_adapter(job.out, config) for job in (whole, parts)]
    assert all(torch.equal(both[0].keys[site], both[1].keys[site]) for site in both[0].keys)
    assert {site.module for site in both[0].keys} == {"up.0.1"}
    assert (whole.folder / "sheets/0000006.png").stat().st_size > 1000
    assert list((whole.folder / "tensorboard").iterdir())
    card = whole.out.with_suffix(".md").read_text()
    assert "CC0-1.0 (6)" in card
    assert "kept: 6" in card


@pytest.mark.filterwarnings("ignore")  # of what forking may do, which newer Pythons say
def test_what_was_killed_gives_the_losses_of_what_was_not(features: Path, tmp_path: Path) -> None:
    """The child is killed while it is scored after step 4: step 2 is saved, and steps 3 and 4 are in the log alone."""
    settings = replace(SETTINGS, steps=8, save_seconds=0.0)
    whole, killed = (
        asked(features, tmp_path / f"{name}.safetensors", training_config=settings) for name in ("whole", "killed")
    )
    train_adapter_job(whole)
    reached = tmp_path / "reached"

    def wait_to_be_killed(model: Model) -> dict[str, float]:
        reached.touch()
        signal.pause()
        return {}

    child = multiprocessing.get_context("fork").Process(
        target=train_adapter_job, args=(replace(killed, eval_fn=wait_to_be_killed, eval_every=4),)
    )
    child.start()
    while not reached.exists() and child.is_alive():
        time.sleep(0.01)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert [row["step"] for row in losses(killed)] == list("1234")
    assert torch.load(killed.folder / "state.pt", weights_only=True)["step"] == 2
    assert not killed.out.exists()
    train_adapter_job(killed)
    assert losses(killed) == losses(whole)
    assert killed.out.read_bytes() == whole.out.read_bytes()


def test_diffusers_reads_it_and_hears_the_style_alone(features: Path, tmp_path: Path) -> None:
    """The padded file in diffusers at full scale is the compact one in ours at its block: the same prediction."""
    job = asked(features, tmp_path / "style.safetensors", pad=True, training_config=replace(SETTINGS, lr=0.05))
    train_adapter_job(job)
    pipeline: Any = cast("Any", StableDiffusionXLPipeline).from_pretrained(model_folder("sdxl"), add_watermarker=False)
    pipeline.load_ip_adapter(str(tmp_path), subfolder="", weight_name="style.safetensors", image_encoder_folder=None)
    pipeline.set_ip_adapter_scale(1.0)
    model = made("sdxl")
    generator = torch.Generator().manual_seed(0)
    x, embed = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 24, generator=generator)
    said = model.encode_prompt(["a cat"])
    sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]])
    more = {"text_embeds": said.pooled_prompt_embeds, "time_ids": sizes, "image_embeds": [embed[:, None]]}
    with torch.no_grad():
        theirs = pipeline.unet(x, 500, encoder_hidden_states=said.prompt_embeds, added_cond_kwargs=more).sample
        net = TrainableAdapter(
            model.unet, BlockPlan({"up.0.1": 1.0}), init_from=load_adapter(job.out, model.family.unet)
        )
        text, time = model.unet.precompute_kv(said.prompt_embeds), torch.tensor([500.0])
        ours = model.unet(x, time, text, said.pooled_prompt_embeds, sizes, attend=net.attend(embed))
        bare = model.unet(x, time, text, said.pooled_prompt_embeds, sizes)
    assert (ours - bare).abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_nothing_but_the_adapter_learns_and_the_graph_begins_at_its_first_block(features: Path) -> None:
    model, data = made("sdxl"), FeatureDataset(features)
    net = TrainableAdapter(model.unet, model.family.presets["style"], embed_dim=24)
    assert not any(p.requires_grad for p in model.unet.parameters())
    shapes = [tuple(map(int, row[-2:])) for row in data.sizes]
    lesson = AdapterLoss(model, net, data, BatchSampler(shapes, data.style, "same", 4, 0), LossConfig())
    saved: list[tuple[int, ...]] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = lesson(net, MicroBatch(0, 0, 4, 4))
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    everything = TrainableAdapter(model.unet, model.family.presets["all"], embed_dim=24)
    whole = AdapterLoss(model, everything, data, BatchSampler(shapes, data.style, "same", 4, 0), LossConfig())
    style_only = len(saved)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        whole(everything, MicroBatch(0, 0, 4, 4))
    assert style_only < 0.75 * (len(saved) - style_only)


def test_keys_and_values_begin_as_the_texts(features: Path) -> None:
    model = made("sdxl")
    net = TrainableAdapter(model.unet, model.family.presets["all"], embed_dim=24)
    for site, key, value in zip(net.sites, net.keys, net.values, strict=True):
        assert torch.equal(key, model.unet.attention(site).to_k.weight)
        assert torch.equal(value, model.unet.attention(site).to_v.weight)
    with pytest.raises(InputError, match="name the blocks"):
        TrainableAdapter(model.unet, model.family.presets["precise"])


@pytest.mark.parametrize("name", ["sdxl", "emoji"])
def test_noise_and_targets_are_diffusers(name: str) -> None:
    model = made(name)
    schedule = NoiseSchedule(model.scheduler_config)
    kinds = ("beta_schedule", "beta_start", "beta_end", "prediction_type", "rescale_betas_zero_snr")
    config = {key: value for key, value in model.scheduler_config.items() if key in kinds}
    theirs: Any = DDPMScheduler(**config)
    x, noise = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    time = torch.tensor([3, 500, 990])
    noised, target = schedule.add_noise(x, noise, time)
    torch.testing.assert_close(noised, theirs.add_noise(x, noise, time))
    velocity = name == "emoji"
    torch.testing.assert_close(target, theirs.get_velocity(x, noise, time) if velocity else noise)
    # Min-SNR: whatever is predicted, the error of x0 counts min(snr, gamma).
    kept = schedule.alphas_cumprod[time]
    snr = kept / (1 - kept)
    # In terms of x0's squared error a velocity's is 1 / (1 - kept) of it, and the noise's snr.
    counted = schedule.min_snr_weight(time, 5.0) * (1 / (1 - kept) if velocity else snr)
    torch.testing.assert_close(counted, snr.clamp(max=5.0), rtol=1e-4, atol=1e-5)


def test_rows_lose_text_and_reference_as_often_as_asked(features: Path) -> None:
    model, data = made("sdxl"), FeatureDataset(features)
    net = TrainableAdapter(model.unet, model.family.presets["style"], embed_dim=24)
    order = BatchSampler([(64, 64)] * 6, data.style, "same", 2, 0)
    lesson = AdapterLoss(model, net, data, order, LossConfig(drop_text=0.1, drop_image=0.2, drop_both=0.05))
    text, image = lesson._dropout_masks(np.random.default_rng(0).random(20_000))  # pyright: ignore[reportPrivateUsage]
    shares = [float((m).float().mean()) for m in (text & ~image, image & ~text, text & image)]
    assert shares == pytest.approx([0.1, 0.2, 0.05], abs=0.01)


def test_half_precision_and_captions_read_later_change_little(features: Path, tmp_path: Path) -> None:
    stored, model = FeatureDataset(features), made("sdxl")
    shards = find_shards(features.parents[1] / "data")
    options = FeatureConfig(square=True, text=False)
    compute_features(model, shards, tmp_path, options)
    write_manifest(model, shards, tmp_path, options)
    later, half = FeatureDataset(tmp_path), load(model_folder("sdxl"), dtype="bfloat16", device="cpu")
    assert "context" not in later.parts

    def loss(data: FeatureDataset, model: Model) -> float:
        net = TrainableAdapter(model.unet, model.family.presets["style"], embed_dim=24)
        assert {p.dtype for p in net.parameters()} == {torch.float32}
        order = BatchSampler([(64, 64)] * 6, data.style, "same", 6, 0)
        lesson = AdapterLoss(model, net, data, order, LossConfig(), bf16=model.dtype == torch.bfloat16)
        value = lesson(net, MicroBatch(0, 0, 6, 6))
        value.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        return value.item()

    expected = loss(stored, model)
    assert loss(later, model) == pytest.approx(expected, rel=1e-3)
    assert loss(stored, half) == pytest.approx(expected, rel=0.02)


def test_every_picture_is_seen_once_an_epoch_with_one_of_its_style() -> None:
    style = np.array([0, 0, 0, 1, 1, -1, 2, 0])
    shapes = [(64, 64)] * 5 + [(32, 96)] * 3
    same = BatchSampler(shapes, style, "same", 2, seed=3)
    seen = np.concatenate([same.rows(step) for step in range(same.steps_per_epoch)])
    assert set(seen.tolist()) == set(range(8))
    assert len(seen) == 6 + 4
    for step in range(12):
        assert len({shapes[int(row)] for row in same.rows(step).tolist()}) == 1
        assert np.array_equal(same.rows(step), same.references(step))
        assert np.array_equal(same.rows(step), BatchSampler(shapes, style, "same", 2, seed=3).rows(step))
    paired = BatchSampler(shapes, style, "paired", 2, seed=3)
    assert paired.num_unpaired == 2
    for step in range(12):
        rows, mates = paired.rows(step), paired.references(step)
        assert (style[rows] == style[mates]).all()
        assert (rows != mates).all()
    with pytest.raises(InputError, match="no two are known to share one"):
        BatchSampler(shapes, np.full(8, -1), "paired", 2, seed=3)


def test_the_pace_is_told_for_a_million() -> None:
    # 500 pictures of 14 kB in 4 s: a million are 8,000 s and 14 GB.
    assert (
        throughput_line(500, 500 * 14_000, 4.0)
        == "125.0 pictures a second; a million of them: 2.2 hours at this pace, 14.0 GB"
    )
    assert throughput_line(0, 0, 0.0).startswith("0.0 pictures a second")


def test_the_command(features: Path, tmp_path: Path) -> None:
    code = "import sys; from instantstyle.cli import main; sys.argv[0] = 'instantstyle'; main()"
    out = tmp_path / "mine.safetensors"
    argv = ["train", "adapter", "--data", str(features), "--model", str(model_folder("sdxl")), "--out", str(out)]
    argv += ["--steps", "2", "--batch", "2", "--sheet-every", "0", "--device", "cpu"]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out)
    assert "step 2/2" in done.stderr
    assert "samples/s" in done.stderr
    assert out.exists()
