"""What the functions of the native library take, for ctypes."""

from __future__ import annotations

import ctypes

POINTER = ctypes.c_void_p
COUNT = ctypes.c_int64
KIND = ctypes.c_int
FLOAT = ctypes.c_float

# In the order of the arguments in linear.cpp.
SIGNATURES = {
    "sparsecraft_dense": (*(POINTER,) * 5, *(COUNT,) * 3, KIND, KIND),
    "sparsecraft_gated": (*(POINTER,) * 6, *(COUNT,) * 3, KIND, FLOAT, COUNT, KIND),
    "sparsecraft_bitmask": (*(POINTER,) * 7, *(COUNT,) * 3, KIND, KIND),
    "sparsecraft_unpack_bitmask": (*(POINTER,) * 5, *(COUNT,) * 4, KIND, KIND, KIND),
    "sparsecraft_csr": (*(POINTER,) * 6, *(COUNT,) * 3, KIND, KIND),
}


def declare(library: ctypes.CDLL) -> None:
    """Tells ctypes the arguments of every function.

    Raises:
        OSError: If the library lacks one.
    """
    for name, arguments in SIGNATURES.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise OSError(f"the native library lacks {name}") from error
        function.argtypes = arguments
        function.restype = None
