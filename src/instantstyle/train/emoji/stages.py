# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""The training stages of the built-in model: their order, default steps, and files."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTokenizer

from instantstyle.emoji.splits import TRAINED_CONCEPTS
from instantstyle.errors import WeightsError
from instantstyle.families import EMOJI
from instantstyle.networks.unet import UNet
from instantstyle.train.emoji import image_bank
from instantstyle.train.emoji.adapter import train_adapter
from instantstyle.train.emoji.clip import Clip, agreement, cached_tokenizer, tokenize, train_image, train_text
from instantstyle.train.emoji.controlnet import control_gain, train_control
from instantstyle.train.emoji.dataset import (
    CaptionEmbeddings,
    TrainingSet,
    caption_choices,
    embed_images,
    encode_captions,
)
from instantstyle.train.emoji.export import card, export
from instantstyle.train.emoji.image_bank import SIDE, ImageBank
from instantstyle.train.emoji.joint_finetune import JointModel, train_joint
from instantstyle.train.emoji.style_classifier import StyleLoss, train_style_classifier
from instantstyle.train.emoji.unet import make_unet, train_unet
from instantstyle.train.emoji.vae import encode_many, reconstruction_psnr, train_vae
from instantstyle.train.emoji.warm_start import provenance
from instantstyle.utils.atomic_files import atomic_write
from instantstyle.weights.adapter import save_adapter

STAGE_STEPS: Mapping[str, int] = {
    "vae": 14_000,
    "text": 500,
    "clip": 3_000,
    "unet": 5_000,
    "look": 2_500,
    "joint": 8_000,
    "adapter": 1_500,
    "control": 3_000,
}
"""Optimiser steps of each stage when none are named; what the shipped model was given stands in its card."""

_Ran = Mapping[str, tuple[int, float]]
"""Optimiser steps and seconds by stage."""


