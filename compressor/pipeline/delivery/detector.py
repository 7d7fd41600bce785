"""The whole detector of two stages as a file, beside its raw outputs, which are what was compressed and compared."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from compressor.cost.size import file_bytes
from compressor.errors import BocompressError, VerificationError
from compressor.fidelity.records import DetectorFileRecord
from compressor.files import replace_files_when_whole, write_text
from compressor.network.detection.raw import RawDetector
from compressor.pipeline.context import Context
from compressor.pipeline.delivery.interface import file_batch, in_graph, provenance
from compressor.pipeline.outputs import DETECTION_SCRIPT, DETECTOR
from compressor.pipeline.stage import Stage
from compressor.pipeline.state import State, needed
from exporters import feeding
from exporters.detector import export_detector, verify_detector
from exporters.feeding import Normalization
from exporters.verify import VERIFY_IMAGES


@dataclass(frozen=True)
class WriteDetector(Stage):
    """Writes detector.onnx and the script that runs it, as the record of detections says; in `failures` why not."""

    def run(self, context: Context, state: State) -> State:
        """See `Stage.run`."""
        network, test = state.network, needed(state.test, "test outputs")
        if not isinstance(network, RawDetector) or not network.has_proposals or test.detection is None:
            return state
        metadata = provenance(context, needed(state.result, "a plan").plan)
        try:
            with context.progress.stage(f"exporting and verifying {DETECTOR}"):
                record = _write(context, network, metadata)
        except BocompressError as error:
            failure = f"no {DETECTOR}: {error}; model.onnx is not affected"
            context.progress.log(f"note: {failure}")
            return replace(state, failures=[*state.failures, failure])
        detection = test.detection.model_copy(update={"whole": record})
        return replace(state, test=replace(test, detection=detection))


def _write(context: Context, network: RawDetector, metadata: Mapping[str, str]) -> DetectorFileRecord:
    path, images = context.folder / DETECTOR, replace(context.test_images, channels_last=False)
    normalization = Normalization(images.mean, images.std) if in_graph(context) else None
    some = slice(0, VERIFY_IMAGES)
    about = {"detector": json.dumps({"kind": "whole", "input_size": list(images.input_shape[1:])})}
    with replace_files_when_whole(path) as partial:
        export_detector(
            network, images.batch([0]), partial, {**metadata, **about}, context.settings.opset, normalization
        )
        try:
            compared, error = verify_detector(partial, network, images.batch(some), file_batch(context, images, some))
        except VerificationError as failed:
            raise VerificationError(str(failed).replace(str(partial), str(path))) from failed
    if context.source.transform is not None:  # without one, infer.py, which reads the images, is not there
        write_text(context.folder / DETECTION_SCRIPT, feeding.DETECTION_SCRIPT.read_text(encoding="utf-8"))
    return DetectorFileRecord(
        file=DETECTOR,
        size_bytes=file_bytes(path),
        images=min(VERIFY_IMAGES, len(images)),
        detections=compared,
        max_score_error=error,
    )
