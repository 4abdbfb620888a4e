"""Costs of a training step: measured alternately, each in a process of its own."""

import pytest

from benchmarks import backbone_costs
from common.errors import DataError


def test_costs_are_measured_in_turns(monkeypatch, capsys):
    walls = iter([1.0, 5.0, 2.0, 6.0, 9.0, 7.0])
    order = []

    def fake(line, size, batch, steps):
        order.append(line)
        return {"wall_s": next(walls), "cpu_s": 1.0, "peak_mb": 10.0, "parameters": 5}

    monkeypatch.setattr(backbone_costs, "measure_in_worker", fake)
    costs = backbone_costs.measure_in_turns({"a": "A", "b": "B"}, [(32, 2)], rounds=3, steps=1)
    assert order == ["A", "B"] * 3
    assert costs["a"]["32x2"] == {"wall_s": 2.0, "cpu_s": 1.0, "peak_mb": 10.0, "parameters": 5}
    assert costs["b"]["32x2"]["wall_s"] == 6.0


def test_a_step_is_measured():
    line = "--model uncrtaints --encoder_widths 8 --decoder_widths 8 8 --n_head 2 --d_model 8 --device cpu --loss NIG"
    small, large = (backbone_costs.measure_in_worker(line, size, 2, 1) for size in (32, 128))
    assert small["parameters"] == large["parameters"] > 0
    # the attention has a fixed grid, everything else grows with the pixels
    assert 8 < large["gflops_forward"] / small["gflops_forward"] <= 16
    assert large["peak_mb"] > 0  # which is larger is not certain: the libraries need more than steps this small
    assert small["peak_mb"] > 0
    assert small["wall_s"] > 0
    with pytest.raises(DataError, match="stopped with exit code 2"):
        backbone_costs.measure_in_worker("--loss l3", 32, 2, 1)
