"""The API surface of a TensorRT Python module: enums, classes, their methods' arguments and properties.

`python surface.py EXTENSION_FILE NAME` loads NVIDIA's binary module NAME and prints its surface as JSON; it imports
nothing of this project, because it runs in a subprocess whose TensorRT libraries are stubs. pybind11 writes each
overload's signature on the docstring's lines, which is where argument names and arity come from.
"""

import importlib.machinery
import importlib.util
import inspect
import json
import re
import sys


def signatures(docstring: str | None, name: str) -> list[list[dict]]:
    """Each overload of `name` in a pybind11 docstring: its arguments (without self) as {"name", "optional"}."""
    found = []
    for line in (docstring or "").splitlines():
        match = re.match(rf"\s*(?:\d+\. )?{re.escape(name)}\((.*)\) -> .*$", line)
        if match:
            found.append(_arguments(match.group(1)))
    return found


def _arguments(text: str) -> list[dict]:
    """`self: X, a: int, b: list[int] = [1, 2]` → [{"name": "a", …}, {"name": "b", …}]."""
    parts, depth, current = [], 0, ""
    for character in text:
        depth += character in "([{<"
        depth -= character in ")]}>"
        if character == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += character
    parts.append(current)
    arguments = [part.strip() for part in parts if part.strip() and part.strip() not in ("*", "/")]
    named = [
        {"name": re.match(r"\*{0,2}\w+", argument).group(), "optional": bool(re.search(r" = |=", argument))}
        for argument in arguments
    ]
    return [argument for argument in named if argument["name"] != "self"]


def _enum_members(cls) -> dict | None:
    members = getattr(cls, "__members__", None)
    return {name: int(value) for name, value in members.items()} if isinstance(members, dict) or members else None


def _class_surface(cls) -> dict:
    methods, properties, constants = {}, {}, []
    for base in reversed(cls.__mro__[:-1]):
        for name, member in vars(base).items():
            if isinstance(member, property):
                properties[name] = {"settable": member.fset is not None}
            elif callable(member) or isinstance(member, staticmethod):
                function = member.__func__ if isinstance(member, staticmethod) else member
                methods[name] = signatures(getattr(function, "__doc__", None), name)
            elif not name.startswith("__"):
                constants.append(name)
    return {
        "bases": [base.__name__ for base in cls.__mro__[1:-1] if base.__name__ != "pybind11_object"],
        "methods": methods,
        "properties": properties,
        "constants": constants,
    }


def surface(module) -> dict:
    """{"enums": {class: {member: value}}, "classes": {class: {...}}, "functions": {name: [overload, …]}}."""
    result = {"enums": {}, "classes": {}, "functions": {}, "values": []}
    for name in dir(module):
        if name.startswith("__"):
            continue
        member = getattr(module, name)
        if inspect.isclass(member):
            members = _enum_members(member)
            if members is not None:
                result["enums"][name] = members
            else:
                result["classes"][name] = _class_surface(member)
        elif callable(member):
            result["functions"][name] = signatures(member.__doc__, name)
        elif not inspect.ismodule(member):
            result["values"].append(name)
    return result


def load_extension(path: str, name: str):
    """The extension module `name` in the file `path`."""
    loader = importlib.machinery.ExtensionFileLoader(name, path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


if __name__ == "__main__":
    json.dump(surface(load_extension(sys.argv[1], sys.argv[2])), sys.stdout)
