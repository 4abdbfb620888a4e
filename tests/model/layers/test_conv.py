"""Convolution blocks: gradients, memory kept for the backward pass, inputs that are not overwritten."""

import pytest
import torch

from benchmarks.baselines import PlainUncrtaints
from model.layers import conv
from model.layers.conv import MBConv, build_block
from model.registry import BLOCKS, NORMS, PADDING_MODES


def test_every_name_of_the_registry_has_a_layer():
    assert tuple(conv.NORMS) == NORMS
    assert tuple(conv.BLOCKS) == BLOCKS


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_gradients_of_a_block_are_right(norm, training):
    torch.manual_seed(0)
    block = build_block("mbconv", 4, 4, norm, "reflect").double().train(training)
    x = torch.rand(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,), atol=1e-7)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize(
    ("norm", "training", "padding_mode"),
    [*((norm, training, "reflect") for norm in NORMS for training in (True, False)),
     *(("group", True, mode) for mode in PADDING_MODES if mode != "reflect")],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_recomputation_changes_no_gradient(dtype, norm, training, padding_mode, order):
    # float32 too: torch has separate kernels for it, with layouts of their own
    torch.manual_seed(0)
    block = MBConv(8, 8, norm, padding_mode).to(dtype).train(training)
    plain = MBConv(8, 8, norm, padding_mode, recompute=False).to(dtype).train(training)
    plain.load_state_dict(block.state_dict())
    x = torch.rand(2, 8, 5, 6, dtype=dtype).contiguous(memory_format=order).requires_grad_()
    results = []
    for layer in (block, plain):
        x.grad = None
        out = layer(x)
        out.square().sum().backward()
        results.append([out.detach(), x.grad, *(p.grad for p in layer.parameters()), *layer.buffers()])
    # gradients of weights before a norm cancel: of sums of 60 terms about 10, rounding leaves 1e-4 in float32
    close = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 2e-4}
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, **close)


@pytest.mark.parametrize("norm", NORMS)
def test_a_block_without_a_graph_gives_the_same(norm):
    # inference overwrites intermediate maps, but not its input
    block = build_block("mbconv", 8, 8, norm, "zeros").eval()
    x = torch.rand(2, 8, 5, 7)
    before = x.clone()
    with torch.no_grad():
        out = block(x)
    assert torch.equal(x, before)
    torch.testing.assert_close(out, block(x).detach())


def test_frozen_weights_get_no_gradient_and_the_others_the_same():
    block, x = build_block("mbconv", 8, 8, "batch", "reflect"), torch.rand(2, 8, 6, 6)
    block(x).square().sum().backward()
    full = {name: parameter.grad for name, parameter in block.named_parameters()}
    block.zero_grad(set_to_none=True)
    for name, parameter in block.named_parameters():
        parameter.requires_grad_("fn.3" in name or "fn.6" in name)
    block(x).square().sum().backward()
    for name, parameter in block.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, full[name], msg=name)
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 0.45), (torch.bfloat16, 0.65)])
def test_a_block_keeps_less_than_autograd_keeps(dtype, share):
    # what benchmarks/training_step.py measures, here by counting: the bytes kept for the backward pass;
    # in bf16 a CPU keeps activated maps too
    kept: dict[int, int] = {}

    def count(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.rand(1, 16, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    totals = []
    for block in (build_block("mbconv", 16, 16, "batch", "reflect"), PlainUncrtaints(13, 16, 1).out_block[0]):
        kept.clear()
        on = dtype == torch.bfloat16
        with torch.autocast("cpu", dtype, enabled=on), torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            out = block(x)
        totals.append(sum(kept.values()))
        del out
    assert totals[0] < share * totals[1]


def test_blocks_of_two_widths_have_a_projection():
    assert not list(MBConv(8, 8, "group", "reflect").proj.parameters())
    block = MBConv(8, 12, "group", "reflect")
    assert block(torch.rand(1, 8, 5, 5)).shape == (1, 12, 5, 5)
