"""The configurations of the models in an exported repository, as Triton's own protobuf messages.

What Triton reads of them, and how it fills a plan's inputs, is in its model_config.proto and its tensorrt_backend.
"""

import json
import struct
from dataclasses import dataclass

from helpers.answer_options import AnswerOptions
from helpers.backends.tensorrt.plan_builder import Profile
from helpers.batching import INPUT_NAMES
from helpers.errors import DemoBertError, missing_package

try:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as proto
except (ModuleNotFoundError, RuntimeError) as error:  # RuntimeError: without gRPC
    raise missing_package(
        "tritonclient[grpc]", "-r requirements-serve.txt", "writing a configuration for Triton"
    ) from error

#: The output of a plan.
LOGITS = "logits_out"

#: A passage and a question that the model answers before it says that it is ready: OpenVINO compiles its kernels then.
WARM_UP = ("The tower was built in 1889 by the company of Gustave Eiffel.", "Who built the tower?")

#: Repeats of that passage which fill a window of any engine.
_FILLING = 100


@dataclass(frozen=True)
class Serving:
    """How a model is served.

    name              models' names begin with it
    kind              "KIND_CPU" or "KIND_GPU": where the engine runs
    instances         of the engine: on a CPU in all, on GPUs on each
    max_batch_size    questions that are answered together
    batch_size        of those that wait, so many are taken at once, where there are more; None: as many as may be
    max_queue_delay   microseconds to wait for more of them
    max_queue_size    requests that may wait; further ones are refused
    max_passage       characters of the longest passage
    prepare_for       "throughput" or "latency"
    """

    name: str
    kind: str
    instances: int
    max_batch_size: int
    batch_size: int | None
    max_queue_delay: int
    max_queue_size: int
    max_passage: int
    prepare_for: str

    @property
    def question_answering(self) -> str:
        """The name of the model that answers questions."""
        return f"{self.name}_qa"

    @property
    def engine(self) -> str:
        """The name of the model that is the plan alone."""
        return f"{self.name}_engine"


@dataclass(frozen=True)
class PlanFacts:
    """What Triton has to know of a TensorRT plan: its layout, the shapes of inputs and output (-1: dynamic), profiles."""

    layout: str
    shapes: dict[str, tuple]
    profiles: list[Profile]

    @property
    def is_static(self) -> bool:
        """Whether it takes one batch size only, which Triton can't batch."""
        return self.layout == "padded" and self.shapes["input_ids"][0] != -1

    @property
    def largest(self) -> int:
        """The profile that takes the most sequences."""
        return max(range(len(self.profiles)), key=lambda index: self.profiles[index].max_batch)

    def called(self, name: str) -> dict:
        """What `helpers.serving.called_engine.CalledModel` is made of."""
        lengths = sorted({profile.length for profile in self.profiles}) if self.layout == "padded" else []
        return {"name": name, "lengths": lengths, "rows": self.shapes["input_ids"][0] if self.is_static else None}


def as_text(config) -> bytes:
    """config.pbtxt."""
    return text_format.MessageToString(config, as_utf8=True).encode("utf-8")


def question_answering(serving: Serving, options: AnswerOptions, engine: str, called: dict | None) -> tuple:
    """(configuration, {file of the warm-up: bytes}) of the model that answers questions with the file `engine`.

    `called` describes the model that runs the engine in its stead; None: it runs the engine itself.
    """
    config = proto.ModelConfig(name=serving.question_answering, backend="python", max_batch_size=serving.max_batch_size)
    for name in ("passage", "question"):
        config.input.add(name=name, data_type=proto.TYPE_STRING, dims=[1])
    types = {"answer": "STRING", "probability": "FP64", "start": "INT64", "end": "INT64", "n_best": "STRING"}
    for name, dtype in types.items():
        config.output.add(name=name, data_type=f"TYPE_{dtype}", dims=[1])
    config.dynamic_batching.max_queue_delay_microseconds = serving.max_queue_delay
    config.dynamic_batching.default_queue_policy.max_queue_size = serving.max_queue_size
    if serving.batch_size:
        config.dynamic_batching.preferred_batch_size.append(serving.batch_size)
    # Of those that only read text and call the engine, one works while the other waits.
    count, kind = (2 * serving.instances, "KIND_CPU") if called else (serving.instances, serving.kind)
    config.instance_group.add(count=count, kind=kind)
    set_options = {name: value for name, value in vars(options).items() if value is not None}
    settings = {
        "engine": engine,
        "options": json.dumps(set_options),
        "max_passage": str(serving.max_passage),
        "prepare_for": serving.prepare_for,
    }
    settings |= {"engine_model": json.dumps(called)} if called else {}
    for name, value in settings.items():
        config.parameters[name].string_value = value
    # The models of a repository are loaded in any order: one that is called may not be there yet.
    return config, {} if called else _add_warm_up(config)


