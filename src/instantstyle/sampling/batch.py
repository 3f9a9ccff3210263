"""One call of the denoiser for several runs: their rows stacked, and each handed its own at every attention layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from instantstyle.blocks import Site
from instantstyle.networks.attention import Attend, HeadsTensor, plain
from instantstyle.networks.denoiser import Conditioning, Denoiser
from instantstyle.networks.tokens import Tokens
from instantstyle.networks.unet import Residuals


@dataclass(frozen=True, eq=False)
class DenoiserInputs:
    """What a run brings to the coming call."""

    denoiser: Denoiser
    latents: Float[Tensor, "rows channels height width"]
    """Scaled as the denoiser is to see them."""
    timestep: Tensor
    """In training steps, one number for all rows."""
    conditioning: Conditioning
    attend: Attend
    residuals: Residuals | None = None
    """What the run's ControlNets add, for its first rows or all of them."""


@dataclass(frozen=True, eq=False)
class RunBatch:
    """What does not change from step to step for runs that are stacked."""

    parts: Sequence[Conditioning]
    """The runs' own; held so that none is freed, and its id given to another, while the batch is remembered by ids."""
    row_slices: Sequence[slice]
    conditioning: Conditioning

    @classmethod
    def collate(cls, parts: list[Conditioning]) -> "RunBatch":
        """The rows of these runs, one below the other."""
        ends = [sum(len(part) for part in parts[: i + 1]) for i in range(len(parts))]
        slices = [slice(end - len(part), end) for end, part in zip(ends, parts, strict=True)]
        return cls(parts, slices, Conditioning.collate(parts))

    def forward(self, inputs: Sequence[DenoiserInputs]) -> Float[Tensor, "rows out_channels height width"]:
        """One call for the coming step of every run."""
        latents = torch.cat([each.latents for each in inputs])
        timesteps = torch.cat([each.timestep.float().expand(len(each.latents)) for each in inputs])
        attend = route_attention([(rows, each.attend) for rows, each in zip(self.row_slices, inputs, strict=True)])
        residuals = collate_residuals([(each.residuals, len(each.latents)) for each in inputs])
        return inputs[0].denoiser(latents, timesteps, self.conditioning, attend=attend, residuals=residuals)


def collate_residuals(parts: Sequence[tuple[Residuals | None, int]]) -> Residuals | None:
    """The residuals of all rows, of each run's own and how many rows it has; zeros for rows without, None if none has.

    A number plus zero is the number, so that a run is not changed by a neighbour that has controls.
    """
    if all(residuals is None for residuals, _ in parts):
        return None
    flat = [None if residuals is None else [*residuals[0], residuals[1]] for residuals, _ in parts]
    joined: list[Tensor] = []
    for place, each in enumerate(zip(*(one for one in flat if one is not None), strict=True)):
        # Those of ControlNets that pool are one pixel large.
        shape = max(tuple(tensor.shape[1:]) for tensor in each)
        rows: list[Tensor] = []
        for one, (_, count) in zip(flat, parts, strict=True):
            own = each[0].new_zeros(0, *shape) if one is None else one[place].expand(-1, *shape)
            rows += [own, own.new_zeros(count - len(own), *shape)]
        joined.append(torch.cat(rows))
    return joined[:-1], joined[-1]


def route_attention(parts: Sequence[tuple[slice, Attend]]) -> Attend:
    """One `attend` for all rows: each run's own on its own rows; neighbours that are plain share a call."""
    merged: list[tuple[slice, Attend]] = []
    for rows, attend in parts:
        if merged and attend is plain and merged[-1][1] is plain:
            merged[-1] = slice(merged[-1][0].start, rows.stop), plain
        else:
            merged.append((rows, attend))
    if len(merged) == 1:
        return merged[0][1]

    def attended(
        site: Site,
        q: HeadsTensor,
        k: HeadsTensor,
        v: HeadsTensor,
        *,
        bias: Tensor | None = None,
        tokens: Tokens | None = None,
    ) -> HeadsTensor:
        def own(rows: slice) -> Tensor | None:
            return bias if bias is None or bias.shape[0] == 1 else bias[rows]

        outs: list[Tensor] = []
        for rows, attend in merged:
            here = None if tokens is None else tokens.rows(rows)
            outs.append(attend(site, q[rows], k[rows], v[rows], bias=own(rows), tokens=here))
        return torch.cat(outs)

    return attended
