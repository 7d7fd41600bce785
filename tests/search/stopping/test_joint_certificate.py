"""The joint certificate against exact sampling on lattices small enough to enumerate; bounds against the binomial."""

import itertools
from unittest import mock

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks.studies.search.certificates import RULES, Family, run_problem
from compressor.arrays import Ranks
from compressor.search.acquisition.optimize import optimize_acquisition
from compressor.search.acquisition.pac import Pac
from compressor.search.objective import Objective
from compressor.search.settings import SearchSettings
from compressor.search.space import RankSpace
from compressor.search.stopping import joint_certificate as certificate
from compressor.search.stopping.criterion import TEST_EVERY, StopRule
from compressor.search.stopping.joint_certificate import (
    ALPHA_SHARE,
    MAX_PATHS,
    NUM_RANDOM,
    NUM_STAGES,
    REACH,
    RECORD_PATHS,
    Failure,
    JointTest,
    Schedule,
    can_be_met,
    certify_jointly,
    lower_bound,
    max_failures,
    share_of_failure_probability,
    stages_of,
    upper_bound,
)
from compressor.search.stopping.sample_paths import local_search
from compressor.search.surrogate import gp
from compressor.search.surrogate.base import Surrogate
from compressor.search.surrogate.gaussian import LossSurrogate
from compressor.search.surrogate.lognormal import LognormalPosterior, LognormalSurrogate

BREAK_EVEN_RANKS = {1: (60,), 2: (14, 11)}


@pytest.mark.parametrize(("failures", "paths"), [(0, 128), (3, 128), (7, 512), (50, 64)])
def test_bounds_are_clopper_pearson(failures: int, paths: int) -> None:
    assert binom.cdf(failures, paths, upper_bound(failures, paths, 0.003)) == pytest.approx(0.003)
    if failures:
        assert binom.sf(failures - 1, paths, lower_bound(failures, paths, 0.003)) == pytest.approx(0.003)


def test_bounds_at_the_ends() -> None:
    assert lower_bound(0, 10, 0.01) == 0.0
    assert upper_bound(10, 10, 0.01) == 1.0
    assert upper_bound(0, 128, 0.01) == pytest.approx(1 - 0.01 ** (1 / 128))


def test_max_failures_is_the_last_count_that_passes() -> None:
    count = max_failures(512, 1e-3, 0.045)
    assert upper_bound(count, 512, 1e-3) <= 0.045 < upper_bound(count + 1, 512, 1e-3)
    assert max_failures(64, 1e-3, 0.045) == -1


def test_the_shares_of_all_tests_add_up_to_their_part_of_epsilon() -> None:
    shares = [share_of_failure_probability(0.05, number) for number in range(1, 200_001)]
    assert sum(shares) == pytest.approx(ALPHA_SHARE * 0.05, rel=1e-4)
    assert sum(shares) < ALPHA_SHARE * 0.05


def make_pac(
    kind: str, num_dims: int, delta: float, noise: float = 0.2, evaluations: int = 8, limit: float | None = None
) -> Pac:
    """A posterior, its incumbent and delta."""
    break_even_ranks = BREAK_EVEN_RANKS[num_dims]
    space = RankSpace(
        [str(break_even_rank) for break_even_rank in break_even_ranks],
        [[10 * rank for rank in range(1, break_even_rank + 1)] for break_even_rank in break_even_ranks],
    )
    objective = Objective(0.3, limit=limit)
    surrogate: Surrogate = (
        LossSurrogate(space, objective) if kind == "loss" else LognormalSurrogate(space, objective, one)
    )
    ranks = space.sample(evaluations, np.random.default_rng(4))
    noises = (noise * one(ranks)) ** 2 + 1e-9
    targets = surrogate.targets(ranks, one(ranks) * np.linspace(0.8, 1.3, evaluations), np.diag(noises))
    hyper = gp.Hyperparameters(
        np.full(num_dims, 0.5), 0.05 if kind == "loss" else 0.15, 1e-4, float(targets.values.mean())
    )
    posterior = surrogate.posterior(gp.GaussianProcess(space.encode(ranks), targets.values, targets.noise, hyper))
    allowed = ranks[objective.allows(space.ratio(ranks))]
    return Pac(posterior, allowed[posterior.mean(allowed).argmax()], delta)


def certify(
    pac: Pac,
    number: int,
    rng: np.random.Generator,
    epsilon: float = 0.05,
    in_full: bool = False,
    anchors: Ranks | None = None,
) -> JointTest:
    anchors = pac.incumbent[None] if anchors is None else anchors
    schedule = Schedule.of(epsilon, number)
    failure = Failure(pac.posterior, pac.incumbent, pac.delta, pac.posterior.objective.limit)
    return certify_jointly(failure, anchors, schedule, rng, in_full)


