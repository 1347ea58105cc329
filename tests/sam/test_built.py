"""What `sam build` has made, by `make sam-test`."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path

import pytest
from packaging.markers import Marker

from local.sam_template import read_template
from tests.template import FUNCTIONS, RESOURCES, ROOT, TEMPLATE, of_type

BUILT = ROOT / ".aws-sam" / "build"
LAYERS = {"HaltlineLayer": "haltline", "DependenciesLayer": "dependencies"}
ADAPTER = 20_000_000  # bytes, at most; its layer is not ours to build
MACHINE = {"arm64": 183, "x86_64": 62}  # e_machine of ELF


def files(root: Path) -> dict[str, tuple[int, int, str]]:
    """Mode, time and digest of each file; modes and times of the directories."""
    found = {}
    for path in sorted(root.rglob("*")):
        told = path.stat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path.relative_to(root))] = (told.st_mode, int(told.st_mtime), digest)
    assert found
    return found


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both layers, built once more elsewhere, without SAM and in another environment."""
    out = tmp_path_factory.mktemp("layers")
    for name, directory in LAYERS.items():
        subprocess.run(
            ["make", "--makefile", f"layers/{directory}/Makefile", f"build-{name}"],
            check=True,
            cwd=ROOT,
            env=os.environ | {"ARTIFACTS_DIR": str(out / name), "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7"},
        )
    return out


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_the_same_on_every_build(name: str, again: Path) -> None:
    first, second = files(BUILT / name), files(again / name)
    assert first.keys() == second.keys()
    assert [path for path in first if first[path] != second[path]] == []


def test_function_and_layers_fit_into_lambda() -> None:
    layers = sum(p.stat().st_size for name in LAYERS for p in (BUILT / name).rglob("*") if p.is_file())
    function = max(sum(p.stat().st_size for p in (BUILT / name).rglob("*")) for name in FUNCTIONS)
    total = layers + function + ADAPTER
    print(f"layers {layers / 1e6:.0f} MB, with the largest function and the adapter {total / 1e6:.0f} of 250")
    assert total < 250_000_000


def test_native_code_is_of_the_architecture() -> None:
    wanted = MACHINE[TEMPLATE["Globals"]["Function"]["Architectures"][0]]
    found = {p: p.read_bytes()[:20] for p in (BUILT / "DependenciesLayer").rglob("*.so*")}
    assert len(found) > 10
    for path, head in found.items():
        assert head[:4] == b"\x7fELF", path
        assert int.from_bytes(head[18:20], "little") == wanted, path


def test_every_package_of_the_lock_is_there_and_no_other() -> None:
    lock = (ROOT / "requirements" / "lambda.txt").read_text(encoding="utf-8")
    version = TEMPLATE["Globals"]["Function"]["Runtime"].removeprefix("python")
    lambdas = {
        "python_version": version,
        "python_full_version": f"{version}.0",
        "sys_platform": "linux",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    wanted = set()
    for name, pinned, marker in re.findall(r"^([a-z0-9-]+)==(\S+)(?: ; (.+?))? \\$", lock, re.MULTILINE):
        if not marker or Marker(marker).evaluate(lambdas):
            wanted.add(f"{name.replace('-', '_')}-{pinned}.dist-info")
    found = {p.name.lower().replace("-", "_") for p in (BUILT / "DependenciesLayer" / "python").glob("*.dist-info")}
    assert found == {name.lower().replace("-", "_") for name in wanted}


@pytest.mark.parametrize("name", LAYERS)
def test_modules_have_bytecode_that_asks_for_no_source(name: str) -> None:
    # Two words after the magic: 1 is "by hash", 2 would be "look at the source".
    modules = [p for p in (BUILT / name).rglob("*.py") if p.stem.isidentifier() and not p.is_symlink()]
    lacking = [p for p in modules if not list((p.parent / "__pycache__").glob(f"{p.stem}.*.pyc"))]
    assert lacking == []
    flags = {p.read_bytes()[4:8] for p in (BUILT / name).rglob("*.pyc")}
    assert flags == {b"\1\0\0\0"}


def test_nothing_of_the_builder_is_left() -> None:
    here = str(ROOT).encode()
    for name in LAYERS:
        assert not (BUILT / name / "python" / "bin").exists()
        assert [p for p in (BUILT / name).rglob("*.pyc") if here in p.read_bytes()] == []


def test_functions_are_their_files_alone() -> None:
    assert {p.name for p in (BUILT / "ControlFunction").rglob("*")} == {"app.py"}
    chat = {p.name: p for p in (BUILT / "ChatFunction").rglob("*")}
    assert set(chat) == {"run.sh"}
    assert chat["run.sh"].stat().st_mode & 0o555 == 0o555


def test_the_built_template_finds_what_was_built() -> None:
    built = read_template(BUILT / "template.yaml")["Resources"]
    for name in [*FUNCTIONS, *of_type(RESOURCES, "AWS::Serverless::LayerVersion")]:
        properties = built[name]["Properties"]
        assert (BUILT / (properties.get("CodeUri") or properties["ContentUri"])).is_dir()
