"""Credentials: refused where they do not belong, and shown by nothing that speaks."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raysense.allocation import Allocation
from raysense.cli import COMMANDS, main
from raysense.errors import RaysenseError
from raysense.execution.executor import failure
from raysense.records import EvaluationRequest, TrialSpec
from raysense.secrets import Masked, has_credentials, masked
from tests.conftest import REFERENCE

SECRETS = ("hunter2hunter2", "a/b+c/d==x", "p@ss@word", "%2Fq%40%2B", "wh?t#ever", "x:y:z/@+")
PLACES = (
    "s3://KEYID:{}@bucket/x",
    "s3://KEYID:{}@bucket/x?region=r",
    "s3://bucket/x?secret_key={}",
    "gs://{}@bucket",
)
OF = {
    "search": ["--out", "{}"],
    "sweep": ["--out", "{}"],
    "prepare": ["--out", "{}"],
    "try": ["--set", "pipeline={}"],
    "init": ["{}"],
    "validate": ["--set", "track.mlflow={}"],
    "plan": ["--set", "pipeline={}"],
    "layers": ["--set", "pipeline={}"],
    "doctor": ["{}"],
    "schema": ["{}"],
    "show": ["{}"],
    "report": ["{}"],
    "resolve": ["{}", "--set", "prune.max_layer_sparsity=0.5"],
    "export": [str(REFERENCE), "--out", "{}"],
    "compare": [str(REFERENCE), "{}"],
    "query": ["{}", "SELECT 1"],
    "check": ["{}"],
}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_no_command_takes_credentials_or_shows_them(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for secret in SECRETS:
        for place in PLACES:
            address = place.format(secret)
            assert main([command, *(word.format(address) for word in OF[command])]) == 2
            shown = "".join(capsys.readouterr())
            assert "into the environment of every machine" in shown
            assert secret not in shown
            assert "KEYID" not in shown
    assert not list(tmp_path.iterdir())


def test_addresses_without_credentials_pass() -> None:
    for address in (
        "s3://bucket/folder?endpoint_override=10.0.0.5:9000&scheme=http",
        "http://server:5000",
        "sqlite:///mlflow.db",
        "file:///a@b/c",
        "reports/runs/a@b",
        "prune.max_layer_sparsity=0.5",
    ):
        assert not has_credentials(address)


@pytest.mark.parametrize("secret", SECRETS)
def test_what_is_said_is_masked(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "e" + secret)
    text = f"PUT 'https://me:{secret}@host/x' failed, e{secret} http://h/p?a=1&X-Amz-Signature=abcdef&b=2"
    for said in (masked(text), str(RaysenseError(text))):
        assert secret not in said
        assert "abcdef" not in said
        assert "a=1" in said
        assert "&b=2" in said
    spec = TrialSpec("q", "search", (EvaluationRequest(Allocation(), "probe"),))
    row = failure(spec, spec.requests[0], text, signature="s", trial="t", life="l")
    assert secret not in row.failed
    try:
        raise OSError(text)
    except OSError:
        record = logging.LogRecord("x", logging.ERROR, "x", 1, "at %s", (text,), sys.exc_info())
    assert secret not in Masked("%(message)s").format(record)


def test_the_hubs_token_is_masked_wherever_it_is_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_TOKEN_PATH", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert masked("nothing to hide") == "nothing to hide"
    home = tmp_path / "home"
    home.mkdir()
    (home / "token").write_text("hf_abcdefghijklmnop\n")
    monkeypatch.setenv("HF_HOME", str(home))
    assert masked("401 for hf_abcdefghijklmnop at the hub") == "401 for *** at the hub"
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdef")
    assert masked("401 for hf_0123456789abcdef at the hub") == "401 for *** at the hub"


def test_an_exception_that_nobody_caught_is_masked() -> None:
    program = (
        "import raysense.cli as c, argparse;"
        "c.COMMANDS['schema'].run = lambda args: 1 / 0 if False else (_ for _ in ()).throw("
        "KeyError('s3://KEYID:hunter2/hunter2@bucket'));"
        "c.main(['schema'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "Traceback" in done.stderr
    assert "KeyError" in done.stderr
    # The line of the program itself is not shown: it came by -c.
    assert "hunter2" not in done.stderr


@pytest.fixture(autouse=True)
def hook() -> Iterator[None]:
    before = sys.excepthook
    yield
    sys.excepthook = before
