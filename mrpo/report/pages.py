"""How every page is made: from a template of this package, with all text escaped and nothing left undefined."""

from __future__ import annotations

import jinja2


def page_template(name: str) -> jinja2.Template:
    """A template by its file name."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mrpo.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