def first_stage() -> int:
    """The fewest paths at which a first test of 0.05 may end in a certificate."""
    return stages_of(share_of_failure_probability(0.05, 1), 0.045)[0]


def one(ranks: np.ndarray) -> np.ndarray:
    """A sum of sensitivities."""
    return np.asarray((4.0 / ranks).sum(-1))


def exact_probability(pac: Pac, count: int = 20_000) -> float:
    """P(max J - J(incumbent) > delta) by joint draws at all lattice points."""
    posterior = pac.posterior
    everything = np.array(list(itertools.product(*(range(1, rank + 1) for rank in posterior.space.break_even_ranks))))
    mean, covariance = posterior.process.predict(posterior.space.encode(everything))
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    latent = mean[:, None] + root @ np.random.default_rng(0).standard_normal((len(mean), count))
    ratios, limit = posterior.space.ratio(everything)[:, None], posterior.objective.limit
    draws = latent
    if isinstance(posterior, LognormalPosterior):
        draws = -0.3 * (np.exp(latent) * (one(everything) + posterior.offset)[:, None] - posterior.offset)
    draws = draws - ratios if limit is None else np.where(ratios <= limit, draws, -np.inf)
    (own,) = np.flatnonzero((everything == pac.incumbent).all(1))
    return float((draws.max(0) > draws[own] + pac.delta).mean())


@pytest.mark.parametrize(
    ("kind", "num_dims", "delta", "limit"),
    [
        ("loss", 1, 0.005, None),
        ("loss", 2, 0.3, None),
        ("loss", 2, 0.45, None),
        ("log", 1, 0.003, None),
        ("log", 2, 0.1, None),
        ("log", 2, 0.2, None),
        ("loss", 2, 0.2, 0.4),
        pytest.param("log", 2, 0.3, 0.4, marks=pytest.mark.slow),
        pytest.param("log", 2, 0.25, 0.6, marks=pytest.mark.slow),
    ],
)
def test_the_share_of_failing_paths_is_the_probability_by_enumeration(
    kind: str, num_dims: int, delta: float, limit: float | None
) -> None:
    pac = make_pac(kind, num_dims, delta, limit=limit)
    expected = exact_probability(pac)
    assert 0.02 < expected < 0.9, "a probability too extreme to test"
    rng = np.random.default_rng(7)
    tests = [certify(pac, 1, rng, in_full=True) for _ in range(12)]
    failures, paths = sum(test.failures for test in tests), sum(test.paths for test in tests)
    assert paths >= 12 * first_stage()
    assert failures / paths == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / paths) + 0.01)


def test_a_certificate_that_is_never_met_is_recorded_from_few_paths() -> None:
    pac = make_pac("log", 2, 0.3)
    test = certify(pac, 1, np.random.default_rng(0), epsilon=1e-4, in_full=True)
    assert test.paths == RECORD_PATHS < stages_of(1e-6, 1e-4)[0]
    assert not test.met


@pytest.mark.parametrize(("surrogate", "starts_at_random_points"), [("loss", True), ("log", False)])
def test_local_searches_start_within_reach_of_a_failure(surrogate: str, starts_at_random_points: bool) -> None:
    """Under the log surrogate the prior mean puts random points far below good plans."""
    pac = make_pac(surrogate, 2, 0.3 if surrogate == "loss" else 0.002)
    near, far = pac.incumbent[None], pac.posterior.space.sample(NUM_RANDOM, np.random.default_rng(1))
    with (
        mock.patch.object(RankSpace, "sample", return_value=far),
        mock.patch.object(certificate, "perturb", return_value=near),
        mock.patch.object(certificate, "local_search", wraps=local_search) as searching,
    ):
        certify(pac, 1, np.random.default_rng(0), in_full=True)
    starts = [(call.args[2], call.kwargs["heights"], call.kwargs["goals"]) for call in searching.call_args_list]
    assert all((heights > goals - REACH * pac.delta).all() for _, heights, goals in starts)
    at_random = sum(int((points != pac.incumbent).any(1).sum()) for points, *_ in starts)
    assert (at_random > 0) == starts_at_random_points


def test_the_joint_probability_is_above_the_pointwise_one() -> None:
    pac = make_pac("loss", 2, 0.3)
    _, value = optimize_acquisition(pac, pac.posterior.space, pac.incumbent[None], np.random.default_rng(0))
    test = certify(pac, 1, np.random.default_rng(0), in_full=True)
    assert test.failures / test.paths > np.exp(value)


def test_a_pilot_that_fails_is_no_test_and_bounds_nothing() -> None:
    test = certify(make_pac("loss", 2, 0.01), 1, np.random.default_rng(0), anchors=np.ones((1, 2), dtype=int))
    assert (test.met, test.upper, test.confidence) == (False, 1.0, 0.0)
    assert 0 < test.failures <= test.paths < first_stage()


