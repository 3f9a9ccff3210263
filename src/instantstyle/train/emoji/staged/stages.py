# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""The stages of the 128-pixel model, and the command that runs them; every stage resumes where it was.

In order: `prepare` (pictures, latents, captions), `base`, `decoder`, `adapter-published`; then a probe of that adapter
(`instantstyle probe --model FOLDER/emoji`) says which blocks are the plan of `adapter-style` and `adapter-paired`;
`distillation`; `export`.  `pack` writes the restart package, from which `--begin` goes on on a bare machine.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch import nn

from instantstyle.blocks import BlockPlan, parse_block_plan
from instantstyle.emoji.sources import cache_folder
from instantstyle.errors import InputError, InstantStyleError
from instantstyle.families import EMOJI
from instantstyle.networks.unet import UNet
from instantstyle.train.adapter import TrainableAdapter
from instantstyle.train.emoji.staged import adapters, base, decoder, distillation, package, reach
from instantstyle.train.emoji.staged.captions import SHARES
from instantstyle.train.emoji.staged.data import CAPTION_SEED, SHIPPED, TrainingData, prepare, vae_of
from instantstyle.train.emoji.staged.export import assemble, averaged
from instantstyle.weights.adapter import Adapter

STEPS: Mapping[str, int] = {
    "base": base.STEPS,
    "decoder": 3_000,
    "adapter-published": 6_000,
    "adapter-style": 4_000,
    "adapter-paired": 4_000,
    "distillation": 6_000,
}
"""Optimiser steps of each stage when none are named."""
ADAPTER_RATE = 1e-3


class Stages:
    """All stages over one working folder."""

    def __init__(
        self,
        folder: Path,
        steps: int | None = None,
        styles: int = 1800,
        begin: Path | None = None,
        plan: BlockPlan | None = None,
        package_folder: Path | None = None,
        renew: base.Renew = "cross-attention",
        dropped_skips: float = 0.0,
        dropped_pooled: float = 0.0,
        dropped_modules: float = 0.0,
    ) -> None:
        """`steps` replaces a stage's default; `begin` is a restart package; `plan` is that of the style adapters.

        `package_folder` is where `pack` writes the package; `renew` and the dropped shares are those of `train_base`.
        """
        self.folder, self.steps, self.styles, self.begin, self.plan, self.package_folder = (
            folder,
            steps,
            styles,
            begin,
            plan,
            package_folder,
        )
        self.renew: base.Renew = renew
        self.dropped = (dropped_skips, dropped_pooled, dropped_modules)
        self.processes = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))

    @cached_property
    def data(self) -> TrainingData:
        """Training data of the base and the decoder."""
        return prepare(self.folder, self.styles)

    @cached_property
    def data_with_embeds(self) -> TrainingData:
        """`data` with image embeddings."""
        return prepare(self.folder, self.styles, embeds=True)

    @cached_property
    def unet(self) -> UNet:
        """The base's averaged weights, frozen."""
        self._restore("base", base.begin(), base.RATE, base.MUON_RATE)
        if not (self.folder / "base.pt").exists():
            raise InputError(f"the base has not been trained in {self.folder}: run the stage base first")
        return base.unet_of(averaged(self.folder / "base.pt"))

    def prepare(self) -> None:
        """Render the bank and encode its images and captions."""
        print(
            f"{len(self.data_with_embeds.bank.concept)} pictures, "
            f"{len(self.data_with_embeds.captions.embeds.texts)} captions"
        )

    def base(self) -> None:
        """Train the UNet on text alone."""
        self._restore("base", base.begin(), base.RATE, base.MUON_RATE)
        steps = self._steps("base")
        base.train_base(self.folder, self.data, steps, self.processes, self.renew, *self.dropped)

    def reach(self) -> None:
        """Print `caption_worth` and `text_reach` of the base at both sizes."""
        for side in self.data.latents:
            worth, error = reach.caption_worth(self.unet, self.data, side)
            print(f"{side} worth of a caption {worth:.4f}, error with its own {error:.4f}", flush=True)
            for timestep in (900, 500):
                changes = reach.text_reach(self.unet, self.data, side, timestep)
                print(
                    side, timestep, ", ".join(f"{module} {share:.3f}" for module, share in changes.items()), flush=True
                )

    def decoder(self) -> None:
        """Train the decoder at 128 px."""
        vae = vae_of(SHIPPED)
        vae.decoder.requires_grad_(True)
        self._restore("decoder", decoder.Adversaries(vae), decoder.RATE, None)
        decoder.train_decoder(
            self.folder, vae_of(SHIPPED), self.unet, self.data, self._steps("decoder"), self.processes
        )

    def adapter_published(self) -> None:
        """Train the adapter at all blocks, the reference being the target."""
        self._adapter(adapters.PUBLISHED)

    def adapter_style(self) -> None:
        """Train the adapter at the plan's blocks alone, the reference being the target."""
        self._adapter(adapters.style_stage(self._style_plan()))

    def adapter_paired(self) -> None:
        """Train the adapter at the plan's blocks alone, the reference being another concept in the target's style."""
        self._adapter(adapters.paired_stage(self._style_plan()))

    def distillation(self) -> None:
        """Distil the base, with the published adapter where there is one."""
        adapter = None
        if (self.folder / f"{adapters.PUBLISHED.name}.pt").exists():
            adapter = TrainableAdapter(self.unet, adapters.ALL)
            adapter.load_state_dict(averaged(self.folder / f"{adapters.PUBLISHED.name}.pt"))
        self._restore("distillation", distillation.Student(self.unet), distillation.RATE, None)
        distillation.train_student(
            self.folder, self.unet, self.data_with_embeds, self._steps("distillation"), self.processes, adapter
        )

    def export(self) -> None:
        """Write the checkpoints so far as a model folder."""
        vae, file = vae_of(SHIPPED), self.folder / "decoder.pt"
        if file.exists():
            weights = {
                key.removeprefix("decoder."): w for key, w in averaged(file).items() if key.startswith("decoder.")
            }
            vae.decoder.load_state_dict(weights)
        exported: dict[str, Adapter] = {}
        for name, stage in (
            ("ip_adapter.safetensors", adapters.PUBLISHED),
            ("ip_adapter_style.safetensors", adapters.style_stage(self.plan) if self.plan else None),
        ):
            if stage and (self.folder / f"{stage.name}.pt").exists():
                net = TrainableAdapter(self.unet, stage.plan)
                net.load_state_dict(averaged(self.folder / f"{stage.name}.pt"))
                exported[name] = net.requires_grad_(False).adapter
        print(assemble(self.folder / "emoji", self.unet.state_dict(), vae, exported))

    def pack(self) -> None:
        """Write the restart package of every stage that has a checkpoint."""
        trained = [name for name in STEPS if (self.folder / f"{name}.pt").exists()]
        metadata: dict[str, dict[str, Any]] = {name: {"steps planned": self._steps(name)} for name in trained}
        if "base" in metadata:
            step = package.checkpoint(self.folder / "base.pt")["step"]
            metadata["base"] |= {
                "samples": {str(side): count for side, count in base.samples(int(step)).items()},
                "phases": [[phase.until, phase.large] for phase in base.PHASES],
                "learning rates": [base.RATE, base.MUON_RATE],
                "caption shares": {column.name: share for column, share in SHARES.items()},
            }
        data = {"bank seed": 1, "styles": self.styles, "caption seed": CAPTION_SEED, "processes": 2}
        package.pack(self.folder, self.package_folder or self.folder / "package", metadata, data)

    def _adapter(self, stage: adapters.AdapterStage) -> None:
        self._restore(stage.name, TrainableAdapter(self.unet, stage.plan), ADAPTER_RATE, 3 * ADAPTER_RATE)
        adapters.train_adapter_stage(
            self.folder, self.unet, self.data_with_embeds, stage, self._steps(stage.name), self.processes, ADAPTER_RATE
        )

    def _style_plan(self) -> BlockPlan:
        if self.plan is None:
            raise InputError("name the blocks that the probe found, such as --plan up.0.1=1,up.1.2=1")
        return self.plan

    def _steps(self, stage: str) -> int:
        return self.steps or STEPS[stage]

    def _restore(self, stage: str, net: nn.Module, lr: float, muon: float | None) -> None:
        if self.begin is None:
            return
        if self.rank == 0:
            package.restore(self.begin, stage, net, self.folder, lr, muon)
        if dist.is_initialized():
            dist.barrier()


