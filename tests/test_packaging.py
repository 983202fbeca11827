"""sdist, wheel and editable install: one package `zq2onnx`, whole, and nothing beside it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import zq2onnx

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "zq2onnx", "passes", "runtime", "models")
LINKED = ("passes", "runtime", "models")

IMPORT_EVERYTHING = """
import importlib, pathlib, pkgutil, sys
import zq2onnx
names = [module.name for module in pkgutil.walk_packages(zq2onnx.__path__, "zq2onnx.")]
for name in names:
    importlib.import_module(name)
root = pathlib.Path(zq2onnx.__file__).parent
assert (root / "py.typed").is_file()
print(root, *sorted(names), sep="\\n")
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def modules_of_checkout() -> list[str]:
    """Dotted names of every module, below the package itself."""
    paths = [path for folder in LINKED for path in (ROOT / folder).rglob("*.py")]
    names = [path.relative_to(ROOT).with_suffix("").parts for path in paths]
    package = ROOT / "zq2onnx"
    own = [
        path for path in package.rglob("*.py") if not set(path.relative_to(package).parts[:1]) & set(LINKED)
    ]
    names += [path.relative_to(package).with_suffix("").parts for path in own]
    dotted = {".".join(("zq2onnx", *parts)).removesuffix(".__init__") for parts in names}
    return sorted(dotted - {"zq2onnx"})


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packaged, so that a build leaves nothing in the working tree."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, copy / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy2(source, copy / name)
    return copy


@pytest.fixture(scope="module")
def distributions(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist and the wheel, both built from the checkout."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel", "-o", folder, cwd=checkout)
    return {"sdist": next(folder.glob("*.tar.gz")), "wheel": next(folder.glob("*.whl"))}


@pytest.fixture
def install(tmp_path: Path) -> Callable[..., Path]:
    """Installs into a fresh environment, which borrows the dependencies of the running one."""

    def install(*arguments: str | Path) -> Path:
        environment = tmp_path / "environment"
        run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
        python = environment / "bin" / "python"
        purelib = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path)
        borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        Path(purelib.strip(), "borrowed.pth").write_text("\n".join(sorted(borrowed)), encoding="utf-8")
        pip = (sys.executable, "-m", "pip", "--python", python, "--quiet", "install")
        offline = ("--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed")
        run(*pip, *offline, *arguments, cwd=tmp_path)
        return python

    return install


def test_wheel_holds_one_package_with_its_data(distributions: dict[str, Path]) -> None:
    with zipfile.ZipFile(distributions["wheel"]) as wheel:
        names = wheel.namelist()
    metadata = f"zq2onnx-{zq2onnx.__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"zq2onnx", metadata}
    data = {path.name for path in (ROOT / "models" / "tiny").iterdir()}
    prefix = "zq2onnx/models/tiny/"
    assert {name.removeprefix(prefix) for name in names if name.startswith(prefix)} == data
    assert "zq2onnx/py.typed" in names
    assert f"{metadata}/licenses/LICENSE" in names


def test_sdist_stores_files_in_place_of_links(distributions: dict[str, Path]) -> None:
    with tarfile.open(distributions["sdist"]) as sdist:
        members = {member.name.partition("/")[2]: member for member in sdist.getmembers()}
    assert not any(member.issym() or member.islnk() for member in members.values())
    assert {"zq2onnx/passes/__init__.py", "zq2onnx/models/tiny/model.onnx"} <= set(members)
    assert not set(LINKED) & set(members)


@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_installed_distribution_is_whole(
    kind: str, distributions: dict[str, Path], install: Callable[..., Path], tmp_path: Path
) -> None:
    python = install(distributions[kind])
    home, *names = run(python, "-c", IMPORT_EVERYTHING, cwd=tmp_path).splitlines()
    assert Path(home).is_relative_to(tmp_path)
    assert names == modules_of_checkout()
    installed = {path.name for path in Path(home).parent.iterdir()}
    assert installed == {"borrowed.pth", "zq2onnx", f"zq2onnx-{zq2onnx.__version__}.dist-info"}
    version = run(python.parent / "zq2onnx", "--version", cwd=tmp_path)
    assert version == f"zq2onnx {zq2onnx.__version__}\n"


def test_editable_install_adds_one_name(checkout: Path, install: Callable[..., Path], tmp_path: Path) -> None:
    python = install("--editable", checkout)
    script = """
import importlib.util
print(*(name for name in ("passes", "runtime", "models", "tests") if importlib.util.find_spec(name)))
import zq2onnx.passes, zq2onnx.runtime, zq2onnx.models
print(zq2onnx.__file__)
"""
    strangers, home = run(python, "-c", script, cwd=tmp_path).splitlines()
    assert strangers == ""
    assert Path(home) == checkout / "zq2onnx" / "__init__.py"
