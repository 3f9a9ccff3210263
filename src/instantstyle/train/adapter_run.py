# pyright: reportUnknownMemberType=false, reportPrivateImportUsage=false

"""From data to an adapter file in one call: features, training, sample grids, export; each resumes when run again."""

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
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
    """The arguments of `train_adapter_job`."""

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
    accelerator = make_accelerator(job.device)
    bf16 = job.training_config.bf16
    model = load(job.model, device=accelerator.device, dtype="bfloat16" if bf16 else "float32")
    plan = parse_block_plan(job.blocks, model.family.unet, model.family.presets)
    features = load_features(job, model, accelerator)
    embed_dim = features.array("embed", np.array([0])).shape[-1]
    init_adapter = None if job.init_from is None else load_adapter(job.init_from, model.family.unet, plan=plan)
    tokens = model.family.num_image_tokens if init_adapter is None else init_adapter.token_count
    net = TrainableAdapter(
        model.unet, plan, embed_dim=embed_dim, tokens=tokens, seed=job.loss_config.seed, init_from=init_adapter
    )
    global_batch_size = (
        job.training_config.batch * job.training_config.gradient_accumulation_steps * accelerator.num_processes
    )
    shapes = [tuple(int(x) for x in row[-2:]) for row in features.sizes]
    sampler = BatchSampler(shapes, features.style, job.reference, global_batch_size, job.loss_config.seed)
    loss = AdapterLoss(model, net, features, sampler, job.loss_config, bf16=bf16)
    run_config = {
        "data": features.manifest["sha256"],
        "model": model.weights_fingerprint,
        "blocks": sorted({site.module for site in net.sites}),
        "reference": job.reference,
        **asdict(job.loss_config),
    }
    trainer = Trainer(net, loss, job.training_config, job.folder, run_config=run_config, accelerator=accelerator)
    if accelerator.is_main_process:
        _print(_describe(features, sampler, trainer, net))
    scores = _run_and_log(job, trainer, net, model, features, accelerator)
    if scores is None:
        _print(
            f"stopped at step {trainer.start_step} of {job.training_config.steps}: the same command goes on from there"
        )
        return None
    adapter = net.ema_adapter(trainer.ema_weights())
    if accelerator.is_main_process:
        card = write_model_card(
            job.out.stem,
            blocks=job.blocks,
            modules=list(dict.fromkeys(site.module for site in net.sites)),
            reference=job.reference,
            manifest=features.manifest,
            settings={**asdict(job.training_config), **asdict(job.loss_config)},
            trained={
                "rows a step": global_batch_size,
                "pictures seen": global_batch_size * trainer.start_step,
                "pictures left out": sampler.num_unpaired,
            },
            scores=scores,
        )
        export_adapter(job.out, adapter, model.family.unet, card, pad=job.pad)
    accelerator.wait_for_everyone()
    return job.out


def load_features(job: AdapterTrainingJob, model: Model, accelerator: Accelerator) -> FeatureDataset:
    """The features of the job's data: a folder of them, or computed now, each process its share of the shards."""
    path = Path(job.data)
    if (path / "manifest.json").is_file():
        return FeatureDataset(path)
    folder, shards = job.folder / "features", find_shards(job.data, styles=job.styles)

    # With Ray one process asks, and the workers are elsewhere.
    share = (accelerator.process_index, accelerator.num_processes) if job.ray is None else (0, 1)
    if job.ray is None or accelerator.is_main_process:
        compute_features(model, shards, folder, job.feature_config, ray=job.ray, process=share, on_shard=_print_shard)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        manifest = write_manifest(model, shards, folder, job.feature_config)
        _print(summary(manifest, folder))
    accelerator.wait_for_everyone()
    return FeatureDataset(folder)


