"""What the site shows of the repository's other files: README.md as its home, CONTRIBUTING.md, results/, deploy/.

Links are written as they work in the repository (`../results/README.md` from a page here, `docs/ship.md` from the
README), and turned into the site's.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The repository's files beside those of docs/."""
    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / "README.md")))
    files.append(File.generated(config, "CONTRIBUTING.md", abs_src_path=str(ROOT / "CONTRIBUTING.md")))
    results = sorted(p for p in (ROOT / "results").rglob("*") if p.is_file())
    for path in (*results, *sorted((ROOT / "deploy").glob("[!.]*"))):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for folder in sorted({p.parent for p in results} - {ROOT / "results"}):
        name = folder.relative_to(ROOT).as_posix()
        own = [p.name for p in results if p.parent == folder]
        files.append(File.generated(config, f"{name}/index.md", content=_listing(folder.name, own)))
    return files


def _listing(title: str, names: list[str]) -> str:
    """A page for a folder of results: its figures, and its tables as files."""
    figures = [f"![{name}]({name})" for name in names if name.endswith(".svg")]
    tables = "\n".join(f"- [{name}]({name})" for name in names if not name.endswith(".svg"))
    return "\n\n".join([f"# {title}", "[What it is](../README.md)", tables, *figures]) + "\n"


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Links of the repository as links of the site; what tests are told of a block of code is no title of it."""
    markdown = re.sub(r'^(```\w+) title="(?:not run|slow): [^"]*"$', r"\1", markdown, flags=re.MULTILINE)
    if page.file.src_uri == "index.md":
        return markdown.replace("](docs/", "](").replace("](results/)", "](results/README.md)")
    return markdown.replace("](../", "](") if "/" not in page.file.src_uri else markdown
