"""Exchange what two names stand for in one system call, where there is one."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

HERE = -100  # AT_FDCWD of Linux: paths are relative to the working folder
SWAP = 2  # RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS alike
# a kernel or a file system without an exchange; NFS and some FUSE file systems say EINVAL
MISSING = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}


def exchange(first: Path, second: Path) -> bool:
    """Exchange the names of two files or folders in one step: each name always has one of them.

    Returns False, with nothing changed, where the system or the file system has no such call.
    Raises: OSError for names that are not there or may not be changed.
    """
    # three outcomes: exchanged, no such call here, or an error of these paths
    call = _system_call()
    if call is None:
        return False
    if call(os.fsencode(first), os.fsencode(second)) == 0:
        return True
    number = ctypes.get_errno()
    if number in MISSING:
        return False
    raise OSError(number, os.strerror(number), str(first), None, str(second))


@functools.cache
def _system_call() -> Callable[[bytes, bytes], int] | None:
    """Return the C library's exchange of two paths; None on a system without it."""
    try:
        # the C library that Python itself is linked with
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            swap = library.renamex_np
            swap.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint)
            return lambda first, second: swap(first, second, SWAP)
        rename = library.renameat2  # of glibc since 2018
        path, folder = ctypes.c_char_p, ctypes.c_int
        rename.argtypes = (folder, path, folder, path, ctypes.c_uint)
        return lambda first, second: rename(HERE, first, HERE, second, SWAP)
    except (AttributeError, OSError, TypeError):  # Windows: there is no library of that name
        return None
