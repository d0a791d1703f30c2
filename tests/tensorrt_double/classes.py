"""Turns the double's classes into one version's: without what it lacks, with every argument checked and recorded."""

import inspect
import types

import numpy as np

from tests.tensorrt_double.enums import enums_of, make_enum
from tests.tensorrt_double.versions import READ_ONLY_IN, REQUIRED_IN, Version, has


class Native:
    """Base of the double's classes: like pybind11's objects, they take no attribute that their class lacks."""

    _module: types.ModuleType
    _version: Version

    def __setattr__(self, name, value):
        cls = type(self)
        if name[0] != "_" and not isinstance(getattr(cls, name, None), property) and "_module" in vars(cls):
            raise AttributeError(f"{cls.__name__} has no attribute {name!r}")
        object.__setattr__(self, name, value)

    def __getattr__(self, name):
        raise AttributeError(f"TensorRT {self._version.name}: {type(self).__name__} has no attribute {name!r}")


def private(cls) -> type:
    """Marks a class whose objects TensorRT alone makes: calling it is a TypeError, as in pybind11."""
    cls._private = True
    return cls


def new(cls, **attributes):
    """An object of a class that users can't construct, with these (underscored) attributes."""
    made = object.__new__(cls)
    for name, value in attributes.items():
        object.__setattr__(made, f"_{name}", value)
    return made


class Recorder:
    """What of the API has been touched: (class, name) → the sets of argument names it was called with."""

    def __init__(self):
        self.calls: dict[tuple[str, str], set[tuple[int, tuple[str, ...]]]] = {}

    def note(self, owner: str, name: str, positional: int = 0, keywords: tuple[str, ...] = ()) -> None:
        """Remembers one use: of a property ("name", or "name=" when set), or a call with so many arguments."""
        self.calls.setdefault((owner, name), set()).add((positional, keywords))


def _require(fits: bool, value):
    if not fits:
        raise TypeError
    return value


def _number(value, *types):
    return _require(isinstance(value, types) and not isinstance(value, bool), value)


def _buffer(value):
    memoryview(value)
    return value


def _sequence(value, module, cls):
    if isinstance(value, cls):
        return value
    return cls(_require(isinstance(value, (tuple, list, module.Dims, module.Permutation)), value))


def _elements(value, module, kind: str) -> list:
    _require(isinstance(value, (list, tuple, module.PluginFieldCollection)), value)
    return [_convert(item, kind, module) for item in value]


#: (value, module) → the value as pybind11 would convert it, or TypeError. Other types are the module's own classes.
_CONVERSIONS = {
    "object": lambda value, module: value,
    "None": lambda value, module: _require(value is None, value),
    "bool": lambda value, module: _require(isinstance(value, bool), value),
    "int": lambda value, module: int(_number(value, int, np.integer)),
    "float": lambda value, module: float(_number(value, int, float, np.integer, np.floating)),
    "str": lambda value, module: _require(isinstance(value, str), value),
    "ndarray": lambda value, module: _require(isinstance(value, np.ndarray), value),
    "buffer": lambda value, module: _buffer(value),
    "list[ITensor]": lambda value, module: _elements(value, module, "ITensor"),
    "list[PluginField]": lambda value, module: _elements(value, module, "PluginField"),
    "Dims": lambda value, module: _sequence(value, module, module.Dims),
    "Permutation": lambda value, module: _sequence(value, module, module.Permutation),
}


def _convert(value, kind: str, module):
    if kind in _CONVERSIONS:
        return _CONVERSIONS[kind](value, module)
    if kind == "Weights" and isinstance(value, np.ndarray):
        return module.Weights(value)
    return _require(isinstance(value, getattr(module, kind)), value)


def check(value, annotation: str, module, where: str):
    """`value` as the type that `annotation` names, converted as pybind11 would; TypeError when it does not fit."""
    for option in annotation.split("|"):
        try:
            return _convert(value, option, module)
        except TypeError:
            continue
    raise TypeError(f"{where}: incompatible argument {value!r} ({type(value).__name__}), expected {annotation}")


def _checked(function, owner: str, module, version: Version, recorder: Recorder):
    """`function` with `version`'s arguments, each checked against its annotation."""
    name = function.__name__
    signature = inspect.signature(function)
    parameters = {}
    for parameter in list(signature.parameters.values())[1:]:
        path = f"{owner}.{name}.{parameter.name}"
        if has(version, path):
            required = version.key in REQUIRED_IN.get(path, ())
            parameters[parameter.name] = parameter.replace(default=inspect.Parameter.empty) if required else parameter
    visible = inspect.Signature([next(iter(signature.parameters.values())), *parameters.values()])
    needed = {key for key, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}

    def call(self, *args, **kwargs):
        given = dict(zip(parameters, args)) | kwargs
        if len(given) != len(args) + len(kwargs) or not needed <= given.keys() <= parameters.keys():
            try:
                visible.bind(self, *args, **kwargs)
            except TypeError as error:
                raise TypeError(f"TensorRT {version.name}: {owner}.{name}{visible}: {error}") from None
        recorder.note(owner, name, len(args), tuple(sorted(kwargs)))
        converted = {
            key: check(value, parameters[key].annotation, module, f"{owner}.{name}({key})")
            for key, value in given.items()
        }
        return function(self, **converted)

    call.__name__, call.__doc__, call.__signature__ = name, function.__doc__, visible
    return call


def _property(name: str, member: property, owner: str, module, version: Version, recorder: Recorder) -> property:
    def get(self):
        recorder.note(owner, name)
        return member.fget(self)

    if member.fset is None or version.key in READ_ONLY_IN.get(f"{owner}.{name}", ()):
        return property(get, doc=member.__doc__)
    annotation = list(inspect.signature(member.fset).parameters.values())[1].annotation

    def set_(self, value):
        recorder.note(owner, f"{name}=")
        member.fset(self, check(value, annotation, module, f"{owner}.{name} = "))

    return property(get, set_, doc=member.__doc__)


def _namespace(cls, module, version: Version, recorder: Recorder) -> dict:
    """The members of `cls` that `version` has, wrapped."""
    result = {}
    for name, member in vars(cls).items():
        path = f"{cls.__name__}.{name}"
        if name in ("__dict__", "__weakref__") or not has(version, path):
            continue
        if isinstance(member, property) and not name.startswith("_"):
            result[name] = _property(name, member, cls.__name__, module, version, recorder)
        elif inspect.isfunction(member) and (name == "__init__" or not name.startswith("_")):
            result[name] = _checked(member, cls.__name__, module, version, recorder)
        else:
            result[name] = member
    return result


def _refuse(self, *args, **kwargs):
    raise TypeError(f"{type(self).__name__}: No constructor defined!")


def materialise(classes: list[type], module: types.ModuleType, version: Version, recorder: Recorder) -> None:
    """Puts `version`'s form of each class, and its enums, into `module`. Bases must come before what derives."""
    for name, members in enums_of(version.key).items():
        setattr(module, name, make_enum(name, members, module.__name__))
    made = {}
    for cls in classes:
        if not has(version, cls.__name__):
            continue
        namespace = _namespace(cls, module, version, recorder)
        namespace.update(_module=module, _version=version, __module__=module.__name__)
        if vars(cls).get("_private"):
            namespace["__init__"] = _refuse
        bases = tuple(made.get(base, base) for base in cls.__bases__)
        made[cls] = type(cls.__name__, bases, namespace)
        setattr(module, cls.__name__, made[cls])
