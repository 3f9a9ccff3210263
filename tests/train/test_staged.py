# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportCallIssue=false

"""The staged training of the 128-pixel model: its parts, and one or two steps of every stage on made-up pictures."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import instantstyle
from instantstyle.blocks import BlockPlan
from instantstyle.emoji.sources import EmojiConcept
from instantstyle.emoji.style_transforms import StyleTransform
from instantstyle.errors import WeightsError
from instantstyle.families import EMOJI
from instantstyle.networks.unet import UNet
from instantstyle.train.adapter import TrainableAdapter
from instantstyle.train.emoji.dataset import CaptionEmbeddings
from instantstyle.train.emoji.image_bank import ImageBank
from instantstyle.train.emoji.staged import adapters, base, decoder, distillation, package
from instantstyle.train.emoji.staged.captions import (
    ADAPTER_SHARES,
    FIRST_SHARES,
    SHARES,
    CaptionTable,
    Column,
    draw_captions,
    kinds,
)
from instantstyle.train.emoji.staged.data import SHIPPED, TrainingData, vae_of
from instantstyle.train.emoji.staged.export import assemble
from instantstyle.train.emoji.staged.measures import edge_sharpness
from instantstyle.train.emoji.staged.reach import caption_worth, text_reach
from instantstyle.train.emoji.staged.sampling import mix_noise, predict_x0_noise, sample, trailing
from instantstyle.train.emoji.unet import make_unet, square_time_ids

_LOOK = StyleTransform("plain", (250, 250, 250), (10, 10, 10), (200, 20, 20), 0.5, 1)


@pytest.fixture
def bank() -> ImageBank:
    """Four pictures: a cat and an owl in two looks."""
    pictures = np.random.default_rng(0).integers(256, size=(4, 128, 128, 3), dtype=np.uint8)
    looks = (_LOOK, replace(_LOOK, kind="neon"))
    concept, style = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    return ImageBank(pictures, concept, style, ("cat", "owl"), looks, ("noto", "twemoji"))


@pytest.fixture
def data(bank: ImageBank, monkeypatch: pytest.MonkeyPatch) -> TrainingData:
    """The pictures as random latents, and captions that are told apart by one number."""
    generator = torch.Generator().manual_seed(0)
    latents = {side: torch.randn(4, 32, side // 8, side // 8, generator=generator).half() for side in (64, 128)}
    words = CaptionEmbeddings(("", "cat"), torch.randn(2, 24, 192, generator=generator).half(), torch.randn(2, 192))
    numbers = np.zeros((4, len(Column)), np.int32)
    numbers[:, Column.THING] = 1
    for module in (base, adapters):
        monkeypatch.setattr(module, "BATCH", {64: 2, 128: 2})
    for module in (decoder, distillation):
        monkeypatch.setattr(module, "BATCH", 2)
    return TrainingData(bank, latents, CaptionTable(words, numbers), torch.randn(4, 192, generator=generator))


def test_a_kind_is_broad_or_narrow_and_never_missing() -> None:
    assert kinds("animal-bird") == ("animal", "bird")
    assert kinds("animal-mammal") == ("animal",)
    assert kinds("time") == ("instrument",)
    assert kinds("lock") == ("object",)


def test_captions_say_the_thing_its_kind_or_nothing(bank: ImageBank, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [EmojiConcept("cat", "1", "", "animal-mammal", ()), EmojiConcept("owl", "2", "", "animal-bird", ())]
    monkeypatch.setattr("instantstyle.train.emoji.staged.captions.concepts", lambda: listed)
    texts, numbers = draw_captions(bank, seed=1)
    assert texts[0] == ""
    assert len(set(texts)) == len(texts)
    said = [[texts[i] for i in row] for row in numbers]
    for row in said:
        assert row[Column.NOTHING] == ""
        assert row[Column.LOOK]
        assert row[Column.THING_AND_LOOK] == f"{row[Column.THING]}, {row[Column.LOOK]}"
        assert row[Column.KIND] in ("an animal", "a bird")
    assert said[0][Column.LOOK] == said[1][Column.LOOK] != said[2][Column.LOOK]


@pytest.mark.parametrize("shares", [FIRST_SHARES, SHARES, ADAPTER_SHARES])
def test_shares_of_captions_add_up(shares: Mapping[Column, float]) -> None:
    assert sum(shares.values()) == pytest.approx(1)


def test_captions_are_drawn_by_their_shares(data: TrainingData) -> None:
    rng, rows = np.random.default_rng(0), np.zeros(4000, np.int64)
    context, pooled = data.captions.draw(rows, {Column.THING: 0.25, Column.NOTHING: 0.75}, rng)
    assert context.shape == (4000, 24, 192)
    assert (pooled == data.captions.embeds.pooled_prompt_embeds[1]).all(1).float().mean() == pytest.approx(
        0.25, abs=0.03
    )


def test_every_cross_attention_begins_anew_and_nothing_else() -> None:
    old, new = UNet(EMOJI.unet), UNet(EMOJI.unet)
    new.load_state_dict(old.state_dict())
    base.renew_cross_attention(new)
    changed = {name for name, p in new.named_parameters() if not torch.equal(p, old.get_parameter(name))}
    cross = {name for name, _ in new.named_parameters() if ".attn2." in name}
    assert changed == cross
    assert all(not new.attention(site).to_out[0].weight.any() for site in EMOJI.unet.sites if site.kind == "cross")


def test_deep_levels_begin_anew_where_asked() -> None:
    cross, deep = base.begin().unet, base.begin(renew="deep-levels").unet
    changed = {name for name, p in deep.named_parameters() if not torch.equal(p, cross.get_parameter(name))}
    assert changed
    assert all(name.startswith(base.DEEP) for name in changed)


def test_without_the_middle_levels_skips_the_lowest_level_has_the_word() -> None:
    unet = UNet(EMOJI.unet)
    first, rest = unet.split_at("up.0.0")
    text = unet.precompute_kv(torch.zeros(2, 24, 192))
    state = first(
        torch.randn(2, 32, 8, 8), torch.tensor([500.0, 500.0]), text, torch.zeros(2, 192), square_time_ids(2, 64)
    )
    cut = base.mask_middle_skips(state, torch.tensor([1.0, 0.0]))
    assert [bool(skip[1].any()) for skip in cut.skips] == [not 3 <= i < 6 for i in range(8)]
    assert torch.allclose(rest(cut, text)[0], rest(state, text)[0], atol=1e-5)


def test_reach_is_told_of_every_module(data: TrainingData) -> None:
    unet = UNet(EMOJI.unet)
    base.renew_cross_attention(unet)
    found = text_reach(unet, data, 64, 500, count=2)
    assert set(found) == {*EMOJI.unet.modules, "all", "pooled"}
    assert found["all"] == 0  # its answers are at zero


def test_sides_follow_the_phases() -> None:
    phases = (base.Phase(10, 0.0), base.Phase(20, 0.5), base.Phase(40, 0.9))
    sides = [base.side_of(step, phases) for step in range(60)]
    assert [sides[a:b].count(128) for a, b in ((0, 10), (10, 20), (20, 40))] == [0, 5, 18]
    assert base.samples(20, 2, phases) == {64: 15 * 2 * base.BATCH[64], 128: 5 * 2 * base.BATCH[128]}


def test_a_prediction_of_v_is_taken_apart_and_put_together() -> None:
    x0, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    time = torch.tensor([0, 500, 999])
    noisy = mix_noise(x0, noise, time)
    x, e = predict_x0_noise(noisy, mix_noise(noise, -x0, time), time)
    assert torch.allclose(x, x0, atol=1e-4)
    assert torch.allclose(e, noise, atol=1e-4)
    assert torch.equal(mix_noise(x0, noise, torch.full((3,), -1)), x0)


def test_a_sampler_that_is_told_the_truth_draws_it() -> None:
    truth = torch.randn(2, 3, 4, 4)

    def predict(noisy: Tensor, time: Tensor) -> Tensor:
        signal = mix_noise(torch.ones(2, 1, 1, 1), torch.zeros(2, 1, 1, 1), time)
        spread = mix_noise(torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1), time)
        return signal * (noisy - signal * truth) / spread - spread * truth

    assert torch.allclose(sample(predict, truth.shape, seed=1, steps=4), truth, atol=1e-3)
    assert trailing(4) == [999, 749, 499, 249, -1]


def test_phases_of_distillation_end_where_four_steps_stop() -> None:
    time = torch.tensor([999, 750, 749, 500, 250, 249, 0])
    assert distillation.phase_end(time).tolist() == [749, 749, 499, 499, 249, -1, -1]


def test_blur_lowers_sharpness() -> None:
    sharp = np.zeros((1, 32, 32, 3), np.uint8)
    sharp[:, :, 16:] = 255
    soft = np.broadcast_to(np.linspace(0, 255, 32).astype(np.uint8)[None, None, :, None], sharp.shape)
    assert edge_sharpness(sharp)[0] > 3 * edge_sharpness(soft)[0]


def test_mates_share_the_style_and_not_the_row(bank: ImageBank) -> None:
    rows = np.arange(4)
    mates = adapters.style_mates(bank, rows, np.random.default_rng(0))
    assert (bank.style[mates] == bank.style[rows]).all()
    assert (mates != rows).all()


def test_the_base_trains_packs_and_goes_on_elsewhere(data: TrainingData, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "PHASES", (base.Phase(1, 0.0), base.Phase(3, 1.0)))
        average = base.train_base(here, data, steps=2)
        package.pack(here, tmp_path / "package", {"base": {"samples": 8}})
        package.restore(tmp_path / "package", "base", base.begin(), there, base.RATE, base.MUON_RATE)
        old, new = (torch.load(folder / "base.pt", weights_only=True) for folder in (here, there))
        assert new["step"] == 2
        assert package.state(tmp_path / "package")["base"]["samples"] == 8
        for name, weight in average.items():
            assert torch.allclose(new["average"][name], weight, atol=2e-3)
            assert torch.allclose(new["net"][name], old["net"][name], atol=4e-3)
        base.train_base(there, data, steps=3)
    assert torch.load(there / "base.pt", weights_only=True)["step"] == 3
    with pytest.raises(WeightsError):
        package.restore(tmp_path / "package", "base", torch.nn.Linear(2, 2), tmp_path / "no", 1e-3, None)


@pytest.mark.parametrize("dropped", [1.0, 0.0])
def test_a_base_whose_pooled_words_are_dropped_does_not_read_them(
    data: TrainingData, tmp_path: Path, dropped: float
) -> None:
    words = data.captions.embeds
    pooled = torch.stack([words.pooled_prompt_embeds[0], -words.pooled_prompt_embeds[1]])
    other = replace(data, captions=replace(data.captions, embeds=replace(words, pooled_prompt_embeds=pooled)))
    one, two = (
        base.train_base(tmp_path / name, each, steps=1, dropped_pooled=dropped)
        for name, each in (("one", data), ("two", other))
    )
    assert all(torch.equal(weight, two[name]) for name, weight in one.items()) == bool(dropped)


def test_captions_are_worth_nothing_to_a_network_that_predicts_nothing(data: TrainingData) -> None:
    worth, error = caption_worth(make_unet(), data, 64, count=8)
    assert worth == 0
    assert error == pytest.approx(1, abs=0.1)  # v of unit latents and unit noise


def test_a_silent_module_reads_the_empty_caption() -> None:
    unet = UNet(EMOJI.unet)
    context, empty = torch.randn(2, 24, 192), torch.randn(1, 24, 192)
    silent = {module: torch.tensor([module == "up.1.2", False]) for module in unet.config.modules}
    text, of_empty = unet.precompute_kv(context), unet.precompute_kv(empty)
    for site, kv in base.with_empty_caption(text, of_empty, silent).items():
        for mixed, said, unsaid in zip(kv, text[site], of_empty[site], strict=True):
            assert torch.equal(mixed[1], said[1])
            assert torch.equal(mixed[0], unsaid[0] if site.module == "up.1.2" else said[0])


_LAST = BlockPlan({"up.1.2": 1.0})


@pytest.mark.parametrize("stage", [adapters.PUBLISHED, adapters.style_stage(_LAST), adapters.paired_stage(_LAST)])
def test_adapters_train_on_a_frozen_base(data: TrainingData, tmp_path: Path, stage: adapters.AdapterStage) -> None:
    unet = UNet(EMOJI.unet)
    before = {name: p.clone() for name, p in unet.named_parameters()}
    adapter = adapters.train_adapter_stage(tmp_path, unet, data, stage, steps=1)
    assert (tmp_path / f"{stage.name}.pt").exists()
    assert {site.module for site in adapter.keys} == {s.module for s in EMOJI.unet.sites if stage.plan.scale(s)}
    assert all(torch.equal(p, before[name]) for name, p in unet.named_parameters())


def test_the_decoder_trains_against_a_discriminator(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "BEGIN_ADVERSARIAL", 1)
    vae = vae_of(SHIPPED)
    first = vae.decoder.conv_out.weight.clone()
    trained = decoder.train_decoder(tmp_path, vae, UNet(EMOJI.unet), data, steps=2)
    assert not torch.equal(trained.decoder.conv_out.weight, first)


def test_each_adversary_learns_from_its_own_loss() -> None:
    net = decoder.Adversaries(vae_of(SHIPPED))
    net.decoder.requires_grad_(True)
    drawn = net.decoder(torch.randn(1, 32, 4, 4))
    fooled = net.frozen_logits(drawn).mean()
    fooled.backward()
    assert all(p.grad is None for p in net.discriminator.parameters())
    assert net.decoder.conv_out.weight.grad is not None


def test_a_student_learns_with_and_without_a_reference(data: TrainingData, tmp_path: Path) -> None:
    teacher = UNet(EMOJI.unet)
    student = distillation.train_student(tmp_path, teacher, data, 2, adapter=TrainableAdapter(teacher, adapters.ALL))
    assert set(student) == set(teacher.state_dict())
    lora = distillation.as_lora(teacher.state_dict(), student, rank=8)
    assert {name.rsplit(".lora_", 1)[0] for name in lora} < {f"unet.{n.removesuffix('.weight')}" for n in student}


def test_sizes_tell_how_large_to_draw() -> None:
    assert square_time_ids(1, 128).tolist() == [[128, 128, 0, 0, 128, 128]]


def test_what_is_trained_so_far_is_a_model_that_loads(tmp_path: Path) -> None:
    unet = UNet(EMOJI.unet)
    adapter = TrainableAdapter(unet, adapters.ALL).requires_grad_(False).adapter
    folder = assemble(tmp_path / "emoji", unet.state_dict(), vae_of(SHIPPED), {"ip_adapter.safetensors": adapter})
    model = instantstyle.load(folder)
    assert model.family.size == (128, 128)
    assert model.adapter is not None
