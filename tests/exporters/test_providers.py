"""Which providers count as available, and what the others lack."""

import re

import pytest

from exporters import providers
from exporters.providers import available_providers, explain_absence
from exporters.session import CPU, CUDA, TENSORRT


def test_the_cpu_is_always_available() -> None:
    assert available_providers()[0] == CPU
    assert set(available_providers()) <= {CPU, CUDA, TENSORRT}


@pytest.mark.parametrize("provider", [CUDA, TENSORRT])
def test_a_provider_that_falls_back_is_not_available(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class FallenBack:
        def __init__(self, *arguments: object) -> None: ...

        def get_providers(self) -> list[str]:
            return [CPU]

    class Real(FallenBack):
        def get_providers(self) -> list[str]:
            return [provider, CPU]

    monkeypatch.setattr(providers.ort, "get_available_providers", lambda: [provider, CPU])
    monkeypatch.setattr(providers.ort, "InferenceSession", FallenBack)
    assert available_providers() == [CPU]
    monkeypatch.setattr(providers.ort, "InferenceSession", Real)
    assert available_providers() == [CPU, provider]


def test_it_is_explained_what_a_provider_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "available_providers", lambda: [CPU])
    monkeypatch.setattr(providers.ort, "get_available_providers", lambda: [CPU])
    assert explain_absence(["cpu"]) is None
    absence = explain_absence(["cpu", "cuda"])
    assert absence is not None
    assert re.search("cannot run on cuda: that takes the package onnxruntime-gpu.*here there is cpu", absence)
    monkeypatch.setattr(providers.ort, "get_available_providers", lambda: [CUDA, CPU])
    assert "cannot run on cuda: it was built for cuda, but the driver" in str(explain_absence(["cuda"]))
