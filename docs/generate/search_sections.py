"""Sections of results.md on the search: comparisons, fidelities, targets, limits, certificates, costs."""

from collections.abc import Callable
from statistics import mean

from benchmarks.studies.search.baselines import DEFAULT, SEARCHES
from docs.generate.formatting import (
    Row,
    Study,
    accuracy_change,
    count_seeds,
    flat_interval,
    grouped,
    machine,
    median_of,
    section,
    table,
)


def uniform(study: Study) -> str:
    """The searched plan against plans with one fraction for all layers."""
    about = (
        f"{study['network']}, {study['layers']} layers, factors of the weights alone, no fine-tuning. J on "
        f"{study['evaluated_on']} test images, which the search never saw; the best uniform plan is chosen on those "
        f"same images. Latency: ONNX Runtime, CPU, one thread, 95 % interval. Export check: largest difference from "
        f"torch as a share of the largest output. {machine(study)}"
    )
    columns = {
        "gamma": lambda r: f"{r['gamma']:g}",
        "seed": lambda r: str(r["seed"]),
        "J": lambda r: f"{r['objective']:.4f}",
        "best uniform J": lambda r: f"{r['best_uniform_objective']:.4f}",
        "± (difference)": lambda r: f"{r['advantage_stderr']:.4f}",
        "R": lambda r: f"{r['ratio']:.3f}",
        "uniform R": lambda r: f"{r['best_uniform_ratio']:.3f}",
        "top-1": lambda r: accuracy_change(r["top1_original"], r["top1_compressed"]),
        "MACs": lambda r: f"{r['macs_ratio']:.3f}",
        "latency": lambda r: flat_interval(r, "latency_ratio"),
        "export check": lambda r: f"{r['export_check']:.0e}",
        "evaluations": lambda r: str(r["evaluations"]),
        "image passes": lambda r: f"{r['image_passes']:,}",
        "search s": lambda r: f"{r['search_seconds']:.0f}",
        "total s": lambda r: f"{r['seconds']:.0f}",
        "stopped because": lambda r: r["stopped_because"],
    }
    return section(
        f"{study['study']}: the searched plan against every uniform plan", about, table(columns, study["rows"])
    )


def search(study: Study) -> str:
    """bocompress's search and its variants beside baselines, with a picture."""
    name = study["study"]
    about = (
        f"{study['network']}, {study['layers']} layers ({study['patterns']}), factors of the weights alone, gamma "
        f"{study['gamma']:.4g}, {study['budget']:,} image passes, {study['samples']} images per evaluation. J: median "
        f"over the seeds (lowest to highest) of the final plans' J on {study['evaluated_on']} images outside the "
        f"search. p: one-sided Wilcoxon signed-rank test over the seeds that the default's J is the greater (never "
        f"below 2^-n for n seeds), at the end of the budget, and at equal passes: against what the others held when "
        f"the default stopped. Passes to best baseline: median number of passes until the search holds a plan as good "
        f"as the last of the best baseline ({study['best_baseline']}) with the same seed, over all passes that the "
        f"baseline spent, and over those after which it held that plan; on {study['curve_on']} of these images, and "
        f"empty where half of the seeds never get there. Baselines search log-scaled ranks, too. Contradicted: a plan "
        f"found anywhere in the study beats a certified one by more than its delta. Own CPU s: what the search spends "
        f"beside its evaluations, on one thread. "
        f"{', '.join(f'{package} {version}' for package, version in study['baselines'].items())}. {machine(study)}"
    )
    columns = {
        "search": lambda r: f"**{r['search']}**" if r["search"] == DEFAULT else r["search"],
        "what": lambda r: SEARCHES[r["search"]].about,
        "seeds": lambda r: str(r["seeds"]),
        "J": lambda r: f"{r['objective']:.4f} ({r['lowest']:.4f} to {r['highest']:.4f})",
        "default wins": lambda r: "" if r["wins_of_default"] is None else f"{r['wins_of_default']}",
        "p": lambda r: _p_value(r["p_value"]),
        "p, equal passes": lambda r: _p_value(r["p_value_at_equal_passes"]),
        "R": lambda r: f"{r['ratio']:.3f}",
        "relative L": lambda r: f"{r['relative']:.3f}",
        "image passes": lambda r: f"{r['passes']:,.0f}",
        "own CPU s": lambda r: f"{r['overhead_seconds']:.1f}",
        "reached best baseline": lambda r: f"{r['reached_best_baseline']} of {r['compared']}",
        "passes to best baseline": _passes_to_best_baseline,
        "certified": lambda r: f"{r['stopped']}" if SEARCHES[r["search"]].ours else "",
        "contradicted": lambda r: f"{r['contradicted']}" if r["stopped"] else "",
    }
    picture = f"![Objective against image passes](pictures/{name}.svg)"
    return section(f"{name}: bocompress's search beside others", about, picture, table(columns, study["summary"]))


