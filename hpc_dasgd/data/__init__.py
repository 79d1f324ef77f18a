"""Data sets: opening, checking, reading and sampling them, and converting other formats to data set files.

Rooms on higher floors may import it. A new source format is a module in `convert`; a data set that ships with the
package is a file in ``datasets``. ``docs/file-format.md`` describes the file format.
"""
