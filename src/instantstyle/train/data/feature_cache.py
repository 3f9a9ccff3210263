# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

"""Features of pictures, computed once: latents, image embedding and text embeddings, in webdataset shards.

One shard of pictures becomes one tar of features and an index beside it, written last, so a run that was killed goes on
with the first shard that has none.  With Ray the shards are spread over its workers, each writing to the same folder;
without, this process makes them one by one; the bytes are the same.
"""

import dataclasses
import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from instantstyle.errors import InputError, OutputError, PictureError
from instantstyle.loading import load
from instantstyle.model import Model
from instantstyle.train.data.aspect_buckets import Crop, buckets, crop
from instantstyle.train.data.ray_map import ray_map
from instantstyle.train.data.records import BadSample, Sample, Shard
from instantstyle.utils.atomic_files import atomic_write, remove_stale_temp_files
from instantstyle.utils.images import ResizeMode, load_image

FORMAT = 1
_TOGETHER = 32
"""Pictures that go through the encoders together; a part of the format, as sums depend on it."""

ShardIndex = dict[str, Any]
"""The index of a finished shard: counts, hashes, unusable samples, and the offset of every array in the tar."""
OnShard = Callable[[int, int, ShardIndex], None]
"""Called with the number of shards done, of shards in all, and the newest index."""


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """How features are computed."""

    side: int | None = None
    """Pictures have about side x side pixels; by default as many as the model's own."""
    square: bool = False
    """Whether all are cut square instead of to the shape most like their own."""
    smallest: int | None = None
    """The shortest side a picture may have; by default a quarter of `side`."""
    text: bool = True
    """Whether captions are encoded too; else training does so each time it meets one, and a million pairs of SDXL
    take 0.14 instead of 0.46 TB."""
    fit: ResizeMode = "squash"
    """How the image encoder sees pictures that are not square, as requests say it."""

    def resolved(self, model: Model) -> "FeatureConfig":
        """With the model's own defaults filled in.  Raises InputError for a side the model cannot draw."""
        side, step = self.side or model.family.size[0], model.family.size_multiple
        if side % step or side < step:
            raise InputError(f"the side {side} is no multiple of {step}, as this model's pictures are")
        return dataclasses.replace(
            self, side=side, smallest=max(1, side // 4 if self.smallest is None else self.smallest)
        )


def compute_features(
    model: Model,
    shards: Sequence[Shard],
    folder: Path,
    config: FeatureConfig,
    *,
    ray: str | None = None,
    process: tuple[int, int] = (0, 1),
    on_shard: OnShard | None = None,
) -> None:
    """Make the features of all shards that have none yet.  `write_manifest` follows.

    `ray` is a cluster's address, or "local" for this machine's cores; it needs a folder that all machines see.
    `process` is this process's number and the number of processes.  Raises OutputError when the disk is full.
    """
    config = config.resolved(model)
    key = _key(model, config)
    numbers = range(process[0], len(shards), process[1])
    todo = [
        number for number in numbers if _needs_compute(_read_index(folder, number, shards[number], key), shards[number])
    ]
    done = len(numbers) - len(todo)
    folder.mkdir(parents=True, exist_ok=True)
    remove_stale_temp_files(folder)
    created: Iterator[ShardIndex]
    if ray is None or not todo:
        created = (compute_shard(model, shards[number], number, folder, config, key) for number in todo)
    else:
        # Workers load the model themselves; what they are sent is how.
        open_model = partial(load, model.source.spec, device=model.device.type, dtype=model.dtype)
        open_function = partial(_shard_function, open_model, folder.resolve(), config, key, torch.get_num_threads())
        created = map(json.loads, ray_map(ray, [(number, shards[number]) for number in todo], open_function))
    try:
        for count, index in enumerate(created, start=done + 1):
            if on_shard is not None:
                on_shard(count, len(numbers), index)
    except OutputError as full:
        kept = sum(_read_index(folder, number, shards[number], key) is not None for number in numbers)
        raise OutputError(
            f"{full}; {kept} of {len(numbers)} shards are whole and kept: the same command goes on"
        ) from full


def compute_shard(model: Model, shard: Shard, number: int, folder: Path, config: FeatureConfig, key: str) -> ShardIndex:
    """Compute one shard and write it, its index last."""
    stamp = shard.source_fingerprint()
    rows: list[dict[str, Any]] = []
    bad: list[BadSample] = []
    records = _split_bad(shard.items(), bad)
    cut, tar_file = 0, folder / f"{number:05}.tar"
    with atomic_write(tar_file) as partial, partial.open("wb") as raw:
        file = _Hashing(raw)
        with tarfile.open(fileobj=cast("Any", file), mode="w") as tar:
            for group in _grouped(records, _TOGETHER):
                for row, arrays in _encode(model, group, config, bad):
                    cut += row["cut"]
                    rows.append(row | {"at": _add(tar, f"{len(rows):06}", row, arrays)})
    broken = [b for b in bad if b.broken]
    index: ShardIndex = {
        "shard": shard.name,
        "stamp": stamp,
        "key": key,
        "sha256": file.digest.hexdigest(),
        "bytes": file.size,
        "read": len(rows) + len(bad) - len(broken),
        "cut": cut,
        "bad": [{"where": b.where, "why": b.why} for b in bad],
        "broken": bool(broken),
        "rows": rows,
    }
    with atomic_write(tar_file.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(index, ensure_ascii=False), "utf-8")
    return index


def write_manifest(model: Model, shards: Sequence[Shard], folder: Path, config: FeatureConfig) -> dict[str, Any]:
    """Write the manifest of complete shards to `manifest.json`, and unusable samples to `skipped.jsonl`; returns it.

    Raises InputError when nothing is left to train on.
    """
    config = config.resolved(model)
    key = _key(model, config)
    indexes = [_read_index(folder, number, shard, key) for number, shard in enumerate(shards)]
    missing = sum(index is None for index in indexes)
    if missing:
        raise InputError(f"{missing} of {len(shards)} shards have no features yet: run the same command again")
    complete = cast("list[ShardIndex]", indexes)
    rows = [row for index in complete for row in index["rows"]]
    licences = Counter(row["licence"] or "not said" for row in rows)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "key": key,
        "family": model.family.name,
        "model": str(model.source.spec),
        "options": asdict(config),
        "counts": {
            "read": sum(index["read"] for index in complete),
            "kept": len(rows),
            "bad": sum(index["read"] - len(index["rows"]) for index in complete),
            "captions cut": sum(index["cut"] for index in complete),
            "shards": len(complete),
            "broken shards": sum(index["broken"] for index in complete),
            "styles": len({row["style"] for row in rows} - {None}),
            "bytes": sum(index["bytes"] for index in complete),
        },
        "licences": dict(licences.most_common()),
        "shards": [
            {"file": f"{n:05}.tar", "from": index["shard"], "rows": len(index["rows"]), "sha256": index["sha256"]}
            for n, index in enumerate(complete)
        ],
    }
    manifest["sha256"] = hashlib.sha256("".join(index["sha256"] for index in complete).encode()).hexdigest()
    lines = [
        json.dumps(bad | {"shard": index["shard"]}, ensure_ascii=False) for index in complete for bad in index["bad"]
    ]
    for name, text in (("skipped.jsonl", "\n".join(lines)), ("manifest.json", json.dumps(manifest, indent=2))):
        with atomic_write(folder / name) as partial:
            partial.write_text(f"{text}\n" if text else "", "utf-8")
    if not rows:
        first = lines[0] if lines else "there was none"
        raise InputError(f"not one of {manifest['counts']['read']} records can be used; the first: {first}")
    return manifest


