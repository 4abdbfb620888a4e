"""The data sets without any model: print the first samples of each.

python standalone_dataloader.py --root path/to/SEN12MSCRTS --mono_root path/to/SEN12MSCR
"""

import argparse
from collections.abc import Sequence
from typing import Any

from common.cli import run_command
from common.errors import UsageError
from common.ranges import number
from data.constants import N_DATES, REGIONS, SPLITS


def main(argv: Sequence[str] | None = None) -> None:
    """Print the first samples of one or both data sets."""
    parser = argparse.ArgumentParser(description="Print the first samples of SEN12MS-CR-TS and SEN12MS-CR.")
    parser.add_argument("--root", help="folder of SEN12MS-CR-TS, with ROIs1158 to ROIs2017")
    parser.add_argument("--mono_root", help="folder of SEN12MS-CR, with ROIs1158_spring_s1 etc.")
    parser.add_argument("--split", default="all", choices=SPLITS)
    parser.add_argument("--region", default="all", choices=REGIONS, help="of SEN12MS-CR-TS")
    parser.add_argument("--input_t", type=number(int, 1, N_DATES), default=3, help="input dates of a series")
    parser.add_argument("--samples", type=number(int, 0), default=2, help="number of samples to print")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    if not args.root and not args.mono_root:
        raise UsageError("nothing to load: give --root, --mono_root or both")

    from data.dataLoader import SEN12MSCR, SEN12MSCRTS  # deferred: keeps --help fast

    if args.root:
        series = SEN12MSCRTS(args.root, args.split, args.region, n_input_samples=args.input_t, flag="--root")
        print_samples(series, args.samples)
    if args.mono_root:
        print_samples(SEN12MSCR(args.mono_root, args.split, flag="--mono_root"), args.samples)


def print_samples(dataset: Any, n_samples: int) -> None:
    """Print keys and shapes of the first samples of a data set, with torch's default collation."""
    from torch.utils.data import DataLoader  # deferred: keeps --help fast

    print(f"{type(dataset).__name__}: {len(dataset)} samples in {dataset.root_dir}")
    for index, sample in zip(range(n_samples), DataLoader(dataset), strict=False):
        inputs, target = sample["input"], sample["target"]
        dates = inputs["S2"] if isinstance(inputs["S2"], list) else [inputs["S2"]]
        coverage = inputs["coverage"] if isinstance(inputs["coverage"], list) else [inputs["coverage"]]
        clear = target["S2"][0] if isinstance(target["S2"], list) else target["S2"]
        print(f"  {index}: input {list(inputs)}")
        print(f"     {len(dates)} dates of {tuple(dates[0].shape)}, coverage {[round(float(c), 3) for c in coverage]}")
        mean = f"mean reflectance {float(clear.mean()):.4f}"
        print(f"     target {tuple(clear.shape)}, {mean}, region {dataset.roi(index)}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
