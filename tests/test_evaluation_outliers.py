"""Distances of unfamiliar texts, and several reward models together: by hand and against scikit-learn."""

import numpy as np
import pytest

from gptjax.data.preferences import RankedArrays, RankedReplies
from gptjax.evaluation.outliers import auroc, fit_gaussian, unfamiliarity
from gptjax.evaluation.reward_ensemble import disagreement, ensemble_mean, standardised
from gptjax.evaluation.reward_probe import ensemble_figures, texts_in_place_of_replies

# Mean (1, 0), variances 1 and 13/3, covariance 5/3.
POINTS = np.array([[2.0, 2.0], [0.0, -2.0], [2.0, 0.0], [0.0, 0.0], [2.0, 3.0], [0.0, -3.0]])


def test_a_distance_by_hand():
    """C = [[1, 5/3], [5/3, 13/3]]; its determinant is 13/3 - 25/9 = 14/9."""
    familiar = fit_gaussian(POINTS, shrinkage=0.0)
    np.testing.assert_allclose(familiar.mean, [1, 0])
    np.testing.assert_allclose(familiar.variance, [1, 13 / 3])
    np.testing.assert_allclose(
        familiar.precision, 9 / 14 * np.array([[13 / 3, -5 / 3], [-5 / 3, 1]]), rtol=1e-12
    )
    # x - m = (1, 1): 9/14 (13/3 - 10/3 + 1) = 9/7 together; 1 + 3/13 feature by feature.
    np.testing.assert_allclose(unfamiliarity(np.array([[2.0, 1.0]]), familiar), [9 / 7 - 16 / 13], rtol=1e-12)
    # Against the correlation: 9/14 (13/3 + 10/3 + 1) = 39/7.
    np.testing.assert_allclose(
        unfamiliarity(np.array([[2.0, -1.0]]), familiar), [39 / 7 - 16 / 13], rtol=1e-12
    )


def test_shrinkage_by_hand_and_to_its_end():
    half = fit_gaussian(POINTS, shrinkage=0.5)
    shrunken = np.array([[1, 5 / 6], [5 / 6, 13 / 3]])
    np.testing.assert_allclose(half.precision, np.linalg.inv(shrunken), rtol=1e-12)
    nothing = unfamiliarity(POINTS, fit_gaussian(POINTS, shrinkage=1.0))
    np.testing.assert_allclose(nothing, 0, atol=1e-12)  # without correlations nothing is left
    few = fit_gaussian(np.random.default_rng(0).normal(size=(5, 20)))
    assert np.isfinite(few.precision).all()
    with pytest.raises(ValueError, match="feature 1 is the same for all 3 texts"):
        fit_gaussian(np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]]))


def test_the_full_distance_is_that_of_scikit_learn():
    covariance = pytest.importorskip(
        "sklearn.covariance", reason="scikit-learn is not installed (gptjax[data])"
    )
    rng = np.random.default_rng(1)
    features = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6))
    familiar = fit_gaussian(features, shrinkage=0.0)
    alone = ((features - familiar.mean) ** 2 / familiar.variance).sum(1)
    theirs = covariance.EmpiricalCovariance().fit(features).mahalanobis(features)
    np.testing.assert_allclose(unfamiliarity(features, familiar) + alone, theirs, rtol=1e-8)


def test_the_scale_of_a_feature_does_not_matter():
    rng = np.random.default_rng(2)
    features, scale = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4)), np.array([1e-3, 1.0, 10.0, 1e4])
    expected = unfamiliarity(features, fit_gaussian(features))
    np.testing.assert_allclose(
        unfamiliarity(features * scale, fit_gaussian(features * scale)), expected, rtol=1e-6
    )


def test_what_correlates_otherwise_is_found():
    """Both sets have the same mean and the same spread of every feature."""
    rng = np.random.default_rng(3)
    common = rng.normal(size=(500, 1))
    familiar = common + 0.3 * rng.normal(size=(500, 8))
    other = np.sqrt(1.09) * rng.normal(size=(300, 8))
    gaussian = fit_gaussian(familiar[:300])
    assert auroc(unfamiliarity(familiar[300:], gaussian), unfamiliarity(other, gaussian)) > 0.99
    assert (
        abs(auroc(unfamiliarity(familiar[300:], gaussian), unfamiliarity(familiar[:200], gaussian)) - 0.5)
        < 0.1
    )


def test_the_area_is_a_count_of_pairs():
    rng = np.random.default_rng(4)
    a, b = rng.integers(0, 6, 30), rng.integers(2, 8, 20)
    expected = np.mean([(y > x) + 0.5 * (y == x) for x in a for y in b])
    np.testing.assert_allclose(auroc(a, b), expected, rtol=1e-12)
    np.testing.assert_allclose(auroc(b, a), 1 - expected, rtol=1e-12)


VALID = np.array([[True, True], [True, False]])
REWARDS = np.array([[[1.0, 2.0], [3.0, 99.0]], [[-30.0, -10.0], [-20.0, 5.0]]])


def test_models_are_put_on_one_scale():
    one = np.sqrt(1.5)  # 1, 2, 3 have variance 2/3
    expected = [[[-one, 0], [one, 0]], [[-one, one], [0, 0]]]
    np.testing.assert_allclose(standardised(REWARDS, VALID), expected, atol=1e-12)
    np.testing.assert_allclose(standardised(5 * REWARDS - 7, VALID), expected, atol=1e-12)
    np.testing.assert_allclose(ensemble_mean(REWARDS, VALID), [[-one, one / 2], [one / 2, 0]], atol=1e-12)
    apart = one / np.sqrt(2)
    np.testing.assert_allclose(disagreement(REWARDS, VALID), [[0, apart], [apart, 0]], atol=1e-12)
    assert (standardised(np.ones((1, 2, 2)), VALID) == 0).all()


def test_the_mean_of_noisy_models_is_better_and_they_are_wrong_where_they_disagree():
    rng = np.random.default_rng(5)
    scores = rng.normal(size=(150, 4))
    rewards = scores + rng.normal(size=(5, 150, 4))
    arrays = RankedArrays(np.zeros((150, 4, 1)), np.ones((150, 4), int), scores, np.arange(150))
    found = ensemble_figures(rewards, arrays, clear_gap=1.0)
    alone = ensemble_figures(np.stack([rewards[0], rewards[0]]), arrays, clear_gap=1.0)
    assert found["accuracy"] > alone["accuracy"] + 0.05 and found["accuracy_clear"] > found["accuracy"]
    assert alone["agreement"] == 1 and alone["disagreement"] == 0 and 0.2 < found["agreement"] < 0.8
    assert sum(row["pairs"] for row in found["accuracy_by_disagreement"]) == 150 * 6


def test_pieces_of_another_text_are_as_long_as_the_replies():
    groups = [
        RankedReplies([], ["a" * 30, "b" * 11], [1.0, 0.0]),
        RankedReplies([], ["c" * 5, "d"], [1.0, 0.0]),
    ]
    found = texts_in_place_of_replies(groups, "shakespeare")
    lengths = [len(text) for group in found for text in group.completions]
    assert all(0 < n <= m for n, m in zip(lengths, (30, 11, 5, 1), strict=True)) and sum(lengths) > 40
    assert found[0].scores == [1.0, 0.0] and len({t for g in found for t in g.completions}) == 4
