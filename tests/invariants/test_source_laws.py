"""Laws that the source itself keeps: one place each, shapes on all public tensors, strings that stop at the border."""

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError

import instantstyle
import tiny_models
from instantstyle.networks.attention import plain, split_heads
from instantstyle.request import Init, Request, StyleReference
from instantstyle.sampling import Engine

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, with this numpy

SOURCE = Path(instantstyle.__file__).parent
TRAINING_STAGES = "train/emoji/"
"""How the built-in model was made; not a library."""

ONE_PLACE = {
    "device policy": (r"backends\.mps", "utils/device.py"),
    "cache folder": (r"INSTANTSTYLE_CACHE|XDG_CACHE", "utils/cache.py"),
    "time ids": (r"\[\s*height, width, 0, 0, height, width\s*\]", "networks/denoiser.py"),
    "velocity": (r"alpha \* (?:eps|noise) - sigma", "networks/prediction.py"),
    "x0 of a velocity": (r"alpha \* x - sigma", "networks/prediction.py"),
    "classifier-free guidance": (r"\+ *[\w.]*(?:guidance|cfg)[\w.]* *\*", "methods/cfg_rescale.py"),
    "first noise": (r"randn_tensor", "sampling/initial_latents.py"),
}
"""What each law 9 names: how it looks in the source, and the one file in which it may."""


def sources() -> Iterator[tuple[str, str]]:
    """Each file of the library, its comments and docstrings blanked."""
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if not name.startswith(TRAINING_STAGES):
            yield name, _without_docstrings(path.read_text("utf-8"))


def _without_docstrings(text: str) -> str:
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for i in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[i] = ""
    return "\n".join(lines)


@pytest.mark.parametrize("what", ONE_PLACE)
def test_9_one_place_each(what: str) -> None:
    pattern, place = ONE_PLACE[what]
    assert [name for name, text in sources() if re.search(pattern, text)] == [place]


SHAPED = ("networks/", "methods/", "sampling/", "encoders/", "model.py", "controlnet.py")
"""Where every public function says the shapes of its tensors."""


SAY_SHAPES = ("Float", "Int", "Num", "Bool", "UInt8", "Callable")
"""jaxtyping's, and what is called with tensors, which nobody checks."""


def _bare(annotation: ast.expr | None) -> bool:
    """Whether an annotation names a tensor outside of brackets that say its shape."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    of = annotation.value if isinstance(annotation, ast.Subscript) else None
    if isinstance(of, ast.Name) and of.id in SAY_SHAPES:
        return False
    if isinstance(annotation, ast.Subscript | ast.BinOp | ast.Tuple | ast.List):
        return any(_bare(each) for each in ast.iter_child_nodes(annotation) if isinstance(each, ast.expr))
    return isinstance(annotation, ast.Name) and annotation.id == "Tensor"


def _public(body: list[ast.stmt], where: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _public(node.body, f"{where} {node.name}.")
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield f"{where} {node.name}".replace(". ", "."), node


def test_7_every_public_tensor_says_its_shape() -> None:
    silent: list[str] = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if name.startswith(SHAPED):
            for where, function in _public(ast.parse(path.read_text("utf-8")).body, name):
                given = [*function.args.args, *function.args.kwonlyargs]
                if any(map(_bare, [each.annotation for each in given])) or _bare(function.returns):
                    silent.append(where)
    assert silent == []


def test_7_shapes_are_checked_while_tests_run() -> None:
    with pytest.raises(TypeCheckError):
        split_heads(torch.zeros(2, 3), 1)
    q, k = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 5, 4)
    with pytest.raises(TypeCheckError):
        plain(tiny_models.model("sd15").unet.config.sites[0], q, k, k[:, :, 1:])


PARSERS = ("parse_", "resolve", "did_you_mean", "few_step_preset", "plan_to_text")
"""How the names of functions begin that read what a person said."""
WORK_OF_THE_RUN = ("resolve_auto_content",)
"""Asks the model what a reference shows: text is encoded for it."""


@pytest.mark.parametrize("method", ["instantstyle", "swapped"])
def test_6_nothing_is_parsed_after_a_request_is_accepted(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request(
        "a cat",
        negative="a dog",
        references=[StyleReference(tiny_models.picture(1), plan="up.0.1=1" if method == "instantstyle" else None)],
        method=method,
        plan="all",
        init=Init(tiny_models.picture(2), 0.9),
        steps=3,
        size=(64, 64),
        seed=1,
        sampler="euler",
    )
    run = Engine(tiny_models.model("sdxl")).submit(request)

    def refusing(name: str) -> Callable[..., Any]:
        def late(*given: object, **more: object) -> Any:
            pytest.fail(f"{name} was called after the request was accepted")

        return late

    replaced = 0
    for name, module in list(sys.modules.items()):
        if name.startswith("instantstyle."):
            for key, value in list(vars(module).items()):
                if key.startswith(PARSERS) and key not in WORK_OF_THE_RUN and callable(value):
                    monkeypatch.setattr(module, key, refusing(f"{name}.{key}"))
                    replaced += 1
    assert replaced > 10
    for _ in run:
        pass
    assert len(run.result().images) == 1
