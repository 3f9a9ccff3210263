# pyright: reportUnknownMemberType=false

"""Features read back, and which of them each step sees: a function of the step's number, so nothing is to be resumed.

Every picture is seen once an epoch.  A step's rows are of one shape (a bucket), and their references are the same
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
    """What is read of some pictures, on the CPU, in float32."""

    latents: Float[Tensor, "rows channels height width"]
    image_embeds: Float[Tensor, "rows embed"]
    """Of the references."""
    time_ids: Float[Tensor, "rows 6"]
    prompt_embeds: Float[Tensor, "rows tokens context_dim"] | None
    """None where captions are encoded only now."""
    pooled_prompt_embeds: Float[Tensor, "rows pooled_dim"] | None
    captions: tuple[str, ...]


class FeatureDataset:
    """A folder of features, its rows numbered over all shards.  Raises InputError when it is none, or unfinished."""

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
        notes = [self._note(file) for file in files]
        self.files = [self.folder / file for file in files]
        rows = [row for note in notes for row in note["rows"]]
        self.shard: Ints = np.repeat(np.arange(len(notes)), [len(note["rows"]) for note in notes])
        self.parts: tuple[str, ...] = tuple(rows[0]["at"])
        self._at: Ints = np.array([[row["at"][part] for part in self.parts] for row in rows], np.int64)
        self.sizes: Ints = np.array([row["sizes"] for row in rows], np.int64)
        names = {name: i for i, name in enumerate(sorted({row["style"] for row in rows} - {None}))}
        self.style: Ints = np.array([names.get(row["style"], -1) for row in rows], np.int64)
        """The number of each row's style, -1 where it is not known."""
        self._captions = [str(row["caption"]) for row in rows]

    def __len__(self) -> int:
        return len(self.shard)

    def captions(self, rows: Ints) -> tuple[str, ...]:
        """What is said of these rows."""
        return tuple(self._captions[int(row)] for row in rows)

    def array(self, part: str, rows: Ints) -> Float[Tensor, "rows ..."]:
        """One part of these rows.  Raises WeightsError when a shard is no longer as it was written."""
        column = self.parts.index(part)
        arrays = [self._one(int(row), column) for row in rows]
        if len({array.shape for array in arrays}) > 1:
            raise WeightsError(f"the features in {self.folder} are of several shapes in one batch: compute them again")
        return torch.from_numpy(np.stack(arrays)).float()

    def read(self, rows: Ints, references: Ints) -> Batch:
        """Pictures, and the embeddings of their references."""
        has = {part: self.array(part, rows) for part in ("latents", "context", "pooled") if part in self.parts}
        return Batch(
            has["latents"],
            self.array("embed", references),
            torch.from_numpy(self.sizes[rows]).float(),
            has.get("context"),
            has.get("pooled"),
            self.captions(rows),
        )

    def _one(self, row: int, column: int) -> npt.NDArray[np.float16]:
        offset, size = (int(x) for x in self._at[row, column])
        file = self.files[int(self.shard[row])]
        try:
            memory = _mapped(file)
            array = np.load(io.BytesIO(memory[offset : offset + size].tobytes()), allow_pickle=False)
            if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
                raise ValueError("they are no floating-point numbers")
        except Exception as e:  # a damaged header may fail in any way
            raise WeightsError(f"the features in {file} are no longer as they were written: compute them again") from e
        return cast("npt.NDArray[np.float16]", array)

    def _note(self, file: str) -> dict[str, Any]:
        return read_json((self.folder / file).with_suffix(".json"), MAX_INDEX_BYTES)


@lru_cache(256)
def _mapped(file: Path) -> npt.NDArray[np.uint8]:
    return np.memmap(file, np.uint8, "r")


class BatchSampler:
    """Which rows a step sees, and what their references are."""

    def __init__(
        self, shapes: Sequence[tuple[int, ...]], style: Ints, reference: Reference, of: int, seed: int
    ) -> None:
        """`shapes` are of each row; `of` is how many rows a step has over all processes.

        Raises InputError when references are to be paired and no two pictures share a style.
        """
        mates = {s: np.flatnonzero(style == s) for s in set(style.tolist()) - {-1}} if reference != "same" else {}
        self.same_style: Mapping[int, Ints] = {s: rows for s, rows in mates.items() if len(rows) > 1}
        self.style, self.of, self.seed = style, of, seed
        used = np.arange(len(style))
        if reference == "paired":
            used = np.flatnonzero(np.isin(style, list(self.same_style)))
            if not len(used):
                raise InputError(
                    "references are to be other pictures of the same style, and no two are known to share one: "
                    "say which do (a field `style`, or --styles folder), or give --reference same"
                )
        self.num_unpaired = len(style) - len(used)
        """Rows that are left out because nothing else is in their style."""
        kinds = {shape: number for number, shape in enumerate(sorted(set(shapes)))}
        kind = np.array([kinds[shape] for shape in shapes])
        self.buckets: list[Ints] = [group for k in range(len(kinds)) if len(group := used[kind[used] == k])]
        self.steps_per_epoch = sum(-(-len(group) // of) for group in self.buckets)
        self._epoch = lru_cache(2)(self._shuffled)

    def rows(self, step: int) -> Ints:
        """All rows of a step; where a shape's pictures run out before the step is full, some are seen again."""
        epoch, number = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[number]

    def references(self, step: int) -> Ints:
        """For each row of a step the row whose picture it is shown."""
        rows, rng = self.rows(step), np.random.default_rng([self.seed, 2, step])
        picks = rng.random(len(rows))
        return np.array([self._mate(int(row), float(pick)) for row, pick in zip(rows, picks, strict=True)])

    def _mate(self, row: int, pick: float) -> int:
        mates = self.same_style.get(int(self.style[row]))
        if mates is None:
            return row
        chosen = int(mates[int(pick * (len(mates) - 1))])
        return chosen if chosen != row else int(mates[-1])

    def _shuffled(self, epoch: int) -> list[Ints]:
        rng = np.random.default_rng([self.seed, 1, epoch])
        steps: list[Ints] = []
        for group in self.buckets:
            shuffled = rng.permutation(group)
            full = -(-len(group) // self.of) * self.of
            steps += list(np.resize(shuffled, full).reshape(-1, self.of))
        return [steps[int(i)] for i in rng.permutation(len(steps))]


class Prefetcher:
    """Calls a function one step ahead in a thread, so that reading costs no time; the answers are the same."""

    def __init__(self, read: Callable[[int, int], Any]) -> None:
        from concurrent.futures import Future, ThreadPoolExecutor

        self._read, self._pool = read, ThreadPoolExecutor(1)
        self._soon: dict[tuple[int, int], Future[Any]] = {}

    def __call__(self, step: int, first: int) -> Any:
        """What is read for a step's rows from `first` on."""
        future = self._soon.pop((step, first), None)
        answer = self._read(step, first) if future is None else future.result()
        self._soon[step + 1, first] = self._pool.submit(self._read, step + 1, first)
        return answer
