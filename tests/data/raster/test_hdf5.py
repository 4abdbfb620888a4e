"""HDF5 files that are interrupted."""

import signal

import numpy as np
import pytest

from data.raster.hdf5 import check_written, write_hdf5


@pytest.mark.parametrize("checked", [True, False], ids=["by check_written", "at the end"])
def test_a_ctrl_c_while_hdf5_writes_is_raised_outside_of_it(tmp_path, checked):
    """Raised within a callback of HDF5, it ended the process with a segmentation fault."""
    path = tmp_path / "region.h5"
    path.touch()
    handler = signal.getsignal(signal.SIGINT)

    def write():
        with write_hdf5(path) as file:
            data = file.create_dataset("data", data=np.arange(1000))
            signal.raise_signal(signal.SIGINT)
            file.create_dataset("more", data=np.arange(1000))
            if checked:
                check_written(data)
                pytest.fail("the interrupt was not raised")

    with pytest.raises(KeyboardInterrupt):
        write()
    assert signal.getsignal(signal.SIGINT) is handler
