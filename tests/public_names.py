"""The public names of the package, what their annotations say, and what an error must say of an argument."""

import importlib
import inspect
import pkgutil
import re
import types
import typing
from collections.abc import Callable, Iterator

import gated


def modules() -> Iterator[types.ModuleType]:
    for found in pkgutil.walk_packages(gated.__path__, "gated."):
        if not re.search(r"\.(lab|gpu|inductor)\b", found.name):
            yield importlib.import_module(found.name)


def public() -> dict[str, Callable]:
    """What `__all__` lists, or, in a module of its own, what it defines; exceptions apart."""
    names: dict[str, Callable] = {}
    for module in modules():
        alone = module.__name__.count(".") == 1 and not hasattr(module, "__path__")
        own = [n for n, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__]
        for name in getattr(module, "__all__", [n for n in own if n[0] != "_"] if alone else []):
            thing = getattr(module, name)
            called = inspect.isfunction(thing) or (inspect.isclass(thing) and not issubclass(thing, Exception))
            if called and thing not in names.values():
                names[f"{module.__name__}.{name}".removeprefix("gated.")] = thing
    return names


def is_record(thing: object) -> bool:
    """A tuple with names, or a dataclass that takes what it is given."""
    fields = hasattr(thing, "__dataclass_fields__") and not hasattr(thing, "__post_init__")
    return inspect.isclass(thing) and (issubclass(thing, tuple) or fields)


EVERYTHING = public()
RECORDS = {name: thing for name, thing in EVERYTHING.items() if is_record(thing)}
PUBLIC = {name: thing for name, thing in EVERYTHING.items() if name not in RECORDS}


def hints(thing: Callable) -> dict[str, object]:
    function = thing.__init__ if inspect.isclass(thing) else thing
    found = typing.get_type_hints(inspect.unwrap(function), include_extras=True)
    if inspect.isclass(thing) and getattr(thing, "__dataclass_fields__", None):
        found = typing.get_type_hints(thing) | found
    return found


def arms(annotation: object) -> list[object]:
    """The members of a union, or the annotation alone."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [each for arm in typing.get_args(annotation) for each in arms(arm)]
    return [annotation]


def is_array(annotation: object) -> bool:
    return inspect.isclass(annotation) and hasattr(annotation, "dim_str")


def subject(parameter: str, message: str) -> bool:
    """Whether the message is about the argument: `x ... must`, 'x', x=3, or x as its first word; never an article."""
    name = re.escape(parameter)
    if re.search(rf"[`'\"]{name}[`'\"]|(?<![\w.]){name}(=| must )", message):
        return True
    head, must, _ = message.partition(" must ")
    opening = re.compile(rf"(.*\W)?{name}(?!\w)" if must else rf"{name} [a-z]")
    return parameter != "a" and bool(opening.match(head))
