"""What the scripts share: where results go, a clock that ends them in time, figures kept as they come, files in pieces.

python -m gpu.kit split PATH [INTO]      a file or folder as pieces of at most 15 MiB, with hashes
python -m gpu.kit join MANIFEST INTO     the file or folder again
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
import statistics
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from gpu import ROOT
from instantstyle.errors import InputError

PIECE = 15 * 2**20
"""Bytes of a piece."""


def results() -> Path:
    """Where results are left: the folder named by $OUT, else out/gpu/results."""
    folder = Path(os.environ.get("OUT") or ROOT / "out/gpu/results")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def work(dry: bool) -> Path:
    """Where a script keeps what its next command goes on from: out/gpu, and out/gpu/dry for dry runs."""
    folder = ROOT / "out/gpu/dry" if dry else ROOT / "out/gpu"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def options(doc: str | None, minutes: float = 9.0) -> argparse.ArgumentParser:
    """The flags that all scripts have."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=minutes, help="end after so many, with what there is by then")
    parser.add_argument("--dry", action="store_true", help="the same in small, on any machine: whether it all runs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


class Clock:
    """Counts down; entered, it interrupts as Ctrl-C does when time is up, and a training loop saves and leaves."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        """Seconds, below 0 when time is up."""
        return self._end - time.monotonic()

    def stop(self) -> None:
        """Time is up now."""
        self._end = time.monotonic() - 1

    def __enter__(self) -> "Clock":
        self._old = signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, max(self.left, 0.01))
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._old)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGINT)


class Figures:
    """Rows that are measured once each, kept as they come: a command that was cut short goes on with the next."""

    def __init__(self, name: str, *, dry: bool, clock: Clock) -> None:
        self._kept, self._out, self._clock = work(dry) / f"{name}.json", results(), clock
        self.name, self.waiting = name, list[str]()
        self.rows: dict[str, dict[str, Any]] = (
            {} if dry or not self._kept.exists() else json.loads(self._kept.read_text())
        )

    def measure(self, what: str, row: Callable[[], Mapping[str, Any]]) -> None:
        """Measure a row unless it is there or time is up; what does not fit into memory is a row that says so.

        Ctrl-C, or `timeout -s INT`, is time that is up.
        """
        if what in self.rows:
            return
        if self._clock.left < 0:
            self.waiting.append(what)
            return
        try:
            self.rows[what] = dict(row())
        except KeyboardInterrupt:
            self._clock.stop()
            self.waiting.append(what)
            return
        except torch.OutOfMemoryError:
            self.rows[what] = {"note": "out of memory"}
        print(what, self.rows[what], flush=True)
        self._kept.write_text(json.dumps(self.rows, indent=1))

    def finish(self) -> bool:
        """Write the rows as JSON and as a table, and say what is left to do; whether that is nothing."""
        columns = list(dict.fromkeys(name for row in self.rows.values() for name in row))
        lines = [f"| what | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for what, row in self.rows.items():
            lines.append(f"| {what} | {' | '.join(_shown(row.get(name, '')) for name in columns)} |")
        page = f"{machine()}\n\n" + "\n".join(lines) + "\n"
        (self._out / f"{self.name}.md").write_text(page)
        (self._out / f"{self.name}.json").write_text(json.dumps({"machine": machine(), "rows": self.rows}, indent=1))
        print(page)
        if self.waiting:
            print(f"not reached: {', '.join(self.waiting)}; the same command goes on")
        return not self.waiting


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def machine() -> str:
    """What the figures were measured on."""
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return f"{where}, torch {torch.__version__}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"


def timed(step: Callable[[], object], device: torch.device, repeats: int = 10, warm: int = 3) -> dict[str, float]:
    """Seconds of a step, the median after some for warming up, and the peak of the device's memory in GiB."""
    seconds: list[float] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for number in range(warm + repeats):
        settle(device)
        began = time.perf_counter()
        step()
        settle(device)
        if number >= warm:
            seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    return {"seconds": statistics.median(seconds), "peak GiB": peak}


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def split(path: Path, into: Path, limit: int = PIECE) -> Path:
    """A file, or a folder as an archive, as pieces beside a manifest that says how to put them together again."""
    into.mkdir(parents=True, exist_ok=True)
    archive = into / f".{path.name}.tar"
    if path.is_dir():
        with tarfile.open(archive, "w") as tar:
            tar.add(path, ".")
    source, pieces, digest = archive if path.is_dir() else path, list[dict[str, str]](), hashlib.sha256()
    with source.open("rb") as file:
        while part := file.read(limit):
            name = f"{path.name}.{len(pieces):03d}"
            (into / name).write_bytes(part)
            digest.update(part)
            pieces.append({"name": name, "sha256": hashlib.sha256(part).hexdigest()})
    archive.unlink(missing_ok=True)
    manifest = into / f"{path.name}.pieces.json"
    whole = {"name": path.name, "folder": path.is_dir(), "sha256": digest.hexdigest(), "pieces": pieces}
    manifest.write_text(json.dumps(whole, indent=1))
    return manifest


def join(manifest: Path, into: Path) -> Path:
    """Put pieces together inside a folder; the file or folder made.  Raises InputError for a piece gone or damaged."""
    whole: dict[str, Any] = json.loads(manifest.read_text())
    into.mkdir(parents=True, exist_ok=True)
    target, partial = into / whole["name"], into / f".{whole['name']}.part"
    digest = hashlib.sha256()
    with partial.open("wb") as file:
        for piece in whole["pieces"]:
            path = manifest.parent / piece["name"]
            part = path.read_bytes() if path.is_file() else b""
            if hashlib.sha256(part).hexdigest() != piece["sha256"]:
                partial.unlink()
                raise InputError(f"{path} is missing or is not what was sent: fetch it again")
            digest.update(part)
            file.write(part)
    if digest.hexdigest() != whole["sha256"]:
        partial.unlink()
        raise InputError(f"the pieces that {manifest} names are not the whole of it")
    if whole["folder"]:
        shutil.rmtree(target, ignore_errors=True)
        try:
            with tarfile.open(partial) as tar:
                _unpack(tar, target)
        finally:
            partial.unlink()
    else:
        partial.replace(target)
    return target


def _plain(member: tarfile.TarInfo) -> bool:
    inside = Path(member.name)
    return (member.isfile() or member.isdir()) and not inside.is_absolute() and ".." not in inside.parts


def _unpack(tar: tarfile.TarFile, target: Path) -> None:
    """Plain files within a folder and nothing else; tarfile's own filters came after Python 3.11's first releases."""
    members = tar.getmembers()
    if odd := [member.name for member in members if not _plain(member)]:
        raise InputError(f"the pieces hold {odd[0]!r}, which is no plain file within their folder: none is unpacked")
    for member in members:
        path = target / member.name
        (path if member.isdir() else path.parent).mkdir(parents=True, exist_ok=True)
        content = tar.extractfile(member)
        if content is not None:
            with content, path.open("wb") as file:
                shutil.copyfileobj(content, file)


def main(argv: list[str] | None = None) -> None:
    """Split or join."""
    parser = argparse.ArgumentParser(description="Files in pieces.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, first in (("split", "path"), ("join", "manifest")):
        command = commands.add_parser(name)
        command.add_argument(first, type=Path)
        command.add_argument("into", type=Path, nargs="?", default=results())
    given = parser.parse_args(argv)
    try:
        print(split(given.path, given.into) if given.command == "split" else join(given.manifest, given.into))
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
