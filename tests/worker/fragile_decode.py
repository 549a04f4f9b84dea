"""The real decode process, except that an image carrying a mark kills it, as a bug in a C decoder would."""

import os
import signal

from cmerwatch_worker import decode

MARK = b"dies of this"
_answer = decode.answer


def answer(data: bytes, *rest: object) -> bytes:
    if data.endswith(MARK):
        os.kill(os.getpid(), signal.SIGKILL)
    return _answer(data, *rest)  # type: ignore[arg-type]


if __name__ == "__main__":
    decode.answer = answer
    decode.main()
