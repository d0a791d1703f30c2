"""Tokenised windows in a file: a machine that trains need not cut the text again, nor have it.

A zip archive of `facts.json`, which says what the windows were cut from and how, and of plain little-endian arrays.
"""

import json
import lzma
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from helpers.bert_config import BertConfig
from helpers.data_processing import Feature
from helpers.errors import DemoBertError, one_line
from helpers.finetuning.windows import TrainingWindow
from helpers.outputs import atomic_write

#: How many times as large as the file its parts may be, unpacked: those of real text are some eight times as large.
_MOST_TIMES = 100

_FACTS, _INPUT_IDS, _SEGMENT_IDS, _PLACES = "facts.json", "input_ids.u4", "segment_ids.u4", "places.u4"

#: What reading a damaged archive raises; RuntimeError is an encrypted one's, and JSON's that is nested too deeply.
_DAMAGES = (OSError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, KeyError, ValueError, EOFError, RuntimeError)


def write_windows(path, windows: Sequence[TrainingWindow], facts: dict) -> None:
    """Write `windows` and `facts`, which JSON can say; whole or not at all. Raises DemoBertError."""
    features = [window.feature for window in windows]
    places = [
        (one.length, one.passage_position, one.passage_start, one.passage_length, window.start, window.end)
        for one, window in zip(features, windows, strict=True)
    ]
    arrays = {
        _INPUT_IDS: np.concatenate([one.input_ids for one in features]),
        _SEGMENT_IDS: np.concatenate([one.segment_ids for one in features]),
        _PLACES: np.array(places),
    }
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_FACTS, json.dumps(facts))
        for name, array in arrays.items():
            archive.writestr(name, array.astype("<u4").tobytes())


def read_windows(path: Path, config: BertConfig, longest: int) -> tuple[list[TrainingWindow], dict]:
    """The windows of a file and its facts. `Feature.is_max_context`, which no training reads, is all true.

    Raises DemoBertError for a file that is damaged or of another kind, and for windows that do not fit the model of
    `config`, or have more than `longest` tokens.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = [archive.getinfo(name).file_size for name in (_FACTS, _INPUT_IDS, _SEGMENT_IDS, _PLACES)]
            if sum(sizes) > _MOST_TIMES * path.stat().st_size:
                raise ValueError(f"unpacked it would be over {_MOST_TIMES} times as large")
            facts = json.loads(archive.read(_FACTS))
            ids, segments, places = (
                np.frombuffer(archive.read(name), "<u4").astype(np.int32)
                for name in (_INPUT_IDS, _SEGMENT_IDS, _PLACES)
            )
        fits = _fit(ids, segments, places := places.reshape(-1, 6).astype(np.int64), config, longest)
        if not fits or not isinstance(facts, dict):
            raise ValueError("its parts do not fit together")
    except _DAMAGES as error:
        raise DemoBertError(
            one_line(f"the file of windows {path} is damaged, or none ({error}): remove it", 300)
        ) from error
    bounds = np.cumsum(places[:, 0])[:-1]
    parts = zip(np.split(ids, bounds), np.split(segments, bounds), places.tolist(), strict=True)
    windows = []
    for own_ids, own_segments, (_, position, first, count, start, end) in parts:
        feature = Feature(own_ids, own_segments, position, first, np.ones(count, bool))
        windows.append(TrainingWindow(feature, start, end))
    return windows, facts


def _fit(ids: np.ndarray, segments: np.ndarray, places: np.ndarray, config: BertConfig, longest: int) -> bool:
    """Whether the windows are whole, as long as the model takes, and their passages and answers within them."""
    lengths, position, _, count, start, end = places.T
    whole = len(ids) == len(segments) == lengths.sum() and lengths.max() <= longest
    known = ids.min() >= 0 and ids.max() < config.vocab_size and segments.min() >= 0
    known = known and segments.max() < config.type_vocab_size
    within = (places >= 0).all() and (position < lengths).all() and (position + count <= lengths).all()
    return whole and known and within and ((start <= end) & (end < lengths)).all()
