"""The page's data -> the page, in one file that needs no network.

What the browser is given: ``assets/page.html.j2`` with ``style.css``, the libraries, our scripts in
the order of ``SCRIPTS``, and the data as JSON. A policy in the page itself forbids every request.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from silc_bench.reports.page.libraries import libraries

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("data.js", "address.js", "table.js", "figures.js", "dialogs.js", "main.js")


def render(document: dict[str, Any]) -> str:
    """One HTML file; the same document gives the same bytes."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    # StrictUndefined: a misspelt name in the template is an error, not an empty place
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    foreign = [_script(library.text()) for library in libraries()]
    own = [_script((ASSETS / name).read_text(encoding="utf-8")) for name in SCRIPTS]
    style = (ASSETS / "style.css").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        style=Markup(style),
        data=Markup(embedded_json(document)),
        scripts=[Markup(script) for script in (*foreign, *own)],
    )


def embedded_json(value: Any) -> str:
    """JSON that may stand inside ``<script>``: no name in it can end the element."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _script(text: str) -> str:
    """A script without the address of its source map, which a debugger would ask for."""
    text = re.sub(r"^//# sourceMappingURL=.*$", "", text, flags=re.MULTILINE)
    assert "</script" not in text.lower(), "a script that ends its own element"
    return text
