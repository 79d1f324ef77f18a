"""Reports on runs: summaries and tables for the terminal, plots, the HTML page, comparisons of several runs.

The command line imports this room. A new plot is a function in `pictures` or `timeline`, a row in `plots` and a caption
in `page_html`; a new warning is a function in `diagnosis`.
"""
