"""The report as one page: HTML that needs nothing else, to be read offline and passed on."""

from optc.page.render import render

__all__ = ["render"]
