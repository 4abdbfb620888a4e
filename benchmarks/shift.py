"""What do a network's maps of uncertainty say about inputs unlike its training data?

Fits the evidence of trained runs, and evaluates each on the test split as it is and after shifts of the inputs, none of
which plays a part in the fit; targets stay. Rows that exist in --out are reused while the fit gives the same numbers:

    python -m benchmarks.shift results/uncrtaints results/conv3d_mamba --out shift.json --other DATA/SEN12MSCRTS MASKS

Columns: RMSE, coverage of the 90 % interval, NLL before and after; AUROC of the mean total variance before, and of the
mean epistemic variance after, for shifted images against unshifted ones; the same by pixel, for a shifted square inside
an unshifted image.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import rankdata
from torch import Generator, Tensor

from benchmarks.harness import benchmark_parser, provenance, read_json
from benchmarks.tables import header, line
from common.cli import run_command
from common.files import write_json
from common.run_folder import RunFolder
from config.resolve import resolve_test
from data.batch import Batch
from data.constants import N_S2, SAR_RANGE_DB, band_index
from data.holdout import build_evidence_split
from data.loaders import PatchLoader, build_loader
from model.evidence.belief import Evidence
from model.evidence.fit import fit_evidence
from model.predictions import NIG, Gaussian, Mean
from model.reconstructor import Reconstructor
from model.restore import restore_model
from model.runtime import Compute, choose_device
from parse_args import parse

Array = npt.NDArray[np.float64]
Row = dict[str, float]
Shift = Callable[[Tensor, Tensor, Generator], tuple[Tensor, Tensor]]  # radar, optical -> radar, optical

UNSHIFTED, OTHER, HARMLESS = "as they are", "other data", "B10 zero"
LEVEL = 0.9
MARGIN = 4  # pixels next to the border of the shifted square that count neither as shifted nor as unshifted
DEAD_EVERY = 8  # columns
# Reflectance that the clear atmosphere adds, about; L2A is without it and without B10.
PATH = (0.10, 0.075, 0.05, 0.035, 0.03, 0.025, 0.02, 0.018, 0.018, 0.01, 0.0, 0.005, 0.003)
TRANSMITTANCE = 0.92


def _swapped(first: str, second: str) -> Shift:
    def shift(radar: Tensor, optical: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        order = list(range(N_S2))
        i, j = band_index(first), band_index(second)
        order[i], order[j] = order[j], order[i]
        return radar, optical[:, :, order]

    return shift


def _without_b10(optical: Tensor) -> Tensor:
    optical = optical.clone()
    optical[:, :, band_index("B10")] = 0
    return optical


def _dead_columns(optical: Tensor) -> Tensor:
    optical = optical.clone()
    optical[..., 5::DEAD_EVERY] = 0
    return optical


def _surface_reflectance(optical: Tensor) -> Tensor:
    return _without_b10((optical - torch.tensor(PATH)[:, None, None]) / TRANSMITTANCE)


def _linear_power(radar: Tensor) -> Tensor:
    """Power in place of dB, rescaled as if it were dB."""
    low, high = SAR_RANGE_DB
    power = 10 ** ((radar * (high - low) + low) / 10)
    return (power - low) / (high - low)


SHIFTS: dict[str, Shift] = {
    "offset of 0.1 left in": lambda radar, optical, rng: (radar, optical + 0.1),
    "L2A in place of L1C": lambda radar, optical, rng: (radar, _surface_reflectance(optical)),
    "reflectance halved": lambda radar, optical, rng: (radar, optical / 2),
    "B02 and B04 swapped": _swapped("B02", "B04"),
    "B08 and B11 swapped": _swapped("B08", "B11"),
    "bands reversed": lambda radar, optical, rng: (radar, optical.flip(2)),
    "radar zero": lambda radar, optical, rng: (torch.zeros_like(radar), optical),
    "radar in linear power": lambda radar, optical, rng: (_linear_power(radar), optical),
    "noise of 0.05": lambda radar, optical, rng: (radar, optical + 0.05 * torch.randn(optical.shape, generator=rng)),
    "dead columns": lambda radar, optical, rng: (radar, _dead_columns(optical)),
    HARMLESS: lambda radar, optical, rng: (radar, _without_b10(optical)),
}


def shift_inputs(name: str, x: Tensor, rng: Generator) -> Tensor:
    """Inputs (B, T, C, H, W) in [0, 1] after a shift; radar first, if there is any."""
    radar, optical = SHIFTS[name](x[:, :, :-N_S2], x[:, :, -N_S2:], rng)
    return torch.cat([radar, optical], dim=2).clamp(0, 1)


def auroc(negative: Array, positive: Array) -> float:
    """Probability that a positive score exceeds a negative one, ties counted half."""
    ranks = rankdata(np.concatenate([negative, positive]))
    n, p = len(negative), len(positive)
    return float((ranks[n:].sum() - p * (p + 1) / 2) / (n * p))


class Scores:
    """Figures of one kind of belief over a split."""

    def __init__(self) -> None:
        self.squares: list[float] = []
        self.inside: list[float] = []
        self.nll: list[float] = []
        self.doubt: list[float] = []  # of each image

    def update(self, belief: Gaussian | NIG, target: Tensor, doubt: Tensor) -> None:
        """Add a batch; `doubt` (B, 1, 13, H, W) is the variance that should reveal shifts."""
        low, high = belief.interval(LEVEL)
        self.squares.append(float((belief.mean - target).double().square().mean()))
        self.inside.append(float(((target >= low) & (target <= high)).double().mean()))
        self.nll.append(float(belief.nll(target).double().mean()))
        self.doubt += doubt.double().flatten(1).mean(dim=1).tolist()

    def compute(self) -> dict[str, Any]:
        """Means over batches, and the mean doubt of each image."""
        return {
            "RMSE": float(np.sqrt(np.mean(self.squares))),
            "coverage": float(np.mean(self.inside)),
            "NLL": float(np.mean(self.nll)),
            "doubt": self.doubt,
        }


@torch.no_grad()
def evaluate(
    model: Reconstructor, evidence: Evidence, loader: PatchLoader, shift: str | None, seed: int
) -> dict[str, Any]:
    """Figures of a loader's images after a shift: `before` and `after` the evidence, and AUROC by pixel."""
    rng = torch.Generator().manual_seed(seed)
    before, after = Scores(), Scores()
    pixels: list[list[Array]] = [[], [], [], []]  # before: unshifted, shifted; after: unshifted, shifted
    for loaded in loader:
        batch = loaded.without_missing()
        if not batch.n:
            continue
        x = batch.x if shift is None else shift_inputs(shift, batch.x, rng)
        stated, belief = _predict(model, evidence, batch, x)
        before.update(stated, batch.target, stated.total)
        after.update(belief, batch.target, belief.epistemic)
        if shift is not None:
            inside, outside = square(*x.shape[-2:])
            patched = torch.where(inside | ~(inside | outside), x, batch.x)
            stated, belief = _predict(model, evidence, batch, patched)
            for row, doubt in ((0, stated.total), (2, belief.epistemic)):
                by_pixel = doubt.double().mean(dim=2)[:, 0]
                pixels[row].append(by_pixel[:, outside].flatten().numpy())
                pixels[row + 1].append(by_pixel[:, inside].flatten().numpy())
    figures: dict[str, Any] = {"before": before.compute(), "after": after.compute()}
    if shift is not None:
        groups = [np.concatenate(group) for group in pixels]
        figures["pixel AUROC"] = {"before": auroc(groups[0], groups[1]), "after": auroc(groups[2], groups[3])}
    return figures