def _passes_to_best_baseline(row: Row) -> str:
    shares = (row["passes_share"], row["passes_ratio"])
    return "" if None in shares else "{:.2f}, {:.2f}".format(*shares)


def _p_value(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def objectives(study: Study) -> str:
    """Function norm, risk and error as fidelity, with and without searched sparsity."""
    about = (
        f"{study['network']}, SVD of the weights, no layer-wise reconstruction; medians over {study['seeds']} seeds on "
        f"{study['evaluated_on']:,} images outside the search. In brackets: gamma times the loss of a network without "
        f"outputs, 4 by default. J is each fidelity's own and not comparable between them; posterior J: mean and "
        f"deviation that the search gives for its plan. Fixed prune: the best of five shares for the plan found "
        f"without. z rms: root mean square leave-one-out error in predicted deviations. The paper (its Tables 3 and 4, "
        f"MNIST, gamma 0.001 to 0.02 and 0.9 to 1.1): norm 97.80 % at ratio 11.96 in 71 s, error 97.73 % at 11.20 in "
        f"366 s, of 98.20 %. "
        f"{machine(study)}"
    )
    columns = {
        "fidelity": lambda r: r[0]["fidelity"] + (", prune auto" if r[0]["sparse"] else ""),
        "gamma": lambda r: f"{r[0]['gamma']:.3g} ({r[0]['factor']:g})",
        "images per evaluation": lambda r: str(r[0]["samples"]),
        "ratio %": lambda r: f"{100 * median_of(r, 'ratio'):.2f}",
        "pruned": lambda r: f"{median_of(r, 'prune_fraction'):.2f}" if r[0]["sparse"] else "",
        "top-1": lambda r: accuracy_change(r[0]["top1_original"], median_of(r, "top1")),
        "cross-entropy": lambda r: f"{r[0]['risk_original']:.3f} → {median_of(r, 'risk'):.3f}",
        "relative L": lambda r: f"{median_of(r, 'relative'):.4f}",
        "J": lambda r: f"{median_of(r, 'objective'):.4f}",
        "posterior J": lambda r: f"{median_of(r, 'posterior_mean'):.4f} ± {median_of(r, 'posterior_sd'):.4f}",
        "J, fixed prune": _fixed_prune,
        "evaluations": lambda r: f"{median_of(r, 'evaluations'):.0f}",
        "image passes": lambda r: f"{median_of(r, 'image_passes'):,.0f}",
        "CPU s": lambda r: f"{median_of(r, 'cpu_seconds'):.1f}",
        "certified": lambda r: f"{sum(x['stopped_because'] == 'certificate met' for x in r)} of {len(r)}",
        "z rms": lambda r: f"{median_of(r, 'z_rms'):.2f}",
    }
    rows = grouped(study["rows"], "fidelity", "factor", "samples", "sparse")
    return section(
        f"{study['study']}: function norm, risk and error as fidelity, and searched sparsity",
        about,
        table(columns, rows),
    )


def _fixed_prune(rows: list[Row]) -> str:
    if rows[0]["fidelity"] != "norm" or rows[0]["sparse"]:
        return ""
    return f"{median_of(rows, 'objective_fixed_prune'):.4f} ({median_of(rows, 'best_fixed_prune'):g})"


def targets(study: Study) -> str:
    """Targets asked for, and what the result is outside the run."""
    how = "reconstructed" if study["recalibrated"] else "no layer-wise reconstruction"
    rows = sorted(study["rows"], key=lambda r: (r["kind"] == "gamma", r["kind"], r["sweep"], r["asked"], r["seed"]))
    drops = [row for row in rows if row["kind"] == "drop"]
    about = (
        f"{study['network']}, {how}. Every seed gives a run its own {study['images']:,} images; the drop, in points "
        f"of top-1, is measured on the {study['evaluated_on']:,} others. Bound: the run's own upper bound of the drop "
        f"with 95 % confidence; of a network found by gamma, what it would have been. Image passes: of the search, "
        f"and of measuring drops. {machine(study)}"
    )
    columns = {
        "asked": lambda r: f"{r['kind']} {r['asked']:.3g}" + (" (sweep)" if r["sweep"] else ""),
        "seed": lambda r: str(r["seed"]),
        "ratio": lambda r: f"{r['ratio']:.4f}",
        "drop outside": lambda r: f"{r['drop_outside']:.2f}",
        "bound": lambda r: f"{r['at_most']:.2f}" if r["kind"] in ("drop", "gamma") else "",
        "met by the run": lambda r: "" if r["met"] is None else ("yes" if r["met"] else "no"),
        "gamma": lambda r: f"{r['gamma']:.3g}",
        "plans built": lambda r: str(r["steps"] or 1),
        "evaluations": lambda r: str(r["evaluations"]),
        "image passes": lambda r: f"{r['image_passes']:,} + {r['validation_passes']:,}",
        "s": lambda r: f"{r['seconds']:.0f}",
    }
    return section(
        f"{study['study']}: what is asked for, and what it is outside the run",
        about,
        f"The drop asked for holds outside in {met_outside(drops)} of {len(drops)} seeds. "
        f"{_against_sweeps(rows, study['drop'])}",
        table(columns, rows),
    )


def limits(study: Study) -> str:
    """Plans within a limit of size, by this project's search and by others."""
    about = (
        f"{study['network']}, {study['layers']} layers, factors of the weights alone. Relative L on "
        f"{study['evaluated_on']:,} images outside the search: mean over {count_seeds(study)} (lowest to highest). "
        f"Plans without image passes are by rule; the others got as many as bocompress's search spent with the same "
        f"seed, 50 an evaluation. Searches that know no limit have each plan moved to it, all layers by the same step. "
        f"{machine(study)}"
    )
    rows = [
        within
        for limit in sorted({row["limit"] for row in study["rows"]}, reverse=True)
        for within in sorted(plans_within(study, limit), key=lambda plans: mean(row["relative"] for row in plans))
    ]
    columns: dict[str, Callable[[list[Row]], str]] = {
        "R at most": lambda r: f"{r[0]['limit']:g}",
        "plan by": lambda r: SEARCHES[r[0]["search"]].about if r[0]["search"] in SEARCHES else r[0]["search"],
        "R": lambda r: f"{mean(row['ratio'] for row in r):.4f}",
        "relative L": lambda r: _mean_and_range([row["relative"] for row in r]),
        "image passes": lambda r: f"{mean(row['passes'] for row in r):,.0f}" if "passes" in r[0] else "none",
        "certificate met": lambda r: (
            f"{sum(row['certificate_met'] for row in r)} of {len(r)}" if "certificate_met" in r[0] else ""
        ),
    }
    return section(f"{study['study']}: plans within a limit of size", about, table(columns, rows))


def plans_within(study: Study, limit: float) -> list[list[Row]]:
    """The rows at one limit of R, by search."""
    return grouped([row for row in study["rows"] if row["limit"] == limit], "search")


def _mean_and_range(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def met_outside(drops: list[Row]) -> int:
    """How many networks keep to the drop asked for on images outside the run."""
    return sum(row["drop_outside"] <= row["asked"] for row in drops)


def _against_sweeps(rows: list[Row], drop: float) -> str:
    """The smallest network of each sweep that keeps to the drop, by its own bound and on test images; and passes."""
    parts = []
    for mine in (row for row in rows if row["kind"] == "drop"):
        others = [row for row in rows if row["seed"] == mine["seed"] and row["kind"] == "gamma"]
        sweep = [row for row in others if row["sweep"]]
        passes = mine["image_passes"] + mine["validation_passes"]
        if sweep:
            bounded, evaluated = (
                min((row["ratio"] for row in sweep if row[by] <= drop), default=None)
                for by in ("at_most", "drop_outside")
            )
            parts.append(
                f"Seed {mine['seed']}: ratio {mine['ratio']:.4f} with {passes:,} image passes. Of a sweep of "
                f"{len(sweep)} gammas the smallest network whose own bound keeps to the drop has {_or_none(bounded)}, "
                f"the smallest that keeps to it on test images, which no run could know, {_or_none(evaluated)}; the "
                f"sweep took {sum(row['image_passes'] for row in sweep):,} passes."
            )
        parts += [
            f"One search at the gamma found took {row['image_passes']:,} passes, the target "
            f"{passes / row['image_passes']:.2f} times as many."
            for row in others
            if not row["sweep"]
        ]
    return " ".join(parts)


def _or_none(ratio: float | None) -> str:
    return "no ratio: there is none" if ratio is None else f"{ratio:.4f}"


def certificates(study: Study) -> str:
    """How often a search that stopped with a certificate is wrong."""
    about = (
        f"Objectives drawn from a Gaussian process of deviation 1 whose hyperparameters the search knows; noise of an "
        f"evaluation {study['evaluation_noise']:g}, {study['levels']} ranks per layer, at most "
        f"{study['max_evaluations_drawn']} evaluations, epsilon {study['epsilon']:g}. Wrong: local search on the drawn "
        f"function finds a plan better than the incumbent by more than delta; 95 % binomial interval. {machine(study)}"
    )
    columns = {
        "layers": lambda r: str(r["dims"]),
        "length-scale": lambda r: f"{r['length_scale']:g}",
        "delta": lambda r: f"{r['delta']:g}",
        "rule": lambda r: r["rule"],
        "stopped": lambda r: f"{r['stopped']} of {r['problems']}",
        "wrong of those": _share_with_interval,
        "median evaluations": lambda r: f"{r['median_evaluations']:g}",
    }
    return section(
        f"{study['study']}: how often a stopped search is wrong where the Gaussian process is right",
        about,
        table(columns, study["rows"]),
    )


def _share_with_interval(row: Row) -> str:
    if not row["stopped"]:
        return ""
    share = row["wrong"] / row["stopped"]
    return f"{100 * share:.1f} % ({100 * row['wrong_low']:.1f} to {100 * row['wrong_high']:.1f})"


def overhead(study: Study) -> str:
    """Processor time of the search itself."""
    about = (
        f"Processor seconds of fit, acquisition and certificate on one thread, with an analytic objective; the share "
        f"is of a search whose evaluations take {study['evaluation_seconds']:g} s each. {machine(study)}"
    )
    columns = {
        "layers": lambda r: str(r["dims"]),
        "delta": lambda r: f"{100 * r['delta']:g} %",
        "evaluations": lambda r: str(r["evaluations"]),
        "CPU s": lambda r: f"{r['cpu_seconds']:.1f}",
        "ms per evaluation": lambda r: f"{1000 * r['cpu_seconds_per_evaluation']:.0f}",
        "share": lambda r: f"{100 * r['share_beside_evaluations']:.1f} %",
        "stopped because": lambda r: r["stopped_because"],
    }
    return section(
        f"{study['study']}: what the search costs beside its evaluations", about, table(columns, study["rows"])
    )


def candidates(study: Study) -> str:
    """Time of an evaluation and of a linear model beside bare forward passes."""
    about = (
        f"{study['network']} at {study['input_size']} px, gamma {study['gamma']:g}: every evaluation of a search "
        f"repeated, timed in turn with a pass of the same plan's finished network over the same images; the least of "
        f"{study['repeats']} repeats, processor time of one thread. Ratio: of the sums; quartiles over evaluations. "
        f"Linear models: what an image takes beside a bare pass of the plan that they are built around, by the clock "
        f"and as counted in image passes (around the original, then around plans). Of the search on two threads: "
        f"seconds, and the shares of surrogate and acquisition and of the joint certificate. {machine(study)}"
    )
    columns = {
        "factors": lambda r: r["factors"],
        "evaluations": lambda r: str(r["evaluations"]),
        "evaluation ms": lambda r: f"{r['candidate_ms']:.0f}",
        "pass ms": lambda r: f"{r['bare_ms']:.0f}",
        "ratio": lambda r: f"{r['ratio']:.2f} ({r['ratio_quartiles'][0]:.2f} to {r['ratio_quartiles'][1]:.2f})",
        "linear models, by the clock (counted)": lambda r: ", ".join(
            f"{m['passes_per_image_by_clock']:.0f} ({m['passes_per_image_counted']:.0f})" for m in r["models"]
        ),
        "search s": lambda r: f"{r['search']['seconds']:.1f}",
        "acquisition": lambda r: _share(r["search"], "process_and_acquisition"),
        "certificate": lambda r: _share(r["search"], "joint_certificate"),
    }
    return section(
        f"{study['study']}: what an evaluation costs beside a bare forward pass", about, table(columns, study["rows"])
    )


def _share(seconds: dict[str, float], part: str) -> str:
    return f"{100 * seconds[part] / seconds['seconds']:.1f} %"
