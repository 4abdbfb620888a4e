"""What several processes share, piece by piece, in one process: samples, statistics of batch norms, sums of metrics."""

import pytest
import torch
from torch import nn

from common import process_group
from common.errors import UsageError
from config.resolve import resolve_config, resolve_training
from config.schema import ModelConfig
from data.loaders import EpochOrder, ShardedBatchSampler, count_workers
from evaluation.accumulator import EvaluatedBatch
from evaluation.baselines import ComparisonTable
from evaluation.split_metrics import SplitMetrics
from model.build import build_model
from model.predictions import Mean
from model.runtime import choose_device
from parse_args import parse
from training.distributed import CpuSyncBatchNorm, convert_sync_batchnorm


@pytest.mark.parametrize(("n", "batch_size", "world"), [(10, 4, 2), (11, 4, 3), (1, 4, 2), (7, 5, 4), (6, 6, 1)])
def test_shares_are_the_batches_of_one_process(n, batch_size, world):
    order = EpochOrder(n, seed=1, shuffle=True)
    order.epoch = 5
    whole = list(ShardedBatchSampler(order, batch_size))
    assert [position for batch in whole for position in batch] == list(order)
    parts = [list(ShardedBatchSampler(order, batch_size, rank, world)) for rank in range(world)]
    assert {len(part) for part in parts} == {len(whole), len(ShardedBatchSampler(order, batch_size))}
    for number, batch in enumerate(whole):
        pieces = [part[number] for part in parts]
        assert [position for piece in pieces for position in piece] == batch
        sizes = [len(piece) for piece in pieces]
        assert sizes == sorted(sizes, reverse=True)  # the first process has a sample wherever any has
        assert sizes[0] - sizes[-1] <= 1


@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (20, 6)])
def test_shared_norm_of_one_process_is_a_batch_norm(shape):
    torch.manual_seed(0)
    own = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(6, dtype=torch.float64)
    nn.init.normal_(own.weight)
    nn.init.normal_(own.bias)
    own.running_mean.normal_()
    state = {key: value.clone() for key, value in own.state_dict().items()}
    shared = CpuSyncBatchNorm(own)
    assert list(shared.state_dict()) == list(state)
    assert shared.weight is own.weight
    x, seen = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    grads, outputs, buffers = [], [], []
    for norm in (shared, own):
        norm.load_state_dict(state)
        inner = x.clone().requires_grad_()
        out = norm.train()(inner)
        wanted = torch.autograd.grad((out * seen).sum(), [inner, norm.weight, norm.bias])
        outputs.append([out, norm.eval()(inner)])
        grads.append(wanted)
        buffers.append({key: value.clone() for key, value in norm.state_dict().items()})
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(buffers[0], buffers[1], rtol=1e-12, atol=1e-12)


def test_shared_norm_gradcheck():
    torch.manual_seed(0)
    norm = CpuSyncBatchNorm(nn.BatchNorm2d(3, dtype=torch.float64))
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: norm(x).sin(), (x, norm.weight, norm.bias))


def test_shared_norm_joins_processes(monkeypatch):
    """Statistics of another process, of three times the pixels, set by hand."""
    torch.manual_seed(0)
    norm = CpuSyncBatchNorm(nn.BatchNorm2d(2, dtype=torch.float64))
    here, there = torch.randn(1, 2, 3, 3).double(), 5 + 2 * torch.randn(3, 2, 3, 3).double()
    row = torch.cat([torch.tensor([27.0]), there.mean((0, 2, 3)), there.var((0, 2, 3), correction=0)]).double()
    monkeypatch.setattr(process_group, "all_gather_tensor", lambda own: torch.stack([own, row]))
    whole = nn.BatchNorm2d(2, dtype=torch.float64)(torch.cat([here, there]))
    torch.testing.assert_close(norm(here), whole[:1], rtol=1e-12, atol=1e-12)
    norm.has_samples = False  # noise in the place of a sample: the statistics are those of the other process
    alone = nn.BatchNorm2d(2, dtype=torch.float64)
    alone(there)
    norm.running_mean.zero_()
    norm(here)
    torch.testing.assert_close(norm.running_mean, alone.running_mean, rtol=1e-12, atol=1e-12)