def square(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Masks (H, W) of the pixels well inside and well outside the central square, half as wide as the image."""
    distance = []
    for size in (height, width):
        position = torch.arange(size)
        distance.append((position - (size - 1) / 2).abs() - size / 4)
    reach = torch.maximum(distance[0][:, None], distance[1])
    return reach <= -MARGIN, reach >= MARGIN


def _predict(model: Reconstructor, evidence: Evidence, batch: Batch, x: Tensor) -> tuple[Gaussian | NIG, NIG]:
    """The network's own prediction, and the belief by evidence, in reflectance."""
    prediction = model.predict(x, batch.dates).unscaled(model.scale_by)
    assert not isinstance(prediction, Mean)
    return prediction, evidence.believe(prediction, evidence.novelty(x, model.find_padding(x)))


def evaluate_run(
    folder: Path, results: dict[str, Any], other: Sequence[str], seed: int, save: Callable[[], None]
) -> None:
    """Fit the evidence of a run and fill its rows of `results`."""
    words = ["--experiment_name", folder.name, "--weight_folder", str(folder.parent), "--res_dir", str(folder.parent)]
    config, _, _ = resolve_test(*parse("test", [*words, "--device", "cpu", "--num_workers", "0"]))
    model, _ = restore_model(config, RunFolder(folder.parent, folder.name).best, choose_device("cpu"))
    train, held_out = build_evidence_split(config)
    evidence = fit_evidence(model, train, held_out, Compute(torch.device("cpu")), seed)
    fitted = {"n effective": evidence.n_effective, "power": evidence.power, "aleatoric": evidence.aleatoric.tolist()}
    entry = results.get(folder.name)
    if entry is None or entry["fitted"] != fitted:
        entry = results[folder.name] = {"fitted": fitted, "rows": {}}
    rows = entry["rows"]
    test = build_loader(config, "test", lambda index, roi: True)
    for name in (UNSHIFTED, *SHIFTS):
        if name not in rows and (config.use_sar or not name.startswith("radar")):
            rows[name] = evaluate(model, evidence, test, None if name == UNSHIFTED else name, seed)
            save()
    if other and OTHER not in rows:
        root, masks = other
        elsewhere = replace(config, root1=root, root2=root, precomputed=masks)
        loader = build_loader(elsewhere, "train", lambda index, roi: True)
        rows[OTHER] = evaluate(model, evidence, loader, None, seed)
        save()


def table(entry: dict[str, Any]) -> list[str]:
    """The rows of a run as Markdown."""
    titles = ["inputs", "RMSE", "coverage 90: before", "after", "NLL: before", "after"]
    lines = header([*titles, "AUROC image: before", "after", "pixel: before", "after"])
    baseline = entry["rows"][UNSHIFTED]
    for name, row in entry["rows"].items():
        figures = [row[when][key] for key in ("coverage", "NLL") for when in ("before", "after")]
        doubts = [
            auroc(np.array(baseline[when]["doubt"]), np.array(row[when]["doubt"])) for when in ("before", "after")
        ]
        by_pixel = row.get("pixel AUROC")
        cells = [name, f"{row['before']['RMSE']:.3f}", *(f"{value:.3f}" for value in figures)]
        cells += [f"{value:.2f}" for value in doubts]
        cells += [f"{by_pixel[when]:.2f}" for when in ("before", "after")] if by_pixel else ["", ""]
        lines.append(line(cells))
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate runs from the command line."""
    parser = benchmark_parser("shift", __doc__, "shift.json")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of trained runs")
    parser.add_argument("--other", nargs=2, metavar=("ROOT", "MASKS"), default=(), help="another data set, its masks")
    parser.add_argument("--seed", type=int, default=1, help="of noise, pseudo-shifts and pixels (default: 1)")
    args = parser.parse_args(argv)
    out = Path(args.out)
    results: dict[str, Any] = read_json(out)["runs"] if out.exists() else {}

    def save() -> None:
        write_json(out, provenance("shift", argv) | {"runs": results})

    for folder in args.runs:
        evaluate_run(folder.resolve(), results, args.other, args.seed, save)
        fitted = results[folder.name]["fitted"]
        print(f"{folder.name}: n effective {fitted['n effective']:.1f} per feature, power {fitted['power']:g}")
        print("\n".join(table(results[folder.name])), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
