"""Text for terminals: numbers with units, tables, progress bars.

Rooms on higher floors may import it; it imports nothing of the package. A new way to write numbers or tables for people
belongs here. Libraries that draw are imported when something is drawn.
"""
