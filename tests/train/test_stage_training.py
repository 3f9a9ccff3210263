"""A run that was stopped and resumed ends where an undisturbed one does."""

import csv
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from instantstyle.train.emoji.training import learning_rate, train_stage


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(3))


def batch(step: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(step))
    return x, x @ torch.tensor([1.0, -2.0, 0.5])


def run(folder: Path, steps: int = 60, stop_at: int | None = None) -> dict[str, Tensor]:
    net = Line()

    def loss(step: int) -> Tensor:
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        x, y = batch(step)
        return (x @ net.slope - y).square().mean()

    return train_stage("line", net, loss, folder=folder, steps=steps, lr=0.05, batch=16, ema_decay=0.9)


def test_resumed_is_undisturbed(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt, match="step 24, saved"):
        run(tmp_path / "stopped", stop_at=23)
    resumed = run(tmp_path / "stopped")
    assert torch.equal(whole["slope"], resumed["slope"])


def test_it_learns_and_logs(tmp_path: Path) -> None:
    weights = run(tmp_path, steps=400)
    assert torch.allclose(weights["slope"], torch.tensor([1.0, -2.0, 0.5]), atol=0.05)
    rows = list(csv.reader((tmp_path / "line.csv").read_text().splitlines()))
    assert rows[-1][0] == "400"
    assert float(rows[-1][1]) < 6


def test_signals_are_given_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    run(tmp_path, steps=3)
    assert signal.getsignal(signal.SIGTERM) is before


def test_learning_rate_rises_holds_and_falls() -> None:
    for steps, warm in ((1000, 100), (10_000, 200)):  # a tenth of the run, 200 steps at most
        rates = [learning_rate(step, steps, 1.0) for step in range(steps)]
        assert rates[0] == pytest.approx(1 / warm)
        assert set(rates[warm : steps * 7 // 10]) == {1.0}
        assert rates[steps * 7 // 10 :] == sorted(rates[steps * 7 // 10 :], reverse=True)
        assert rates[-1] == pytest.approx(0.01, abs=1e-3)
    assert learning_rate(0, 100, 1.0) == pytest.approx(1 / 20)  # and 20 at least
