"""sdist, wheel and editable install: one package `zq2onnx`, whole, and nothing beside it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import zq2onnx

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (
    *("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"),
    *("zq2onnx", "passes", "runtime", "models"),
)
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


LIBRARY = "zq2onnx/runtime/lib/libzq2onnx_ops.so"
KERNELS = {
    f"zq2onnx/runtime/lib/kernels/{name}" for name in ("manifest.json", "a.sm_90.cubin", "a.sm_80.ptx")
}
COMPILES = shutil.which("c++") is not None

UNOPTIMIZED = """#!/bin/sh
for argument; do
    shift
    [ "$argument" = -O3 ] || set -- "$@" "$argument"
done
exec c++ "$@"
"""

REGISTER_EVERYTHING = """
import onnxruntime
from zq2onnx.runtime import get_library_path, register
print(get_library_path())
print(len(register(onnxruntime.SessionOptions(), "all", "cpu")))
"""


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ | variables)
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


def check_library(python: Path, home: Path, cwd: Path) -> None:
    """An installation's own library is found and registers every operator, where it could be compiled."""
    if COMPILES:
        printed = run(python, "-c", REGISTER_EVERYTHING, cwd=cwd, ZQ2ONNX_LIBRARY="")
        path, count = printed.splitlines()
        assert Path(path).is_relative_to(home) and count == "24"


@pytest.fixture(scope="module", autouse=True)
def _compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One that does not optimize: what is packaged is the same, in a third of the time."""
    wrapper = tmp_path_factory.mktemp("compiler") / "c++"
    wrapper.write_text(UNOPTIMIZED)
    wrapper.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        if COMPILES:
            patch.setenv("CXX", str(wrapper))
        yield


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packaged, so that a build leaves nothing in the working tree; with a bundle."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so", "*.cubin", "*.ptx")
            shutil.copytree(source, copy / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy2(source, copy / name)
    for name in KERNELS:
        path = copy / name.removeprefix("zq2onnx/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
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
    assert (LIBRARY in names) == COMPILES
    assert {name for name in names if "/kernels/" in name and not name.endswith(".py")} == KERNELS
    assert not [name for name in names if name.endswith((".cc", ".h"))]
    assert f"{metadata}/licenses/LICENSE" in names


def test_wheel_is_for_any_python_of_the_platform(distributions: dict[str, Path]) -> None:
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_") if COMPILES else "any"
    assert distributions["wheel"].name == f"zq2onnx-{zq2onnx.__version__}-py3-none-{platform}.whl"


def test_sdist_stores_files_in_place_of_links(distributions: dict[str, Path]) -> None:
    with tarfile.open(distributions["sdist"]) as sdist:
        members = {member.name.partition("/")[2]: member for member in sdist.getmembers()}
    assert not any(member.issym() or member.islnk() for member in members.values())
    assert {"zq2onnx/passes/__init__.py", "zq2onnx/models/tiny/model.onnx"} <= set(members)
    assert not set(LINKED) & set(members)
    sources = [path for path in (ROOT / "runtime" / "csrc").rglob("*") if path.is_file()]
    assert {f"zq2onnx/{path.relative_to(ROOT).as_posix()}" for path in sources} <= set(members)
    assert not {LIBRARY, *KERNELS} & set(members)


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
    check_library(python, Path(home), tmp_path)


@pytest.mark.parametrize("editable", [False, True])
def test_without_a_compiler_it_installs_and_says_so(editable: bool, checkout: Path, tmp_path: Path) -> None:
    copy, installed = tmp_path / "checkout", tmp_path / "installed"
    shutil.copytree(checkout, copy, symlinks=True, ignore=shutil.ignore_patterns("build", "*.so"))
    pip = (sys.executable, "-m", "pip", "--verbose", "install", "--target", installed)
    offline = ("--no-deps", "--no-index", "--no-build-isolation")
    nowhere = {name: str(tmp_path / "no-compiler") for name in ("CC", "CXX")}
    log = tmp_path / "log"
    run(*pip, *offline, "--log", log, *(["--editable"] if editable else []), copy, cwd=tmp_path, **nowhere)
    said = [line for line in log.read_text().splitlines() if "the operator library was not built" in line]
    assert len(said) == 1 and "models run on stock ONNX Runtime's kernels" in said[0]
    assert not list(tmp_path.rglob("libzq2onnx_ops.so"))
    where = copy if editable else installed
    script = f"import sys; sys.path.insert(0, {str(where)!r})\n"
    script += "from zq2onnx.cli.app import main; main(['runtime', 'info'])"
    printed = run(sys.executable, "-c", script, cwd=tmp_path, ZQ2ONNX_LIBRARY="")
    assert printed.startswith("library: not built")


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
    check_library(python, checkout / "runtime", tmp_path)
