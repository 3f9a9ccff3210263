# pyright: reportUnknownMemberType=false, reportPrivateImportUsage=false

"""From data to an adapter file in one call: features, loop, sheets, export; run again, each goes on where it was."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from instantstyle.blocks import parse_block_plan
from instantstyle.errors import OutputError, WeightsError
from instantstyle.loading import load
from instantstyle.model import Model
from instantstyle.train.adapter import TrainableAdapter
from instantstyle.train.data.dataset import BatchSampler, FeatureDataset, Reference
from instantstyle.train.data.feature_cache import FeatureConfig, ShardIndex, compute_features, verify, write_manifest
from instantstyle.train.data.records import Styles
from instantstyle.train.data.sources import find_shards
from instantstyle.train.export import export_adapter, write_model_card
from instantstyle.train.objective import AdapterLoss, LossConfig
from instantstyle.train.tracking import ConsoleLog, EvalFn, MetricsLog, SampleGrids, with_adapter
from instantstyle.train.trainer import Trainer, TrainingConfig, TrainingProgress, make_accelerator
from instantstyle.utils.atomic_files import check_writable
from instantstyle.utils.images import load_image as read_picture
from instantstyle.weights.adapter import Adapter, load_adapter


@dataclass(frozen=True, kw_only=True)
class AdapterTrainingJob:
    """What is asked of `train`."""

    data: str
    """Whatever `find_shards` takes, or a folder of features."""
    out: Path
    training_config: TrainingConfig
    model: str = "emoji"
    blocks: str = "style"
    work: Path | None = None
    """Where features, checkpoints, logs and sheets lie; by default beside `out`."""
    reference: Reference = "same"
    styles: Styles = "field"
    init_from: Path | None = None
    """An adapter to train on, instead of a new one."""
    feature_config: FeatureConfig = field(default_factory=FeatureConfig)
    loss_config: LossConfig = field(default_factory=LossConfig)
    ray: str | None = None
    device: str = "auto"
    pad: bool = False
    sheet_every: int = 0
    """Steps between two sheets; 0 draws none."""
    sheet_prompts: Sequence[str] = ()
    """By default captions of the data."""
    sheet_styles: Sequence[Path] = ()
    """By default pictures of the data, as the decoder makes them of their latents."""
    eval_fn: EvalFn | None = None
    eval_every: int = 0

    @property
    def folder(self) -> Path:
        """The working folder."""
        return self.work or self.out.with_name(f"{self.out.name}.work")


def train_adapter_job(job: AdapterTrainingJob) -> Path | None:
    """Train an adapter and write it with its card; None when a signal asked for an end, and it can be resumed.

    Every process of a launch calls it.  Raises InputError and its kin for what is wrong with what is given.
    """
    check_writable(job.out)
    place = make_accelerator(job.device)
    half = job.training_config.bf16
    model = load(job.model, device=place.device, dtype="bfloat16" if half else "float32")
    plan = parse_block_plan(job.blocks, model.family.unet, model.family.presets)
    features = features_of(job, model, place)
    embed = features.array("embed", np.array([0])).shape[-1]
    begin = None if job.init_from is None else load_adapter(job.init_from, model.family.unet, plan=plan)
    tokens = model.family.num_image_tokens if begin is None else begin.token_count
    net = TrainableAdapter(model.unet, plan, embed_dim=embed, tokens=tokens, seed=job.loss_config.seed, begin=begin)
    of = job.training_config.batch * job.training_config.gradient_accumulation_steps * place.num_processes
    shapes = [tuple(int(x) for x in row[-2:]) for row in features.sizes]
    order = BatchSampler(shapes, features.style, job.reference, of, job.loss_config.seed)
    lesson = AdapterLoss(model, net, features, order, job.loss_config, half=half)
    begun = {
        "data": features.manifest["sha256"],
        "model": model.weights_fingerprint,
        "blocks": sorted({site.module for site in net.sites}),
        "reference": job.reference,
        **asdict(job.loss_config),
    }
    fit = Trainer(net, lesson, job.training_config, job.folder, begun=begun, place=place)
    if place.is_main_process:
        _say(_describe(features, order, fit, net))
    scores = _run_and_log(job, fit, net, model, features, place)
    if scores is None:
        _say(f"stopped at step {fit.start_step} of {job.training_config.steps}: the same command goes on from there")
        return None
    adapter = net.ema_adapter(fit.ema_weights())
    if place.is_main_process:
        card = write_model_card(
            job.out.stem,
            blocks=job.blocks,
            modules=list(dict.fromkeys(site.module for site in net.sites)),
            reference=job.reference,
            manifest=features.manifest,
            settings={**asdict(job.training_config), **asdict(job.loss_config)},
            trained={"rows a step": of, "pictures seen": of * fit.start_step, "pictures left out": order.num_unpaired},
            scores=scores,
        )
        export_adapter(job.out, adapter, model.family.unet, card, pad=job.pad)
    place.wait_for_everyone()
    return job.out


def features_of(job: AdapterTrainingJob, model: Model, place: Accelerator) -> FeatureDataset:
    """The features of the job's data: a folder of them, or computed now, each process its share of the shards."""
    given = Path(job.data)
    if (given / "manifest.json").is_file():
        return FeatureDataset(given)
    folder, shards = job.folder / "features", find_shards(job.data, styles=job.styles)

    # With Ray one process asks, and the workers are elsewhere.
    mine = (place.process_index, place.num_processes) if job.ray is None else (0, 1)
    if job.ray is None or place.is_main_process:
        compute_features(model, shards, folder, job.feature_config, ray=job.ray, place=mine, tell=_told)
    place.wait_for_everyone()
    if place.is_main_process:
        manifest = write_manifest(model, shards, folder, job.feature_config)
        _say(summary(manifest, folder))
    place.wait_for_everyone()
    return FeatureDataset(folder)


