"""Overhears what a method of one object returns, for the length of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def listening(owner: object, name: str) -> Iterator[list[Any]]:
    """The results of every call of ``owner.name`` during the block, in order. Only this one object is listened to.

    Hooks of torch do not see a ``forward`` that is called as a method; this does. Nothing of it is left behind.

    >>> words = type("Words", (), {"say": lambda self, word: word.upper()})()
    >>> with listening(words, "say") as heard:
    ...     _ = words.say("yes"), words.say("no")
    >>> heard, "say" in vars(words)
    (['YES', 'NO'], False)
    """
    method = getattr(owner, name)
    before = {key: value for key, value in vars(owner).items() if key == name}
    heard: list[Any] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        heard.append(result)
        return result

    vars(owner)[name] = call
    try:
        yield heard
    finally:
        del vars(owner)[name]
        vars(owner).update(before)
