"""A model's folder: its configuration and its tokenizer."""

import os
import re
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
        answers_questions: bool = False,
    ) -> "ModelFolder":
        """Read the configuration of `folder` (or that file itself), and its tokenizer, or that of `vocab_file`.

        `say` is told, line by line, what tokenizer it is and what is odd about it. `lower_case` overrules the files;
        `tensorflow`: the checkpoint is TensorFlow's. `answers_questions`: the folder is that of a checkpoint that is to
        answer questions as it is. Raises DemoBertError.
        """
        path = find_config(folder)
        config = BertConfig.from_folder(path, answers_questions)
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
    if pytorch and not Path(pytorch).exists():
        raise UsageError(f"the checkpoint does not exist: {pytorch}{_how_to_fetch(str(pytorch))}")
    if config_dir:
        return config_dir
    if pytorch:
        return pytorch if Path(pytorch).is_dir() else str(Path(pytorch).parent)
    raise UsageError("name the folder of the model's bert_config.json with -c/--config-dir")


def is_folder_of(config_dir, checkpoint) -> bool:
    """Whether the folder of a configuration is that of the checkpoint: what it says is then said of this one."""
    place = os.path.realpath(checkpoint)
    return os.path.realpath(config_dir) in (place, os.path.dirname(place))


def _how_to_fetch(name: str) -> str:
    """What to do where a path is the name of a model on Hugging Face's hub (`owner/name`)."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) or Path(name).suffix in (
        ".bin",
        ".pt",
        ".safetensors",
    ):
        return ""
    folder = name.partition("/")[2]
    return (
        "; if it is the name of a model on Hugging Face's hub, fetch its folder first (pip install huggingface_hub; "
        f"hf download {name} --local-dir {folder}) and name that: -pt {folder}"
    )
