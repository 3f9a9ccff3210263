# pyright: reportUnknownMemberType=false, reportPrivateImportUsage=false

"""From data to an adapter file in one call: features, loop, sheets, export; run again, each goes on where it was."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from instantstyle.blocks import parse_plan
from instantstyle.errors import OutputError, WeightsError
from instantstyle.loading import load
from instantstyle.model import Model
from instantstyle.train.adapter import Trained
from instantstyle.train.data.dataset import Features, Order, Reference
from instantstyle.train.data.feature_cache import Note, Options, compute, damaged, gather
from instantstyle.train.data.records import Styles
from instantstyle.train.data.sources import find_shards
from instantstyle.train.export import publish, write_card
from instantstyle.train.objective import Lesson, Teaching
from instantstyle.train.tracking import Console, Judge, Log, Sheets, with_adapter
from instantstyle.train.trainer import Fit, Progress, Settings, accelerator
from instantstyle.utils.atomic_files import check_writable
from instantstyle.utils.images import read as read_picture
from instantstyle.weights.adapter import Adapter, load_adapter


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is asked of `train`."""

    data: str
    """Whatever `find_shards` takes, or a folder of features."""
    out: Path
    settings: Settings
    model: str = "emoji"
    blocks: str = "style"
    work: Path | None = None
    """Where features, checkpoints, logs and sheets lie; by default beside `out`."""
    reference: Reference = "same"
    styles: Styles = "field"
    begin: Path | None = None
    """An adapter to train on, instead of a new one."""
    options: Options = field(default_factory=Options)
    teaching: Teaching = field(default_factory=Teaching)
    ray: str | None = None
    device: str = "auto"
    pad: bool = False
    sheet_every: int = 0
    """Steps between two sheets; 0 draws none."""
    sheet_prompts: Sequence[str] = ()
    """By default captions of the data."""
    sheet_styles: Sequence[Path] = ()
    """By default pictures of the data, as the decoder makes them of their latents."""
    judge: Judge | None = None
    judge_every: int = 0

    @property
    def folder(self) -> Path:
        """The working folder."""
        return self.work or self.out.with_name(f"{self.out.name}.work")


def train(job: Job) -> Path | None:
    """Train an adapter and write it with its card; None when a signal asked for an end, and it can be resumed.

    Every process of a launch calls it.  Raises InputError and its kin for what is wrong with what is given.
    """
    check_writable(job.out)
    place = accelerator(job.device)
    half = job.settings.half
    model = load(job.model, device=place.device, dtype="bfloat16" if half else "float32")
    plan = parse_plan(job.blocks, model.family.unet, model.family.presets)
    features = features_of(job, model, place)
    embed = features.array("embed", np.array([0])).shape[-1]
    begin = None if job.begin is None else load_adapter(job.begin, model.family.unet, plan=plan)
    tokens = model.family.image_tokens if begin is None else begin.token_count
    net = Trained(model.unet, plan, embed_dim=embed, tokens=tokens, seed=job.teaching.seed, begin=begin)
    of = job.settings.batch * job.settings.accumulate * place.num_processes
    shapes = [tuple(int(x) for x in row[-2:]) for row in features.sizes]
    order = Order(shapes, features.style, job.reference, of, job.teaching.seed)
    lesson = Lesson(model, net, features, order, job.teaching, half=half)
    begun = {
        "data": features.manifest["sha256"],
        "model": model.identity,
        "blocks": sorted({site.module for site in net.sites}),
        "reference": job.reference,
        **asdict(job.teaching),
    }
    fit = Fit(net, lesson, job.settings, job.folder, begun=begun, place=place)
    if place.is_main_process:
        _say(_opening(features, order, fit, net))
    scores = _followed(job, fit, net, model, features, place)
    if scores is None:
        _say(f"stopped at step {fit.first} of {job.settings.steps}: the same command goes on from there")
        return None
    adapter = net.averaged(fit.averaged())
    if place.is_main_process:
        card = write_card(
            job.out.stem,
            blocks=job.blocks,
            modules=list(dict.fromkeys(site.module for site in net.sites)),
            reference=job.reference,
            manifest=features.manifest,
            settings={**asdict(job.settings), **asdict(job.teaching)},
            trained={"rows a step": of, "pictures seen": of * fit.first, "pictures left out": order.alone},
            scores=scores,
        )
        publish(job.out, adapter, model.family.unet, card, pad=job.pad)
    place.wait_for_everyone()
    return job.out


def features_of(job: Job, model: Model, place: Accelerator) -> Features:
    """The features of the job's data: a folder of them, or computed now, each process its share of the shards."""
    given = Path(job.data)
    if (given / "manifest.json").is_file():
        return Features(given)
    folder, shards = job.folder / "features", find_shards(job.data, styles=job.styles)

    # With Ray one process asks, and the workers are elsewhere.
    mine = (place.process_index, place.num_processes) if job.ray is None else (0, 1)
    if job.ray is None or place.is_main_process:
        compute(model, shards, folder, job.options, ray=job.ray, place=mine, tell=_told)
    place.wait_for_everyone()
    if place.is_main_process:
        manifest = gather(model, shards, folder, job.options)
        _say(counted(manifest, folder))
    place.wait_for_everyone()
    return Features(folder)