def prepare_features(
    data: str,
    folder: Path,
    config: FeatureConfig,
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
        damaged = verify(folder)
        if damaged:
            raise WeightsError(
                f"{len(damaged)} shards in {str(folder)!r} are not as they were written ({', '.join(damaged[:3])}): "
                "remove them, and compute them again"
            )
        return
    loaded, shards = load(model, device=device, dtype=dtype), find_shards(data, styles=styles)
    shards_made, started = list[ShardIndex](), time.monotonic()

    def on_shard(done: int, total: int, note: ShardIndex) -> None:
        shards_made.append(note)
        _print_shard(done, total, note)

    compute_features(loaded, shards, folder, config, ray=ray, on_shard=on_shard)
    seconds = time.monotonic() - started
    _print(summary(write_manifest(loaded, shards, folder, config), folder))
    if shards_made:
        _print(
            throughput_line(
                sum(len(note["rows"]) for note in shards_made), sum(note["bytes"] for note in shards_made), seconds
            )
        )


def throughput_line(pictures: int, size: int, seconds: float) -> str:
    """What so many pictures took, and what a million like them would take: disk in bytes, time."""
    each = max(pictures, 1)
    hours = seconds / each * 1e6 / 3600
    return (
        f"{pictures / max(seconds, 1e-9):,.1f} pictures a second; a million of them: {hours:,.1f} hours at this pace, "
        f"{size / each / 1e3:,.1f} GB"
    )


def summary(manifest: Mapping[str, Any], folder: Path) -> str:
    """Counts of pictures read, kept and left out, in a line."""
    counts = manifest["counts"]
    text = f"{counts['kept']:,} of {counts['read']:,} pictures, {counts['bytes'] / 2**20:,.0f} MiB in {folder}"
    if counts["captions cut"]:
        text += f"; {counts['captions cut']:,} captions were longer than the model reads and are cut"
    if counts["bad"] or counts["broken shards"]:
        text += (
            f"; {counts['bad']:,} cannot be used and {counts['broken shards']} shards are damaged: "
            f"{folder / 'skipped.jsonl'} says which and why"
        )
    return text


def _run_and_log(
    job: AdapterTrainingJob,
    trainer: Trainer,
    net: TrainableAdapter,
    model: Model,
    features: FeatureDataset,
    accelerator: Accelerator,
) -> Mapping[str, float] | None:
    """Train to the end, logging; the last scores, or None when a signal stopped it."""
    main = accelerator.is_main_process
    log, console = (MetricsLog(job.folder, trainer.start_step), ConsoleLog()) if main else (None, None)
    sheets = _sheets(job, model, features) if main and job.sheet_every else None
    scores: Mapping[str, float] = {}
    previous = trainer.start_step
    with nullcontext() if log is None else closing(log):
        for progress in trainer.run():
            if log is not None and console is not None:
                log.log(progress)
                console.log(progress)
            draw_sheet, evaluate = (_is_due(every, previous, progress) for every in (job.sheet_every, job.eval_every))
            previous = progress.step
            if draw_sheet or evaluate:
                adapter = net.ema_adapter(trainer.ema_weights())
                if sheets is not None and draw_sheet:
                    _print(_draw_sheet(sheets, model, adapter, progress.step))
                if job.eval_fn is not None and log is not None and evaluate:
                    scores = job.eval_fn(with_adapter(model, adapter))
                    log.scores(progress.step, scores)
            if progress.stopped:
                scores = {"stopped": 1.0}
    return None if "stopped" in scores else scores


def _draw_sheet(sheets: SampleGrids, model: Model, adapter: Adapter, step: int) -> str:
    try:
        return f"sheet {sheets.draw(model, adapter, step)}"
    except (OutputError, OSError) as refused:  # a full disk, which is no reason to stop learning
        return f"warning: no sheet at step {step}: {refused}"


def _is_due(every: int, previous: int, progress: TrainingProgress) -> bool:
    return (
        bool(every)
        and not progress.stopped
        and (progress.step // every > previous // every or progress.step == progress.steps)
    )


def _sheets(job: AdapterTrainingJob, model: Model, features: FeatureDataset) -> SampleGrids:
    """The sheets asked for; of four prompts and four references, those of the data where none are named."""
    indices = np.linspace(0, len(features) - 1, min(4, len(features))).astype(np.int64)
    prompts = job.sheet_prompts or tuple(dict.fromkeys(features.captions(indices)))
    references: list[Image.Image] = [read_picture(path) for path in job.sheet_styles]
    if not references:
        references = [
            model.decode_latents(features.array("latents", indices[i : i + 1]).to(model.device))[0]
            for i in range(len(indices))
        ]
    return SampleGrids(job.folder / "sheets", prompts, references, job.blocks)


def _describe(features: FeatureDataset, sampler: BatchSampler, trainer: Trainer, net: TrainableAdapter) -> str:
    count = sum(p.numel() for p in net.parameters())
    left_out = f" ({sampler.num_unpaired:,} left out: alone in their style)" if sampler.num_unpaired else ""
    begins = f"resumed at step {trainer.start_step}" if trainer.start_step else "begins"
    return (
        f"{count:,} weights learn at {', '.join(dict.fromkeys(s.module for s in net.sites))}; "
        f"{len(features):,} pictures{left_out}, {trainer.global_batch_size} a step, {sampler.steps_per_epoch:,} steps "
        f"an epoch; {begins}"
    )


def _print_shard(done: int, total: int, note: ShardIndex) -> None:
    bad = note["read"] - len(note["rows"])
    _print(f"features {done}/{total}  {len(note['rows'])} pictures{f', {bad} bad' * bool(bad)}  {note['shard']}")


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
