"""Files for small devices: the ORT format with the operators that a minimal build needs, and the gzipped file."""

import gzip
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

from compressor.errors import BocompressError, VerificationError
from compressor.files import replace_when_whole, scratch_folder
from compressor.text import first_line
from exporters.opsets import silence

ORT_SUFFIX = ".ort"
CONFIG_SUFFIX = ".required_operators.config"  # as ONNX Runtime's converter names it
ZIP_SUFFIX = ".gz"
ZIP_LEVEL = 9


@contextmanager
def converted_to_ort(source: Path) -> Iterator[tuple[Path, Path]]:
    """The paths of an ONNX file's ORT format and of its list of required operators, in a temporary folder.

    ONNX Runtime's converter, with its default: the graph is optimized as far as the result is the same on every
    processor (no layouts of one x86 family), so that a build without optimizer and ONNX parser can run it.

    Raises:
        BocompressError: ONNX Runtime cannot convert the file.
    """
    with scratch_folder() as name:
        folder = Path(name)
        try:
            with silence():
                convert_onnx_models_to_ort(source, output_dir=folder, optimization_styles=[OptimizationStyle.Fixed])
            ort, config = folder / f"{source.stem}{ORT_SUFFIX}", folder / f"{source.stem}{CONFIG_SUFFIX}"
            lines = config.read_text(encoding="utf-8").splitlines()
        except Exception as error:
            raise BocompressError(f"ONNX Runtime cannot convert {source} to ORT format: {first_line(error)}") from error
        # The converter's comments name the temporary folder.
        operators = [line for line in lines if line and not line.startswith("#")]
        config.write_text("\n".join([f"# Generated from {ort.name}", *operators]) + "\n", encoding="utf-8")
        yield ort, config


def zip_file(source: Path) -> Path:
    """Gzip `source` to a file beside it, the same bytes for the same content, and read it back.

    Only here do zeroed weights save bytes. ONNX's sparse initializers spend eight bytes of index on each remaining
    weight, and most runtimes do not read them.

    Returns:
        The path of the new file.

    Raises:
        InputError: the file cannot be written.
        VerificationError: the file does not unzip to what was written.
    """
    target = source.with_name(source.name + ZIP_SUFFIX)
    with replace_when_whole(target) as partial:
        with (
            open(source, "rb") as plain,
            open(partial, "wb") as raw,
            gzip.GzipFile("", "wb", ZIP_LEVEL, raw, mtime=0) as packed,
        ):
            shutil.copyfileobj(plain, packed)
        if not _same_content(partial, source):
            raise VerificationError(f"{target} does not unzip to {source}")
    return target


def _same_content(packed: Path, plain: Path) -> bool:
    size = 1 << 20
    with gzip.open(packed, "rb") as one, open(plain, "rb") as other:
        while True:
            parts = one.read(size), other.read(size)
            if parts[0] != parts[1]:
                return False
            if not parts[0]:
                return True
