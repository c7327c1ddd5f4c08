"""The C library of our own engine, built from `native/` when the package was installed; loaded when it is used."""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path

from mobilenets.errors import UserError

SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
LIBRARY = Path(__file__).with_name(f"libmnet{SUFFIX}")
MISSING = (
    "the native engine isn't built: install a C compiler (gcc or clang), then mobilenets again with: "
    "pip install --force-reinstall --no-deps mobilenets"
)


def built() -> bool:
    """Whether there was a C compiler when this was installed."""
    return LIBRARY.is_file()


@functools.cache
def opened() -> ctypes.CDLL:
    """The built library. Raises `UserError` where there is none."""
    if not LIBRARY.is_file():
        raise UserError(MISSING)
    try:
        lib = ctypes.CDLL(str(LIBRARY))
    except OSError as e:
        raise UserError(f"{LIBRARY}: can't be loaded ({e}); install mobilenets again") from e
    pointer, number, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
    numbers = ctypes.POINTER(number)
    for name, result, *arguments in (
        ("mnet_open", pointer, pointer, ctypes.c_size_t, text, ctypes.c_size_t),
        ("mnet_close", None, pointer),
        ("mnet_card", pointer, pointer, ctypes.POINTER(ctypes.c_size_t)),
        ("mnet_image", None, pointer, numbers, numbers),
        ("mnet_outputs", number, pointer),
        ("mnet_output", text, pointer, number, numbers, numbers),
        ("mnet_session", pointer, pointer, number, text, text, ctypes.c_size_t),
        ("mnet_end", None, pointer),
        ("mnet_isa", text, pointer),
        ("mnet_memory", ctypes.c_size_t, pointer),
        ("mnet_run", number, pointer, pointer, number, ctypes.POINTER(pointer)),
        ("mnet_layer_count", number, pointer),
        ("mnet_layer", text, pointer, number, numbers),
        ("mnet_layers", number, pointer, pointer, ctypes.POINTER(pointer), ctypes.POINTER(ctypes.c_double)),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib
