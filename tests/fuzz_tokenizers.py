"""Damages tokenizers' files at random: every one must be read or refused in one line, in time and in little memory.

    python3 -m tests.fuzz_tokenizers --rounds 20000

See tests/fuzzing.py for what is said and how a round is repeated.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np

from helpers.errors import DemoBertError
from helpers.tokenization import Tokenizer
from helpers.tokenizer_files import ReadingOptions, find_tokenizer
from tests import fuzzing
from tests import tokenizer_folders as folders
from tests.fuzzing import damage_bytes, damage_json

_TEXT = "What is [SEP] </s> TensorRT? naïve Ａ①ﬁ 是一 😀 " + "x" * 300


def write_seeds(root: Path) -> list[Path]:
    """Folders of every family, small ones, to be damaged."""
    few = tuple(folders.word_pieces()[:200])
    found = [
        folders.legacy_word_piece(root / "bert", few, {"do_lower_case": True}, added={"[URL]": 200, "new": 201}),
        folders.legacy_byte_pairs(root / "roberta", {}),
        folders.sentencepiece_folder(root / "sentencepiece", "xlm-roberta", {"tokenizer_class": "XLMRobertaTokenizer"}),
    ]
    for family, name in (("albert", "Albert"), ("camembert", "Camembert"), ("xlm-roberta", "PreTrained")):
        vocab, unk = folders.unigram_vocabulary(family)
        cut = [*vocab[:120], *([] if family == "albert" else [["<mask>", 0.0]])]
        name = f"{name}TokenizerFast"
        found.append(folders.legacy_unigram_json(root / f"{family}-json", family, name, cut, unk, {}))
    for folder, kind in ((found[0], "bert"), (found[1], "roberta")):
        tokenizer = find_tokenizer(folder, None, ReadingOptions({"model_type": kind})).tokenizer
        for name in ("json", "as-it-is"):
            path = folders.start(root / f"{kind}-{name}", kind)
            (path / "tokenizer.json").write_bytes(tokenizer.json)
            settings = {"tokenizer_class": "PreTrainedTokenizerFast"} if name == "as-it-is" else {}
            folders.write_json(path / "tokenizer_config.json", settings | {"added_tokens_decoder": {}})
            found.append(path)
    return found


def one_round(seed: int, seeds: list[Path], work: Path) -> str:
    """Read one damaged folder; what came of it."""
    rng = np.random.default_rng(seed)
    source = seeds[rng.integers(len(seeds))]
    folder = work / "folder"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    files = sorted(path for path in folder.iterdir() if path.name != "config.json")
    likely = [path for path in files if path.name in ("tokenizer.json", "tokenizer_config.json")]
    path = (
        (likely or files)[rng.integers(len(likely or files))] if rng.random() < 0.8 else files[rng.integers(len(files))]
    )
    damage = damage_json if path.suffix == ".json" and rng.random() < 0.8 else damage_bytes
    damage(rng, path)
    model = json.loads((folder / "config.json").read_text())
    try:
        found = find_tokenizer(folder, None, ReadingOptions(model))
        if found is None:
            return "none"
        found.tokenizer.encode(_TEXT)
        assert Tokenizer.from_bytes(found.tokenizer.json).json == found.tokenizer.json
        return "read"
    except DemoBertError as error:
        return fuzzing.refused(error)


def main(arguments) -> int:
    return fuzzing.run(arguments, __doc__.splitlines()[0], write_seeds, one_round, memory=4 << 30)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
