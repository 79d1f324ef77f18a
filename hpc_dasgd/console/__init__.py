"""Text for terminals: numbers with units, tables, progress bars.

Every room may import it; it imports nothing of the package. Libraries that draw are imported when something is drawn.
"""
