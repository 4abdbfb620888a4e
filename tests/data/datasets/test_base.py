"""What both data sets share: options by keyword, roots, splits without patches."""

import pytest

from common.errors import DataError, UsageError
from data.constants import DATE_ORIGIN
from data.dataLoader import SEN12MSCR, SEN12MSCRTS
from data.datasets.base import DatasetOptions, EmptySplitError, check_root

PUBLISHED = {"split": "test", "region": "all", "cloud_masks": "s2cloudless_mask", "rescale_method": "default"}


def test_published_arguments_are_accepted_by_keyword(tree):
    arguments = {"sample_type": "cloudy_cloudfree", "sampler": "fixed", "n_input_samples": 3, "min_cov": 0.0}
    series = SEN12MSCRTS(root=tree, **PUBLISHED, **arguments, max_cov=1.0, import_data_path=None, custom_samples=None)
    assert len(series) == 2
    assert series.options == DatasetOptions()
    assert series.options.ref_date == DATE_ORIGIN


def test_further_options_are_keywords_with_known_names(tree):
    series = SEN12MSCRTS(tree, "test", seed=5, legacy=True, skip_bad_samples=True, earliest=2, latest=20)
    assert series.options == DatasetOptions(legacy=True, skip_bad_samples=True, seed=5, earliest=2, latest=20)
    with pytest.raises(TypeError, match="unexpected keyword argument 'seeds'"):
        SEN12MSCRTS(tree, "test", seeds=5)
    with pytest.raises(TypeError, match="unexpected keyword argument 'n_inputs'"):
        SEN12MSCR(tree, "test", n_inputs=1)


@pytest.mark.parametrize("dataset", [SEN12MSCRTS, SEN12MSCR])
def test_a_missing_root_names_its_flag_and_contents(dataset, tmp_path):
    contents = dataset.root_holds
    with pytest.raises(UsageError, match=f"--root9 is not given: it is the folder that holds {contents}"):
        dataset("", flag="--root9")
    with pytest.raises(DataError, match=rf"no folder .*none \(root\); expected a folder that holds {contents}"):
        dataset(tmp_path / "none")


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    assert check_root("~/data", "--root1", "ROIs") == str(tmp_path / "data")


@pytest.mark.parametrize("dataset", [SEN12MSCRTS, SEN12MSCR])
def test_a_root_without_patches_is_an_empty_split(dataset, tmp_path):
    with pytest.raises(EmptySplitError, match=rf"split 'test', region 'all' in .* \(root\); expected {tmp_path}/ROIs"):
        dataset(tmp_path, "test")