def prepare(
    data: str,
    folder: Path,
    options: Options,
    *,
    model: str = "emoji",
    styles: Styles = "field",
    ray: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    check: bool = False,
) -> None:
    """Compute the features of data into a folder, or `check` those that are there against their hashes.

    Raises WeightsError, naming the shards, when some are not what they were.
    """
    if check:
        wrong = damaged(folder)
        if wrong:
            raise WeightsError(
                f"{len(wrong)} shards in {str(folder)!r} are not as they were written ({', '.join(wrong[:3])}): remove "
                "them, and compute them again"
            )
        return
    loaded, shards = load(model, device=device, dtype=dtype), find_shards(data, styles=styles)
    made, began = list[Note](), time.monotonic()

    def told(done: int, total: int, note: Note) -> None:
        made.append(note)
        _told(done, total, note)

    compute(loaded, shards, folder, options, ray=ray, tell=told)
    seconds = time.monotonic() - began
    _say(counted(gather(loaded, shards, folder, options), folder))
    if made:
        _say(pace(sum(len(note["rows"]) for note in made), sum(note["bytes"] for note in made), seconds))


def pace(pictures: int, size: int, seconds: float) -> str:
    """What so many pictures took, and what a million like them would take: disk in bytes, time."""
    each = max(pictures, 1)
    hours = seconds / each * 1e6 / 3600
    return (
        f"{pictures / max(seconds, 1e-9):,.1f} pictures a second; a million of them: {hours:,.1f} hours at this pace, "
        f"{size / each / 1e3:,.1f} GB"
    )


def bfloat16_pays(device: str) -> bool:
    """Whether training on this device is faster in bfloat16 without being worse."""
    return device != "cpu" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def counted(manifest: Mapping[str, Any], folder: Path) -> str:
    """What was read, kept and left out, in a line."""
    counts = manifest["counts"]
    said = f"{counts['kept']:,} of {counts['read']:,} pictures, {counts['bytes'] / 2**20:,.0f} MiB in {folder}"
    if counts["captions cut"]:
        said += f"; {counts['captions cut']:,} captions were longer than the model reads and are cut"
    if counts["bad"] or counts["broken shards"]:
        said += (
            f"; {counts['bad']:,} cannot be used and {counts['broken shards']} shards are damaged: "
            f"{folder / 'skipped.jsonl'} says which and why"
        )
    return said


def _followed(
    job: Job, fit: Fit, net: Trained, model: Model, features: Features, place: Accelerator
) -> Mapping[str, float] | None:
    """Run the loop to its end, logging; the last scores, or None when it was stopped."""
    main = place.is_main_process
    log, console = (Log(job.folder, fit.first), Console()) if main else (None, None)
    sheets = _sheets(job, model, features) if main and job.sheet_every else None
    scores: Mapping[str, float] = {}
    before = fit.first
    for at in fit.steps():
        if log is not None and console is not None:
            log.take(at)
            console.take(at)
        draws, judges = (_passed(every, before, at) for every in (job.sheet_every, job.judge_every))
        before = at.step
        if draws or judges:
            adapter = net.averaged(fit.averaged())
            if sheets is not None and draws:
                _say(_drawn(sheets, model, adapter, at.step))
            if job.judge is not None and log is not None and judges:
                scores = job.judge(with_adapter(model, adapter))
                log.scores(at.step, scores)
        if at.stopped:
            scores = {"stopped": 1.0}
    if log is not None:
        log.close()
    return None if "stopped" in scores else scores


def _drawn(sheets: Sheets, model: Model, adapter: Adapter, step: int) -> str:
    try:
        return f"sheet {sheets.draw(model, adapter, step)}"
    except (OutputError, OSError) as refused:  # a full disk, which is no reason to stop learning
        return f"warning: no sheet at step {step}: {refused}"


def _passed(every: int, before: int, at: Progress) -> bool:
    return bool(every) and not at.stopped and (at.step // every > before // every or at.step == at.steps)


def _sheets(job: Job, model: Model, features: Features) -> Sheets:
    """The sheets asked for; of four prompts and four references, those of the data where none are named."""
    few = np.linspace(0, len(features) - 1, min(4, len(features))).astype(np.int64)
    prompts = job.sheet_prompts or tuple(dict.fromkeys(features.captions(few)))
    references: list[Image.Image] = [read_picture(path) for path in job.sheet_styles]
    if not references:
        references = [
            model.decode(features.array("latents", few[i : i + 1]).to(model.device))[0] for i in range(len(few))
        ]
    return Sheets(job.folder / "sheets", prompts, references, job.blocks)


def _opening(features: Features, order: Order, fit: Fit, net: Trained) -> str:
    count = sum(p.numel() for p in net.parameters())
    left_out = f" ({order.alone:,} left out: alone in their style)" if order.alone else ""
    begins = f"resumed at step {fit.first}" if fit.first else "begins"
    return (
        f"{count:,} weights learn at {', '.join(dict.fromkeys(s.module for s in net.sites))}; "
        f"{len(features):,} pictures{left_out}, {fit.of} a step, {order.steps_per_epoch:,} steps an epoch; {begins}"
    )


def _told(done: int, total: int, note: Note) -> None:
    bad = note["read"] - len(note["rows"])
    _say(f"features {done}/{total}  {len(note['rows'])} pictures{f', {bad} bad' * bool(bad)}  {note['shard']}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
