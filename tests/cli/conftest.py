"""A refusal in one sentence, and a checkpoint to be refused or taken."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.cli.outcomes import listing, the_sentence


@pytest.fixture
def refuse(invoke, tmp_path, monkeypatch) -> Callable[..., str]:
    """Run a command in an empty folder, where it must end with exit code 2 and leave everything as it was."""
    here = tmp_path / "here"
    here.mkdir()

    def run(command: str, *arguments: object) -> str:
        monkeypatch.chdir(here)
        before = listing(tmp_path)
        result = invoke(command, *arguments)
        assert listing(tmp_path) == before
        assert result.stdout == ""
        assert result.exit_code == 2, result.output
        return the_sentence(result.stderr)

    return run


@pytest.fixture(scope="module")
def squeezenet(tmp_path_factory) -> Path:
    """A small torchvision checkpoint with random weights."""
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("squeezenet") / "squeezenet.pt"
    torch.save(squeezenet1_1(num_classes=10).state_dict(), path)
    return path
