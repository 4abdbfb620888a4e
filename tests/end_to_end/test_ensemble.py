"""A Gaussian and a NIG network as one ensemble, from the command line."""

import json

import numpy as np
import pytest

UNCERTAINTIES = {
    "aleatoric": lambda means, variances: variances.mean(0),
    "epistemic": lambda means, variances: means.var(0),
    "both": lambda means, variances: variances.mean(0) + means.var(0),
}


def stacked(members, number):
    """Means and variances of both members in float64, and their common target."""
    folders = [members / "inference" / name / "export" / "epoch_1" / "test" for name in ("gaussian", "nig")]
    loaded = {
        field: np.stack([np.load(folder / f"img-{number}_{field}.npy").astype(np.float64) for folder in folders])
        for field in ("pred", "var", "target")
    }
    assert np.array_equal(*loaded["target"])
    return loaded["pred"], loaded["var"], loaded["target"][0]


@pytest.mark.parametrize("uncertainty", UNCERTAINTIES)
def test_values_are_those_of_the_mixture(commands, members, sample_data, tmp_path, uncertainty):
    folders = [members / "inference" / name for name in ("gaussian", "nig")]
    options = ["--root", sample_data.series, "--uncertainty", uncertainty, "--res_dir"]
    out = tmp_path / "both"
    done = commands.run("ensemble_reconstruct.py", folders, *options, out).ok()
    report = json.loads((out / "test_metrics.json").read_text())
    errors, variances, likelihoods = [], [], []
    for number in (0, 1):
        means, member_variances, target = stacked(members, number)
        mean, variance = means.mean(0), UNCERTAINTIES[uncertainty](means, member_variances)
        exported = {field: np.load(out / "export" / f"img-{number}_{field}.npy") for field in ("pred", "var")}
        # float32 against float64
        np.testing.assert_allclose(exported["pred"], mean, rtol=1e-5)
        np.testing.assert_allclose(exported["var"], variance, rtol=1e-4, atol=1e-12)
        errors.append(mean - target)
        variances.append(variance)
        if uncertainty != "epistemic":  # the spread of two equal means is zero
            likelihoods.append(0.5 * (np.log(2 * np.pi * variance) + np.square(mean - target) / variance))
    assert report["RMSE"] == pytest.approx(np.mean([np.sqrt(np.square(error).mean()) for error in errors]), rel=1e-5)
    assert report["mean var"] == pytest.approx(np.mean(variances), rel=1e-4)
    if likelihoods:
        assert report["NLL"] == pytest.approx(np.mean(likelihoods), rel=1e-4)
    assert report["uncertainty"] == uncertainty
    assert "gaussian" in done.text
    assert "nig" in done.text
