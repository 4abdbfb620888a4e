"""From what a page shows to one file of HTML that needs nothing else."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.files import whole_file

TEMPLATES = Path(__file__).resolve().parent / "templates"


def write_page(path: Path, template: str, content: Mapping[str, Any]) -> Path:
    """Fill a template and write the page, whole or not at all.

    Args:
        path: the .html file.
        template: its name in `report/templates`.
        content: what the template asks for; text is escaped there, data URIs are not changed by that.

    Returns:
        The path.

    Raises:
        DataError: if jinja2 is not installed, or the file cannot be written.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined  # here: most commands write no page
    except ImportError as error:
        raise DataError(f"{path} needs jinja2: pip install -r requirements.txt") from error
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(content)
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def pretty(values: Mapping[str, Any]) -> str:
    """Flags as they stand in conf.json, a list in one line."""
    lines = (f'  "{name}": {json.dumps(value)}' for name, value in values.items())
    return "{\n" + ",\n".join(lines) + "\n}"
