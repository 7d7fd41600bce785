"""J: what it rewards, what it refuses, and the scale of its default gamma."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import InputError
from compressor.search.objective import Objective, default_gamma
from compressor.search.records import Form

FORMS: list[Form] = ["ratio", "rate"]
positive = st.floats(1e-6, 1e3)
ratios = st.floats(0.01, 1.0)


@given(positive, st.floats(0, 1e4), ratios)
def test_both_forms_by_hand(gamma: float, norm: float, ratio: float) -> None:
    arguments = np.array([norm]), np.array([ratio])
    assert Objective(gamma).value(*arguments)[0] == pytest.approx(-gamma * norm - ratio)
    assert Objective(gamma, "rate").value(*arguments)[0] == pytest.approx(1 / ratio - gamma * norm)


@pytest.mark.parametrize("form", FORMS)
@given(gamma=positive, norm=st.floats(0, 1e4), ratio=st.floats(0.02, 1.0))
def test_less_loss_and_less_size_are_better(form: Form, gamma: float, norm: float, ratio: float) -> None:
    objective = Objective(gamma, form)
    here, more_loss, smaller = objective.value(
        np.array([norm, norm + 10.0, norm]), np.array([ratio, ratio, ratio - 0.01])
    )
    assert more_loss < here < smaller


@given(st.floats(1e-3, 1e4))
def test_at_the_default_gamma_losing_a_quarter_of_the_output_costs_the_whole_size(energy: float) -> None:
    objective = Objective(default_gamma(energy))
    dense, lost = objective.value(np.array([0.0, energy / 4]), np.array([1.0, 0.0]))
    assert dense == pytest.approx(lost) == pytest.approx(-1.0)


def test_the_rate_form_is_the_trap_it_is_said_to_be() -> None:
    """The figures of a CIFAR ResNet-20 at rank 1 everywhere: 1/R = 72, a norm of 850."""
    norms, sizes = np.array([850.0, 20.0]), np.array([1 / 72, 0.5])
    destroyed, useful = Objective(0.005, "rate").value(norms, sizes)
    assert destroyed == pytest.approx(67.75)
    assert destroyed > useful
    destroyed, useful = Objective(0.005).value(norms, sizes)
    assert destroyed < useful


@pytest.mark.parametrize("gamma", [0.0, -1e-3, float("nan"), float("inf"), float("-inf")])
def test_gamma_must_be_positive_and_finite(gamma: float) -> None:
    with pytest.raises(InputError, match="gamma must be a positive number"):
        Objective(gamma)
