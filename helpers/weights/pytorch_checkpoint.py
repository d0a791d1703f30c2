"""PyTorch checkpoints: .safetensors, .bin/.pt, and Hugging Face folders, sharded ones too."""

import os
import warnings
import zipfile
from pathlib import Path

from helpers.bert_config import BertConfig
from helpers.errors import DemoBertError, missing_package, one_line
from helpers.files import read_json, require_file
from helpers.weights.canonical import StoredCheckpoint, StoredTensor
from helpers.weights.paths import file_inside
from helpers.weights.pytorch_names import canonical_name, is_skipped
from helpers.weights.safetensors_file import read_safetensors

#: In the order in which Hugging Face looks for them.
_FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

#: What checkpoints of other tools end in, and the files of Hugging Face's Trainer that end so and are none.
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_OF_TRAINERS = ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth")


def load_pytorch(path, config: BertConfig | None = None) -> StoredCheckpoint:
    """The BERT in a .safetensors or .bin/.pt file, or in a Hugging Face folder. Raises DemoBertError.

    `config` says whose names its tensors have; None: BERT's.
    """
    checkpoint = StoredCheckpoint(source=str(path), gelu="erf")
    for name, tensor in _stored_tensors(Path(path)).items():
        canonical = canonical_name(name, config)
        if canonical:
            checkpoint.add(canonical, tensor)
        elif not is_skipped(name):
            checkpoint.extra.append(name)
    return checkpoint


def _stored_tensors(path: Path) -> dict[str, StoredTensor]:
    if os.path.isdir(path):
        return _read_folder(path)
    path = require_file(path, "checkpoint")
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    start = _first_bytes(path)
    # A .safetensors file is known by its JSON after eight bytes of length, whatever its name.
    if path.suffix == ".safetensors" or start[8:] == b"{":
        return read_safetensors(path)
    return _read_pickled(path, is_zip=start.startswith(b"PK"))


def _first_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(9)
    except OSError as error:
        raise DemoBertError(f"checkpoint can't be read: {path}: {error.strerror}") from error


def only_file(folder) -> Path | None:
    """The checkpoint of a folder that is not Hugging Face's: the only file that may be one (`last.ckpt`); else None."""
    folder = Path(folder)
    if not folder.is_dir() or any((folder / name).exists() for name in _FOLDER_FILES):
        return None
    found = [path for path in folder.iterdir() if path.suffix in _SUFFIXES and path.name not in _OF_TRAINERS]
    return found[0] if len(found) == 1 else None


def _read_folder(folder: Path) -> dict[str, StoredTensor]:
    for name in _FOLDER_FILES:
        if (folder / name).exists():
            return _stored_tensors(folder / name)
    if (path := only_file(folder)) is None:
        raise DemoBertError(f"no {' or '.join(_FOLDER_FILES)} in {folder}")
    return _stored_tensors(path)


def _read_shards(index_path: Path) -> dict[str, StoredTensor]:
    """The tensors that an index file spreads over several files of its own folder."""
    index = read_json(index_path, "index of the checkpoint")
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise DemoBertError(f"the index of the checkpoint has no weight_map of names to files: {index_path}")
    paths = {shard: _shard_path(index_path.parent, shard) for shard in sorted(set(weight_map.values()))}
    shards = {shard: _stored_tensors(path) for shard, path in paths.items()}
    if absent := [name for name, shard in weight_map.items() if name not in shards[shard]]:
        raise DemoBertError(one_line(f"{weight_map[absent[0]]} lacks {absent[0]}, which {index_path} says it holds"))
    return {name: shards[shard][name] for name, shard in weight_map.items()}


def _shard_path(folder: Path, shard: str) -> Path:
    if shard.endswith(".index.json"):
        raise DemoBertError(one_line(f"the checkpoint's index names another index: {shard!r}"))
    return file_inside(folder, shard, "shard of the checkpoint")


def _read_pickled(path: Path, is_zip: bool) -> dict[str, StoredTensor]:
    """The tensors of a .bin/.pt file. Only tensors and plain containers are unpickled: no code of the file runs."""
    try:
        import torch
    except ImportError as error:
        raise missing_package("torch", "torch==2.13.0", f"reading {path.name}") from error
    state = _torch_load(torch, path, is_zip)
    for key in ("model", "model_state_dict", "state_dict"):  # the second is NVIDIA ModelOpt's, the third Lightning's
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise DemoBertError(f"{path} holds no state dict (name → tensor)")
    return {
        name: StoredTensor(tuple(tensor.shape), _torch_reader(path, name, tensor))
        for name, tensor in state.items()
        if isinstance(name, str) and isinstance(tensor, torch.Tensor)
    }


def _torch_load(torch, path: Path, is_zip: bool):
    try:
        if is_zip:
            _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's age, of which users can make nothing
            # What torch before 1.6 wrote is no zip archive and can't be mapped into memory.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # whatever a damaged file makes torch raise
        raise DemoBertError(
            f"{path} is not a PyTorch file of plain tensors: it is damaged, or unpickling it would run code; "
            "save its state_dict() as .safetensors"
        ) from error


def _check_archive(path: Path) -> None:
    """torch.save compresses nothing, so no entry can be larger than the file."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        if any(entry.file_size > size for entry in archive.infolist()):
            raise DemoBertError(f"an entry of {path} claims to be larger than the file")


def _torch_reader(path: Path, name: str, tensor):
    def read():
        try:
            if not tensor.is_floating_point():
                raise TypeError(f"its type is {tensor.dtype}, not a floating-point type")
            return tensor.detach().float().numpy() if tensor.element_size() < 4 else tensor.detach().numpy()
        except Exception as error:  # sparse, quantized, meta tensors; storages that are not there
            raise DemoBertError(one_line(f"{path}: {name} can't be read: {error}", 300)) from error

    return read
