"""Reports on one or several runs: summary on the terminal, plots, the HTML page, comparisons.

The command line imports it. A new plot is a function in `pictures` or `timeline`, a new warning one in `diagnosis`.
"""