def verify(folder: Path) -> list[str]:
    """The files of a features folder whose content is not what its manifest says; reads all of it."""
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    damaged: list[str] = []
    for shard in manifest["shards"]:
        try:
            with (folder / shard["file"]).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != shard["sha256"]:
                    damaged.append(shard["file"])
        except OSError:
            damaged.append(shard["file"])
    return damaged


def _key(model: Model, config: FeatureConfig) -> str:
    """A hash of all that the features depend on beside the pictures: the encoders' weights, and the options."""
    digest = hashlib.sha256(json.dumps([FORMAT, _TOGETHER, asdict(config), str(model.dtype)]).encode())
    for name, net in model.networks.items():
        if name == "vae" or name.startswith(("text_encoder", "image_encoder")):
            for part, tensor in net.state_dict().items():
                digest.update(f"{name}.{part}".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_index(folder: Path, number: int, shard: Shard, key: str) -> ShardIndex | None:
    """The index of a shard whose features are there and up to date, else None."""
    file = folder / f"{number:05}.tar"
    try:
        index: ShardIndex = json.loads(file.with_suffix(".json").read_text("utf-8"))
        same = (index["shard"], index["stamp"], index["key"]) == (shard.name, shard.source_fingerprint(), key)
        return index if same and file.stat().st_size == index["bytes"] else None
    except (OSError, ValueError, KeyError):
        return None


def _needs_compute(index: ShardIndex | None, shard: Shard) -> bool:
    """Whether a shard is to be computed: it never was, or its remote source broke off the last time."""
    return index is None or (bool(index["broken"]) and shard.remote)


def _split_bad(items: Iterable[Sample | BadSample], bad: list[BadSample]) -> Iterator[Sample]:
    for item in items:
        if isinstance(item, BadSample):
            bad.append(item)
        else:
            yield item


def _grouped(records: Iterator[Sample], size: int) -> Iterator[list[Sample]]:
    group: list[Sample] = []
    for record in records:
        group.append(record)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _encode(
    model: Model, records: Sequence[Sample], config: FeatureConfig, bad: list[BadSample]
) -> Iterator[tuple[dict[str, Any], Mapping[str, np.ndarray]]]:
    """The row and the arrays of every usable record; others are appended to `bad`."""
    shapes = _shapes(model, config)
    good: list[tuple[Sample, Image.Image, Crop]] = []
    for record in records:
        try:
            picture = load_image(record.picture, record.key)
            good.append((record, picture, _crop(picture, shapes, config)))
        except PictureError as e:
            bad.append(BadSample(record.key, str(e)))
    if not good:
        return
    embeds = model.encode_image([picture for _, picture, _ in good], config.fit)
    captions = [truncate_caption(model, record.caption) for record, _, _ in good]
    text = model.encode_prompt([caption for caption, _ in captions]) if config.text else None
    for i, (record, picture, cut) in enumerate(good):
        tensors = {"latents": model.encode_latents(cut.apply(picture))[0], "embed": embeds[i]}
        if text is not None:
            tensors["context"] = text.prompt_embeds[i]
            if text.pooled_prompt_embeds is not None:
                tensors["pooled"] = text.pooled_prompt_embeds[i]
        arrays = {name: _to_float16(tensor) for name, tensor in tensors.items()}
        non_finite = next((name for name, array in arrays.items() if not np.isfinite(array).all()), None)
        if non_finite is not None:
            bad.append(BadSample(record.key, f"its {non_finite} are NaN or too large for half precision"))
            continue
        caption, short = captions[i]
        row = {
            "key": record.key,
            "caption": caption,
            "cut": short,
            "style": record.style,
            "licence": record.licence,
            "sizes": list(cut.conditioning),
        }
        yield row, arrays


def _shapes(model: Model, config: FeatureConfig) -> tuple[tuple[int, int], ...]:
    side = cast("int", config.side)
    if config.square:
        return ((side, side),)
    # SDXL's own buckets come in steps of 64; a model of small pictures has only its own step to choose from.
    return buckets(side, max(model.family.size_multiple, 64) if side >= 512 else model.family.size_multiple)


def _crop(picture: Image.Image, shapes: tuple[tuple[int, int], ...], config: FeatureConfig) -> Crop:
    """How the picture is cut.  Raises PictureError when too little would be left of it."""
    smallest, (width, height) = cast("int", config.smallest), picture.size
    if min(width, height) < smallest:
        raise PictureError(f"it is {width} x {height} pixels, and a side is to have at least {smallest}")
    cut = crop(picture.size, shapes)
    if cut.kept < 0.5:
        raise PictureError(f"it is {width} x {height} pixels: of a shape so long more than half would be cut off")
    return cut


def truncate_caption(model: Model, caption: str) -> tuple[str, bool]:
    """A caption that the text encoders read whole: as many of its words as they take, and whether some were left."""
    words = caption.split()

    def fits(count: int) -> bool:
        text = " ".join(words[:count])
        return all(
            len(tower.tokenizer(text, verbose=False).input_ids) <= tower.max_length for tower in model.text_encoders
        )

    if fits(len(words)):
        return caption, False
    low, high = 0, len(words)  # `low` words fit, `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return " ".join(words[:low]), True


def _to_float16(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().to(torch.float16).numpy()


def _add(
    tar: tarfile.TarFile, key: str, row: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> dict[str, list[int]]:
    """Add a sample; where its arrays lie, as offset and size.  Times and owners are left out: bytes are to be equal."""
    spans: dict[str, list[int]] = {}
    content = {f"{name}.npy": _npy(array) for name, array in arrays.items()}
    content["json"] = json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogateescape")
    for ending, data in content.items():
        info = tarfile.TarInfo(f"{key}.{ending}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
        spans[ending.removesuffix(".npy")] = [cast("Any", tar).offset - -(-len(data) // 512) * 512, len(data)]
    del spans["json"]
    return spans


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


class _Hashing:
    """A file that hashes what is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)

    def tell(self) -> int:
        return self.size


def _shard_function(
    open_model: Callable[[], Model], folder: Path, config: FeatureConfig, key: str, threads: int
) -> Callable[[tuple[int, Shard]], str]:
    """The function that computes shards in a worker of a cluster, with a model of its own."""
    torch.set_num_threads(threads)  # sums in the order that the other processes take them in
    model = open_model()

    def compute(shard: tuple[int, Shard]) -> str:
        number, source = shard
        return json.dumps(compute_shard(model, source, number, folder, config, key))

    return compute
