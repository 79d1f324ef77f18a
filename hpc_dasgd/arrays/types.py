"""Types of arrays, as annotations name them.

NumPy's arrays are annotated with their dtype. Arrays that may be of NumPy, CuPy or another library that follows the
array API standard are `Array`: no common base class exists, and the functions of `arithmetic` accept all of them.
"""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = Any
"""An array of any library; the docstring of a function says which memory it must be in."""

Namespace: TypeAlias = Any
"""A module of array functions: ``numpy``, ``cupy``, or another that follows the array API standard."""

AnyArray: TypeAlias = npt.NDArray[Any]
"""A NumPy array of any dtype."""

Floats: TypeAlias = npt.NDArray[np.floating[Any]]
"""A NumPy array of float32 or float64."""

Float64s: TypeAlias = npt.NDArray[np.float64]
Int64s: TypeAlias = npt.NDArray[np.int64]
UInt32s: TypeAlias = npt.NDArray[np.uint32]
Bytes: TypeAlias = npt.NDArray[np.uint8]

DType: TypeAlias = npt.DTypeLike
