"""The HTML report: one self-contained file that says what text and PDF say."""

from memplan.html.report import write_html

__all__ = ["write_html"]
