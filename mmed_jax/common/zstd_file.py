"""Files packed with zstd, as bytes. Needs the package zstandard, which only reading such a file asks for."""

import io
from pathlib import Path
from typing import Any, BinaryIO

from mmed_jax.common.errors import UserError

_BLOCK = 1 << 20  # packed bytes that are read at a time


class ZstdFile(io.RawIOBase):
    """The bytes in a zstd file of one or several frames.

    Not zstandard's stream_reader: that one ends without a word where a file was cut, so that what follows is lost.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        """
        Args:
          file: the packed file, open; closed with this one. path: what messages call it.

        Raises:
          UserError: zstandard is not installed; on reading, a file that is damaged or ends too early.
        """
        try:
            import zstandard
        except ImportError:
            file.close()
            raise UserError(f"{path}: needs the package zstandard (pip install 'mmed_jax[corpus]')") from None
        self._path, self._new, self._error = path, zstandard.ZstdDecompressor().decompressobj, zstandard.ZstdError
        self._file = file
        self._frame: Any = None
        self._packed = self._ready = b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not self._packed:
                self._packed = self._file.read(_BLOCK)
                if not self._packed:
                    if self._frame is not None:
                        raise UserError(f"{self._path}: damaged zstd file: it ends too early")
                    return 0
            self._frame = self._frame or self._new()
            try:
                self._ready = self._frame.decompress(self._packed)
            except self._error as e:
                raise UserError(f"{self._path}: damaged zstd file ({e})") from None
            self._packed = b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size
