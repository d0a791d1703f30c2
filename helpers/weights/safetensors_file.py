"""Reading .safetensors, bfloat16 included; the safetensors package checks the header."""

from helpers.errors import DemoBertError, one_line
from helpers.files import require_file
from helpers.weights.canonical import StoredTensor


def read_safetensors(path) -> dict[str, StoredTensor]:
    """Name → tensor of a .safetensors file; the data are read when a tensor is. Raises DemoBertError."""
    path = require_file(path, "checkpoint")
    import ml_dtypes  # noqa: F401, registers bfloat16 with numpy
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="numpy")
        return {name: _stored(path, file, name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise DemoBertError(one_line(f"{path} can't be read as .safetensors: {error}")) from error


def _stored(path, file, name: str) -> StoredTensor:
    entry = file.get_slice(name)
    dtype = entry.get_dtype()

    def read():
        if dtype not in ("F64", "F32", "F16", "BF16"):
            raise DemoBertError(one_line(f"{path}: {name} has the type {dtype}, not a floating-point type"))
        try:
            return file.get_tensor(name)
        except Exception as error:  # whatever a shape beyond numpy's limits makes the package raise
            raise DemoBertError(one_line(f"{path}: {name} can't be read: {error}")) from error

    return StoredTensor(tuple(entry.get_shape()), read)
