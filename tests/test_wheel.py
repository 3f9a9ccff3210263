"""What is installed is whole: the wheel, built without the network, holds what the package needs beside its code."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "src/instantstyle/assets"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this tree, open for reading."""
    pytest.importorskip("hatchling", reason="building needs hatchling, which the dev extra has")
    folder = tmp_path_factory.mktemp("wheel")
    argv = [
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--quiet",
        "--wheel-dir",
        str(folder),
        str(ROOT),
    ]
    built = subprocess.run([sys.executable, "-m", "pip", *argv], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("instantstyle-*.whl")
    return zipfile.ZipFile(io.BytesIO(path.read_bytes()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["instantstyle/py.typed", "instantstyle/emoji/splits.json", "/licenses/NOTICE"])
def test_the_wheel_holds(wheel: zipfile.ZipFile, name: str) -> None:
    assert [entry for entry in wheel.namelist() if entry.endswith(name)], f"{name} is not in the wheel"


@pytest.mark.slow
@pytest.mark.skipif(not ASSETS.exists(), reason="this tree has no built-in model")
def test_the_wheel_holds_the_built_in_model_whole(wheel: zipfile.ZipFile) -> None:
    files = {p.relative_to(ASSETS.parent.parent).as_posix(): p for p in ASSETS.rglob("*") if p.is_file()}
    assert any(name.startswith("instantstyle/assets/emoji/unet/") and name.endswith(".safetensors") for name in files)
    for name, path in files.items():
        assert wheel.getinfo(name).file_size == path.stat().st_size, name


@pytest.mark.slow
def test_the_wheel_holds_the_studios_page_whole(wheel: zipfile.ZipFile) -> None:
    page = ROOT / "src/instantstyle/serve/page"
    files = {p.relative_to(ROOT / "src").as_posix(): p for p in page.rglob("*") if p.is_file()}
    assert {"instantstyle/serve/page/index.html", "instantstyle/serve/page/static/app.js"} <= files.keys()
    for name, path in files.items():
        assert wheel.read(name) == path.read_bytes(), name


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_nothing_beside(wheel: zipfile.ZipFile) -> None:
    packaged = {name for name in wheel.namelist() if name.endswith(".py")}
    assert packaged == {p.relative_to(ROOT / "src").as_posix() for p in (ROOT / "src").rglob("*.py")}
