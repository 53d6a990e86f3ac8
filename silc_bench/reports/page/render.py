"""Data -> a page in one file that needs no network: the leaderboard, or a report of training.

What the browser is given: a template (the leaderboard's is ``assets/page.html.j2``) with styles,
libraries, our scripts in their order, and the data as JSON. A policy in the page itself forbids
every request.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from silc_bench.reports.page.libraries import libraries

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = (
    "elements.js",
    "address.js",
    "theme.js",
    "data.js",
    "table.js",
    "figures.js",
    "dialogs.js",
    "main.js",
)


def render(document: dict[str, Any]) -> str:
    """The leaderboard; the same document gives the same bytes."""
    return assembled(
        ASSETS / "page.html.j2",
        document,
        styles=[ASSETS / "style.css"],
        packages=[library.package for library in libraries()],
        scripts=[ASSETS / name for name in SCRIPTS],
    )


def assembled(
    template: Path,
    document: dict[str, Any],
    *,
    styles: Sequence[Path],
    packages: Sequence[str],
    scripts: Sequence[Path],
    **texts: Any,
) -> str:
    """The page of a template, which gets ``style``, ``data``, ``scripts`` and ``texts``.

    ``packages``: of the vendored libraries, which stand before our scripts. The template gets them
    as ``libraries``, to name them.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    # StrictUndefined: a misspelt name in the template is an error, not an empty place
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    chosen = [library for library in libraries() if library.package in packages]
    foreign = [_script(library.text()) for library in chosen]
    own = [_script(path.read_text(encoding="utf-8")) for path in scripts]
    style = "\n".join(path.read_text(encoding="utf-8") for path in styles)
    return environment.get_template(template.name).render(
        style=Markup(style),
        data=Markup(embedded_json(document)),
        scripts=[Markup(script) for script in (*foreign, *own)],
        libraries=chosen,
        **texts,
    )


def embedded_json(value: Any) -> str:
    """JSON that may stand inside ``<script>``: no name in it can end the element."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _script(text: str) -> str:
    """A script without the address of its source map, which a debugger would ask for."""
    text = re.sub(r"^//# sourceMappingURL=.*$", "", text, flags=re.MULTILINE)
    assert "</script" not in text.lower(), "a script that ends its own element"
    return text
