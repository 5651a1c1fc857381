"""antigram installed from a wheel, in an environment and a folder of other people's."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def run(*command, cwd=None, **environment):
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**clean, **environment},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A clean copy of the files that git has, and the wheel and source archive made of it."""
    home = tmp_path_factory.mktemp("built")
    (home / "tree").mkdir()
    listed = run("git", "ls-files", "-z", cwd=ROOT)
    names = [name for name in listed.split("\0") if name]
    with tarfile.open(home / "tree.tar", "w") as archive:
        for name in names:
            archive.add(ROOT / name, name, recursive=False)
    with tarfile.open(home / "tree.tar") as archive:
        archive.extractall(home / "tree", filter="data")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", home, home / "tree")
    run(
        sys.executable,
        "-c",
        "import sys; from setuptools import build_meta as b; print(b.build_sdist(sys.argv[1]))",
        home,
        cwd=home / "tree",
    )
    (wheel,), (source,) = home.glob("*.whl"), home.glob("*.tar.gz")
    return wheel, source


def test_a_wheel_and_a_source_archive_hold_one_package(built):
    wheel, source = built
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"antigram"}
    for name in ("py.typed", "cli.py", "pipeline/features/store.py", "studies/verify.py"):
        assert f"antigram/{name}" in names
    templates = [p for p in (ROOT / "studies").rglob("*") if p.suffix in (".html", ".toml")]
    assert {f"antigram/{p.relative_to(ROOT)}" for p in templates} <= set(names)
    with tarfile.open(source) as archive:
        inside = [name.partition("/")[2] for name in archive.getnames()]
    assert "antigram/model/nets/vgg.py" in inside
    assert not [name for name in inside if name.split("/")[0] in ("pipeline", "model", "cache")]


def test_it_runs_beside_modules_of_the_same_names(built, tmp_path):
    wheel, _ = built
    home, site = tmp_path / "venv", tmp_path / "own"
    venv.create(home, with_pip=True)
    run(home / "bin/python", "-m", "pip", "install", "--quiet", "--no-deps", wheel)
    packages = next(home.glob("lib/python*/site-packages"))
    # Dependencies of the environment that runs the tests; its own antigram is not seen, as paths
    # named in a .pth file are not searched for further .pth files.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    site.mkdir()
    for name in ("model", "cache", "pipeline", "studies", "cli"):
        (site / f"{name}.py").write_text(
            f"raise RuntimeError('{name}.py of the user was imported')\n"
        )
    where = run(home / "bin/python", "-c", "import antigram; print(antigram.__file__)", cwd=site)
    assert Path(where.strip()).is_relative_to(home)
    antigram = home / "bin/antigram"
    prepared = json.loads(
        run(antigram, "--json", "prepare", "demo", "--workers", 2, "--noise", "high", cwd=site)
    )
    assert prepared["clips"]["train"] > 100
    small = ["--arch", "vgg11", "--width", 1, "--epochs", 1, "--max-steps", 5]
    run(
        antigram,
        "train",
        "--mode",
        "baseline",
        "--task",
        "emotion",
        *small,
        "--save",
        "e.pt",
        cwd=site,
    )
    run(antigram, "cache-grams", "--ckpt", "e.pt", "--layer", 5, cwd=site)
    answer = run(antigram, "--json", "train", "--mode", "cached", *small[4:], cwd=site)
    assert json.loads(answer)["mode"] == "cached"
    demo = json.loads(run(antigram, "--json", "demo", "--epochs", 1, "--width", 1, cwd=site))
    assert [arm["arm"] for arm in demo["arms"]] == ["baseline", "wi", "at"]
