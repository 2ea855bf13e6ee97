"""The package as it is built and installed: every module there, nothing else, from any route."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import textwrap
import tomllib
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import gyroperm

ROOT = Path(__file__).resolve().parents[1]

if not (ROOT / "gyroperm" / "__init__.py").is_file():
    pytest.skip("tests/ lies apart from the source tree", allow_module_level=True)

# Where the packages lie in the tree, and what they are called once installed.
PACKAGE_ROOTS = {"gyroperm": "gyroperm", "solvers": "gyroperm.solvers", "gpu": "gyroperm.gpu"}
GENERATED = shutil.ignore_patterns("__pycache__", "*.pyc", "*.nbi", "*.nbc", "*.egg-info")


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def modules_of(tree):
    """Every module of a tree: its path in the tree, by its path in an installation."""
    found = {}
    for folder, package in PACKAGE_ROOTS.items():
        for file in sorted((tree / folder).rglob("*.py")):
            inside = file.relative_to(tree / folder).as_posix()
            found[f"{package.replace('.', '/')}/{inside}"] = file.relative_to(tree)
    return found


def package_data_of(tree, settings):
    """Every data file of a tree that pyproject names, by its path in an installation."""
    found = {}
    for package, patterns in settings["package-data"].items():
        folder = tree / settings["package-dir"][package]
        for pattern in patterns:
            files = [file for file in sorted(folder.glob(pattern)) if file.is_file()]
            assert files, f"package-data {pattern!r} of {package} matches no file"
            for file in files:
                inside = file.relative_to(folder).as_posix()
                found[f"{package.replace('.', '/')}/{inside}"] = file.relative_to(tree)
    return found


# --- what pyproject.toml says, against the tree


def test_every_folder_of_modules_is_a_listed_and_mapped_package(project):
    settings = project["tool"]["setuptools"]
    expected = {}
    for installed, file in modules_of(ROOT).items():
        package = installed.rpartition("/")[0].replace("/", ".")
        expected[package] = file.parent.as_posix()
    for package, folder in expected.items():
        assert (ROOT / folder / "__init__.py").is_file(), f"{package} has no __init__.py"
    assert sorted(settings["packages"]) == sorted(expected)
    for package, folder in settings["package-dir"].items():
        assert expected.get(package) == folder
    # Unmapped packages must lie where setuptools looks: inside their parent's folder.
    unmapped = set(expected) - set(settings["package-dir"])
    for package in unmapped:
        assert expected[package] == package.replace(".", "/")


def test_package_data_is_on_disk(project):
    assert "gyroperm/py.typed" in package_data_of(ROOT, project["tool"]["setuptools"])


def test_every_source_of_a_kernel_is_package_data(project):
    data = package_data_of(ROOT, project["tool"]["setuptools"])
    sources = [file for file in (ROOT / "gpu" / "kernels").iterdir() if file.is_file()]
    assert {"spmm.cu", "primitives.h"} <= {file.name for file in sources}
    assert {f"gyroperm/gpu/kernels/{file.name}" for file in sources} <= set(data)


def test_the_version_is_the_same_everywhere(project):
    assert project["project"]["version"] == gyroperm.__version__


def test_extras_are_those_that_are_documented(project):
    extras = project["project"]["optional-dependencies"]
    toolkits = {"torchao", "torch-pruning", "modelopt", "llmcompressor"}
    assert {
        "torch",
        "gpu",
        "gpu-cuda12",
        "gpu-cuda13",
        "plot",
        "dask",
        "demo",
        "dev",
    } | toolkits == set(extras)


def pins_of(file):
    """The versions that a constraints file pins, with those of the file it builds on."""
    lines = (ROOT / file).read_text().splitlines()
    said = [line for line in lines if line and not line.startswith("#")]
    pins = {}
    for line in said:
        if line.startswith("-c "):
            pins |= pins_of(line.removeprefix("-c "))
        else:
            assert "==" in line, f"{file}: {line}"
    return pins | dict(line.split("==") for line in said if "==" in line)


@pytest.mark.parametrize(
    ("file", "extras"),
    [
        ("constraints.txt", ("demo", "dev", "torch", "dask", "gpu-cuda13")),
        ("constraints-plugins.txt", ("torch", "torchao", "torch-pruning", "modelopt")),
        ("constraints-llmcompressor.txt", ("torch", "llmcompressor")),
    ],
)
def test_constraints_pin_every_direct_dependency(project, file, extras):
    settings = project["project"]
    used = [*settings["dependencies"], "pytest", "hypothesis", "transformers"]
    for extra in extras:
        used += settings["optional-dependencies"][extra]
    names = {re.match(r"[\w.-]+", requirement)[0] for requirement in used} - {"gyroperm"}
    assert names <= set(pins_of(file))


def test_environments_differ_only_where_a_toolkit_asks_for_it():
    main = pins_of("constraints.txt")
    assert pins_of("constraints-plugins.txt").items() >= main.items()
    apart = pins_of("constraints-llmcompressor.txt")
    assert {name for name in main.keys() & apart if main[name] != apart[name]} == {"transformers"}


def test_every_toolkit_s_tests_have_an_environment():
    makefile = (ROOT / "Makefile").read_text()
    named = " ".join(re.findall(r"^TOOLKITS_\w+ := (.*)$", makefile, re.MULTILINE)).split()
    folders = [one.name for one in (ROOT / "tests" / "plugins").iterdir() if one.is_dir()]
    assert set(folders) - {"__pycache__"} <= set(named)


def test_tests_and_their_folder_do_not_shadow_the_package():
    # A tests/__init__.py would put the root, whose gyroperm/ is not the whole package, on the path.
    assert not (ROOT / "tests" / "__init__.py").exists()


# --- what is built from it


@pytest.fixture(scope="module")
def clean_copy(tmp_path_factory):
    """The tree as a fresh clone has it: no caches, no build folder, no metadata."""
    copy = tmp_path_factory.mktemp("clean") / "tree"
    copy.mkdir()
    for name in ("gyroperm", "solvers", "gpu", "tests", "benchmarks"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=GENERATED)
    for file in ROOT.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copy2(file, copy)
    return copy


def run(*command, cwd):
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(clean_copy, tmp_path_factory):
    """The sdist of a clean copy, and the wheel that is built from that sdist."""
    pytest.importorskip("build")
    pytest.importorskip("setuptools", minversion="77")
    out = tmp_path_factory.mktemp("dist")
    build = (sys.executable, "-m", "build", "--no-isolation", "--outdir", out, clean_copy)
    run(*build, cwd=out)
    (sdist,) = out.glob("*.tar.gz")
    (wheel,) = out.glob("*.whl")
    return sdist, wheel


def wheel_files(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_every_module_and_nothing_else(project, clean_copy, built):
    settings = project["tool"]["setuptools"]
    files = wheel_files(built[1])
    expected = modules_of(clean_copy) | package_data_of(clean_copy, settings)
    metadata = f"gyroperm-{gyroperm.__version__}.dist-info"
    assert sorted(name for name in files if not name.startswith(metadata)) == sorted(expected)
    for installed, source in expected.items():
        assert files[installed] == (clean_copy / source).read_bytes(), installed
    assert files[f"{metadata}/licenses/LICENSE"] == (clean_copy / "LICENSE").read_bytes()


def test_the_metadata_of_the_wheel(project, built):
    files = wheel_files(built[1])
    metadata = Parser().parsestr(
        files[f"gyroperm-{gyroperm.__version__}.dist-info/METADATA"].decode()
    )
    assert metadata["Name"] == "gyroperm"
    assert metadata["Version"] == gyroperm.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata["Requires-Python"].split(",")) == {">=3.11", "<3.14"}
    extras = set(project["project"]["optional-dependencies"])
    assert set(metadata.get_all("Provides-Extra")) == extras
    core = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(core) == sorted(project["project"]["dependencies"])


def test_the_sdist_holds_the_tree(clean_copy, built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {file.as_posix() for file in modules_of(clean_copy).values()}
    wanted |= {"pyproject.toml", "LICENSE", "Makefile", "constraints.txt", "gyroperm/py.typed"}
    for folder in ("tests", "benchmarks"):
        files = (clean_copy / folder).rglob("*.py")
        wanted |= {file.relative_to(clean_copy).as_posix() for file in files}
    assert sorted(wanted - names) == []
    assert not any("__pycache__" in name or name.startswith("build/") for name in names)


def test_the_tree_builds_the_same_wheel_as_the_sdist(clean_copy, built, tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(clean_copy, tree, ignore=GENERATED)
    build = (sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, tree)
    run(*build, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == built[1].name
    assert wheel_files(wheel) == wheel_files(built[1])


# --- what is installed


@pytest.fixture
def environment(tmp_path):
    """An empty environment beside the present one, whose libraries it sees."""
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=False, symlinks=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    # Only a path: a .pth file found there, such as that of an editable install, has no effect.
    (site / "present.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python", site


# The package comes last on the standard path of an environment, so the folder it runs in, -I and
# the absence of PYTHONPATH see to it that this is the installed one.
PROGRAM = textwrap.dedent(
    """
    import json, sys
    import numpy as np
    import gyroperm, gyroperm.gpu, gyroperm.gpu.source, gyroperm.solvers, gyroperm.solvers.kernels

    weights = np.random.default_rng(0).standard_normal((20, 24))
    solution = gyroperm.solve(weights, vec_ratio=0.5, vec_size=8, method="identity")
    assert int(solution.mask.sum()) == 20 * 12 // 2
    tables = gyroperm.gpu.IndexTables.from_solution(solution)
    assert tables.tile_ptr.tolist() == [0, 12, 24, 36]
    assert set(gyroperm.gpu.source.headers("spmm.cu")) >= {"primitives.h", "epilogue.h"}
    for name in ("gyroperm", "gyroperm.solvers", "gyroperm.solvers.kernels", "gyroperm.gpu"):
        print(sys.modules[name].__file__)
    """
)


def pip(python, *arguments, cwd):
    # The present environment's pip, acting on another; --no-index: it needs nothing from outside.
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--quiet"),
        *("--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"),
        *arguments,
        cwd=cwd,
    )


def check_installed(python, cwd, expected):
    locations = run(python, "-I", "-c", PROGRAM, cwd=cwd).splitlines()
    assert [Path(line).resolve() for line in locations] == [path.resolve() for path in expected]
    command = python.parent / "gyroperm"
    assert command.is_file()
    assert "usage: gyroperm" in run(python, "-I", command, "--help", cwd=cwd)


def test_a_regular_install(built, environment, tmp_path):
    python, site = environment
    pip(python, built[1], cwd=tmp_path)
    package = site / "gyroperm"
    parts = ("", "solvers", "solvers/kernels", "gpu")
    check_installed(python, tmp_path, [package / part / "__init__.py" for part in parts])
    assert not (site / "solvers").exists()
    assert not (site / "gpu").exists()


def test_an_editable_install(clean_copy, environment, tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    python, _ = environment
    tree = tmp_path / "tree"
    shutil.copytree(clean_copy, tree, ignore=GENERATED)
    pip(python, "--editable", tree, cwd=tmp_path)
    parts = ("gyroperm", "solvers", "solvers/kernels", "gpu")
    check_installed(python, tmp_path, [tree / part / "__init__.py" for part in parts])
