# pyright: reportUnknownMemberType=false

"""The dataset of precomputed features, and the batch sampler, which is a function of the step and so has no state.

Every picture is used once an epoch.  The rows of a batch have one shape (a bucket), and their references are the same
pictures (as IP-Adapter is published) or others of the same style (paired).
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from instantstyle.errors import InputError, WeightsError
from instantstyle.utils.files import read_json

Reference = Literal["same", "paired", "mixed"]
"""The reference of a picture: itself; another of its style; another where there is one, else itself."""
Ints = npt.NDArray[np.int64]
MAX_INDEX_BYTES = 2**28
"""Of a manifest, and of the index of a shard."""


@dataclass(frozen=True)
class Batch:
    """The features of a batch of pictures, on the CPU, in float32."""

    latents: Float[Tensor, "rows channels height width"]
    image_embeds: Float[Tensor, "rows embed"]
    """Of the references."""
    time_ids: Float[Tensor, "rows 6"]
    prompt_embeds: Float[Tensor, "rows tokens context_dim"] | None
    """None where captions are encoded only now."""
    pooled_prompt_embeds: Float[Tensor, "rows pooled_dim"] | None
    captions: tuple[str, ...]


class FeatureDataset:
    """A folder of features, rows numbered over all shards.  Raises InputError when it is damaged or unfinished."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self._read_index()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as e:
            raise InputError(
                f"there are no finished features in {str(folder)!r}, or they are damaged: {type(e).__name__} {e}"
            ) from e

    def _read_index(self) -> None:
        self.manifest: dict[str, Any] = read_json(self.folder / "manifest.json", MAX_INDEX_BYTES)
        files = [str(shard["file"]) for shard in self.manifest["shards"]]
        if outside := [file for file in files if Path(file).name != file]:
            raise ValueError(f"it names {outside[0]}, which is no file of its folder")
        indices = [self._shard_index(file) for file in files]
        self.files = [self.folder / file for file in files]
        rows = [row for note in indices for row in note["rows"]]
        self.shard: Ints = np.repeat(np.arange(len(indices)), [len(note["rows"]) for note in indices])
        self.parts: tuple[str, ...] = tuple(rows[0]["at"])
        self._spans: Ints = np.array([[row["at"][part] for part in self.parts] for row in rows], np.int64)
        self.sizes: Ints = np.array([row["sizes"] for row in rows], np.int64)
        names = {name: i for i, name in enumerate(sorted({row["style"] for row in rows} - {None}))}
        self.style: Ints = np.array([names.get(row["style"], -1) for row in rows], np.int64)
        """The number of each row's style, -1 where it is not known."""
        self._captions = [str(row["caption"]) for row in rows]

    def __len__(self) -> int:
        return len(self.shard)

    def captions(self, rows: Ints) -> tuple[str, ...]:
        """The captions of these rows."""
        return tuple(self._captions[int(row)] for row in rows)

    def array(self, part: str, rows: Ints) -> Float[Tensor, "rows ..."]:
        """One part (latents, embed, context, pooled) of these rows, in float32.

        Raises WeightsError when a shard is no longer as it was written.
        """
        column = self.parts.index(part)
        arrays = [self._read_array(int(row), column) for row in rows]
        if len({array.shape for array in arrays}) > 1:
            raise WeightsError(f"the features in {self.folder} are of several shapes in one batch: compute them again")
        return torch.from_numpy(np.stack(arrays)).float()

    def read(self, rows: Ints, references: Ints) -> Batch:
        """The batch of these pictures with the image embeddings of those references."""
        parts = {part: self.array(part, rows) for part in ("latents", "context", "pooled") if part in self.parts}
        return Batch(
            parts["latents"],
            self.array("embed", references),
            torch.from_numpy(self.sizes[rows]).float(),
            parts.get("context"),
            parts.get("pooled"),
            self.captions(rows),
        )

    def _read_array(self, row: int, column: int) -> npt.NDArray[np.float16]:
        offset, size = (int(x) for x in self._spans[row, column])
        file = self.files[int(self.shard[row])]
        try:
            memory = _mapped(file)
            array = np.load(io.BytesIO(memory[offset : offset + size].tobytes()), allow_pickle=False)
            if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
                raise ValueError("they are no floating-point numbers")
        except Exception as e:  # a damaged header may fail in any way
            raise WeightsError(f"the features in {file} are no longer as they were written: compute them again") from e
        return cast("npt.NDArray[np.float16]", array)

    def _shard_index(self, file: str) -> dict[str, Any]:
        return read_json((self.folder / file).with_suffix(".json"), MAX_INDEX_BYTES)


