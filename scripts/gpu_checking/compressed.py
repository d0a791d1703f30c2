"""Large files made small for a transfer, by zstandard, which travels with the Python that runs this file.

`python compressed.py compress FOLDER` makes NAME.zst of every file in FOLDER, `expand` the file again; all at once, as
far as the processor's cores go. (xz gets files as small, in ten times the time.)
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SUFFIX = ".zst"

#: Beyond it the gain is small and the time long: 0.01 of the size for twice the minutes.
LEVEL = 12


def compress(path: Path) -> None:
    import zstandard

    # NVIDIA's kernels repeat themselves at a distance: a long window is worth a tenth of the size.
    parameters = zstandard.ZstdCompressionParameters.from_level(LEVEL, window_log=27, enable_ldm=True)
    target = path.with_name(path.name + SUFFIX)
    with path.open("rb") as source, target.open("wb") as out:
        zstandard.ZstdCompressor(compression_params=parameters).copy_stream(source, out, size=path.stat().st_size)
    path.unlink()


def expand(path: Path) -> None:
    import zstandard

    with path.open("rb") as source, path.with_suffix("").open("wb") as out:
        zstandard.ZstdDecompressor(max_window_size=1 << 27).copy_stream(source, out)
    path.with_suffix("").chmod(0o755)
    path.unlink()


def main(work: str, folder: str) -> None:
    compressing = work == "compress"
    paths = [path for path in sorted(Path(folder).iterdir()) if (path.suffix != SUFFIX) == compressing]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compress if compressing else expand, paths))


if __name__ == "__main__":
    main(*sys.argv[1:])
