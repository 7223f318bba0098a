"""What an installation puts on a machine: two packages, their data, nothing else."""

from __future__ import annotations

import email
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    # Built from a copy: setuptools would take files left in the checkout's build/ for files of the package.
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("fastscore", "kernels", "tests", "bench"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", str(out), str(source)], check=True, capture_output=True, text=True)
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_is_pure_python_and_carries_the_distribution_name(wheel: zipfile.ZipFile) -> None:
    name = Path(str(wheel.filename)).name
    assert name.startswith("fastscore_torch-")
    assert name.endswith("-py3-none-any.whl")


def test_top_level_is_the_two_packages(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    info = {name for name in top if name.endswith(".dist-info")}
    assert len(info) == 1
    assert top - info == {"fastscore", "fastscore_kernels"}


def test_every_file_of_the_packages_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    packages = {"fastscore": ROOT / "fastscore", "fastscore_kernels": ROOT / "kernels" / "fastscore_kernels"}
    expected = {
        f"{name}/{path.relative_to(folder).as_posix()}"
        for name, folder in packages.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == expected
    assert "fastscore/py.typed" in shipped
    assert "fastscore_kernels/langevin.py" in shipped


def test_metadata(wheel: zipfile.ZipFile) -> None:
    (info,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    metadata = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
    required = {line.replace(" ", "") for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert metadata["Name"] == "fastscore-torch"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    assert required == {"numpy", "safetensors", "torch>=2.10", "tqdm", "ziglang", 'triton>=3.6;sys_platform=="linux"'}
    assert "fastscore = fastscore.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()


def test_the_package_knows_its_version(wheel: zipfile.ZipFile) -> None:
    version = Path(str(wheel.filename)).name.split("-")[1]
    assert f'__version__ = "{version}"' in wheel.read("fastscore/__init__.py").decode()
