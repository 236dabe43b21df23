from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from raysense.export import pack


def test_zstd_is_counted_frame_by_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1000, 300, generator=generator) * (torch.rand(1000, 300, generator=generator) > 0.7)
    save_file({"weight": weight}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}" * 1000)
    whole = pa.Codec("zstd", compression_level=pack.ZSTD_LEVEL).compress(
        (tmp_path / "model.safetensors").read_bytes()
    )
    assert pack.zstd_bytes(tmp_path) == whole.size
    monkeypatch.setattr(pack, "_FRAME", 1 << 18)
    assert abs(pack.zstd_bytes(tmp_path) - whole.size) < 0.01 * whole.size
