"""Pages: one self-contained HTML file each."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.files import write_text

TEMPLATES = Path(__file__).resolve().parent / "templates"


def write_page(path: Path, template: str, content: Mapping[str, Any]) -> Path:
    """Fill a template and write the page atomically.

    Args:
        path: the .html file.
        template: its name in `report/templates`.
        content: the variables of the template; text is escaped there, which does not change data URIs.

    Returns:
        The path.

    Raises:
        DataError: if jinja2 is not installed, or the file cannot be written.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined  # deferred: most commands write no page
    except ImportError as error:
        raise DataError(f"{path} needs jinja2: pip install -r requirements.txt") from error
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write_text(path, environment.get_template(template).render(content))
    return path


def report_or_note(write: Callable[[], Path]) -> None:
    """Write a report and print its path, or a note with the error: the metrics are already on disk."""
    try:
        print(f"report: {write()}")
    except DataError as error:
        print(f"note: there is no report: {error}")


def format_flags(values: Mapping[str, Any]) -> str:
    """Flags as in conf.json, one per line, lists too."""
    lines = (f'  "{name}": {json.dumps(value)}' for name, value in values.items())
    return "{\n" + ",\n".join(lines) + "\n}"
