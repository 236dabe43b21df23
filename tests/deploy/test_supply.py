"""What comes from others, and what is carried along: pinned, with hashes, and of known origin."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "raysense" / "bundled"


def test_every_pinned_package_has_hashes() -> None:
    text = (ROOT / "requirements.lock").read_text() + (ROOT / "requirements-uv.lock").read_text()
    entries = re.split(
        r"^(?=[A-Za-z0-9])", re.sub(r"^ *#.*\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE
    )
    pinned = [entry for entry in entries if "==" in entry]
    assert len(pinned) > 150
    assert [entry.split()[0] for entry in pinned if "--hash=sha256:" not in entry] == []


def test_one_uv_everywhere() -> None:
    found = {
        version
        for name in ("deploy/gcp.yaml", "requirements-uv.lock")
        for version in re.findall(r"(?:^|\s)uv==(\S+)", (ROOT / name).read_text(), re.MULTILINE)
    }
    assert len(found) == 1
    assert "--require-hashes -r requirements-uv.lock" in (ROOT / "Makefile").read_text()


def test_the_origin_of_every_file_of_weights_is_written_down() -> None:
    text = (BUNDLED / "README.md").read_text()
    told = dict(re.findall(r"^\| `(\S+)` \| `([0-9a-f]{64})` \| \S", text, re.MULTILINE))
    weights = [path for path in BUNDLED.rglob("*") if path.suffix in (".safetensors", ".bin", ".pt", ".npz")]
    assert told == {
        str(path.relative_to(BUNDLED)): hashlib.sha256(path.read_bytes()).hexdigest() for path in weights
    }


@pytest.mark.long
def test_the_bill_of_materials_names_all_that_is_pinned(tmp_path: Path) -> None:
    pytest.importorskip("cyclonedx_py")
    file = tmp_path / "sbom.json"
    program = Path(sys.executable).with_name("cyclonedx-py")
    subprocess.run(
        [
            program,
            "requirements",
            ROOT / "requirements.lock",
            "--output-reproducible",
            "--of",
            "JSON",
            "-o",
            file,
        ],
        check=True,
    )
    named = {part["name"]: part["version"] for part in json.loads(file.read_text())["components"]}
    pinned = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert named == dict(pinned)
