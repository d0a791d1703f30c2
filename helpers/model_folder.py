"""A model's folder: its configuration, its vocabulary, and whether it reads lower-cased text."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from helpers.bert_config import BertConfig, find_config
from helpers.errors import DemoBertError, UsageError
from helpers.tokenization import BertTokenizer, Vocabulary, check_vocabulary, load_vocabulary


@dataclass(frozen=True)
class ModelFolder:
    """What a checkpoint needs beside it. `config_path` is the configuration's file; `vocabulary` None: there is none."""

    config_path: Path
    config: BertConfig
    vocabulary: Vocabulary | None

    @classmethod
    def open(cls, folder, vocab_file=None, say: Callable[[str], object] = lambda message: None) -> "ModelFolder":
        """Read the configuration of `folder` (or that file itself), and `vocab_file`, or vocab.txt beside it.

        `say` is told, in one line, where there is no vocabulary. Raises DemoBertError.
        """
        path = find_config(folder)
        config = BertConfig.from_folder(path)
        beside = path.parent / "vocab.txt"
        if vocab_file is None and not beside.is_file():
            say(f"Note: no vocabulary ({beside} does not exist): the engine will need -v to answer")
            return cls(path, config, None)
        vocabulary = load_vocabulary(vocab_file or beside)
        check_vocabulary(vocabulary, config)
        return cls(path, config, vocabulary)

    @property
    def do_lower_case(self) -> bool:
        """Whether the model reads lower-cased text: as its configuration says, else as its vocabulary is spelled."""
        if self.config.do_lower_case is not None:
            return self.config.do_lower_case
        if self.vocabulary is None:
            return True
        return not any(piece != piece.lower() for piece in self.vocabulary.ids if not piece.startswith("["))

    def tokenizer(self) -> BertTokenizer:
        """Raises DemoBertError where there is no vocabulary."""
        if self.vocabulary is None:
            raise DemoBertError(f"no vocabulary beside {self.config_path}: name it with -v/--vocab-file")
        return BertTokenizer(self.vocabulary, self.do_lower_case)


def folder_of(config_dir=None, pytorch=None) -> str:
    """Where a model's configuration is: `config_dir`, else the folder of a PyTorch checkpoint. Raises UsageError."""
    if config_dir:
        return config_dir
    if pytorch and Path(pytorch).exists():
        return pytorch if Path(pytorch).is_dir() else str(Path(pytorch).parent)
    if pytorch:
        raise UsageError(f"the checkpoint does not exist: {pytorch}")
    raise UsageError("name the folder of the model's bert_config.json with -c/--config-dir")
