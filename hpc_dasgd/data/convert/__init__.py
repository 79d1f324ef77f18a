"""Conversion of other formats to data set files: MNIST IDX, CIFAR-10 batches, ``.npz`` and ``.csv``.

The command line imports it. A new format is a module with a function ``recognize(path) -> Source | None``, listed in
`conversion`.
"""
