"""The lines at the top of results.md: of each kind of study one sentence, what, its figure, against what."""

from statistics import mean

from benchmarks.studies.search.baselines import DEFAULT
from docs.generate.formatting import Row, Study, accuracy_change, asked_for, count_seeds, median_of, signed_percent
from docs.generate.network_sections import recovered_share
from docs.generate.search_sections import met_outside, plans_within

DELIVERED = ("bytes", "latency", "int8_bytes", "int8_latency", "top1_original", "top1", "int8_top1")
FRACTION = 0.3  # of every break-even rank, where kinds of factors are compared


def uniform(studies: list[Study]) -> str:
    """Searched ranks against uniform ones."""
    study, row = studies[0], studies[0]["rows"][0]
    return (
        f"**Searched ranks** of {study['network']} reach J {row['objective']:.4f} at gamma {row['gamma']:g} "
        f"(R {row['ratio']:.3f}), the best uniform plan {row['best_uniform_objective']:.4f} "
        f"(R {row['best_uniform_ratio']:.3f})."
    )


def factors(studies: list[Study]) -> str:
    """Factors fitted and reconstructed against truncated weights, at equal ranks."""
    parts = []
    for study in studies:
        rows = [row for row in study["rows"] if row["fraction"] == FRACTION]
        fitted, refitted, truncated = (
            _first(rows, chain=chain, recalibrated=again, fit_on=400, images="of the task")["function_norm"]
            for chain, again in (("auto", True), ("weight", True), ("weight", False))
        )
        parts.append(f"{_short(study)} {fitted:.3f}, {refitted:.3f} and {truncated:.3f}")
    return (
        f"**Fitted factors**, reconstructed, at {FRACTION:g} of every break-even rank, function norm beside truncated "
        f"weights that were reconstructed, and that were not: {'; '.join(parts)}."
    )


def search(studies: list[Study]) -> str:
    """The default search against the best baseline."""
    parts = []
    for study in studies:
        ours, best = (_first(study["summary"], search=name) for name in (DEFAULT, study["best_baseline"]))
        parts.append(
            f"{_short(study)} J {ours['objective']:.4f} in {ours['passes']:,.0f} image passes against "
            f"{best['objective']:.4f} in {best['passes']:,.0f} by {best['search']} (p {best['p_value']:.3f})"
        )
    return f"**The search** against the best of its baselines, medians: {'; '.join(parts)}."


def exported(studies: list[Study]) -> str:
    """Whole runs by each fidelity at a quarter of its default gamma."""
    study = studies[0]
    parts = []
    for fidelity in dict.fromkeys(row["fidelity"] for row in study["rows"]):
        rows = [row for row in study["rows"] if row["fidelity"] == fidelity and row["factor"] == 1]
        change = accuracy_change(rows[0]["top1_original"], median_of(rows, "top1"))
        parts.append(f"{fidelity} {100 * median_of(rows, 'ratio'):.1f} % of the parameters, top-1 {change}")
    return f"**Fidelity**, {_short(study)}, a quarter of the default gamma: {'; '.join(parts)}."


def edge(studies: list[Study]) -> str:
    """The int8 files against the originals."""
    parts = []
    for study in studies:
        first = study["rows"][0]
        rows = [row for row in study["rows"] if asked_for(row) == asked_for(first) and row["side"] == first["side"]]
        figures = {name: mean(row[name] for row in rows) for name in DELIVERED}
        over = f", mean of {len(rows)} seeds" if len(rows) > 1 else ""
        parts.append(
            f"{study['network']} at {asked_for(first)}{over}, float32 {figures['bytes']:.3f} of the original's bytes "
            f"and {figures['latency']:.2f} of its latency, int8 {figures['int8_bytes']:.3f} and "
            f"{figures['int8_latency']:.2f}, top-1 {100 * figures['top1_original']:.1f}, {100 * figures['top1']:.1f}, "
            f"{100 * figures['int8_top1']:.1f}"
        )
    return f"**Delivered files**: {'; '.join(parts)}."


def job(studies: list[Study]) -> str:
    """What whole jobs take."""
    parts = [
        f"{row['case']} {row['units']:.1f} passes of the original over the images, {row['peak_bytes'] / 1e9:.1f} GB"
        for study in studies
        for row in study["rows"]
    ]
    return f"**Whole jobs**, defaults, without export: {'; '.join(parts)}."


def targets(studies: list[Study]) -> str:
    """How often a drop asked for is kept outside the run."""
    drops = [row for row in studies[0]["rows"] if row["kind"] == "drop"]
    return (
        f"**Targets**: a drop of at most {studies[0]['drop']:g} point of top-1 holds outside the run in "
        f"{met_outside(drops)} of {len(drops)} seeds, at a median ratio of {median_of(drops, 'ratio'):.3f}."
    )


def limits(studies: list[Study]) -> str:
    """L within each limit of size against the best of the others."""
    parts = []
    for study in studies:
        for limit in sorted({row["limit"] for row in study["rows"]}, reverse=True):
            losses = {rows[0]["search"]: mean(row["relative"] for row in rows) for rows in plans_within(study, limit)}
            ours = losses.pop(DEFAULT)
            best = min(losses, key=lambda name: losses[name])
            parts.append(f"R at most {limit:g} {ours:.2g} against {losses[best]:.2g} ({best})")
    seeds = ", ".join(dict.fromkeys(map(count_seeds, studies)))
    return f"**Limits of size**: relative L, mean over {seeds}, against the best of the others: {'; '.join(parts)}."


