"""The engine card: what an engine file can't say of itself, as JSON beside it (`<engine>.json`)."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from helpers.bert_config import BertConfig
from helpers.errors import DemoBertError
from helpers.files import read_json
from helpers.outputs import json_bytes, write_json

LAYOUTS = ("padded", "packed")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")


@dataclass(frozen=True)
class EngineCard:
    """One engine, described: by its card file, or, where an engine without one is trusted, by the engine itself.

    backend            "openvino", "tensorrt" or "tensorrt_rtx"
    backend_version    the version that built it, as the backend itself spells it
    device             the device it was built for, as the backend names it
    layout             "padded" ([B, S] inputs) or "packed" ([T] inputs)
    network            "layers", "plugin" or "native": the form of the network
    precision          the types it computes in, widest last: ["fp32"], ["bf16"], ["int8", "bf16"]…; [] where a plan
                       without a card file does not tell
    batch_sizes        ascending; the last is the largest that it serves
    sequence_lengths   ascending; likewise, in tokens
    config             the model's shape
    tokenizer_sha256   SHA-256 of the tokenizer beside the engine; None: it was built without one
    engine_sha256      SHA-256 of the engine file; "" without a card file
    engine_bytes       its size
    settings           what the backend needs to load the engine again (strings)
    """

    backend: str
    backend_version: str
    device: str
    layout: str
    network: str
    precision: list
    batch_sizes: list
    sequence_lengths: list
    config: BertConfig
    tokenizer_sha256: str | None = None
    engine_sha256: str = ""
    engine_bytes: int = 0
    settings: dict = field(default_factory=dict)

    @property
    def max_batch_size(self) -> int:
        return self.batch_sizes[-1]

    @property
    def max_sequence_length(self) -> int:
        return self.sequence_lengths[-1]

    @property
    def max_tokens(self) -> int:
        """The most tokens that a packed engine takes at once: those of its largest profile, filled."""
        return self.max_batch_size * self.max_sequence_length

    @property
    def precisions(self) -> str:
        """The types that it computes in, for people: "int8+fp32"."""
        return "+".join(self.precision) or "a precision that it does not tell"

    @property
    def built_without_tokenizer(self) -> bool:
        """What a card file says; an engine without one does not tell."""
        return self.tokenizer_sha256 is None and self.engine_sha256 != ""

    def to_bytes(self) -> bytes:
        """The card's file."""
        return json_bytes(asdict(self))

    def write(self, path) -> None:
        """Write the card alone, whole or not at all. Raises DemoBertError."""
        write_json(path, asdict(self))

    @classmethod
    def path_for(cls, engine_path) -> Path:
        return Path(f"{engine_path}.json")

    @classmethod
    def tokenizer_path_for(cls, engine_path) -> Path:
        """Where the engine's tokenizer lies, which its card describes as well."""
        return Path(f"{engine_path}.tokenizer.json")

    @classmethod
    def set_of(cls, engine_path) -> tuple[Path, Path, Path]:
        """The three files of an engine: its tokenizer, itself, its card."""
        return cls.tokenizer_path_for(engine_path), Path(engine_path), cls.path_for(engine_path)

    @classmethod
    def read(cls, path) -> "EngineCard":
        """Read and check a card. Raises DemoBertError where a field is missing or makes no sense."""
        values = read_json(path, "engine card")
        try:
            if not isinstance(values, dict):
                raise DemoBertError("not a JSON object")
            if missing := [name for name in cls.__dataclass_fields__ if name not in values]:
                raise DemoBertError(f"it lacks {', '.join(missing)}")
            fields = {name: values[name] for name in cls.__dataclass_fields__}
            _check(fields)
            fields["config"] = BertConfig.from_dict(fields["config"])
            return cls(**fields)
        except DemoBertError as error:
            raise DemoBertError(f"the engine card {path} can't be used: {error}; build the engine again") from None


@dataclass(frozen=True)
class EngineFacts:
    """What an engine without its card has to tell, which is written into it as its network's name.

    `precision` and `config` are EngineCard's; `precision` is [] where only the configuration is known, by -c.
    """

    precision: list
    config: BertConfig

    def network_name(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def told(cls, path, name: str, config: BertConfig | None) -> "EngineFacts":
        """Of the engine `path` whose network has this name; `config` is what the user says of it, or None.

        Raises DemoBertError where neither tells the sizes of the tables, or both do, and differ.
        """
        own = cls._read(name)
        if own is None:
            if config is None:
                raise DemoBertError(
                    f"{path} does not tell the sizes of its tables; name the folder of the model's configuration with "
                    "-c, or build it again"
                )
            return cls([], config)
        for table in ("vocab_size", "type_vocab_size", "max_position_embeddings") if config else ():
            if getattr(config, table) != getattr(own.config, table):
                raise DemoBertError(
                    f"{path} was built with {table} {getattr(own.config, table)}, the configuration of -c has "
                    f"{getattr(config, table)}"
                )
        return own

    @classmethod
    def _read(cls, name: str) -> "EngineFacts | None":
        """None where the name is no such facts: another program's, or an older version's."""
        try:
            values = json.loads(name)
            precision, config = values["precision"], values["config"]
            known = isinstance(precision, list) and precision and all(item in PRECISIONS for item in precision)
            return cls(precision, BertConfig.from_dict(config)) if known else None
        except (ValueError, TypeError, KeyError, RecursionError, DemoBertError):
            return None


def is_engine(path) -> bool:
    """Whether `path` is an engine with a card, or such a card, or its tokenizer: what a new build may replace."""
    path = Path(path)
    if path.name.endswith(".tokenizer.json"):
        return EngineCard.path_for(str(path).removesuffix(".tokenizer.json")).exists()
    return EngineCard.path_for(path).exists() or (path.suffix == ".json" and path.with_suffix("").exists())


def _check(fields: dict) -> None:
    """Raises DemoBertError for the first field that makes no sense."""

    def require(holds: bool, fault: str) -> None:
        if not holds:
            raise DemoBertError(fault)

    for name in ("backend", "backend_version", "device", "layout", "network", "engine_sha256"):
        require(isinstance(fields[name], str), f"{name} is not text")
    require(isinstance(fields["tokenizer_sha256"], (str, type(None))), "tokenizer_sha256 is not text")
    require(fields["layout"] in LAYOUTS, f"layout is {fields['layout']!r}")
    precision, settings = fields["precision"], fields["settings"]
    known = isinstance(precision, list) and precision and all(item in PRECISIONS for item in precision)
    require(known, f"precision is {precision!r}")
    for name in ("batch_sizes", "sequence_lengths"):
        sizes = fields[name]
        whole = isinstance(sizes, list) and sizes and all(type(size) is int and size > 0 for size in sizes)
        require(whole and sizes == sorted(sizes), f"{name} is not an ascending list of whole numbers")
    require(type(fields["engine_bytes"]) is int, "engine_bytes is not a whole number")
    texts = isinstance(settings, dict) and all(isinstance(value, str) for value in settings.values())
    require(texts, "settings is not an object of texts")