@lru_cache(256)
def _mapped(file: Path) -> npt.NDArray[np.uint8]:
    return np.memmap(file, np.uint8, "r")


class BatchSampler:
    """The rows of each step, and their references."""

    def __init__(
        self, shapes: Sequence[tuple[int, ...]], style: Ints, reference: Reference, global_batch_size: int, seed: int
    ) -> None:
        """`shapes` are of each row; `global_batch_size` is the rows of a step over all processes.

        Raises InputError when references are to be paired and no two pictures share a style.
        """
        by_style = {s: np.flatnonzero(style == s) for s in set(style.tolist()) - {-1}} if reference != "same" else {}
        self.same_style: Mapping[int, Ints] = {s: rows for s, rows in by_style.items() if len(rows) > 1}
        self.style, self.global_batch_size, self.seed = style, global_batch_size, seed
        usable = np.arange(len(style))
        if reference == "paired":
            usable = np.flatnonzero(np.isin(style, list(self.same_style)))
            if not len(usable):
                raise InputError(
                    "references are to be other pictures of the same style, and no two are known to share one: "
                    "say which do (a field `style`, or --styles folder), or give --reference same"
                )
        self.num_unpaired = len(style) - len(usable)
        """Rows that are left out because nothing else is in their style."""
        shape_ids = {shape: number for number, shape in enumerate(sorted(set(shapes)))}
        shape_id = np.array([shape_ids[shape] for shape in shapes])
        self.buckets: list[Ints] = [group for k in range(len(shape_ids)) if len(group := usable[shape_id[usable] == k])]
        self.steps_per_epoch = sum(-(-len(group) // global_batch_size) for group in self.buckets)
        self._epoch = lru_cache(2)(self._shuffled)

    def rows(self, step: int) -> Ints:
        """All rows of a step; where the pictures of a shape do not fill it, some are repeated."""
        epoch, number = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[number]

    def references(self, step: int) -> Ints:
        """For each row of a step the row whose picture is its reference."""
        rows, rng = self.rows(step), np.random.default_rng([self.seed, 2, step])
        draws = rng.random(len(rows))
        return np.array([self._reference(int(row), float(u)) for row, u in zip(rows, draws, strict=True)])

    def _reference(self, row: int, u: float) -> int:
        candidates = self.same_style.get(int(self.style[row]))
        if candidates is None:
            return row
        chosen = int(candidates[int(u * (len(candidates) - 1))])
        return chosen if chosen != row else int(candidates[-1])

    def _shuffled(self, epoch: int) -> list[Ints]:
        rng = np.random.default_rng([self.seed, 1, epoch])
        steps: list[Ints] = []
        for group in self.buckets:
            shuffled = rng.permutation(group)
            full = -(-len(group) // self.global_batch_size) * self.global_batch_size
            steps += list(np.resize(shuffled, full).reshape(-1, self.global_batch_size))
        return [steps[int(i)] for i in rng.permutation(len(steps))]


class Prefetcher:
    """Calls a function one step ahead in a thread, so that the training does not wait for reading."""

    def __init__(self, read: Callable[[int, int], Any]) -> None:
        from concurrent.futures import Future, ThreadPoolExecutor

        self._read, self._pool = read, ThreadPoolExecutor(1)
        self._pending: dict[tuple[int, int], Future[Any]] = {}

    def __call__(self, step: int, offset: int) -> Any:
        """The function's result for the rows of a step from `offset` on."""
        future = self._pending.pop((step, offset), None)
        result = self._read(step, offset) if future is None else future.result()
        self._pending[step + 1, offset] = self._pool.submit(self._read, step + 1, offset)
        return result
