"""What a run leaves in its folder; `--resume` finds some of it there."""

from pathlib import Path

from exporters.onnx import DATA_SUFFIX
from exporters.ort_format import CONFIG_SUFFIX, ORT_SUFFIX, ZIP_SUFFIX
from exporters.records import Precision

JOURNAL = "search.jsonl"
CHECKPOINT = "finetune.safetensors"
STAGES = "stages"  # a folder
PLANS = "plans"  # a folder
ORIGINAL, MODEL = "original.onnx", "model.onnx"


def precision_file(precision: Precision) -> str:
    """'model.int8.onnx': the name says the precision."""
    return f"model.{precision}.onnx"


NETWORKS = (ORIGINAL, MODEL, precision_file("int8"), precision_file("fp16"))
OUTPUTS = (
    JOURNAL,
    CHECKPOINT,
    STAGES,
    "plan.json",
    PLANS,
    "compressed.safetensors",
    "report.json",
    "report.html",
    *(f"{name}{suffix}" for name in NETWORKS for suffix in ("", DATA_SUFFIX, ZIP_SUFFIX, DATA_SUFFIX + ZIP_SUFFIX)),
    *(f"{Path(name).stem}{suffix}" for name in NETWORKS for suffix in (ORT_SUFFIX, CONFIG_SUFFIX)),
)
