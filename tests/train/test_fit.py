# pyright: reportUnknownMemberType=false, reportPrivateUsage=false

"""The loop: resumed to the bit, whatever ended it; many processes as one; what cannot go on is a sentence."""

import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from instantstyle.errors import InputError, InstantStyleError, OutputError, WeightsError
from instantstyle.train.trainer import MicroBatch, StepMetrics, Trainer, TrainingConfig

SETTINGS = TrainingConfig(steps=23, batch=4, lr=0.05, warmup=5, clip=0.5, ema_decay=0.9, log_every=4)
TRUTH = torch.tensor([[1.0, -2.0, 0.5]])


class Line(nn.Module):
    """A line through the origin, with a weight that never learns."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Linear(3, 1)
        nn.init.zeros_(self.slope.weight)
        nn.init.zeros_(self.slope.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.slope(x)


def loss(net: nn.Module, part: MicroBatch) -> Tensor:
    """Of rows that are drawn one by one, from the step and their number."""
    rows = range(part.offset, part.offset + part.size)
    x = torch.stack([torch.randn(3, generator=torch.Generator().manual_seed(part.step * 1000 + n)) for n in rows])
    return (net(x) - x @ TRUTH.T).square().mean()


def run(
    folder: Path, settings: TrainingConfig = SETTINGS, stop_at: int | None = None
) -> tuple[Trainer, list[StepMetrics]]:
    def stopping(net: nn.Module, part: MicroBatch) -> Tensor:
        if part.step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(net, part)

    fit = Trainer(Line(), stopping, settings, folder)
    return fit, [row for at in fit.run() for row in at.metrics]


def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole, rows = run(tmp_path / "whole")
    _, before = run(tmp_path / "stopped", stop_at=9)
    assert [row.step for row in before] == list(range(1, 11)), "the step during which it was asked is finished"
    resumed, after = run(tmp_path / "stopped")
    assert [*before, *after] == rows
    assert all(torch.equal(w, resumed.ema_weights()[name]) for name, w in whole.ema_weights().items())
    assert run(tmp_path / "stopped")[1] == [], "what is done is done"
    assert run(tmp_path / "stopped", replace(SETTINGS, steps=25))[1][0].step == 24


def test_it_is_the_optimiser_it_says(tmp_path: Path) -> None:
    """Against torch's own AdamW and clipping, written out."""
    net = Line()
    optimiser = torch.optim.AdamW(net.parameters(), lr=1.0, weight_decay=0.01, betas=(0.9, 0.999))
    expected: list[tuple[float, float, float]] = []
    for step in range(7):
        rate = 0.05 * min(1, (step + 1) / 5)
        for group in optimiser.param_groups:
            group["lr"] = rate
        value = loss(net, MicroBatch(step, 0, 8, 8))
        value.backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimiser.step()
        optimiser.zero_grad()
        expected.append((value.item(), norm.item(), rate))
    fit, rows = run(tmp_path, replace(SETTINGS, steps=7, gradient_accumulation_steps=2))
    for row, (value, norm, rate) in zip(rows, expected, strict=True):
        assert (row.loss, row.grad_norm, row.lr) == pytest.approx((value, norm, rate), rel=1e-5)
    torch.testing.assert_close(fit.unwrapped.get_parameter("slope.weight"), net.slope.weight)


def test_the_average_is_the_one_warmed_up(tmp_path: Path) -> None:
    fit, _ = run(tmp_path, replace(SETTINGS, steps=1))
    # After one step: a tenth of the start, nine tenths of the present.
    torch.testing.assert_close(
        fit.ema_weights()["slope.weight"], 0.9 * fit.unwrapped.get_parameter("slope.weight").detach()
    )


def test_the_rate_rises_and_falls() -> None:
    cosine = replace(SETTINGS, steps=105, lr_schedule="cosine")
    assert [cosine.rate(step) for step in range(5)] == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05])
    assert cosine.rate(55) == pytest.approx(0.025)
    assert cosine.rate(105) == pytest.approx(0)
    assert {SETTINGS.rate(step) for step in range(5, 1000)} == {0.05}


