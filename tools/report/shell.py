"""What every HTML page shares: the templates, and plots that need nothing beside the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..formats import number_text, sign_text
from .plot import Plot, get_plotlyjs
from .theme import FONT, templates


def page(template: str, title: str, plots: Iterable[Plot], values: Mapping[str, Any]) -> str:
    """A page as text.

    Args:
        template: A file of `templates/` that extends `base.html`.
        title: Heading of the page.
        plots: Everything that the template draws.
        values: What else it shows or calls.
    """
    environment = Environment(
        loader=PackageLoader("onerec_trt.tools.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=number_text, sign=sign_text)
    return environment.get_template(template).render(
        {
            **values,
            "title": title,
            "plots": {plot.slug: plot.data for plot in plots},
            "templates": templates(),
            "font": Markup(FONT),
            "plotly": Markup(get_plotlyjs()),
        }
    )
