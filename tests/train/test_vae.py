# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""The encoder is exactly a linear transform before anything is trained."""

from typing import Any, cast

import numpy as np
import torch

from instantstyle.train.emoji.vae import (
    LATENT_CHANNELS,
    encode_many,
    encode_pixels,
    init_pca_encoder,
    make_vae,
    principal,
    reconstruction_psnr,
)


def pictures(count: int, seed: int) -> np.ndarray:
    """Smooth pictures of coloured noise [n, 64, 64, 3] uint8."""
    noise = torch.randn(count, 3, 10, 10, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(noise, size=64, mode="bicubic")
    return (smooth * 50 + 128).clamp(0, 255).byte().movedim(1, -1).numpy()


def _fitted() -> Any:
    vae = make_vae()
    init_pca_encoder(vae, torch.from_numpy(pictures(64, 0)).movedim(-1, 1).float() / 127.5 - 1)
    return cast("Any", vae)


def test_principal_directions_are_the_singular_vectors() -> None:
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([5.0, 3, 2, 1, 0.5, 0.1])
    basis, mean, spread = principal(x, 3)
    _, values, vectors = np.linalg.svd(x.numpy() - mean.numpy(), full_matrices=False)
    assert np.allclose(spread.numpy(), values[:3] / len(x) ** 0.5, rtol=1e-4)
    assert np.allclose(np.abs(basis.numpy() @ vectors[:3].T), np.eye(3), atol=1e-3)


def test_encoding_is_affine() -> None:
    """Latents of a mean of pictures are the mean of their latents, through four levels, norms and nonlinearities."""
    vae = _fitted()
    a, b = (torch.from_numpy(pictures(4, seed)).movedim(-1, 1).float() / 127.5 - 1 for seed in (1, 2))
    with torch.no_grad():
        za, zb, middle = (vae.encode(x).latent_dist.mean for x in (a, b, 0.5 * (a + b)))
    assert za.shape == (4, LATENT_CHANNELS, 8, 8)
    assert torch.allclose(middle, 0.5 * (za + zb), atol=0.02 * float(za.std()))
    assert float((za - zb).abs().mean()) > 0.3, "and yet it depends on the picture"


def test_the_matrix_is_the_network() -> None:
    vae, shown = _fitted(), pictures(5, 4)
    exact = encode_pixels(vae, shown)
    assert torch.allclose(encode_many(vae, shown).float(), exact, atol=0.02 * float(exact.std()), rtol=0.01)


def test_latents_have_unit_size_and_are_uncorrelated() -> None:
    z = encode_pixels(_fitted(), pictures(64, 0)).float()
    flat = z.movedim(1, 0).flatten(1)
    assert abs(float(flat.square().mean()) - 1) < 0.05
    correlation = torch.corrcoef(flat[:8])
    assert float((correlation - torch.eye(8)).abs().max()) < 0.1


def test_latents_hold_the_picture() -> None:
    """A linear read-out of the latents gives back what the first principal components of 8 x 8 patches hold."""
    shown = pictures(64, 0)
    vae = _fitted()
    z = encode_pixels(vae, shown).float().movedim(1, -1).flatten(0, -2)
    x = torch.from_numpy(shown).movedim(-1, 1).float() / 127.5 - 1
    patches = torch.nn.functional.pixel_unshuffle(x, 8).movedim(1, -1).flatten(0, -2)
    design = torch.cat([z, torch.ones(len(z), 1)], dim=1)
    fit = design @ torch.linalg.lstsq(design, patches).solution
    _, values, _ = np.linalg.svd((patches - patches.mean(0)).numpy(), full_matrices=False)
    best = float((values[LATENT_CHANNELS:] ** 2).sum() / patches.numel())
    assert float((fit - patches).square().mean()) < 1.3 * best + 1e-3


def test_psnr_of_an_untrained_decoder_is_poor() -> None:
    assert reconstruction_psnr(_fitted(), pictures(4, 3)) < 20
