# pyright: reportUnknownMemberType=false

"""The training loop against closed forms, and its checkpoints."""

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from instantstyle.errors import OutputError
from instantstyle.optimisation import EMA, any_process, load_checkpoint, optimise, save_checkpoint


class Weight(nn.Module):
    """One trainable number, and one that is frozen."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))
        self.frozen = nn.Parameter(torch.tensor(7.0), requires_grad=False)

    def square(self, step: int) -> Iterator[Tensor]:
        """w^2 in two micro-batches."""
        yield self.value.square() / 4
        yield self.value.square() * 3 / 4


def test_gradient_descent_on_a_square_is_a_geometric_series() -> None:
    net = Weight(3.0)
    optimiser = torch.optim.SGD([net.value], lr=1.0)
    with torch.no_grad():  # as the engine steps it
        steps = list(optimise([net.value], net.square, optimiser, range(5), lr=lambda step: 0.1))
    assert [each.step for each in steps] == [1, 2, 3, 4, 5]
    for number, each in enumerate(steps):
        w = 3 * 0.8**number  # w - 0.1 * 2 w
        assert (each.loss.item(), each.grad_norm.item()) == pytest.approx((w * w, 2 * w), rel=1e-5)
    assert net.value.item() == pytest.approx(3 * 0.8**5, rel=1e-5)
    assert net.frozen == 7


def test_learning_rate_and_clipping_are_of_the_step() -> None:
    net, seen = Weight(3.0), list[float]()
    optimiser = torch.optim.SGD([net.value], lr=1.0)
    for each in optimise([net.value], net.square, optimiser, range(2, 5), lr=lambda step: step / 10, clip=0.5):
        seen.append(each.lr)
        assert each.grad_norm > 0.5, "the norm before clipping"
    assert seen == [0.2, 0.3, 0.4]
    assert net.value.item() == pytest.approx(3 - 0.5 * sum(seen), abs=1e-4)


def test_the_average_is_warmed_up_and_of_what_is_trained() -> None:
    net = Weight(3.0)
    ema, expected = EMA(net, decay=0.15), 3.0
    optimiser = torch.optim.SGD([net.value], lr=1.0)
    for each in optimise([net.value], net.square, optimiser, range(3), lr=lambda step: 0.1, ema=ema):
        decay = min(0.15, each.step / (each.step + 9))
        expected = decay * expected + (1 - decay) * net.value.item()
    assert set(ema.weights) == {"value"}
    assert ema.weights["value"].item() == pytest.approx(expected, rel=1e-5)


def test_a_checkpoint_restores_all_of_it_and_a_missing_one_nothing(tmp_path: Path) -> None:
    def adam(net: Weight) -> torch.optim.Optimizer:
        return torch.optim.AdamW([net.value], lr=0.1)

    def run(net: Weight, optimiser: torch.optim.Optimizer, steps: range) -> None:
        for _ in optimise([net.value], net.square, optimiser, steps, lr=lambda step: 0.1):
            pass

    whole, first, second = (Weight(3.0) for _ in range(3))
    run(whole, adam(whole), range(6))
    optimiser, file = adam(first), tmp_path / "state.pt"
    assert load_checkpoint(file, first, optimiser) == {"step": 0}
    run(first, optimiser, range(3))
    save_checkpoint(file, first, optimiser.state_dict(), 3, seconds=1.5)
    resumed = adam(second)
    saved = load_checkpoint(file, second, resumed)
    assert (saved["step"], saved["seconds"]) == (3, 1.5)
    run(second, resumed, range(3, 6))
    assert torch.equal(second.value, whole.value)
    with pytest.raises(OutputError):
        save_checkpoint(file / "below a file.pt", first, optimiser.state_dict(), 3)


def one_of_two(rank: int, folder: Path) -> None:
    """A process that pulls its weight towards 0 or 2."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    net = Weight(3.0)
    optimiser = torch.optim.SGD([net.value], lr=1.0)

    def loss(step: int) -> tuple[Tensor]:
        return ((net.value - 2 * rank).square(),)

    for _ in optimise([net.value], loss, optimiser, range(4), lr=lambda step: 0.1, average_gradients=True):
        pass
    told = any_process(rank == 1, False, device=torch.device("cpu"))
    (folder / f"{rank}.txt").write_text(f"{net.value.item()} {told}")
    dist.barrier()
    os._exit(0)  # taking a process group down in forked processes may hang


@pytest.mark.filterwarnings("ignore")  # of what forking may do, which newer Pythons say
def test_two_processes_follow_the_mean_of_their_gradients(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=one_of_two, args=(rank, tmp_path)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(timeout=90)
        child.kill()
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
    assert first == second
    assert first.endswith("[True, False]")
    assert float(first.split()[0]) == pytest.approx(1 + 2 * 0.8**4, rel=1e-5), "to 1, between the two"
