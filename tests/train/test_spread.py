"""Work goes over a Ray cluster or is refused with a sentence; that its bytes are ours is tested with the features."""

import sys
from collections.abc import Callable

import pytest

from instantstyle.errors import InputError, InstantStyleError, OutputError
from instantstyle.train.data.ray_cluster import ray_session
from instantstyle.train.data.ray_map import ray_map

Item = tuple[int, list[str]]


def test_without_ray_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)

    def opened() -> Callable[[int], int]:
        return abs

    with pytest.raises(InputError, match=r"pip install 'instantstyle\[ray\]'"):
        next(ray_map("local", [1], opened))


@pytest.mark.slow  # 73 s at a load of 10, most of it Ray's start and its first workers
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_values_come_back_as_they_are_and_errors_as_our_own() -> None:
    pytest.importorskip("ray")

    # Inside, so that workers are sent them and need not find this file.
    def opened() -> Callable[[Item], dict[str, object]]:
        def done(item: Item) -> dict[str, object]:
            number, words = item
            if number == 7:
                raise OutputError("the seventh cannot be written")
            if number == 8:
                raise KeyError("eight")
            return {"sum": 10 + number, "words": (*words, None)}

        return done

    with ray_session("local", cores=1) as ray:
        found = sorted(ray_map("local", [(n, ["a", "b"] * n) for n in range(4)], opened), key=lambda x: str(x["sum"]))
        assert found == [{"sum": 10 + n, "words": (*["a", "b"] * n, None)} for n in range(4)]
        with pytest.raises(OutputError, match="the seventh"):
            list(ray_map("local", [(7, ["a"])], opened))
        with pytest.raises(InstantStyleError, match=r"a worker on .* failed: KeyError: 'eight'"):
            list(ray_map("local", [(8, ["a"])], opened))
        assert ray.is_initialized(), "what was connected before is left so"
    assert not ray.is_initialized()
