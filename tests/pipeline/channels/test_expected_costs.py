"""What a run is expected to cost: the stages that come, with the channels that were chosen once they are."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from compressor import compress
from compressor.pipeline.settings import Target
from compressor.progress import Progress, ProgressStage
from compressor.remaining import ExpectedStage
from tests.pipeline.channels.networks import make_images, make_network, make_settings

pytestmark = pytest.mark.usefixtures("unmeasured")
NOT_RUN = ("exporting", "latency")  # patched away here
REFITS, RECONSTRUCTION = "refitting to the channels left", "reconstructing layers"


class Recorded(Progress):
    """What was expected, and the stages that came after each time."""

    def __init__(self) -> None:
        self.rounds: list[tuple[list[ExpectedStage], list[str]]] = []

    def expect(self, stages: Sequence[ExpectedStage]) -> None:
        self.rounds.append((list(stages), []))

    @contextmanager
    def stage(self, title: str, total: int | None = None, weights: Sequence[float] = ()) -> Iterator[ProgressStage]:
        if self.rounds:
            self.rounds[-1][1].append(title)
        with super().stage(title, total, weights) as stage:
            yield stage


def expected_and_run(path: Path, method: str) -> list[tuple[list[str], list[str]]]:
    """Titles expected and titles run, before layers are factorized and after."""
    progress = Recorded()
    settings = make_settings(method=method, target=Target("ratio", 0.5))
    compress(make_network(), make_images(), path / "out", settings, progress=progress)
    return [
        ([stage.title for stage in stages if not stage.title.startswith(NOT_RUN)], titles)
        for stages, titles in progress.rounds
    ]


def test_with_channels_refits_are_expected(tmp_path: Path) -> None:
    (before, came_before), (after, came) = expected_and_run(tmp_path, "channels")
    assert before == [*came_before, *after]
    assert REFITS in after
    assert REFITS in came


def test_with_ranks_alone_layers_are_reconstructed(tmp_path: Path) -> None:
    (before, came_before), (after, came) = expected_and_run(tmp_path, "spatial")
    assert before == [*came_before, *after]
    assert REFITS not in [*after, *came]
    assert RECONSTRUCTION in came
    # One by one as expected, but for what finds nothing to do.
    expected = iter(after)
    assert all(any(title.startswith(name) for name in expected) for title in came if not title.startswith("param"))
