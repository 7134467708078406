"""The templates of the pages; each is compiled once a process."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader

PAGES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