def _add_warm_up(config) -> dict[str, bytes]:
    passage, question = WARM_UP
    texts = {"question": question, "passage": passage, "long_passage": " ".join([passage] * _FILLING)}
    for name, file in (("short", "passage"), ("long", "long_passage")):
        warm_up = config.model_warmup.add(name=name, batch_size=1, count=2)
        for tensor, source in (("passage", file), ("question", "question")):
            warm_up.inputs[tensor].CopyFrom(
                proto.ModelWarmup.Input(data_type=proto.TYPE_STRING, dims=[1], input_data_file=source)
            )
    # As Triton keeps strings: the length in bytes, then the bytes.
    contents = {name: text.encode("utf-8") for name, text in texts.items()}
    return {name: struct.pack("<I", len(data)) + data for name, data in contents.items()}


def engine_model(serving: Serving, plan: PlanFacts) -> tuple:
    """(configuration, {file of the warm-up: bytes}) of the model that Triton's TensorRT backend runs.

    Raises DemoBertError for a plan whose logits can't be handed back to the requests that they belong to.
    """
    config = proto.ModelConfig(name=serving.engine, platform="tensorrt_plan", default_model_filename="model.plan")
    fill = _packed if plan.layout == "packed" else _padded
    profiles = fill(config, plan)
    if config.max_batch_size:
        config.dynamic_batching.max_queue_delay_microseconds = serving.max_queue_delay
    config.instance_group.add(count=serving.instances, kind="KIND_GPU", profile=[str(index) for index in profiles])
    return config, _add_engine_warm_up(config, plan)


def _padded(config, plan: PlanFacts) -> range:
    """Inputs and output of a padded plan; gives the profiles to use.

    All: Triton takes the nearest whose shapes fit, and batches requests of equal lengths only.
    """
    first = 0 if plan.is_static else 1  # without a batch dimension the shapes are the whole
    config.max_batch_size = 0 if plan.is_static else max(profile.max_batch for profile in plan.profiles)
    for name in INPUT_NAMES["padded"]:
        config.input.add(name=name, data_type=proto.TYPE_INT32, dims=plan.shapes[name][first:])
    config.output.add(name=LOGITS, data_type=proto.TYPE_FP32, dims=plan.shapes[LOGITS][first:])
    return range(len(plan.profiles))


def _packed(config, plan: PlanFacts) -> list[int]:
    """Inputs and output of a packed plan; gives the profile to use.

    Requests have the shape [1, tokens]: Triton lays the tokens of a batch end to end, and counts, and gives each request
    its own logits. It takes a request for a sequence, whatever its first dimension.

    Only the largest profile: Triton would choose by the number of tokens alone, and many short sequences have the tokens
    of a profile which takes fewer sequences.
    """
    logits = plan.shapes[LOGITS]
    if logits[0] != -1:
        raise DemoBertError(
            f"the plan's logits have the shape {list(logits)}, all start logits first, which Triton can't hand back to "
            "requests: build it with --logits-by-token, or with --network native"
        )
    config.max_batch_size = plan.profiles[plan.largest].max_batch
    for name in ("input_ids", "segment_ids"):
        config.input.add(name=name, data_type=proto.TYPE_INT32, dims=[-1], allow_ragged_batch=True)
    for kind, target in (
        ("BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO", "cu_seqlens"),
        ("BATCH_MAX_ELEMENT_COUNT_AS_SHAPE", "max_seqlen"),
    ):
        config.batch_input.add(kind=kind, target_name=[target], data_type=proto.TYPE_INT32, source_input=["input_ids"])
    # Its -1 stands for the same dimension of the source, [1, tokens], to whose shape the batch dimension belongs.
    config.output.add(name=LOGITS, data_type=proto.TYPE_FP32, dims=logits)
    config.batch_output.add(kind="BATCH_SCATTER_WITH_INPUT_SHAPE", target_name=[LOGITS], source_input=["input_ids"])
    return [plan.largest]


def _add_engine_warm_up(config, plan: PlanFacts) -> dict[str, bytes]:
    """One request of each profile's length; its mask is of ones, all else of zeros."""
    files = {}
    for length in sorted({profile.length for profile in plan.profiles}):
        warm_up = config.model_warmup.add(name=f"tokens_{length}", batch_size=1)
        for tensor in config.input:
            shape = [length if size == -1 else size for size in tensor.dims]
            sample = proto.ModelWarmup.Input(data_type=tensor.data_type, dims=shape, zero_data=True)
            if tensor.name == "input_mask":
                sample.input_data_file = f"ones_{length}"
                files[sample.input_data_file] = struct.pack("<i", 1) * (length * (shape[0] if len(shape) == 2 else 1))
            warm_up.inputs[tensor.name].CopyFrom(sample)
    return files
