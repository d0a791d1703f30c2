"""The samples: windows of a SQuAD file's questions, or random tokens; and F1 of the logits that LoadGen logged."""

import dataclasses
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers.answer_options import AnswerOptions
from helpers.answerer import Answerer, engine_tokenizer, predicted_text
from helpers.backends.base import Engine
from helpers.batching import Batch
from helpers.benchmark import random_packed_batch
from helpers.data_processing import Feature
from helpers.errors import DemoBertError, UsageError
from helpers.files import read_text
from helpers.squad import SquadData, read_squad

ROOT = Path(__file__).resolve().parents[2]

#: Windows of a file of lengths, at most: LoadGen holds all in memory.
_MOST_WINDOWS = 1 << 20


@dataclass(frozen=True)
class Samples:
    """What LoadGen asks for, by place. `answerer` and `data` are None of random tokens.

    options   how text was cut, and how many windows run at once; sequence_length and batch_size are numbers here
    """

    features: list[Feature]
    options: AnswerOptions
    answerer: Answerer | None = None
    data: SquadData | None = None

    @property
    def mean_length(self) -> float:
        return sum(feature.length for feature in self.features) / len(self.features)

    def score(self, engine: Engine) -> dict:
        """{"f1", "exact_match", "predictions"}: by squad/'s evaluators, of what inference.py -sq says with `engine`."""
        answerer = Answerer(engine, self.answerer.tokenizer, self.options)
        replies = answerer.answer_squad(self.data, top_k=1)
        predictions = {key: predicted_text(reply) for key, reply in replies.items()}
        return {**evaluated(self.data, predictions), "predictions": predictions}


def options_of(request: dict, engine: Engine) -> AnswerOptions:
    """Raises UsageError for what the engine can't serve. On a CPU a window at once is as good as any number."""
    card = engine.card
    longest = min(card.max_sequence_length, card.config.max_position_embeddings)
    length = request["sequence_length"] or longest
    batch_size = request["batch_size"] or (1 if card.backend == "openvino" else card.max_batch_size)
    for asked, most, flag in ((length, longest, "-s"), (batch_size, card.max_batch_size, "-b")):
        if asked > most:
            raise UsageError(f"{flag} {asked} is over this engine's largest, {most}")
    return AnswerOptions(length, batch_size, request["max_query_length"], request["doc_stride"])


def load_samples(request: dict, engine: Engine, say) -> Samples:
    """What the request's `squad` or `lengths` name, a file. Raises DemoBertError."""
    options = options_of(request, engine)
    if request["squad"] is None:
        return Samples(
            random_features(engine, _lengths(request, engine, options, say), request["random_seed"]), options
        )
    data = read_squad(request["squad"])
    answerer = Answerer(
        engine, engine_tokenizer(request["engine"], engine.card, request["vocab_file"], say=say), options
    )
    features = list(answerer.windows(data))
    if not features:
        raise DemoBertError(f"no question of {request['squad']} can be asked")
    return Samples(features, options, answerer, data)


def _lengths(request: dict, engine: Engine, options: AnswerOptions, say) -> list[int]:
    """Of a text file of numbers, cut at the longest; of a SQuAD file's windows. Raises DemoBertError."""
    path = request["lengths"]
    words = read_text(path, "file of lengths").split()
    if words and all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
        lengths = [min(int(word), options.sequence_length) for word in words]
        if min(lengths) < 1 or len(lengths) > _MOST_WINDOWS:
            raise DemoBertError(f"{path}: lengths are from 1 on, and {_MOST_WINDOWS} of them at most")
        return lengths
    tokenizer = engine_tokenizer(request["engine"], engine.card, request["vocab_file"], say=say)
    return Answerer(engine, tokenizer, options).window_lengths(read_squad(path))


def random_features(engine: Engine, lengths: list[int], seed: int) -> list[Feature]:
    """Windows of random tokens, of these lengths."""
    batch, nothing = random_packed_batch(engine.card, lengths, seed), np.zeros(0, bool)
    ends = np.cumsum(lengths)[:-1]
    parts = zip(np.split(batch.input_ids, ends), np.split(batch.segment_ids, ends))
    return [Feature(ids, segments, 0, 0, nothing) for ids, segments in parts]


def evaluated(data: SquadData, predictions: dict[str, str]) -> dict:
    """{"f1", "exact_match"}, in percent, by the evaluator of the file's version. Raises DemoBertError."""
    name = "evaluate-v2.0" if data.version_2 else "evaluate-v1.1"
    spec = importlib.util.spec_from_file_location(name, ROOT / "squad" / f"{name}.py")  # no module's name has a dot
    evaluator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(evaluator)
    if data.version_2:
        scores = evaluator.evaluate(data.examples, predictions)
        return {"f1": scores["f1"], "exact_match": scores["exact"]}
    return evaluator.evaluate(data, predictions)


class LoggedEngine(Engine):
    """Gives the logits that LoadGen wrote into its accuracy log, in place of an engine that computes them.

    So answers are chosen by the very code that inference.py has. It is packed, whatever computed the logits: they are
    of tokens, without padding.
    """

    def __init__(self, engine: Engine, features: list[Feature], path):
        super().__init__(dataclasses.replace(engine.card, layout="packed"))
        self._logits = {
            _key(features[place].input_ids, features[place].segment_ids): logits for place, logits in read_log(path)
        }
        if missing := sum(_key(one.input_ids, one.segment_ids) not in self._logits for one in features):
            raise DemoBertError(f"LoadGen's log {path} lacks {missing} of {len(features)} samples")

    def _infer(self, batch: Batch) -> np.ndarray:
        ends = batch.cu_seqlens[1:-1]
        parts = zip(np.split(batch.input_ids, ends), np.split(batch.segment_ids, ends))
        return np.concatenate([self._logits[_key(ids, segments)] for ids, segments in parts])

    def timed_run(self, batch):
        raise NotImplementedError("nothing is computed here")

    def describe(self) -> str:
        return "logits that LoadGen logged"


def _key(ids: np.ndarray, segments: np.ndarray) -> tuple[bytes, bytes]:
    return ids.tobytes(), segments.tobytes()


def read_log(path) -> Iterator[tuple[int, np.ndarray]]:
    """(place of the sample, its logits, float32 [S, 2]) of mlperf_log_accuracy.json. Raises DemoBertError."""
    try:
        entries = json.loads(Path(path).read_bytes())
        for entry in entries:
            yield entry["qsl_idx"], np.frombuffer(bytes.fromhex(entry["data"]), "<f4").reshape(-1, 2)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DemoBertError(f"LoadGen's log {path} can't be read: {error}") from error
