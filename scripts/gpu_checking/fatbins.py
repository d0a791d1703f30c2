"""Leaves GPU code out of a library that is for other GPUs than the one it travels to.

NVIDIA's libraries hold every kernel once for each generation of GPUs, in *fatbins*: a header, then one entry a
generation, machine code or the assembly text that a driver can translate. The driver loads the one entry that fits its
GPU. So where a fatbin has machine code for the GPU, the other entries' content is never read, and zeros in its place,
which compress to nothing, change nothing. No byte moves; fatbins without code for the GPU stay whole.
"""

import mmap
import struct
from pathlib import Path

_MAGIC = struct.pack("<IHH", 0xBA55ED50, 1, 16)
_SIZE = struct.Struct("<8xQ")

#: An entry's kind, length of its header, length of its content, and GPU.
_ENTRY = struct.Struct("<HxxIQ12xI")
_MACHINE_CODE = 2


def entries(data, start: int = 0):
    """Each whole fatbin of `data` as a list of (kind, generation as 90 for 9.0, where its content begins, ends)."""
    while (found := data.find(_MAGIC, start)) >= 0:
        start = found + len(_MAGIC)
        position = found + 16
        end = position + (_SIZE.unpack_from(data, found)[0] if position <= len(data) else len(data))
        fatbin = []
        while position + _ENTRY.size <= end <= len(data):
            kind, header, content, generation = _ENTRY.unpack_from(data, position)
            fatbin.append((kind, generation, position + header, position + header + content))
            position += header + content
            if position == end:
                yield fatbin
                start = end


def clear_foreign_code(path: Path, generation: int) -> int:
    """Zero in `path` what a GPU of `generation` (90 for 9.0) never reads; returns how many bytes that were."""
    cleared = 0
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        for fatbin in entries(data):
            if (_MACHINE_CODE, generation) not in ((kind, made_for) for kind, made_for, _, _ in fatbin):
                continue
            for kind, made_for, begin, end in fatbin:
                if (kind, made_for) != (_MACHINE_CODE, generation):
                    data[begin:end] = bytes(end - begin)
                    cleared += end - begin
    return cleared
