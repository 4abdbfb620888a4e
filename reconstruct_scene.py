"""Reconstruct a scene without clouds: satellite images in, maps for a GIS with their uncertainty out."""

import argparse
from collections.abc import Sequence
from dataclasses import fields

from common.cli import run_command
from scenes.options import SceneInputs, SceneOptions

GROUPS = {
    "inputs": "inputs: a trained run, and one of --optical, --stac, --list and --folder",
    "area": "area: by default the images and their grid",
    "outputs": "outputs",
    "series": "series: by default one image of the latest state",
    "plan": "plan: nothing is made",
    "computation": "computation",
}
EXAMPLES = """examples:
  python reconstruct_scene.py --weights results/my_run --optical s2_*.tif --sar s1_*.tif --out maps/june
  python reconstruct_scene.py --optical S2A_MSIL1C_2018*.zip --bbox 12.4 41.8 12.6 42.0 --dry_run
  python reconstruct_scene.py --weights results/my_run --stac june.json --max_cloud 80 --out maps/june
  python reconstruct_scene.py --weights results/my_run --optical s2_*.tif --every_date --zarr --out maps/2018
  python reconstruct_scene.py --weights results/my_run --list june.csv --workers 4 --out maps/june
  python reconstruct_scene.py --weights results/my_run --folder SEN12MSCRTS/ROIs1868/73 --numbers 3 4 5 --out maps/roi

Run the same command again after an interruption to resume. docs/inputs.md describes images,
docs/usage.md products and clusters."""


def build_parser() -> argparse.ArgumentParser:
    """The flags of this command, absent unless given; dashes may replace underscores."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    groups = {name: parser.add_argument_group(title) for name, title in GROUPS.items()}
    for entry in (*fields(SceneOptions), *fields(SceneInputs)):
        if entry.metadata:
            group, name = groups[entry.metadata["group"]], entry.metadata["name"] or entry.name
            options = entry.metadata["options"] | {"dest": entry.name}
            group.add_argument(f"--{name}", help=entry.metadata["text"], **options)
            if "_" in name:
                group.add_argument(f"--{name.replace('_', '-')}", help=argparse.SUPPRESS, **options)
    groups["computation"].add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Reconstruct a scene according to the flags; see `--help`."""
    flags = vars(build_parser().parse_args(argv))
    flags.pop("debug", None)  # read by run_command
    inputs = {entry.name: flags.pop(entry.name) for entry in fields(SceneInputs) if entry.name in flags}
    options = SceneOptions(inputs=SceneInputs(**inputs), **flags)
    if options.dry_run:
        from scenes.dry_run import dry_run  # deferred: keeps --help fast

        dry_run(options)
        return 0
    from scenes.reconstruct import reconstruct_scene  # deferred: keeps --help fast

    reconstruct_scene(options)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
