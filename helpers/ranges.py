"""The ranges that int8 and fp8 need: a QAT checkpoint's own, a calibration cache's, or calibrated now."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from helpers import calibrator, cli, quantization
from helpers.build_options import CALIBRATION_METHODS
from helpers.calibration_cache import Fingerprint, data_fingerprint, model_fingerprint, read_cache, write_cache
from helpers.errors import DemoBertError
from helpers.model_folder import ModelFolder
from helpers.outputs import check_outputs
from helpers.quantization import Quantization
from helpers.squad import SquadExample, read_squad
from helpers.tokenization import Tokenizer
from helpers.weights import BertWeights

#: Text to calibrate on where none is named.
DEFAULT_DATA = Path(__file__).resolve().parent.parent / "squad" / "dev-v1.1.json"


@dataclass(frozen=True)
class CalibrationOptions:
    """How ranges are calibrated.

    cache            file that keeps them; `cache_is_named`: the user named it
    length           of the longest window, in tokens
    data             SQuAD-format text; None: DEFAULT_DATA
    samples          windows; None: `default_samples`, or as many as the cache is of
    method           one of CALIBRATION_METHODS; None: the first, or that of the cache
    pre_normalised   Megatron's residual
    """

    cache: Path
    cache_is_named: bool
    length: int
    default_samples: int
    data: str | None = None
    samples: int | None = None
    method: str | None = None
    pre_normalised: bool = False

    @property
    def text(self) -> Path:
        return Path(self.data or DEFAULT_DATA)

    @property
    def text_is_here(self) -> bool:
        """Whether there is text to compare with, or to calibrate on. A cache that is named is taken at its word."""
        return self.data is not None or (self.text.exists() and not (self.cache_is_named and self.cache.exists()))


def trained_ranges(kind: str, weights: BertWeights, calibration_is_asked_for: bool) -> Quantization | None:
    """The checkpoint's own ranges where they will do: those of all dense layers, and, where text or a cache is named,
    those of their inputs' channels, too. None: the rest has to be calibrated."""
    own, config = weights.ranges, weights.config
    if own:
        cli.note(f"Ranges: {len(own)} of the checkpoint (quantization-aware training)")
    complete = quantization.channel_range_names(config).keys() <= own.keys()
    if quantization.has_dense_ranges(config, own) and (complete or not calibration_is_asked_for):
        return Quantization(kind, own, weights.source, trained=True)
    return None


def calibrated_ranges(kind: str, weights: BertWeights, model: ModelFolder, options: CalibrationOptions) -> Quantization:
    """The ranges of the calibration cache, written first where it is not there. The checkpoint's own go before them.

    Raises DemoBertError where they can't be had.
    """
    if model.found is None:
        raise DemoBertError("calibration reads text, and no vocabulary is known: name it with -v/--vocab-file")
    tokenizer, cache = model.tokenizer(), options.cache
    examples = _readable_examples(options.text) if options.text_is_here else None
    wanted = _fingerprint(weights, tokenizer, options, examples)
    if cache.exists():
        cached = read_cache(cache, wanted, weights.config)
        compared = "" if examples else ", not compared with any text"
        if options.samples and not examples:
            compared += ", nor with the number of samples asked for"
        cli.note(f"Ranges: calibration cache {cache} ({cli.one_line(cached.origin)}{compared})")
        ranges = cached.ranges
    elif examples:
        ranges = _calibrate(weights, tokenizer, options, examples, wanted)
    else:
        raise DemoBertError(
            f"calibration data not found: {options.text}; get it with scripts/download_squad.sh, or name text in "
            "SQuAD's format with --squad-json, or a cache with --calib-path"
        )
    ranges = {name: np.float32(amax) for name, amax in ranges.items()}
    source = f"{weights.source} with the calibration cache {cache}"
    trained = quantization.has_dense_ranges(weights.config, weights.ranges)
    return Quantization(kind, ranges | weights.ranges, source, trained)


def _readable_examples(path) -> list[SquadExample]:
    """The questions of a SQuAD file that have text to calibrate on, with a note on those that have none."""
    examples = read_squad(path).examples
    readable = [example for example in examples if example.question.strip() and example.passage.strip()]
    if not readable:
        raise DemoBertError(f"no question of the calibration data has any text: {path}")
    if blank := len(examples) - len(readable):
        cli.note(f"Note: {blank} of {len(examples)} questions of {path} are left out: they or their passages are blank")
    return readable


def _fingerprint(
    weights: BertWeights, tokenizer: Tokenizer, options: CalibrationOptions, examples: list[SquadExample] | None
) -> Fingerprint:
    """What a cache has to be of. `examples` None: of whatever text."""
    return Fingerprint(
        model=model_fingerprint(weights, options.pre_normalised),
        data=data_fingerprint(options.text, tokenizer) if examples else None,
        length=options.length,
        samples=min(options.samples, len(examples)) if options.samples and examples else None,
        method=options.method,
    )


def _calibrate(
    weights: BertWeights,
    tokenizer: Tokenizer,
    options: CalibrationOptions,
    examples: list[SquadExample],
    wanted: Fingerprint,
) -> dict[str, float | np.ndarray]:
    """Take the ranges and write the cache."""
    samples = options.samples or options.default_samples
    if len(examples) < samples:
        cli.note(f"Note: {options.text} has {len(examples)} questions, not {samples}: calibrating with those")
    check_outputs({"--calib-path": options.cache}, [options.text])
    cli.note(f"Calibrating on {min(samples, len(examples))} windows of {options.text}")
    batches = calibrator.calibration_batches(examples, tokenizer, options.length, samples)
    done = replace(wanted, samples=len(batches), method=options.method or CALIBRATION_METHODS[0])
    with tqdm(total=len(batches), unit="window", disable=None) as progress:
        ranges = calibrator.calibrate(weights, options.pre_normalised, batches, done.method, progress.update)
    write_cache(options.cache, done, ranges)
    cli.note(f"Ranges: calibration cache {options.cache} written")
    return ranges
