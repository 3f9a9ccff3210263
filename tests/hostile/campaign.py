"""Readers tried on hostile files, each file in a process of its own with bounded memory and time.

`python tests/hostile/campaign.py OUT.jsonl [--seed N] [--short] [--only READERS]` writes what became of every case; the
tests run it so, because a process that is to be copied for each case must have no threads, and pytest's may have some.
"""

import argparse
import dataclasses
import gc
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from instantstyle.errors import InstantStyleError

MAX_MEBIBYTES = 1024
MAX_CPU_SECONDS = 20
MAX_WALL_SECONDS = 300
"""Reached only by waiting, as on a pipe that nobody writes to: the machine that tests may be busy."""

TAKES_SECONDS = frozenset(
    {
        ("training pictures", "tar, a gzipped file of 1.5 GiB"),
        ("training pictures", "tar, a gzipped sample of 24 files of 60 MB"),
        ("weight file", "pickle, marks without end"),
    }
)
"""Reader and name of cases that are left to the slow tests."""

Expected = Literal["refused", "result", "either"]


@dataclass(frozen=True)
class Case:
    """A hostile input of one reader."""

    reader: str
    name: str
    write: Callable[[Path], Path]
    """Makes the input in an empty folder and returns what the reader is to open."""
    expected: Expected = "either"
    """Whether it must be refused, must be read, or may be either: a changed bit may be harmless."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    reader: str
    name: str
    kind: Literal["result", "refused", "error", "killed"]
    message: str
    seconds: float
    """Of processor time."""
    mebibytes: float
    """By which the process grew at most."""
    left: tuple[str, ...]
    """Files that are there afterwards and were not before."""


def fault(case: Case, outcome: Outcome) -> str | None:
    """What is wrong with an outcome, None where all is well."""
    if outcome.kind in ("error", "killed"):
        return outcome.message
    if outcome.left:
        return f"files are left behind: {', '.join(outcome.left)}"
    if outcome.mebibytes > MAX_MEBIBYTES:
        return f"{outcome.mebibytes:.0f} MiB of memory"
    if case.expected not in ("either", outcome.kind):
        return f"it must be {case.expected} and is {outcome.kind}: {outcome.message[:300]}"
    return sentence_fault(outcome.message) if outcome.kind == "refused" else None


def sentence_fault(message: str) -> str | None:
    """Why a message does not serve a person."""
    if not 20 <= len(message) <= 1500:
        return f"a message of {len(message):,} characters: {message[:80]!r}"
    if not message.replace("\n", " ").isprintable():
        return f"control characters in the message {message[:200]!r}"
    if strange := re.search(r"Traceback|0x[0-9a-f]{8,}|<[\w.]+ object|For further information visit", message):
        return f"{strange[0]!r} in the message {message[:200]!r}"
    return None


def attempt(case: Case, read: Callable[[Path], str], folder: Path) -> Outcome:
    """Write the case's input and read it in a copy of this process."""
    given, scratch, report = folder / "given", folder / "scratch", folder / "report"
    given.mkdir(parents=True)
    scratch.mkdir()
    path = case.write(given)
    before = _files(folder)
    process = os.fork()
    if process == 0:
        _read_in_child(read, path, scratch, report)
    _, status, usage = os.wait4(process, 0)
    left = tuple(sorted(_files(folder) - before - {"report"}))
    if os.WIFSIGNALED(status) or not report.is_file():
        name = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {status}"
        kind, message, start = "killed", f"the process ended by {name}", usage.ru_maxrss
    else:
        kind, message, start = json.loads(report.read_text("utf-8"))
    seconds = usage.ru_utime + usage.ru_stime
    shutil.rmtree(folder)
    return Outcome(case.reader, case.name, kind, message, seconds, max(0, usage.ru_maxrss - start) / 1024, left)


def _read_in_child(read: Callable[[Path], str], path: Path, scratch: Path, report: Path) -> None:
    """Never returns.  Memory is bounded by address space, which includes what is mapped and never touched."""
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        os.chdir(scratch)
        os.environ.update(TMPDIR=str(scratch), HOME=str(scratch), XDG_CACHE_HOME=str(scratch))
        tempfile.tempdir = None
        here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (here + MAX_MEBIBYTES * 2**20, here + MAX_MEBIBYTES * 2**20))
        resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_SECONDS, MAX_CPU_SECONDS + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(MAX_WALL_SECONDS)
        try:
            said = "result", read(path)
        except InstantStyleError as refusal:
            said = "refused", str(refusal)
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)
            own = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in last if "instantstyle" in frame.filename]
            said = "error", f"{type(error).__name__}: {str(error)[:300]} (at {', '.join(own[-3:])})"
        report.write_text(json.dumps((*said, start)), "utf-8")
    finally:
        os._exit(0)


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def rng_of(reader: str, name: str, seed: int = 0) -> random.Random:
    """The chance that a case is made by, the same whenever it is made."""
    return random.Random(zlib.crc32(f"{reader}/{name}/{seed}".encode()))


def every_case(seed: int = 0) -> Iterator[Case]:
    """All cases of the campaign; another seed makes other mutations of the same files."""
    from hostile import data_cases, model_cases, picture_cases, tensor_cases

    before: set[tuple[str, str]] = set()
    for module in (picture_cases, data_cases, tensor_cases, model_cases):
        for case in module.cases(seed):
            assert (case.reader, case.name) not in before, f"two cases are called {case.reader}, {case.name}"
            before.add((case.reader, case.name))
            yield case


def in_short_campaign(case: Case) -> bool:
    """Whether every run of the tests tries a case: those whose outcome is certain, and a tenth of the others.

    Which place in a JSON file is changed may be another once a field is added, and does not count.
    """
    if (case.reader, case.name) in TAKES_SECONDS:
        return False
    name = re.sub(r"(\b\d+: .*) at (?:the top|[\w.]+)$", r"\1", case.name)
    return case.expected != "either" or zlib.crc32(f"{case.reader}/{name}".encode()) % 10 == 5


def run(cases: Iterable[Case], readers: Mapping[str, Callable[[Path], str]]) -> Iterator[dict[str, Any]]:
    """What becomes of each case: the fields of `Outcome`, and as `fault` what is wrong with it."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        for i, case in enumerate(cases):
            outcome = attempt(case, readers[case.reader], Path(folder) / str(i))
            yield {**dataclasses.asdict(outcome), "fault": fault(case, outcome)}


def main() -> None:
    """The command above."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", default="", help="readers, separated by commas")
    given = parser.parse_args()
    from hostile.readers import READERS, import_libraries

    import_libraries()
    gc.collect()
    gc.freeze()  # what a copy's collector does not visit is not copied
    chosen = given.only.split(",") if given.only else READERS
    cases = (case for case in every_case(given.seed) if case.reader in chosen)
    with given.out.open("w", encoding="utf-8") as out:
        for row in run((case for case in cases if not given.short or in_short_campaign(case)), READERS):
            out.write(f"{json.dumps(row)}\n")
            out.flush()


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]
    main()
