"""A model's folder: its configuration and its tokenizer."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from helpers.bert_config import BertConfig, find_config
from helpers.errors import DemoBertError, UsageError
from helpers.files import read_json
from helpers.tokenization import Tokenizer, check_table
from helpers.tokenizer_files import VOCABULARY_NAMES, FoundTokenizer, ReadingOptions, find_tokenizer


@dataclass(frozen=True)
class ModelFolder:
    """What a checkpoint needs beside it. `config_path` is the configuration's file; `found` None: no tokenizer is there."""

    config_path: Path
    config: BertConfig
    found: FoundTokenizer | None

    @classmethod
    def open(
        cls,
        folder,
        vocab_file=None,
        say: Callable[[str], object] = lambda message: None,
        lower_case: bool | None = None,
        tensorflow: bool = False,
    ) -> "ModelFolder":
        """Read the configuration of `folder` (or that file itself), and its tokenizer, or that of `vocab_file`.

        `say` is told, line by line, what tokenizer it is and what is odd about it. `lower_case` overrules the files;
        `tensorflow`: the checkpoint is TensorFlow's. Raises DemoBertError.
        """
        path = find_config(folder)
        config = BertConfig.from_folder(path)
        options = ReadingOptions(
            model=read_json(path, "model configuration"),
            model_file=path.name,
            lower_case=lower_case,
            tensorflow=tensorflow,
            has_segments=config.type_vocab_size > 1,
            say=say,
        )
        found = find_tokenizer(path.parent, vocab_file, options)
        if found is None:
            say(
                f"Note: no tokenizer in {path.parent} ({', '.join(VOCABULARY_NAMES)}): the engine will need -v to answer"
            )
            return cls(path, config, None)
        say(found.describe())
        for note in check_table(found.tokenizer, config):
            say(note)
        return cls(path, config, found)

    def tokenizer(self) -> Tokenizer:
        """Raises DemoBertError where there is none."""
        if self.found is None:
            names = " or ".join(VOCABULARY_NAMES)
            raise DemoBertError(f"no tokenizer ({names}) beside {self.config_path}: name it with -v/--vocab-file")
        return self.found.tokenizer


def folder_of(config_dir=None, pytorch=None) -> str:
    """Where a model's configuration is: `config_dir`, else the folder of a PyTorch checkpoint. Raises UsageError."""
    if config_dir:
        return config_dir
    if pytorch and Path(pytorch).exists():
        return pytorch if Path(pytorch).is_dir() else str(Path(pytorch).parent)
    if pytorch:
        raise UsageError(f"the checkpoint does not exist: {pytorch}")
    raise UsageError("name the folder of the model's bert_config.json with -c/--config-dir")
