"""A fingerprint of a model: a hash over its tensors, of which large ones enter by a sample alone.

It tells one model from another and finds most damage, but it is no checksum: a change between the sampled stretches of
a large tensor does not show.  Short enough to be stored in a picture.
"""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

SAMPLED_ABOVE = 16 * 2**20
"""Bytes beyond which a tensor is known by a sample of it."""
WINDOWS, WIDTH = 16, 1024
"""The sample: so many stretches of so many numbers, evenly apart."""


def weights_hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A hash over names, dtypes, shapes and the bytes of tensors, in their order."""
    made = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors:
        made.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        made.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return made.hexdigest()


def sampled(tensor: Tensor) -> Tensor:
    """The tensor itself, or of a large one a sample: training leaves no stretch of a weight as it was."""
    if tensor.numel() * tensor.element_size() <= SAMPLED_ABOVE:
        return tensor
    flat = tensor.detach().reshape(-1)
    apart = (len(flat) - WIDTH) // (WINDOWS - 1)
    return torch.cat([flat[i * apart : i * apart + WIDTH] for i in range(WINDOWS)])