@pytest.mark.parametrize("number", [1, 40])
def test_where_nothing_can_win_the_fewest_paths_that_prove_it_are_drawn(number: int) -> None:
    pac = make_pac("log", 2, 2.0)
    test = certify(pac, number, np.random.default_rng(0))
    alpha = share_of_failure_probability(0.05, number) / NUM_STAGES
    enough = next(paths for paths in range(1, 1000) if 1 - alpha ** (1 / paths) <= 0.045)
    assert (test.met, test.failures, test.paths) == (True, 0, enough)
    assert test.upper == pytest.approx(1 - alpha ** (1 / enough))
    assert test.confidence == pytest.approx(1 - alpha)


@pytest.mark.parametrize("number", [1, 7, 300])
def test_the_first_stage_is_the_least_that_can_certify_and_stages_grow(number: int) -> None:
    share = share_of_failure_probability(0.05, number)
    stages, alpha = stages_of(share, 0.045), share / NUM_STAGES
    assert upper_bound(0, stages[0], alpha) <= 0.045 < upper_bound(0, stages[0] - 1, alpha)
    assert stages == sorted(set(stages))
    assert stages[-1] <= MAX_PATHS
    assert max_failures(stages[-1], alpha, 0.045) > 0


def test_an_epsilon_too_small_for_the_paths_drawn_is_never_met() -> None:
    assert can_be_met(0.05)
    assert can_be_met(0.01)
    assert not can_be_met(0.005)
    pac = make_pac("log", 2, 2.0)
    test = certify(pac, 1, np.random.default_rng(0), epsilon=0.005)
    assert (test.met, test.confidence) == (False, 0.0)


# The rule


def visited_of(pac: Pac) -> np.ndarray:
    return pac.posterior.space.sample(8, np.random.default_rng(4))


def test_the_joint_test_waits_for_the_pointwise_one_and_for_the_initial_design() -> None:
    unsure, sure = make_pac("loss", 2, 0.01), make_pac("log", 2, 2.0)
    wide = SearchSettings(delta=0.01, delta_is_relative=False)
    test = StopRule(wide).test(unsure.posterior, visited_of(unsure), may_stop=True)
    assert test.pointwise is not None
    assert test.pointwise > 0.05
    assert test.joint is None
    assert not test.met
    narrow = SearchSettings(delta=2.0, delta_is_relative=False)
    test = StopRule(narrow).test(sure.posterior, visited_of(sure), may_stop=False)
    assert test.joint is None
    assert not test.met
    test = StopRule(narrow).test(sure.posterior, visited_of(sure), may_stop=True)
    assert test.joint is not None
    assert test.met


def test_each_certificate_stops_by_its_own_figure() -> None:
    """Here a given other plan hardly wins, and some plan often does."""
    pac = make_pac("loss", 2, 0.45)
    visited = visited_of(pac)
    settings = {"delta": 0.45, "delta_is_relative": False, "epsilon": 0.3}
    pointwise = StopRule(SearchSettings(certificate="pointwise", **settings))
    test = pointwise.test(pac.posterior, visited, may_stop=True)
    assert test.pointwise is not None
    tight = exact_probability(pac)
    assert test.pointwise < tight
    epsilon = 0.5 * (test.pointwise + tight)
    settings["epsilon"] = epsilon
    assert StopRule(SearchSettings(certificate="pointwise", **settings)).test(pac.posterior, visited, True).met
    joint = StopRule(SearchSettings(certificate="joint", **settings)).test(pac.posterior, visited, True)
    assert joint.joint is not None
    assert not joint.met


def test_other_acquisitions_are_tested_every_few_evaluations_and_at_the_end() -> None:
    pac = make_pac("loss", 2, 0.1)
    visited = visited_of(pac)
    rule = StopRule(SearchSettings(acquisition="ei", delta=0.1, delta_is_relative=False))
    tests = [rule.test(pac.posterior, np.concatenate([visited, visited[:more]]), True) for more in range(7)]
    assert [test.pointwise is not None for test in tests] == [more % TEST_EVERY == 0 for more in range(7)]
    complete = rule.complete(tests[1], visited, True)
    assert complete.pointwise == pytest.approx(tests[0].pointwise, rel=0.05)
    assert complete.joint is not None
    assert complete.joint.paths >= first_stage()


def test_epsilon_is_the_certificates_own() -> None:
    assert SearchSettings().failure_probability == 0.05
    assert SearchSettings(certificate="pointwise").failure_probability == 0.005
    assert SearchSettings(certificate="pointwise", epsilon=0.2).failure_probability == 0.2


def test_the_study_of_certificates_runs_its_rules_on_a_draw() -> None:
    runs = run_problem(Family(2, 1.0, 0.4), number=0)
    assert set(runs) == set(RULES)
    for run in runs.values():
        assert run.stopped
        assert run.regret + 1e-6 >= 0
        assert run.evaluations < 100