STAGES: Mapping[str, Callable[[Stages], None]] = {
    "prepare": Stages.prepare,
    "base": Stages.base,
    "reach": Stages.reach,
    "decoder": Stages.decoder,
    "adapter-published": Stages.adapter_published,
    "adapter-style": Stages.adapter_style,
    "adapter-paired": Stages.adapter_paired,
    "distillation": Stages.distillation,
    "export": Stages.export,
    "pack": Stages.pack,
}
"""In order."""


def main() -> None:
    """Run the named stages in order."""
    parser = argparse.ArgumentParser(description="Train the 128-pixel built-in model; every stage resumes.")
    parser.add_argument("stages", nargs="+", choices=STAGES)
    parser.add_argument("--folder", type=Path, default=cache_folder() / "training-128", help="the working folder")
    parser.add_argument("--begin", type=Path, help="a restart package, for stages that the folder has not")
    parser.add_argument("--steps", type=int, help="optimiser steps of the named stages, instead of their own")
    parser.add_argument("--styles", type=int, default=1800, help="how many looks the bank holds")
    parser.add_argument("--plan", help="the blocks of adapter-style and adapter-paired, as the probe found them")
    parser.add_argument("--package", type=Path, help="where pack writes, by default in the working folder")
    parser.add_argument("--renew", choices=get_args(base.Renew), default="cross-attention", help="how the base begins")
    parser.add_argument("--dropped-skips", type=float, default=0.0, help="share of rows without the middle level's")
    parser.add_argument("--dropped-pooled", type=float, default=0.0, help="share of rows without pooled words")
    parser.add_argument("--dropped-modules", type=float, default=0.0, help="share of rows unread, by module")
    args = parser.parse_args()
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        plan = parse_block_plan(args.plan, EMOJI.unet, {}) if args.plan else None
        more = (args.renew, args.dropped_skips, args.dropped_pooled, args.dropped_modules)
        stages = Stages(args.folder, args.steps, args.styles, args.begin, plan, args.package, *more)
        for name in args.stages:
            STAGES[name](stages)
    except KeyboardInterrupt as stopped:
        print(stopped)
        sys.exit(130)
    except InstantStyleError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
