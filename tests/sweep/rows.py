"""Rows of a sweep's table, made up."""

from typing import Any

from compressor.sweep.records import SweepRecord, SweepRow


def make_row(model: str = "a.pt", megabytes: float = 1.0, ms: float = 1.0, norm: float = 0.01, **more: Any) -> SweepRow:
    return SweepRow(
        **{
            "job": f"{model}-{megabytes:g}-{ms:g}",
            "model": model,
            "asked": "gamma 0.1",
            "seed": 0,
            "state": "done",
            "precision": "fp32",
            "file": "model.onnx",
            "file_bytes": round(1e6 * megabytes),
            "original_bytes": 10_000_000,
            "latency_ms": ms,
            "original_latency_ms": 8.0,
            "relative_norm": norm,
            "seconds": 60.0,
            "processor": "one",
        }
        | more
    )


def make_record(*rows: SweepRow, labelled: bool = False) -> SweepRecord:
    return SweepRecord(
        version="0",
        created="2020-01-01T00:00:00",
        command="bocompress sweep",
        backend="loky",
        workers=2,
        seconds=1.0,
        labelled=labelled,
        rows=list(rows),
    )