class TrainingStages:
    """All stages over one working folder; existing results are used, missing ones are computed."""

    def __init__(
        self,
        folder: Path,
        steps: Mapping[str, int] = STAGE_STEPS,
        styles: tuple[int, int] = (1800, 500),
        *,
        things: tuple[str, ...] = TRAINED_CONCEPTS,
        side: int = SIDE,
        batches: Mapping[str, int] | None = None,
        processes: int = 1,
    ) -> None:
        """`things` are the concepts that the UNet is trained on, `side` its images' side in pixels, `batches` batch
        sizes by stage in place of the defaults, `processes` the number that render the banks.  The image encoder's
        input is always 64 pixels."""
        self.folder, self.steps, self.styles = folder, steps, styles
        self.things, self.side, self.batches, self.processes = things, side, batches or {}, processes

    @cached_property
    def core(self) -> ImageBank:
        """Images of the concepts that the UNet is trained on."""
        return image_bank.core_bank(self.folder / "bank", self.styles[0], self.things, self.side, self.processes)

    @cached_property
    def broad(self) -> ImageBank:
        """Images of the other concepts, for the encoders and the VAE."""
        return image_bank.broad_bank(self.folder / "bank", self.styles[1], self.things, self.side, self.processes)

    @cached_property
    def encoder_banks(self) -> list[ImageBank]:
        """Both banks at the image encoder's resolution."""
        if self.side == SIDE:
            return [self.core, self.broad]
        folder, more = self.folder / "bank", (self.things, SIDE, self.processes)
        return [
            image_bank.core_bank(folder, self.styles[0], *more),
            image_bank.broad_bank(folder, self.styles[1], *more),
        ]

    def _batch(self, stage: str) -> dict[str, int]:
        return {"batch": self.batches[stage]} if stage in self.batches else {}

    def bank(self) -> None:
        """Render both banks."""
        print(
            f"core {len(self.core.concept)} pictures, broad {len(self.broad.concept)}, "
            f"{len(self.encoder_banks)} banks seen"
        )

    def vae(self) -> None:
        """Train the decoder; print the reconstruction PSNR on the broad bank."""
        vae = train_vae(self.folder, [self.core, self.broad], self.steps["vae"], **self._batch("vae"))
        sample = self.broad.pictures[:: max(1, len(self.broad.pictures) // 512)]
        print(f"round trip of broad pictures: {reconstruction_psnr(vae, sample):.2f} dB")

    def text(self) -> None:
        """Train the text encoders."""
        train_text(self.folder, self.encoder_banks, self.steps["text"], **self._batch("text"))

    def clip(self) -> None:
        """Train the image encoder into the text encoders' space; print the zero-shot accuracy on labels."""
        net = train_image(self.folder, self.encoder_banks, self._text, self.steps["clip"])
        accuracy = {b.labels[0]: agreement(net, self.tokenizer, b) for b in self.encoder_banks}
        print("nearest label right, core and broad:", list(accuracy.values()))

    def unet(self) -> None:
        """Train the base UNet on text."""
        train_unet(self.folder, self.corpus.to_device(), steps=self.steps["unet"], **self._batch("unet"))

    def look(self) -> None:
        """Train the style classifier, whose loss `joint` adds."""
        self._style_loss()

    def _style_loss(self) -> StyleLoss:
        return train_style_classifier(self.folder, self.core, self.latents, self.steps["look"], **self._batch("look"))

    def joint(self) -> None:
        """Continue with UNet and style adapter together, on references of another concept in the same style.

        The adapter has the blocks of the `style` preset.  The style classifier is trained first, if its steps are not
        0; without it there is no classifier loss.
        """
        net = JointModel(self._unet(self.averaged("unet")), EMOJI.presets["style"])
        corpus, style_loss = self.corpus_with_embeds.to_device(), self._style_loss() if self.steps["look"] else None
        weights = train_joint(self.folder, net, corpus, style_loss, steps=self.steps["joint"], **self._batch("joint"))
        net.load_state_dict({**net.state_dict(), **weights})
        net.requires_grad_(False)
        save_adapter(self.folder / "style-adapter.safetensors", net.style.adapter, EMOJI.unet)

    def adapter(self) -> None:
        """Train the base IP-Adapter: the same picture, all blocks, the UNet frozen."""
        unet, corpus = self._unet(self.unet_weights), self.corpus_with_embeds.to_device()
        everywhere, more = EMOJI.presets["all"], self._batch("adapter")
        adapter = train_adapter(
            self.folder, "adapter", unet, everywhere, "same", corpus, steps=self.steps["adapter"], lr=1e-3, **more
        )
        save_adapter(self.folder / "adapter.safetensors", adapter, EMOJI.unet)

    def control(self) -> None:
        """Train the ControlNet for Canny edges, the UNet frozen; print its loss without and with them."""
        unet = self._unet(self.unet_weights)
        net = train_control(
            self.folder, unet, self.corpus, self._encode, steps=self.steps["control"], **self._batch("control")
        )
        print(
            "error of v without and with edges: {:.4f} {:.4f}".format(
                *control_gain(net, unet, self.corpus, self._encode)
            )
        )

    @cached_property
    def _encode(self) -> Callable[[npt.NDArray[np.uint8]], Tensor]:
        vae = train_vae(self.folder, [self.core, self.broad], steps=0)
        return partial(encode_many, vae)

    def _unet(self, weights: Mapping[str, Tensor]) -> UNet:
        unet = make_unet()
        unet.load_state_dict({**unet.state_dict(), **weights})
        return unet.eval()

    @property
    def unet_weights(self) -> Mapping[str, Tensor]:
        """The UNet's averaged weights of the last stage that trained it."""
        if not (self.folder / "joint.pt").exists():
            return self.averaged("unet")
        both = self.averaged("joint")
        return {name.removeprefix("unet."): w for name, w in both.items() if name.startswith("unet.")}

    def export(self) -> None:
        """Write the model in diffusers' layout to `folder/emoji`, half precision, with its card."""
        unet = self._unet(self.unet_weights)
        vae = train_vae(self.folder, [self.core, self.broad], steps=0)
        adapters = {"ip_adapter.safetensors": "adapter", "ip_adapter_style.safetensors": "style-adapter"}
        adapter_files = {
            name: file for name, s in adapters.items() if (file := self.folder / f"{s}.safetensors").exists()
        }
        control = None
        if (self.folder / "control.pt").exists():
            control = train_control(self.folder, unet, self.corpus, self._encode, steps=0)
        origin, earlier = provenance(self.folder)
        model_card = card(_add_stages(earlier, self.ran()), self.things, self.side, origin)
        parts, target = (unet.state_dict(), adapter_files, self.things, model_card), self.folder / "emoji"
        export(target, vae, self.encoders, self.tokenizer, *parts, self._embedding_scale(), control, self.side)
        print(f"{sum(f.stat().st_size for f in target.rglob('*')) / 1e6:.1f} MB in {target}")

    @torch.no_grad()
    def _embedding_scale(self) -> float:
        """The power of two nearest to the ratio of mean norms: the labels' text embeddings to the image embeddings."""
        texts = self.encoders.encode_text(tokenize(self.tokenizer, [f"a {label}" for label in self.things]))[1]
        return 2.0 ** round(math.log2(float(texts.norm(dim=1).mean() / self.embeds.norm(dim=1).mean())))

    def ran(self) -> dict[str, tuple[int, float]]:
        """Optimiser steps done and seconds spent, of each stage that has a checkpoint."""
        files = {stage: self.folder / f"{stage}.pt" for stage in STAGE_STEPS}
        saved = {s: torch.load(f, weights_only=True, mmap=True) for s, f in files.items() if f.exists()}
        return {stage: (int(state["step"]), float(state["seconds"])) for stage, state in saved.items()}

    def _need(self, stage: str) -> None:
        if not (self.folder / f"{stage}.pt").exists():
            raise WeightsError(f"stage {stage!r} has not been run in {self.folder}: run it first")

    def averaged(self, stage: str) -> dict[str, Tensor]:
        """The averaged weights of a stage's last checkpoint."""
        self._need(stage)
        return torch.load(self.folder / f"{stage}.pt", weights_only=True)["average"]

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        """The tokenizer of both text encoders."""
        return cached_tokenizer(self.folder, self.encoder_banks)

    @cached_property
    def _text(self) -> Clip:
        self._need("text")
        return train_text(self.folder, self.encoder_banks, 0)

    @cached_property
    def encoders(self) -> Clip:
        """The trained text and image encoders."""
        self._need("clip")
        return train_image(self.folder, self.encoder_banks, self._text, 0)

    @cached_property
    def latents(self) -> Float[Tensor, "n c h w"]:
        """Latents of the core images; the encoder is fixed before the decoder is trained, so they do not change."""
        vae = train_vae(self.folder, [self.core, self.broad], steps=0)
        return self._cached("latents", "vae-linear", lambda: encode_many(vae, self.core.pictures))

    @cached_property
    def embeds(self) -> Float[Tensor, "n embed"]:
        """Image embeddings of the core images."""
        return self._cached("embeds", "clip", lambda: embed_images(self.encoders, self.encoder_banks[0].pictures))

    @cached_property
    def corpus(self) -> TrainingSet:
        """Latents and caption embeddings of the core images."""
        captions = caption_choices(self.core, seed=9)
        unique = ["", *sorted({text for choices in captions for text in choices})]
        index_of = {text: i for i, text in enumerate(unique)}
        packed = self._cached("words", "text", lambda: _pack(encode_captions(self._text, self.tokenizer, unique)))
        width = EMOJI.unet.pooled_projection_dim or 0
        prompt_embeds = packed[:, :-width].unflatten(1, (EMOJI.max_text_tokens, -1))
        caption_indices = np.array([[index_of[text] for text in choices] for choices in captions])
        caption_embeds = CaptionEmbeddings(tuple(unique), prompt_embeds, packed[:, -width:].float())
        return TrainingSet(self.core, self.latents, caption_embeds, caption_indices)

    @cached_property
    def corpus_with_embeds(self) -> TrainingSet:
        """`corpus` with image embeddings."""
        return dataclasses.replace(self.corpus, embeds=self.embeds)

    def _cached(self, name: str, source: str, make: Callable[[], Tensor]) -> Tensor:
        """A tensor cached in `name`.pt, recomputed when the checkpoint of stage `source` is newer."""
        file, stage = self.folder / f"{name}.pt", self.folder / f"{source}.pt"
        if not file.exists() or (stage.exists() and stage.stat().st_mtime > file.stat().st_mtime):
            with atomic_write(file) as unfinished:
                torch.save(make(), unfinished)
        return torch.load(file, weights_only=True, mmap=True)


def _add_stages(earlier: _Ran, current: _Ran) -> dict[str, tuple[int, float]]:
    """The sum of two trainings' steps and seconds, in the order of the stages."""
    none = (0, 0.0)
    both = {stage: (earlier.get(stage, none), current.get(stage, none)) for stage in STAGE_STEPS}
    return {stage: (a[0] + b[0], a[1] + b[1]) for stage, (a, b) in both.items() if a[0] + b[0]}


def _pack(caption_embeds: CaptionEmbeddings) -> Tensor:
    return torch.cat([caption_embeds.prompt_embeds.flatten(1), caption_embeds.pooled_prompt_embeds.half()], dim=1)