def test_norms_are_replaced_in_several_processes_only(monkeypatch):
    model = build_model(ModelConfig(encoder_widths=(16,), decoder_widths=(16,)))
    keys, parameters = list(model.state_dict()), list(model.parameters())
    convert_sync_batchnorm(model)
    assert not any(isinstance(layer, CpuSyncBatchNorm) for layer in model.modules())
    monkeypatch.setattr(process_group, "world_size", lambda: 2)
    convert_sync_batchnorm(model)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    assert any(isinstance(layer, CpuSyncBatchNorm) for layer in model.modules())
    assert list(model.state_dict()) == keys
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))


def test_meters_join_to_the_meter_of_all():
    torch.manual_seed(0)
    target, mean = torch.rand(5, 1, 13, 16, 16), torch.rand(5, 1, 13, 16, 16)
    masks, coverage = (torch.rand(5, 3, 16, 16) > 0.5).float(), torch.rand(5, 3)

    def batch(first, last):
        rows = slice(first, last)
        return EvaluatedBatch(target[rows], Mean(mean[rows]), masks[rows], coverage[rows], first=first)

    metrics, table = SplitMetrics(), ComparisonTable("net")
    own_metrics, own_tables = [SplitMetrics() for _ in range(3)], [ComparisonTable("net") for _ in range(3)]
    for accumulator in (metrics, table):
        accumulator.update(batch(0, 5))
    for rank, (first, last) in ((1, (0, 2)), (0, (2, 3)), (1, (3, 5))):  # the third has no sample
        for accumulator in (own_metrics[rank], own_tables[rank]):
            accumulator.update(batch(first, last))
    for accumulators in (own_metrics, own_tables):
        accumulators[0].merge([accumulator.state() for accumulator in accumulators])
    merged, merged_table = own_metrics[0], own_tables[0]
    assert merged.per_image == metrics.per_image  # in the order of the data set
    figures, expected = merged.compute(), metrics.compute()
    assert list(figures) == list(expected)
    for name in ("RMSE", "SSIM", "SAM"):
        assert figures[name] == expected[name]
    assert figures["strata"].keys() == expected["strata"].keys()
    for name, stratum in expected["strata"].items():
        assert figures["strata"][name] == pytest.approx(stratum, rel=1e-12)  # sums in another order
    for group, methods in table.compute().items():
        assert merged_table.compute()[group]["net"] == pytest.approx(methods["net"], rel=1e-12)


def two_processes(monkeypatch, rank=0):
    values = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "localhost"}
    for name, value in {**values, "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))


def test_one_process_alone_is_not_launched(monkeypatch):
    assert (process_group.is_distributed(), process_group.rank(), process_group.world_size()) == (False, 0, 1)
    assert process_group.all_gather_object({"a": 1}) == [{"a": 1}]
    assert process_group.all_gather_int(3) == [3]
    two_processes(monkeypatch, rank=1)
    assert (process_group.is_distributed(), process_group.rank(), process_group.world_size()) == (True, 1, 2)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not process_group.is_distributed()


def test_processors_are_shared_out(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)), raising=False)
    assert count_workers("auto") == 8
    two_processes(monkeypatch)
    assert count_workers("auto") == 5
    assert count_workers(7) == 7


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("--batch_size 1", "batch of all 2 processes together"),
        ("--model fusion_net --loss NIG", "fusion_net is fitted by one process"),
        ("--profile", "--profile measures one process"),
        ("--legacy", "depends on the batch of a process"),
    ],
)
def test_what_several_processes_cannot_share_is_refused(monkeypatch, words, match):
    two_processes(monkeypatch)
    line = ["--root1", "x", "--root2", "x", "--device", "cpu", *words.split()]
    with pytest.raises(UsageError, match=match):
        resolve_training(*parse("train", line))
    monkeypatch.setenv("WORLD_SIZE", "1")
    resolve_training(*parse("train", line))
    resolve_config(*parse("train", line))


def test_a_gpu_for_each_process(monkeypatch):
    two_processes(monkeypatch, rank=1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(UsageError, match="several processes take one each"):
        choose_device("cuda:0")
    with pytest.raises(UsageError, match="1 CUDA devices for 2 processes; lower --nproc_per_node"):
        choose_device("cuda")
    chosen = []
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    assert choose_device("cuda") == torch.device("cuda", 1)
    assert chosen == [torch.device("cuda", 1)]
