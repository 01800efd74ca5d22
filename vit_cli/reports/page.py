"""A page of figures as one HTML file that contains its images."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

GENERATOR = '<meta name="generator" content="vit show">'
"""Tag that marks a page which may be replaced by another one."""
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { text-align: left; padding: .15rem 1rem .15rem 0; vertical-align: top; font-weight: normal; }
th { opacity: .7; }
nav a { margin-right: 1rem; }
img { max-width: 100%; background: white; border-radius: 4px; }
section { margin-top: 2.5rem; }
"""


def page(title: str, facts: Sequence[tuple[str, object]], figures: Sequence[tuple[str, str, Path]]) -> str:
    """The text of a page with a table of facts (name, value) and figures (title, text, PNG file)."""
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>\n" for name, value in facts)
    links = "".join(f'<a href="#{file.stem}">{escape(name)}</a>\n' for name, _, file in figures)
    sections = "".join(_section(*figure) for figure in figures)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{GENERATOR}\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n<table>\n{rows}</table>\n"
        f"<nav>\n{links}</nav>\n{sections}</body>\n</html>\n"
    )


def _section(title: str, text: str, file: Path) -> str:
    image = base64.b64encode(file.read_bytes()).decode()
    return (
        f'<section id="{file.stem}">\n<h2>{escape(title)}</h2>\n<p>{escape(text)}</p>\n'
        f'<img alt="{escape(title)}" src="data:image/png;base64,{image}">\n</section>\n'
    )
