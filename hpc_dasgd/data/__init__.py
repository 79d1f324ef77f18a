"""Data sets: opened, checked, read, sampled, and converted from other formats.

Every room above `arrays` may import it. A new source format is a module in `convert`; a data set that ships with the
package is a file in `datasets`.
"""
