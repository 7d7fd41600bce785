"""The page's figures: what they draw, in the page's colours, whatever the numbers."""

import html
import re

import pytest

from compressor.recovery.records import ReconstructionRecord, ReconstructionStep
from compressor.report import figures, search_figures
from compressor.report.records import Report
from compressor.report.svg import new_axes, page_style, to_inline_svg
from tests.report.examples import make_conv, make_latency


def drawn(picture: str) -> list[str]:
    return [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", picture)]


def test_points_and_front_are_one_quantity_that_the_axis_names(report: Report) -> None:
    assert report.search is not None
    assert "function norm L, observed" in drawn(search_figures.draw_tradeoff(report))
    assert "Pareto front" not in drawn(search_figures.draw_tradeoff(report))
    history = [
        entry.model_copy(update={"posterior_norm": 1.1 * entry.function_norm}) for entry in report.search.history
    ]
    search = report.search.model_copy(update={"history": history})
    texts = drawn(search_figures.draw_tradeoff(report.model_copy(update={"search": search})))
    assert "function norm L, posterior mean" in texts
    assert ("Pareto front" in texts) == bool(search.pareto_front)


def test_figures_take_their_colours_from_the_page(page: str) -> None:
    body = page[page.index("<body>") :]
    assert "var(--compressed)" in body
    assert not re.search(r"(fill|stroke): #", body)


def test_figures_have_labels_and_no_fixed_identifiers(page: str) -> None:
    assert page.count("<svg") == page.count('role="img" aria-label="') == 7
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))


@pytest.mark.parametrize("count", [3, 60])
def test_layer_figures_grow_with_the_layers(count: int) -> None:
    layers = [make_conv(f"features.denseblock{i}.conv", 64, 64, 3, 7, 20) for i in range(count)]
    svg = figures.draw_ranks(layers)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert box is not None
    assert float(box[2]) == pytest.approx(17 * count + 28)
    assert svg.count("20 / 96") == count


def test_dense_layers_stand_apart(report: Report) -> None:
    assert figures.draw_ranks(report.layers).count(">dense<") == 3


def test_unknown_sources_and_exact_networks_are_drawn(report: Report) -> None:
    """Any name may come as a source, and an unchanged network has a norm of zero on a log scale."""
    assert report.search is not None
    odd = [
        entry.model_copy(update={"source": f"_{entry.index % 5} & co", "function_norm": 0.0, "variance": 0.0})
        for entry in report.search.history[:5]
    ]
    changed = report.model_copy(update={"search": report.search.model_copy(update={"history": odd})})
    assert "4 &amp; co" in search_figures.draw_tradeoff(changed)
    assert search_figures.draw_objectives(changed)


def test_reconstruction_figure_tells_kept_from_refused(report: Report) -> None:
    assert report.reconstruction is not None
    refused = figures.draw_reconstruction(report.reconstruction)
    kept = [step.model_copy(update={"kept": True, "after": 1.0}) for step in report.reconstruction.steps]
    all_kept = figures.draw_reconstruction(report.reconstruction.model_copy(update={"steps": kept}))
    assert "not kept" in refused
    assert "not kept" not in all_kept
    for name in ("last factor", "both factors", "batch-norm statistics"):
        assert name in refused


@pytest.mark.parametrize(("before", "after"), [(1e4, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_reconstruction_of_any_size_can_be_drawn(before: float, after: float) -> None:
    step = ReconstructionStep(layer="fc", kind="last factor", before=before, after=after, kept=after < before)
    record = ReconstructionRecord(
        calibration_images=8, check_images=2, before=before, after=after, seconds=1, steps=[step]
    )
    assert ">10000<" in (svg := figures.draw_reconstruction(record)) or before < 1e4
    assert svg.count("<svg") == 1


def test_reconstruction_without_steps_has_no_figure(report: Report) -> None:
    assert report.reconstruction is not None
    assert figures.draw_reconstruction(report.reconstruction.model_copy(update={"steps": []})) == ""


def test_identical_samples_can_be_drawn() -> None:
    flat = {"original_samples_ms": [1.0] * 5, "compressed_samples_ms": [1.0] * 5}
    assert figures.draw_latency("CPU", make_latency(1, 0.5, 1).model_copy(update=flat))


def test_a_figure_grows_with_what_would_be_cut_off() -> None:
    def size(labels: int) -> list[float]:
        with page_style("test"):
            axes = new_axes(200, 100, 40, 10, 30, 30)
            for label in range(labels):
                axes.plot([0, 1], [label, label], label=f"line {label}")
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
            svg = to_inline_svg(axes, "lines")
        box = re.search(r'viewBox="([^"]*)"', svg)
        assert box is not None
        return [float(number) for number in box[1].split()][2:]

    assert size(1) == pytest.approx([200, 100], abs=0.5)
    assert size(12)[1] > 120
