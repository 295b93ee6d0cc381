"""The measured processes' side of a conversation in lines of JSON."""

from __future__ import annotations

import json
import sys

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def serve(answers: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """Answer requests from the standard input on the standard output, until there are no more.

    Parameters
    ----------
    answers
        What each request does; its members are the arguments.
    """
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(answers[request.pop("do")](**request)), flush=True)
