"""What a run writes beside ONNX files: the ORT format and zipped files, each checked before it gets its name."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from compressor.cost.size import file_bytes, gzip_bytes, list_parts
from compressor.errors import BocompressError, VerificationError
from compressor.files import replace_when_whole
from compressor.pipeline.context import Context
from compressor.pipeline.delivery.interface import check_file, file_batch
from compressor.pipeline.outputs import MODEL
from compressor.pipeline.stage import Stage
from compressor.pipeline.state import State
from compressor.report.records import FileRecord, PrecisionRecord
from exporters.ort_format import converted_to_ort, zip_file
from exporters.verify import VERIFY_IMAGES, verify_files

# The same integer kernels run from both formats; where they do not, a rounding may fall the other way.
TOLERANCE = 0.05


@dataclass(frozen=True)
class WriteFormats(Stage):
    """Fills in `files`, and in `failures` a sentence for each file that could not be had."""

    def run(self, context: Context, state: State) -> State:
        """See `Stage.run`."""
        files, failures = write_formats(context, state.network, state.precisions)
        return replace(state, files=files, failures=[*state.failures, *failures])


def write_formats(
    context: Context, network: nn.Module, precisions: Sequence[PrecisionRecord]
) -> tuple[list[FileRecord], list[str]]:
    """Files in the formats asked for, of model.onnx and of each further precision, and a sentence for each that could
    not be had.

    Args:
        context: with the formats asked for, and the folder of the files.
        network: the compressed network, for the checks.
        precisions: the files beside model.onnx.
    """
    records: list[FileRecord] = []
    failures = []
    for name in (MODEL, *(record.file for record in precisions)):
        try:
            records += _write_formats(context, context.folder / name, network)
        except BocompressError as error:
            failures.append(f"{error}; {name} is not affected")
            context.progress.log(f"note: {failures[-1]}")
    return records, failures


def _write_formats(context: Context, path: Path, network: nn.Module) -> list[FileRecord]:
    records = []
    if "ort" in context.settings.formats:
        with context.progress.stage(f"converting {path.name} to ORT format"):
            records.append(_write_ort(context, path, network))
    if context.settings.zip:
        with context.progress.stage(f"zipping {path.name}"):
            records += [_zip(part) for part in list_parts(path)]
    return records


def _write_ort(context: Context, source: Path, network: nn.Module) -> FileRecord:
    """float32 is compared with torch, other precisions with their ONNX file, which was evaluated beside torch."""
    with converted_to_ort(source) as (ort, config):
        if source.name == MODEL:
            error = check_file(context, network, ort).max_rel_error
        else:
            images = file_batch(context, context.test_images, slice(0, VERIFY_IMAGES))
            difference = verify_files(source, ort, images, TOLERANCE)
            error = difference.max_rel_error
            if not difference.same:
                raise VerificationError(f"{ort.name} is {error:.2g} of the largest output away from {source.name}")
        for path in (config, ort):
            with replace_when_whole(context.folder / path.name) as partial:
                shutil.copyfile(path, partial)
    target = context.folder / ort.name
    return FileRecord(
        file=target.name,
        source=source.name,
        size_bytes=file_bytes(target),
        gzip_bytes=gzip_bytes(target),
        max_rel_error=error,
        operators=config.name,
    )


def _zip(source: Path) -> FileRecord:
    target = zip_file(source)
    size = target.stat().st_size
    return FileRecord(file=target.name, source=source.name, size_bytes=size, gzip_bytes=size)