def certificates(studies: list[Study]) -> str:
    """Wrong stops by the joint certificate against Eq. (12)."""
    rows = studies[0]["rows"]
    joint, pointwise = ([row for row in rows if row["rule"] == rule] for rule in ("joint, re-measuring", "Eq. (12)"))
    return (
        f"**Certificates** on objectives drawn from a known Gaussian process: the joint one stops {_wrong(joint)} "
        f"searches wrongly, the paper's Eq. (12) {_wrong(pointwise)}."
    )


def overhead(studies: list[Study]) -> str:
    """Own time of the search per evaluation, for the largest problem."""
    row = max(studies[0]["rows"], key=lambda row: (row["dims"], row["evaluations"]))
    return (
        f"**Overhead**: {1000 * row['cpu_seconds_per_evaluation']:.0f} ms of processor time per evaluation at "
        f"{row['dims']} layers and {row['evaluations']} evaluations, {100 * row['share_beside_evaluations']:.0f} % of "
        f"a search whose evaluations take {studies[0]['evaluation_seconds']:g} s."
    )


def candidates(studies: list[Study]) -> str:
    """Cost of an evaluation against a forward pass."""
    ratios = ", ".join(f"{row['ratio']:.2f} with `--factors {row['factors']}`" for row in studies[0]["rows"])
    return f"**An evaluation** takes as long as a bare forward pass of {studies[0]['network']} times {ratios}."


def harness(studies: list[Study]) -> str:
    """The benchmark's ratio against torch's."""
    row = studies[0]["summary"]
    return (
        f"**`bocompress benchmark`** gives the latency ratio {row['ratio']:.3f}, torch.utils.benchmark "
        f"{row['other_ratio']:.3f} ({signed_percent(row['ratio_apart'])}), on a busy machine."
    )


def finetune(studies: list[Study]) -> str:
    """The best fine-tuned network against the one before."""
    row = max((row for row in studies[0]["rows"] if row["factors"] == "auto"), key=recovered_share)
    return (
        f"**Fine-tuning** {studies[0]['network']} at {100 * studies[0]['share']:.0f} % of its convolutions' weights on "
        f"{row['train_images']:,} images brings top-1 from {100 * row['top1_before']:.1f} to "
        f"{100 * row['top1_after']:.1f} % (original {100 * row['top1_original']:.1f} %)."
    )


def channels(studies: list[Study]) -> str:
    """Hidden channels against low rank and the best of torch-pruning, without training."""
    parts = []
    for study in studies:
        best: dict[float, dict[str, float]] = {}
        for row in study["rows"]:
            if "operations" in row:
                of_share = best.setdefault(row["share"], {})
                loss = row["fitted"]["function_norm"] / study["output_energy"]
                of_share[row["way"]] = min(loss, of_share.get(row["way"], loss))
        share, found = min((pair for pair in best.items() if len(pair[1]) == 3), key=lambda pair: pair[0])
        ours, ranks, others = (f"{found[way]:.3f}" for way in ("hidden channels", "low rank", "torch-pruning"))
        parts.append(f"{_short(study)} at {share:g} {ours} against {ranks} and {others}")
    return (
        f"**Hidden channels** at equal operations, without training, L as a share of the output's energy against low "
        f"rank and the best of torch-pruning's criteria: {'; '.join(parts)}."
    )


def recipe(studies: list[Study]) -> str:
    """The paper's stages from the original to the last network."""
    study = studies[0]
    first, last = study["rows"][0], study["rows"][-1]
    same = "the same to the last bit" if study["same_as_undisturbed"] else "NOT the same"
    return (
        f"**The paper's recipe** on a small VGG: {100 * last['ratio']:.1f} % of the weights at top-1 "
        f"{accuracy_change(first['top1'], last['top1'])}; killed in every stage and resumed, {same}."
    )


def coverage(studies: list[Study]) -> str:
    """How many architectures pass."""
    rows = studies[0]["rows"]
    passed = sum(not {"failed", "refused"} & row.keys() for row in rows)
    run = f"{len(rows)} networks of torchvision that were run"
    return f"**Coverage**: {passed} of the {run} are compressed, exported and verified."


def coverage_channels(studies: list[Study]) -> str:
    """How many architectures can be narrowed."""
    rows = studies[0]["rows"]
    passed = sum("failed" not in row for row in rows)
    return (
        f"**Hidden channels**: {passed} of {len(rows)} classifiers are narrowed, exported and verified, counts exact."
    )


def _first(rows: list[Row], **values: object) -> Row:
    return next(row for row in rows if all(row.get(name) == value for name, value in values.items()))


def _wrong(rows: list[Row]) -> str:
    return f"{sum(row['wrong'] for row in rows)} of {sum(row['stopped'] for row in rows)}"


def _short(study: Study) -> str:
    return str(study["network"]).partition(" ")[0]


def structures(studies: list[Study]) -> str:
    """What networks of other kinds lose at half their operations."""
    rows = [row for study in studies for row in study["rows"]]
    lost = [
        f"{row['metric']} {100 * row['searched']['before']:.1f} to {100 * row['searched']['after']:.1f} "
        f"({100 * row['uniform']['after']:.1f} at uniform ranks)"
        for row in rows
    ]
    return f"**Segmentation, clips and detection** at half their operations, small networks: {'; '.join(lost)}."
