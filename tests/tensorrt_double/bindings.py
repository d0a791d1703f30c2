"""NVIDIA's real Python bindings, loaded over stub libraries: what each release's API has, as JSON.

fetch_bindings.sh puts the wheels into the environment's bindings/ folder. The binary module needs libnvinfer and its
kin only for a dozen C functions, which a stub library compiled here offers; nothing can be built or run with it.
"""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.tensorrt_double.enums import enums_of
from tests.tensorrt_double.versions import VERSIONS

FOLDER = Path(sys.prefix) / "bindings"
_LIBRARY = re.compile(rb"lib(?:nvinfer|nvinfer_plugin|nvonnxparser|nvparsers)\.so\.\d+")
_SYMBOL = re.compile(
    rb"\x00((?:create\w+_INTERNAL)|get(?:Builder)?PluginRegistry|initLibNvInferPlugins|getNvOnnxParserVersion"
    rb"|_ZN\d+nv(?:uff|caffe)parser\w+)(?=\x00)"
)


def extension(version: str) -> Path | None:
    """The binary module of one version, None where it was not fetched."""
    if version == "rtx-1.7.1":
        from tests.tensorrt_double.rtx import real_module_folder

        folder = real_module_folder()
        return None if folder is None else folder / "tensorrt_rtx_bindings" / "tensorrt_rtx.so"
    path = FOLDER / version / "tensorrt_bindings" / "tensorrt.so"
    return path if path.is_file() else None


def real_surface(version: str, work: Path) -> dict:
    """The real module's surface (surface.py); stubs are compiled into the folder `work`."""
    path = extension(version)
    if version == "rtx-1.7.1":
        libraries = path.parents[1] / "tensorrt_rtx_libs"
    else:
        libraries = _stub_libraries(path, work)
    environment = dict(os.environ, LD_LIBRARY_PATH=str(libraries))
    script = Path(__file__).with_name("surface.py")
    command = [sys.executable, str(script), str(path), VERSIONS[version].module]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    if result.returncode:
        raise RuntimeError(f"loading {path}: {result.stderr[-2000:]}")
    return json.loads(result.stdout)


def _stub_libraries(path: Path, work: Path) -> Path:
    """Shared libraries with the names and the functions that the binary module asks for."""
    binary = path.read_bytes()
    source = work / "stubs.c"
    symbols = sorted({name.decode() for name in _SYMBOL.findall(binary)})
    source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in symbols))
    for name in sorted({name.decode() for name in _LIBRARY.findall(binary)}):
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(work / name), str(source)]
        subprocess.run(command, check=True, capture_output=True)
    return work


def offered(module, version: str) -> dict:
    """What the double's module offers: {"enums", "classes": {class: {"methods": {name: signature}, "properties"}}}."""
    classes = {}
    for name, cls in vars(module).items():
        if not inspect.isclass(cls) or "_module" not in vars(cls):
            continue
        methods, properties = {}, {}
        for base in reversed(cls.__mro__):
            if "_module" not in vars(base):
                continue
            for member_name, member in vars(base).items():
                if isinstance(member, property) and not member_name.startswith("_"):
                    properties[member_name] = member.fset is not None
                elif hasattr(member, "__signature__"):
                    methods[member_name] = list(member.__signature__.parameters.values())[1:]
        if getattr(cls, "_private", False):
            methods.pop("__init__", None)
        classes[name] = {"methods": methods, "properties": properties}
    return {"enums": enums_of(VERSIONS[version].key), "classes": classes}


def mismatches(ours: dict, real: dict) -> list[str]:
    """What the double offers and the real module lacks, or has otherwise; one line each."""
    found = []
    for enum, members in ours["enums"].items():
        real_members = real["enums"].get(enum, {})
        for member, value in members.items():
            if real_members.get(member) != value:
                found.append(f"{enum}.{member} = {value}, really {real_members.get(member)}")
    for name, parts in ours["classes"].items():
        if name not in real["classes"]:
            found.append(f"there is no class {name}")
            continue
        found += _class_mismatches(name, parts, real["classes"][name])
    return found


def _class_mismatches(name: str, parts: dict, real: dict) -> list[str]:
    found = []
    for method, parameters in parts["methods"].items():
        overloads = real["methods"].get(method)
        if overloads is None:
            found.append(f"{name}.{method} does not exist")
        elif (why := _signature_mismatch(parameters, overloads)) is not None:
            found.append(f"{name}.{method}: {why}")
    for attribute, settable in parts["properties"].items():
        theirs = real["properties"].get(attribute)
        if theirs is None:
            found.append(f"{name}.{attribute} does not exist")
        elif settable and not theirs["settable"]:
            found.append(f"{name}.{attribute} can't be set")
    return found


def _signature_mismatch(parameters: list, overloads: list) -> str | None:
    """None if the double's parameters are the real ones, over all overloads together."""
    if not overloads:
        return "its real signature is not documented" if parameters else None
    ours = [parameter.name for parameter in parameters]
    theirs = {argument["name"] for overload in overloads for argument in overload}
    if extra := [name for name in ours if name not in theirs]:
        return f"no argument {', '.join(extra)}; it has {', '.join(sorted(theirs))}"
    required = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    shortest = min(overloads, key=lambda overload: sum(not a["optional"] for a in overload))
    needed = [argument["name"] for argument in shortest if not argument["optional"]]
    if len(overloads) == 1 and required != needed:
        return f"needs {needed}, the double {required}"
    if len(required) > max(len(overload) for overload in overloads) or len(required) < len(needed):
        return f"needs {needed}, the double {required}"
    if not any([a["name"] for a in overload][: len(ours)] == ours[: len(overload)] for overload in overloads):
        return f"the order of arguments is {[[a['name'] for a in overload] for overload in overloads]}, not {ours}"
    return None


def uses_unknown(calls: dict, real: dict) -> list[str]:
    """What a recorder saw touched that the real module lacks; `calls` is Recorder.calls."""
    found = []
    for (owner, name), forms in sorted(calls.items()):
        cls = real["classes"].get(owner)
        plain = name.removesuffix("=")
        if cls is None or (plain not in cls["methods"] and plain not in cls["properties"]):
            found.append(f"{owner}.{plain} does not exist")
            continue
        if name.endswith("=") and not cls["properties"].get(plain, {}).get("settable"):
            found.append(f"{owner}.{plain} can't be set")
        overloads = cls["methods"].get(plain) or []
        for positional, keywords in forms if overloads else ():
            if not any(_accepts(overload, positional, keywords) for overload in overloads):
                found.append(f"{owner}.{plain} is called with {positional} arguments and {', '.join(keywords)}")
    return found


def _accepts(overload: list, positional: int, keywords: tuple) -> bool:
    names = [argument["name"] for argument in overload]
    given = set(names[:positional]) | set(keywords)
    needed = {argument["name"] for argument in overload if not argument["optional"]}
    return positional <= len(names) and set(keywords) <= set(names[positional:]) and needed <= given
