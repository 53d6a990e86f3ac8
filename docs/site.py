"""What the site has beside the pages of this folder: see `mkdocs.yml`.

The pages at the top of the repository (README, CONTRIBUTING, benchmarks/README) become pages of the
site, and each room of the package gets a page of reference, made from its docstrings. So nothing is
written twice, and no new file can be forgotten.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

import silc_bench

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/mutants/table.md": "mutants.md",
    "benchmarks/dependency_sets.md": "dependency_sets.md",
}
OFFERED = "silc_bench"  # its page
OUTSIDE = ["cli"]  # commands, not functions
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)")


def on_files(files, config):
    """Add the pages that do not lie in this folder."""
    for source, name in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=_with_links(text, ROOT / source)))
    for room in rooms():
        files.append(File.generated(config, f"reference/{room}.md", content=reference(room)))
    for section in config.nav:
        if "Reference" in section:
            section["Reference"] = [f"reference/{room}.md" for room in rooms()]
    return files


def on_page_markdown(markdown, page, config, files):
    """Links of a guide to the pages at the top lead to the same pages of the site."""
    path = Path(page.file.abs_src_path) if page.file.abs_src_path else None
    return _with_links(markdown, path) if path else markdown


def rooms():
    """What the package offers, then its folders, and its files at the top that hold a contract."""
    package = ROOT / "silc_bench"
    names = [path.parent.name for path in package.glob("*/__init__.py")]
    return [OFFERED, *sorted({"errors", "task", *names} - set(OUTSIDE))]


def reference(room):
    """A page of all modules of a room."""
    if room == OFFERED:
        return offered()
    path = ROOT / "silc_bench" / room
    modules = [path.with_suffix(".py")] if not path.is_dir() else sorted(_modules(path))
    lines = [f"# silc_bench.{room}", ""]
    for module in modules:
        dotted = ".".join(module.relative_to(ROOT).with_suffix("").parts)
        lines += [f"::: {dotted}", ""]
    return "\n".join(lines)


def offered():
    """A page of what ``import silc_bench`` offers, wherever it is written."""
    lines = [
        "# silc_bench",
        "",
        "What `import silc_bench` offers ([with examples](../python.md)).",
        "",
    ]
    for name, module in silc_bench.OFFERED.items():
        lines += [f"::: {module}.{name}", ""]
    return "\n".join(lines)


def _modules(folder):
    # tasks and trainer are links to folders at the top
    for path in folder.resolve().rglob("*.py"):
        if path.stem != "__init__":
            yield folder / path.relative_to(folder.resolve())


def _with_links(text, source):
    """``text`` of the file ``source`` with the links of the site."""

    def moved(match):
        target = (source.parent / match[1]).resolve()
        if not target.is_relative_to(ROOT):
            return match[0]
        inside = str(target.relative_to(ROOT))
        return f"]({PAGES.get(inside, inside.removeprefix('docs/'))}"

    return LINK.sub(moved, text)
