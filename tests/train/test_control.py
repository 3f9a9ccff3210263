# pyright: reportUnknownMemberType=false

"""The ControlNet's training: it begins silent, hears edges, leaves the UNet alone, and ships as diffusers reads it."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel

from instantstyle.controlnet import canny
from instantstyle.emoji.style_transforms import sample_transform
from instantstyle.families import EMOJI
from instantstyle.networks.unet import UNet
from instantstyle.train.emoji.controlnet import (
    control_gain,
    control_loss,
    edges,
    new_control,
    random_affine,
    train_control,
)
from instantstyle.train.emoji.dataset import CaptionEmbeddings, TrainingSet
from instantstyle.train.emoji.image_bank import ImageBank
from instantstyle.train.emoji.unet import make_unet
from instantstyle.weights.control import load_controls

PICTURES = 4


@pytest.fixture(scope="module")
def unet() -> UNet:
    """The built-in UNet with random weights, its last layer too: from zero nothing upstream would learn."""
    net = make_unet()
    torch.nn.init.normal_(net.conv_out.weight, std=0.1)
    return net.eval()


@pytest.fixture(scope="module")
def corpus() -> TrainingSet:
    """A few pictures of squares, each with latents of its own that nothing but its edges can tell."""
    rng, config = np.random.default_rng(0), EMOJI.unet
    pictures = np.full((PICTURES, 64, 64, 3), 230, np.uint8)
    for i, picture in enumerate(pictures):
        picture[8 + 8 * i : 24 + 8 * i, 20:50] = (40, 90, 20 * i)
    numbers = np.arange(PICTURES)
    bank = ImageBank(
        pictures, numbers, numbers * 0, ("cat", "dog", "house", "star"), (sample_transform(rng),), ("noto",)
    )
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(1, EMOJI.max_text_tokens, config.cross_attention_dim, generator=generator)
    words = CaptionEmbeddings(("",), context, torch.randn(1, config.pooled_projection_dim or 0, generator=generator))
    latents = 2 * torch.randn(PICTURES, config.in_channels, 8, 8, generator=generator)
    return TrainingSet(bank, latents, words, np.zeros((PICTURES, 4), np.int64))


def encode(pictures: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Latents that follow from the picture: a fixed random mixture of each patch's mean colour."""
    patches = torch.from_numpy(pictures).float().reshape(-1, 8, 8, 8, 8, 3)
    means = patches.mean((2, 4)) / 127.5 - 1
    mixture = torch.randn(3, EMOJI.unet.in_channels, generator=torch.Generator().manual_seed(0))
    return (means @ mixture).movedim(-1, 1)


def test_edges_are_those_of_inference(corpus: TrainingSet) -> None:
    drawn = edges(corpus.bank.pictures[[2, 0]])
    assert drawn.shape == (2, 3, 64, 64)
    np.testing.assert_array_equal(drawn[0, 1].numpy() * 255, canny(corpus.bank.pictures[2]))
    assert 50 < float(drawn[0, 0].sum()) < 200


def test_it_begins_silent_and_small(unet: UNet, corpus: TrainingSet) -> None:
    """Nothing is said before training, and the shipped model keeps its bound of 60 MB by far."""
    net = new_control(unet)
    copied = unet.down_blocks[1].state_dict()
    assert all(torch.equal(tensor, copied[name]) for name, tensor in net.down_blocks[1].state_dict().items())
    rows, config = 2, EMOJI.unet
    added = {"text_embeds": torch.zeros(rows, config.pooled_projection_dim or 0), "time_ids": torch.zeros(rows, 6)}
    latents, context = torch.randn(rows, config.in_channels, 8, 8), torch.randn(rows, 5, config.cross_attention_dim)
    down, mid = net(
        latents, torch.ones(rows), context, edges(corpus.bank.pictures[:2]), added_cond_kwargs=added, return_dict=False
    )
    assert not any(bool(tensor.any()) for tensor in (*down, mid))
    assert sum(p.numel() for p in net.parameters()) < 6_000_000


def test_it_learns_and_the_unet_does_not(unet: UNet, corpus: TrainingSet, tmp_path: Path) -> None:
    """The error of one fixed batch falls, with the edges given."""
    before = {name: p.clone() for name, p in unet.named_parameters()}
    net = train_control(tmp_path, unet, corpus, encode, steps=12, batch=4, lr=0.05)
    assert all(torch.equal(before[name], p) for name, p in unet.named_parameters())

    def error(steered: ControlNetModel) -> float:
        with torch.no_grad():
            return float(control_loss(steered, unet, corpus, encode, 8, np.random.default_rng(1)))

    assert error(net) < 0.9 * error(new_control(unet).eval())
    without, given = control_gain(net, unet, corpus, encode, batch=8)
    assert given < without


def test_what_is_shipped_is_what_was_trained(unet: UNet, corpus: TrainingSet, tmp_path: Path) -> None:
    """Resumed from its checkpoint, written in half precision, found in a model's folder: equal but for rounding."""
    trained = train_control(tmp_path, unet, corpus, encode, steps=2, batch=4, lr=0.1)
    again = train_control(tmp_path, unet, corpus, encode, steps=0)
    weights = trained.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.state_dict().items())
    assert weights["controlnet_mid_block.weight"].any()

    again.half().save_pretrained(tmp_path / "emoji" / "controlnet_canny")
    loaded = load_controls({}, tmp_path / "emoji", EMOJI, torch.float32, torch.device("cpu"))
    assert list(loaded) == ["canny"]
    for name, tensor in loaded["canny"].net.state_dict().items():
        assert torch.equal(tensor, weights[name].half().float()), name


def test_a_moved_picture_keeps_its_ground_and_what_it_shows() -> None:
    """The square is still there, elsewhere and of another size; what comes in at the border is the ground."""
    picture = np.full((64, 64, 3), 230, np.uint8)
    picture[20:44, 20:44] = 10
    for seed in range(8):
        drawn = random_affine(picture, np.random.default_rng(seed))
        share = float((drawn < 120).all(2).mean()) / (24 * 24 / 64**2)
        assert 0.4 < share < 1.25
        assert (drawn[[0, -1]] == 230).all()
        assert (drawn[:, [0, -1]] == 230).all()
