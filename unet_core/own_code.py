"""Functions of one's own, which a person names as "module:function" in a setting.

    loss = OwnFunction.load("loss", "my_module:my_loss", "my_loss(masks, logits)", masks, logits)
    loss(masks, logits)

Only what a person has given is imported; nothing here looks for names in files.
"""

from __future__ import annotations

import importlib
import inspect
import pathlib
import re
import traceback
from collections.abc import Callable
from typing import Any

from unet_core.errors import UserError

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_PACKAGE = str(pathlib.Path(__file__).parent)


def is_name(text: str) -> bool:
    """Whether a text has the form module:function, as in my_package.my_module:my_function."""
    return _NAME.fullmatch(text) is not None


class OwnFunction:
    """A function of one's own, whose errors say which setting it belongs to and where it raised.

    Attributes:
        setting: The setting that names it.
        name: "module:function".
    """

    def __init__(self, setting: str, name: str, function: Callable[..., Any]):
        self.setting = setting
        self.name = name
        self._function = function

    @classmethod
    def load(
        cls, setting: str, name: str, signature: str, *args: Any, **kwargs: Any
    ) -> OwnFunction:
        """Imports a function and checks that it can be called with these arguments.

        Args:
            setting: The setting that names it.
            name: "module:function".
            signature: How it is called, for messages.
            args: Arguments as it will be given; it is not called.
            kwargs: Keyword arguments of the same kind.

        Raises:
            UserError: If it cannot be imported, is no function, or takes other arguments.
        """
        function = _import(setting, name, signature)
        try:
            inspect.signature(function).bind(*args, **kwargs)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"`{setting}` ({name}) cannot be called as {signature}: {error}. Give it these "
                "arguments."
            ) from error
        return cls(setting, name, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function.

        Raises:
            UserError: If it raises an error; it is named with its place.
        """
        try:
            return self._function(*args, **kwargs)
        except UserError:
            raise
        except Exception as error:
            raise self.refusal(f"raised {described(error)}{_given(kwargs)}.") from error

    def refusal(self, problem: str) -> UserError:
        """Returns the error that the function has a problem."""
        return UserError(f"`{self.setting}` ({self.name}) {problem}")


def described(error: BaseException) -> str:
    """Returns an error in one line, with the place in the code of its author."""
    text = " ".join(str(error).split()) or "no message"
    others = (
        "site-packages",
        "dist-packages",
        _PACKAGE,
        str(pathlib.Path(inspect.__file__).parent),
    )
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<")
        and not any(other in frame.filename for other in others)
    ]
    place = f" in {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}: {text}"


def _given(kwargs: dict[str, Any]) -> str:
    listed = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
    return f", when it was called with {listed}" if listed else ""


def _import(setting: str, name: str, signature: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"`{setting}` ({name}): {module_name} cannot be imported ({described(error)}). Modules "
            "are looked for in the current folder, on PYTHONPATH and among installed packages."
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        found = "is no function" if hasattr(module, attribute) else "is not there"
        where = getattr(module, "__file__", module_name)
        raise UserError(
            f"`{setting}` ({name}): {attribute} {found} in {where}. Define {signature} there."
        )
    return function