def test_a_run_is_resumed_with_the_same_or_not_at_all(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(InputError, match=r"begun with lr 0.05 \(now 0.1\)"):
        run(tmp_path, replace(SETTINGS, lr=0.1))
    with pytest.raises(InputError, match="rows a step 4"):
        run(tmp_path, replace(SETTINGS, batch=5))
    assert run(tmp_path, replace(SETTINGS, batch=2, gradient_accumulation_steps=2))[1] == [], (
        "the same rows in two parts"
    )
    with pytest.raises(InputError, match="data None"):
        Trainer(Line(), loss, SETTINGS, tmp_path, run_config={"data": "abc"})
    (tmp_path / "state.pt").write_bytes((tmp_path / "state.pt").read_bytes()[:-100])
    with pytest.raises(WeightsError, match="damaged"):
        run(tmp_path)


def test_a_full_disk_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, replace(SETTINGS, steps=8))
    good = (tmp_path / "state.pt").read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    fit = Trainer(Line(), loss, replace(SETTINGS, save_seconds=0.0), tmp_path)
    steps = fit.run()
    next(steps)
    assert "no room left" in next(steps).warnings[0]
    with pytest.raises(OutputError, match="no room left"):
        list(steps)
    assert (tmp_path / "state.pt").read_bytes() == good
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_a_loss_that_is_no_number_ends_the_run_and_is_not_saved(tmp_path: Path) -> None:
    def wild(net: nn.Module, part: MicroBatch) -> Tensor:
        return loss(net, part) * (float("nan") if part.step == 5 else 1)

    fit = Trainer(Line(), wild, SETTINGS, tmp_path)
    with pytest.raises(InstantStyleError, match="at step 6 the loss is nan"):
        list(fit.run())
    assert not (tmp_path / "state.pt").exists()


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"lr": float("nan")}, {"ema_decay": 1.0}, {"batch": -1}])
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        replace(SETTINGS, **wrong)


def launch(folder: Path, steps: int, *, sharded: bool = False) -> list[StepMetrics]:
    """Two processes, as a launcher would start them; every row that the first one saw."""
    processes = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = folder.with_suffix(f".{steps}.json")
    children = [processes.Process(target=process, args=(rank, port, folder, steps, sharded, out)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(timeout=90)
        if child.is_alive():
            child.kill()
    assert [child.exitcode for child in children] == [0, 0]
    return [StepMetrics(*row) for row in json.loads(out.read_text())]


class Sharding(Accelerator):
    """Shards as accelerate's FSDP2 does, which it does on GPUs alone."""

    def prepare(self, *args: Any, **_: Any) -> Any:
        net, optimiser = args
        fully_shard(net)
        for group in optimiser.param_groups:
            group["params"] = list(net.parameters())
        return net, optimiser


def process(rank: int, port: int, folder: Path, steps: int, sharded: bool, out: Path) -> None:
    """One of the two."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    AcceleratorState._reset_state(True)  # what the parent knew of its own place
    GradientState._reset_state()
    accelerator = (Sharding if sharded else Accelerator)(cpu=True)
    assert accelerator.num_processes == 2
    fit = Trainer(Line(), loss, replace(SETTINGS, steps=steps, batch=2), folder, accelerator=accelerator)
    assert any(isinstance(p, DTensor) for p in fit.unwrapped.parameters()) == sharded
    rows = [astuple(row) for at in fit.run() for row in at.metrics]
    # They leave without good-byes, the first one last: taking a process group down in forked processes may hang.
    done = out.with_suffix(".done")
    if rank:
        done.touch()
    else:
        out.write_text(json.dumps(rows))
        while not done.exists():
            time.sleep(0.05)
    os._exit(0)


def check_same(rows: Sequence[StepMetrics], expected: Sequence[StepMetrics]) -> None:
    assert [row.step for row in rows] == [row.step for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert (row.loss, row.grad_norm) == pytest.approx((other.loss, other.grad_norm), rel=1e-5)


@pytest.mark.filterwarnings("ignore")  # of what forking may do, which newer Pythons say
@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp"])
def test_two_processes_are_one_at_twice_the_batch(sharded: bool, tmp_path: Path) -> None:
    one, expected = run(tmp_path / "one")
    check_same(launch(tmp_path / "two", 9, sharded=sharded), expected[:9])
    check_same(launch(tmp_path / "two", 17, sharded=sharded), expected[9:17])
    # What two processes began one goes on with.
    rest, after = run(tmp_path / "two")
    check_same(after, expected[17:])
    torch.testing.assert_close(rest.ema_weights()["slope.weight"], one.ema_weights()["slope.weight"])
