"""One UNet call for several runs: their rows stacked, and each handed its own at every attention layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from instantstyle.blocks import Site
from instantstyle.networks.attention import Attend, CrossAttentionKV, HeadsTensor, plain
from instantstyle.networks.unet import Residuals, UNet


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What a run's rows read besides their latents, a row for each; it is the same at every step."""

    prompt_embeds: Float[Tensor, "rows tokens context_dim"]
    """The text itself, for networks beside the UNet."""
    kv: CrossAttentionKV
    """Its keys and values in the UNet."""
    pooled_prompt_embeds: Float[Tensor, "rows pooled_dim"] | None
    time_ids: Float[Tensor, "rows 6"] | None


@dataclass(frozen=True, eq=False)
class UNetInputs:
    """What a run brings to the coming UNet call."""

    unet: UNet
    latents: Float[Tensor, "rows channels height width"]
    """As the UNet is to see them."""
    timestep: Tensor
    """In training steps, one number for all rows."""
    conditioning: Conditioning
    attend: Attend
    residuals: Residuals | None = None
    """What the run's ControlNets add, for its first rows or all of them."""


@dataclass(frozen=True, eq=False)
class Batch:
    """The arguments of a UNet call that do not change from step to step, for runs that go together."""

    conditionings: Sequence[Conditioning]
    """Whose they are; held so that none is forgotten, and its id given to another, while the stack lives."""
    row_slices: Sequence[slice]
    kv: CrossAttentionKV
    pooled_prompt_embeds: Tensor | None
    time_ids: Tensor | None

    @classmethod
    def collate(cls, tolds: Sequence[Conditioning]) -> "Batch":
        """What these runs read, one below the other."""
        counts = [len(told.prompt_embeds) for told in tolds]
        ends = [sum(counts[: i + 1]) for i in range(len(counts))]
        rows = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
        if len(tolds) == 1:
            return cls(tolds, rows, tolds[0].kv, tolds[0].pooled_prompt_embeds, tolds[0].time_ids)
        text = {
            site: (torch.cat([told.kv[site][0] for told in tolds]), torch.cat([told.kv[site][1] for told in tolds]))
            for site in tolds[0].kv
        }
        pooled, sizes = ([getattr(told, name) for told in tolds] for name in ("pooled_prompt_embeds", "time_ids"))
        return cls(tolds, rows, text, _joined(pooled), _joined(sizes))

    def forward(self, turns: Sequence[UNetInputs]) -> Float[Tensor, "rows out_channels height width"]:
        """One UNet call for the coming step of every run."""
        latents = torch.cat([turn.latents for turn in turns])
        times = torch.cat([turn.timestep.float().expand(len(turn.latents)) for turn in turns])
        attend = route_attention([(rows, turn.attend) for rows, turn in zip(self.row_slices, turns, strict=True)])
        residuals = collate_residuals([(turn.residuals, len(turn.latents)) for turn in turns])
        return turns[0].unet(
            latents, times, self.kv, self.pooled_prompt_embeds, self.time_ids, attend=attend, residuals=residuals
        )


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None


def collate_residuals(parts: Sequence[tuple[Residuals | None, int]]) -> Residuals | None:
    """The residuals of all rows, of each run's own and how many rows it has; zeros for rows without, None if none has.

    A number plus zero is the number, so that a run is not changed by a neighbour that has controls.
    """
    there = [residuals for residuals, _ in parts if residuals is not None]
    if not there:
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
        site: Site, q: HeadsTensor, k: HeadsTensor, v: HeadsTensor, *, bias: Tensor | None = None
    ) -> HeadsTensor:
        def own(rows: slice) -> Tensor | None:
            return bias if bias is None or bias.shape[0] == 1 else bias[rows]

        return torch.cat([attend(site, q[rows], k[rows], v[rows], bias=own(rows)) for rows, attend in merged])

    return attended