def prepare_features(
    data: str,
    folder: Path,
    options: FeatureConfig,
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
        wrong = verify(folder)
        if wrong:
            raise WeightsError(
                f"{len(wrong)} shards in {str(folder)!r} are not as they were written ({', '.join(wrong[:3])}): remove "
                "them, and compute them again"
            )
        return
    loaded, shards = load(model, device=device, dtype=dtype), find_shards(data, styles=styles)
    made, began = list[ShardIndex](), time.monotonic()

    def told(done: int, total: int, note: ShardIndex) -> None:
        made.append(note)
        _told(done, total, note)

    compute_features(loaded, shards, folder, options, ray=ray, tell=told)
    seconds = time.monotonic() - began
    _say(summary(write_manifest(loaded, shards, folder, options), folder))
    if made:
        _say(throughput_line(sum(len(note["rows"]) for note in made), sum(note["bytes"] for note in made), seconds))


def throughput_line(pictures: int, size: int, seconds: float) -> str:
    """What so many pictures took, and what a million like them would take: disk in bytes, time."""
    each = max(pictures, 1)
    hours = seconds / each * 1e6 / 3600
    return (
        f"{pictures / max(seconds, 1e-9):,.1f} pictures a second; a million of them: {hours:,.1f} hours at this pace, "
        f"{size / each / 1e3:,.1f} GB"
    )


def summary(manifest: Mapping[str, Any], folder: Path) -> str:
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


def _run_and_log(
    job: AdapterTrainingJob,
    fit: Trainer,
    net: TrainableAdapter,
    model: Model,
    features: FeatureDataset,
    place: Accelerator,
) -> Mapping[str, float] | None:
    """Run the loop to its end, logging; the last scores, or None when it was stopped."""
    main = place.is_main_process
    log, console = (MetricsLog(job.folder, fit.start_step), ConsoleLog()) if main else (None, None)
    sheets = _sheets(job, model, features) if main and job.sheet_every else None
    scores: Mapping[str, float] = {}
    before = fit.start_step
    for at in fit.run():
        if log is not None and console is not None:
            log.log(at)
            console.log(at)
        draws, judges = (_passed(every, before, at) for every in (job.sheet_every, job.eval_every))
        before = at.step
        if draws or judges:
            adapter = net.ema_adapter(fit.ema_weights())
            if sheets is not None and draws:
                _say(_drawn(sheets, model, adapter, at.step))
            if job.eval_fn is not None and log is not None and judges:
                scores = job.eval_fn(with_adapter(model, adapter))
                log.scores(at.step, scores)
        if at.stopped:
            scores = {"stopped": 1.0}
    if log is not None:
        log.close()
    return None if "stopped" in scores else scores


def _drawn(sheets: SampleGrids, model: Model, adapter: Adapter, step: int) -> str:
    try:
        return f"sheet {sheets.draw(model, adapter, step)}"
    except (OutputError, OSError) as refused:  # a full disk, which is no reason to stop learning
        return f"warning: no sheet at step {step}: {refused}"


def _passed(every: int, before: int, at: TrainingProgress) -> bool:
    return bool(every) and not at.stopped and (at.step // every > before // every or at.step == at.steps)


def _sheets(job: AdapterTrainingJob, model: Model, features: FeatureDataset) -> SampleGrids:
    """The sheets asked for; of four prompts and four references, those of the data where none are named."""
    few = np.linspace(0, len(features) - 1, min(4, len(features))).astype(np.int64)
    prompts = job.sheet_prompts or tuple(dict.fromkeys(features.captions(few)))
    references: list[Image.Image] = [read_picture(path) for path in job.sheet_styles]
    if not references:
        references = [
            model.decode_latents(features.array("latents", few[i : i + 1]).to(model.device))[0] for i in range(len(few))
        ]
    return SampleGrids(job.folder / "sheets", prompts, references, job.blocks)


def _describe(features: FeatureDataset, order: BatchSampler, fit: Trainer, net: TrainableAdapter) -> str:
    count = sum(p.numel() for p in net.parameters())
    left_out = f" ({order.num_unpaired:,} left out: alone in their style)" if order.num_unpaired else ""
    begins = f"resumed at step {fit.start_step}" if fit.start_step else "begins"
    return (
        f"{count:,} weights learn at {', '.join(dict.fromkeys(s.module for s in net.sites))}; "
        f"{len(features):,} pictures{left_out}, {fit.global_batch_size} a step, {order.steps_per_epoch:,} steps an "
        f"epoch; {begins}"
    )


def _told(done: int, total: int, note: ShardIndex) -> None:
    bad = note["read"] - len(note["rows"])
    _say(f"features {done}/{total}  {len(note['rows'])} pictures{f', {bad} bad' * bool(bad)}  {note['shard']}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
