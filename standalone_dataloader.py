"""The data sets alone, without any model: look at the first samples of each.

python standalone_dataloader.py --root path/to/SEN12MSCRTS --mono_root path/to/SEN12MSCR
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from common.errors import UsageError, run_command
from data.constants import REGIONS, SPLITS

if TYPE_CHECKING:
    from data.dataLoader import SEN12MSCR, SEN12MSCRTS


def main(argv: Sequence[str] | None = None) -> None:
    """Print what the first samples of one or both data sets hold."""
    parser = argparse.ArgumentParser(description="Look at the first samples of SEN12MS-CR-TS and SEN12MS-CR.")
    parser.add_argument("--root", help="folder of SEN12MS-CR-TS, with ROIs1158 to ROIs2017")
    parser.add_argument("--mono_root", help="folder of SEN12MS-CR, with ROIs1158_spring_s1 and its like")
    parser.add_argument("--split", default="all", choices=SPLITS)
    parser.add_argument("--region", default="all", choices=REGIONS, help="of SEN12MS-CR-TS")
    parser.add_argument("--input_t", type=int, default=3, help="input dates of a series")
    parser.add_argument("--samples", type=int, default=2, help="how many samples to show")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    if not args.root and not args.mono_root:
        raise UsageError("nothing to load: give --root, --mono_root or both")

    from data.dataLoader import SEN12MSCR, SEN12MSCRTS

    if args.root:
        show(SEN12MSCRTS(args.root, args.split, args.region, n_input_samples=args.input_t, flag="--root"), args.samples)
    if args.mono_root:
        show(SEN12MSCR(args.mono_root, args.split, flag="--mono_root"), args.samples)


def show(patches: "SEN12MSCR | SEN12MSCRTS", n_samples: int) -> None:
    """Print keys and shapes of the first samples, as torch's own collation gives them."""
    from torch.utils.data import DataLoader

    print(f"{type(patches).__name__}: {len(patches)} samples in {patches.root_dir}")
    for index, sample in enumerate(DataLoader(patches)):
        if index == n_samples:
            break
        source, target = sample["input"], sample["target"]
        dates = source["S2"] if isinstance(source["S2"], list) else [source["S2"]]
        shares = source["coverage"] if isinstance(source["coverage"], list) else [source["coverage"]]
        clear = target["S2"][0] if isinstance(target["S2"], list) else target["S2"]
        print(f"  {index}: input {list(source)}")
        print(f"     {len(dates)} dates of {tuple(dates[0].shape)}, clouded {[round(float(s), 3) for s in shares]}")
        print(
            f"     target {tuple(clear.shape)}, mean reflectance {float(clear.mean()):.4f}, region {patches.roi(index)}"
        )


if __name__ == "__main__":
    raise SystemExit(run_command(main))
