"""Variables of MATLAB's files, in bounded depth and memory.

SciPy's reader calls itself for what lies in a cell or a struct. Fifty thousand cells in one another, which take a few
kilobytes, end the process without a word.
"""

from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from scipy.io.matlab import matfile_version
from scipy.io.matlab._mio5 import MatFile5Reader
from scipy.io.matlab._mio5_utils import VarReader5

MAX_DEPTH = 32
"""Of cells and structs in one another; published annotations have three."""
MAX_BYTES = 2**32
"""Of all arrays together; the silhouettes of a published split take one GiB."""
_OF_EACH = 100
"""Bytes that an array takes beside its numbers."""


def read_mat(path: Path) -> dict[str, Any]:
    """The variables of a file: structs as objects, single dimensions dropped.

    Raises:
        ValueError: the file is damaged, or deeper or larger than any published one.
    """
    try:
        with path.open("rb") as file:
            if matfile_version(file)[0] == 1:
                file.seek(0)
                reader = _Reader(file, struct_as_record=False, squeeze_me=True)
                return reader.get_variables()
        return scipy.io.loadmat(path, struct_as_record=False, squeeze_me=True)
    except Exception as error:  # a truncated file raises whatever its broken bytes happen to mean
        raise ValueError(f"{type(error).__name__}: {error}".partition("\n")[0]) from error


class _Variables(VarReader5):
    """Counts what SciPy reads."""

    depth = 0
    left = MAX_BYTES

    def array_from_header(self, header: Any, process: int = 1) -> Any:
        if self.depth == MAX_DEPTH:
            raise ValueError(f"cells and structs are nested deeper than {MAX_DEPTH}")
        self.depth += 1
        try:
            array = super().array_from_header(header, process)
        finally:
            self.depth -= 1
        self.left -= _OF_EACH + (array.nbytes if isinstance(array, np.ndarray) else 0)
        if self.left < 0:
            raise ValueError(f"it unpacks to more than {MAX_BYTES >> 30} GiB")
        return array


class _Reader(MatFile5Reader):
    def initialize_read(self) -> None:
        super().initialize_read()
        self._matrix_reader = _Variables(self)
