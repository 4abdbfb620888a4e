"""Reconstruct a scene without clouds: GeoTIFFs in, maps for a GIS with their uncertainty out."""

import argparse
from collections.abc import Sequence
from typing import Any

from common.cli import run_command
from common.errors import UsageError
from common.parallel import AUTO, worker_count
from data.constants import DETECTORS

EXAMPLES = """examples:
  python reconstruct_scene.py --weights results/my_run --optical s2_*.tif --sar s1_*.tif --out maps/june
  python reconstruct_scene.py --weights results/my_run --list june.csv --workers 4 --out maps/june
  python reconstruct_scene.py --weights results/my_run --folder SEN12MSCRTS/ROIs1868/73 --numbers 3 4 5 --out maps/roi

Run the same command again after an interruption to resume. docs/usage.md describes inputs, products and clusters."""


def build_parser() -> argparse.ArgumentParser:
    """The flags of this command; dashes may replace underscores."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def add(group: Any, name: str, text: str, **options: Any) -> None:
        dest = group.add_argument(f"--{name}", help=text, **options).dest
        if "_" in name:
            hidden = options | {"dest": dest, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
            group.add_argument(f"--{name.replace('_', '-')}", **hidden)

    group = parser.add_argument_group("inputs: a trained run, and one of --optical, --list and --folder")
    several: dict[str, Any] = {"nargs": "+", "default": []}
    add(group, "weights", "a trained run: its folder, or a .pth.tar beside its conf.json", required=True, metavar="RUN")
    add(group, "optical", "Sentinel-2 GeoTIFFs on one grid, one for each date", metavar="TIF", **several)
    text = "Sentinel-1 GeoTIFFs, VV and VH; each date takes the nearest in time"
    add(group, "sar", text, dest="radar", metavar="TIF", **several)
    text = "of --optical, like 2018-06-21 (default: from tags or names); of --folder the dates to take"
    add(group, "dates", text, metavar="DAY", **several)
    add(group, "sar_dates", "of --sar", dest="radar_dates", metavar="DAY", **several)
    text = "CSV or JSON of one scene: optical, radar, date, radar_date"
    add(group, "list", text, dest="manifest", default="", metavar="FILE")
    add(group, "folder", "a region of SEN12MS-CR-TS, ROOT/ROIs1868/73", default="", metavar="DIR")
    add(group, "numbers", "which of the 30 dates of --folder (default: all)", type=int, metavar="N", **several)
    text = "added to optical values: auto (as the product's tags declare), none, or a number such as -1000"
    add(group, "offset", text, default="auto")
    add(group, "scale", "reflectance for each stored optical unit (default: as declared, else 0.0001)", type=float)
    add(group, "sar_units", "of --sar (default: db)", dest="radar_units", default="db", choices=("db", "power"))

    group = parser.add_argument_group("outputs")
    add(group, "out", "folder of the maps", required=True, metavar="DIR")
    text = "clear pixels of the latest date: predict them too (default), or keep the observation"
    add(group, "where_clear", text, default="predict", choices=("predict", "keep"))
    text = f"cloud detector, for the masks and for keep (default: {DETECTORS[0]}); none makes no masks"
    add(group, "detector", text, default=DETECTORS[0], choices=(*DETECTORS, "none"))
    add(group, "overwrite", "replace what an earlier command with other settings left in --out", action="store_true")

    group = parser.add_argument_group("computation")
    text = "pixels along a side of the tiles that the network sees; best as in training (default: 256)"
    add(group, "tile", text, type=int, default=256, metavar="PX")
    add(group, "overlap", "pixels that neighbouring tiles share (default: a quarter of --tile)", type=int, metavar="PX")
    add(group, "batch_size", "tiles predicted together (default: 1 on a CPU, 8 on a GPU)", type=int, metavar="N")
    text = "processes, with one core and about 1.5 GB each; auto: one for each core, up to 8 (default: auto)"
    add(group, "workers", text, type=worker_count(1), default=AUTO, metavar="N")
    text = "of a running Dask cluster that predicts the tiles; its workers must share the folder --out"
    add(group, "scheduler", text, default="", metavar="ADDRESS")
    add(group, "device", "auto, cpu, cuda or cuda:1 (default: auto, a GPU if there is one)", default="auto")
    text = "of the network; auto takes bf16 where the device supports it (default: fp32)"
    add(group, "precision", text, default="fp32", choices=("auto", "fp32", "bf16", "fp16"))
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Reconstruct a scene according to the flags; see `--help`."""
    flags = vars(build_parser().parse_args(argv))
    del flags["debug"]  # read by run_command
    check_flags(flags)
    from scenes.reconstruct import SceneOptions, reconstruct_scene  # deferred: keeps --help fast

    reconstruct_scene(SceneOptions(**flags))
    return 0


def check_flags(flags: dict[str, Any]) -> None:
    """Raise a `UsageError` for flags that contradict each other, before anything is read."""
    sources = {"--optical": flags["optical"], "--list": flags["manifest"], "--folder": flags["folder"]}
    given = [name for name, value in sources.items() if value]
    if len(given) != 1:
        raise UsageError(
            f"name the scene by one of --optical, --list and --folder; got {' and '.join(given) or 'none of them'}"
        )
    if flags["where_clear"] == "keep" and flags["detector"] == "none":
        raise UsageError("--where_clear keep needs to detect clear pixels: give a --detector other than none")
    if flags["batch_size"] is not None and flags["batch_size"] < 1:
        raise UsageError(f"--batch_size takes a number from 1, not {flags['batch_size']}")
    if flags["workers"] in (AUTO, 1):
        return
    if flags["scheduler"]:
        raise UsageError("--scheduler has workers of its own; leave --workers out")
    if flags["device"] not in ("auto", "cpu"):
        device = flags["device"]
        raise UsageError(f"--workers shares the cores of a CPU; one process feeds {device}: leave --workers out")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
