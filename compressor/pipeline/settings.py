"""TODO docstring."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from compressor.cost.records import Cost
from compressor.errors import InputError
from compressor.factorization.records import FactorChoice, MethodChoice
from compressor.fidelity.records import Fidelity
from compressor.recovery.settings import TuneSettings
from compressor.search.evaluation.parallel import DEFAULT_BACKEND
from compressor.search.optimizer import SearchSettings
from compressor.search.records import Form, TargetKind
from exporters.records import FileFormat, Precision


@dataclass(frozen=True)
class Target:
    """A target in place of gamma, in the units of `TargetRecord`; at most `value`."""

    kind: TargetKind
    value: float


@dataclass(frozen=True)
class Settings:
    """What a person may choose; the defaults are the command line's.

    `gamma` None weighs the whole output against the whole size (see `default_gamma`); with a `target` it is found.
    `fidelity` is what L is, `cost` what size means; times are those on `provider`, ONNX Runtime's by short name.
    `layers` and `skip` are name patterns; `prune_fraction` is the share of weights the final magnitude pass sets to
    zero, None to search for it. `threads` and `batch_size` are the latency measurement's. `factors` None takes those
    that a plan names, or "auto"; ranks are multiples of `rank_multiple`, None for what suits ONNX Runtime on this
    machine (measured); `calibration` is the number of images that factors are fitted on, which neither search nor judge
    see. `precisions` and `formats` are those to write; float32 and ONNX always are. `zip` adds zipped files, `opset`
    None takes the exporter's choice. `workers` evaluate candidates at once, through the joblib backend of this name;
    neither changes what is found. `tune` says how the compressed network is fine-tuned, by default not at all.
    """

    gamma: float | None = None
    target: Target | None = None
    form: Form = "ratio"
    fidelity: Fidelity = "norm"
    cost: Cost = "params"
    provider: str = "cpu"
    method: MethodChoice = "auto"
    factors: FactorChoice | None = "auto"
    calibration: int = 400
    recalibrate: bool = True
    rank_multiple: int | None = 1
    layers: Sequence[str] = ()
    skip: Sequence[str] = ()
    prune_fraction: float | None = 0.0
    device: str = "cpu"
    threads: int = 1
    batch_size: int = 1
    precisions: Sequence[Precision] = ("fp32",)
    formats: Sequence[FileFormat] = ("onnx",)
    zip: bool = False
    opset: int | None = None
    workers: int = 1
    backend: str = DEFAULT_BACKEND
    search: SearchSettings = field(default_factory=SearchSettings)
    tune: TuneSettings = field(default_factory=TuneSettings)

    @property
    def num_calibration(self) -> int:
        """Images to fit on, if there are enough: none where nothing would be fitted."""
        return self.calibration if self.factors != "weight" or self.recalibrate else 0


def require_compatible(settings: Settings) -> None:
    """Refuse choices that do not go together.

    Raises:
        InputError: as said.
    """
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
