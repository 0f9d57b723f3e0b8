"""The report in every format: terminal, markdown, html, json, junit."""

from qtool.report.render.formats import FORMATS, named, render, write_run_files

__all__ = ["FORMATS", "named", "render", "write_run_files"]
