"""What the readers of third-party packages raise for damaged files."""

import struct
import tokenize
import zipfile
import zlib

# numpy's parser of headers, zipfile and zlib, on .npy and .npz
DAMAGED_ARRAY: tuple[type[Exception], ...] = (
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, SyntaxError, OSError, EOFError, KeyError),
    *(ValueError, IndexError, TypeError, RuntimeError, NotImplementedError, OverflowError, MemoryError),
)
# h5py on HDF5
DAMAGED_HDF5: tuple[type[Exception], ...] = (
    *(OSError, KeyError, ValueError, IndexError, TypeError, AttributeError, RuntimeError, OverflowError, MemoryError),
)
