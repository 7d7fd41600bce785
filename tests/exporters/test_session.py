"""Sessions of ONNX Runtime: what they run with, and errors in one sentence."""

from pathlib import Path

import onnxruntime as ort
import pytest
import torch

from compressor.errors import BocompressError, InputError
from exporters import session
from exporters.providers import tiny_model
from exporters.session import CPU, CUDA, TENSORRT, open_session, session_options


def test_what_cannot_be_opened_is_an_error_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    with pytest.raises(InputError, match="there is no file"):
        open_session(tmp_path / "none.onnx", CPU, 1)
    with pytest.raises(InputError, match="NoSuchProvider"):
        open_session(tmp_path / "broken.onnx", "NoSuchProvider", 1)
    with pytest.raises(BocompressError, match="cannot load"):
        open_session(tmp_path / "broken.onnx", CPU, 1)


def test_a_session_has_the_threads_asked_for_or_torchs() -> None:
    assert session_options(3).intra_op_num_threads == 3
    assert session_options().intra_op_num_threads == torch.get_num_threads()
    options = session_options(2)
    assert open_session(tiny_model(), options=options).get_session_options().intra_op_num_threads == 2


@pytest.mark.parametrize(("tf32", "options"), [(False, {"use_tf32": "0"}), (True, {})])
def test_cuda_rounds_to_tf32_only_where_asked_to(
    tf32: bool, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Session:
        def __init__(self, model: object, given: object, providers: list[tuple[str, dict[str, str]]]) -> None:
            self.providers = providers

        def get_providers(self) -> list[str]:
            return [name for name, _ in self.providers]

    monkeypatch.setattr(session.ort, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(ort, "InferenceSession", Session)
    assert open_session(tiny_model(), CUDA, 1, tf32=tf32).providers == [(CUDA, options)]
    assert open_session(tiny_model(), TENSORRT, 1, tf32=tf32).providers == [(TENSORRT, {}), (CUDA, options)]
    assert open_session(tiny_model(), CPU, 1, tf32=tf32).providers == [(CPU, {})]
