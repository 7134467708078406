"""Pages of the site that lie above this folder, and links to them and to files of the checkout."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("ARCHITECTURE.md", "SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages above this folder; the README is the start page's elder sister."""
    for name in PAGES:
        files.append(File.generated(config, name, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links lead to pages of the site, and name files that are in the checkout only."""
    markdown = re.sub(r"\]\((?:\.\./)?README\.md(?:#[\w-]*)?\)", "](index.md)", markdown)
    for name in PAGES:
        markdown = markdown.replace(f"](../{name}", f"]({name}")
    if page.file.src_uri in PAGES:
        markdown = markdown.replace("](docs/", "](")
    elsewhere = r"\[([^\]]*)\]\((?:\.\./)?((?:examples|benchmarks|LICENSE)[^)]*)\)"
    return re.sub(elsewhere, r"\1 (`\2`)", markdown)
