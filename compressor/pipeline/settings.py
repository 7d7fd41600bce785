"""What a person may choose."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from compressor.cost.records import Cost
from compressor.errors import InputError
from compressor.factorization.records import FactorChoice, MethodChoice
from compressor.fidelity.records import Fidelity
from compressor.recovery.settings import TuneSettings
from compressor.schema import Count, Natural, Positive
from compressor.search.optimizer import SearchSettings
from compressor.search.records import Form, TargetKind
from compressor.workers.registry import DEFAULT_BACKEND, require_cluster
from exporters.records import FileFormat, Precision

MIN_INT8_OPSET = 13


@dataclass(frozen=True)
class Target:
    """What the result may cost or lose at most, in the units of `TargetRecord`."""

    kind: TargetKind
    value: Positive


@dataclass(frozen=True)
class Settings:
    """What a person may choose; the defaults are the command line's.

    Attributes:
        gamma: weighs the fidelity against the size; None weighs a quarter of the output against the whole size.
        target: in place of gamma, which is then found.
        form: of the objective, Eq. (3) ("ratio") or Eq. (2) ("rate").
        fidelity: what L is.
        output_weights: by which outputs count in L, as (name, weight); others count by 1.
        keep_aux: whether heads that were for training alone stay in the network.
        cost: what size means; times are those on `provider`, a short name of ONNX Runtime's.
        method: how k x k convolutions are factorized.
        factors: how factors are fitted; None as a plan says, or "auto".
        calibration: number of images that factors are fitted on, kept out of the search and the tests.
        recalibrate: whether layers are reconstructed one after the other.
        rank_multiple: ranks are multiples of it; None for what ONNX Runtime is measured to prefer on this machine.
        layers, skip: name patterns of layers to compress, and to leave alone.
        prune_fraction: share of weights that the final pass sets to zero; None to search for it.
        device: where candidates are evaluated.
        threads, batch_size: of the latency measurement.
        precisions, formats: to write; float32 and ONNX always are.
        zip: whether zipped files are written, too.
        opset: of the ONNX files; None for the exporter's choice.
        static_batch: the one batch size of the files, verified and timed with it; None for a free one.
        normalize: whether mean and standard deviation are part of the files' graphs ("in-graph") or left to the
            caller ("outside").
        workers, backend: evaluate that many candidates at once, through the backend of this name ("ray", "dask", or one
            of joblib's); neither changes what is found.
        cluster: address of a cluster of Ray or Dask that runs already; None starts one on this machine.
        max_memory_bytes: what the process holds at most, in pieces of work that are smaller for it; None for no limit.
        search: of the Bayesian optimization.
        tune: of the fine-tuning, by default none.
    """

    gamma: Positive | None = None
    target: Target | None = None
    form: Form = "ratio"
    fidelity: Fidelity = "norm"
    output_weights: Sequence[tuple[str, float]] = ()
    keep_aux: bool = False
    cost: Cost = "params"
    provider: str = "cpu"
    method: MethodChoice = "auto"
    factors: FactorChoice | None = "auto"
    calibration: Natural = 400
    recalibrate: bool = True
    rank_multiple: Count | None = 1
    layers: Sequence[str] = ()
    skip: Sequence[str] = ()
    prune_fraction: Annotated[float, Field(ge=0, lt=1)] | None = 0.0
    device: str = "cpu"
    threads: Count = 1
    batch_size: Count = 1
    precisions: Sequence[Precision] = ("fp32",)
    formats: Sequence[FileFormat] = ("onnx",)
    zip: bool = False
    opset: Count | None = None
    static_batch: Count | None = None
    normalize: Literal["outside", "in-graph"] = "outside"
    workers: Count = 1
    backend: str = DEFAULT_BACKEND
    cluster: str | None = None
    max_memory_bytes: Positive | None = None
    search: SearchSettings = field(default_factory=SearchSettings)
    tune: TuneSettings = field(default_factory=TuneSettings)

    @property
    def timed_batch(self) -> int:
        """Images in one run while latency is measured."""
        return self.static_batch or self.batch_size

    @property
    def weighs_times(self) -> bool:
        """Whether times of layers, or of ranks, are measured to choose by."""
        return self.cost == "latency" or self.rank_multiple is None

    @property
    def timing(self) -> list[str | int]:
        """What times depend on beside the machine: provider, threads, images in one run."""
        return [self.provider, self.threads, self.timed_batch]

    @property
    def num_calibration(self) -> int:
        """Images to fit on, if there are enough; none where nothing is fitted."""
        return self.calibration if self.factors != "weight" or self.recalibrate else 0


def require_known(settings: Settings) -> None:
    """Check that each choice is one that there is; the command line has done so for its own.

    Raises:
        InputError: one is not; the sentence names the setting.
    """
    try:
        TypeAdapter(Settings).validate_python(asdict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part.isidentifier())
        raise InputError(f"the setting {name} cannot be {first['input']!r}: {first['msg']}") from error


def require_compatible(settings: Settings) -> None:
    """Check that choices are known, and go together.

    Raises:
        InputError: they do not; the sentence names the options.
    """
    require_known(settings)
    if settings.opset is not None and settings.opset < MIN_INT8_OPSET and "int8" in settings.precisions:
        raise InputError(
            f"--precision int8 needs --opset {MIN_INT8_OPSET} or above, where a weight can have one scale per channel"
        )
    if settings.static_batch is not None and settings.batch_size not in (1, settings.static_batch):
        raise InputError("--static-batch and --batch-size contradict each other: files of one batch size run only that")
    if settings.target is not None:
        _require_suited(settings.target, settings)
    require_cluster(settings.backend, settings.cluster)
    if settings.cluster is not None and settings.workers == 1:
        raise InputError("--cluster needs --workers above 1: a single worker is this process")
    if settings.factors in ("refit", "activation") and not settings.calibration:
        raise InputError(f"{settings.factors} factors are fitted to images: --calibration must be above 0")
    if settings.prune_fraction is None and settings.cost != "params":
        raise InputError(f"--prune auto counts weights that are not zero: it needs --cost params, not {settings.cost}")
    if settings.prune_fraction is None and settings.target is not None:
        raise InputError("--prune auto needs a gamma to weigh zeros by: it cannot be searched for a target")
    if settings.search.prior_mean == "energies" and (settings.prune_fraction is None or settings.fidelity != "norm"):
        raise InputError(
            "--prior-mean energies needs --fidelity norm and no --prune auto: energies say nothing of others"
        )
    if settings.search.prior_mean == "energies" and settings.search.surrogate == "objective":
        raise InputError("--surrogate objective has no prior mean: leave out --prior-mean energies")
    if settings.fidelity != "norm" and settings.target is not None and settings.target.kind == "drop":
        raise InputError(
            f"--max-drop measures the drop of finished networks and searches by the function norm: leave out "
            f"--fidelity {settings.fidelity}"
        )


def _require_suited(target: Target, settings: Settings) -> None:
    """Raises InputError if a target is of another cost than the settings, or the objective has no limit."""
    if target.kind not in ("ratio", "drop", settings.cost):
        raise InputError(f"a target in {target.kind} needs the cost {target.kind}, not {settings.cost}")
    if settings.form == "rate":
        raise InputError("a target needs the form ratio: Eq. (2) has no limit of size")
