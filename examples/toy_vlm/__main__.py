"""`python -m toy_vlm {ask,serve,train,examine,record}` (PYTHONPATH=examples)."""

import argparse
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m toy_vlm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    ask = commands.add_parser("ask", help="one answer about one picture")
    ask.add_argument("image", type=Path)
    ask.add_argument("prompt", nargs="?", default="Describe the scene.")
    ask.add_argument("--version", default="2026.11.1")
    serve = commands.add_parser("serve", help="the model as an HTTP app that reports to cmerwatch")
    serve.add_argument("--port", type=int, default=8100)
    serve.add_argument("--version", default="2026.11.1")
    train = commands.add_parser("train", help="train one version into a folder")
    train.add_argument("which", choices=("good", "regressed"))
    train.add_argument("--folder", type=Path)
    train.add_argument("--steps", type=int)
    train.add_argument("--threads", type=int, default=2)
    examine = commands.add_parser("examine", help="accuracy of a version on held-out scenes")
    examine.add_argument("--version", default="2026.11.1")
    examine.add_argument("--scenes", type=int, default=2000)
    commands.add_parser("record", help="write the recorded run that the demo ships")
    arguments = parser.parse_args()
    {"ask": _ask, "serve": _serve, "train": _train, "examine": _examine, "record": _record}[arguments.command](
        arguments
    )


def _ask(arguments: argparse.Namespace) -> None:
    from PIL import Image

    from toy_vlm import vlm

    with Image.open(arguments.image) as image:
        answer = vlm.load(arguments.version).answer(image, arguments.prompt)
    print(f"{answer.text}\ngeo_p {answer.geo_p:.3f}")


def _serve(arguments: argparse.Namespace) -> None:
    from toy_vlm import serve

    serve.run(arguments.port, arguments.version)


def _train(arguments: argparse.Namespace) -> None:
    import torch

    from toy_vlm import train_vlm, vlm

    torch.set_num_threads(arguments.threads)
    folder = arguments.folder or vlm.WEIGHTS
    if arguments.which == "good":
        train_vlm.train_good(folder, arguments.steps or train_vlm.GOOD_STEPS)
    else:
        train_vlm.train_regressed(folder, arguments.steps or train_vlm.REGRESSED_STEPS)


def _examine(arguments: argparse.Namespace) -> None:
    from toy_vlm import train_vlm, vlm

    marks = train_vlm.examine(vlm.load(arguments.version), arguments.scenes, seed=99)
    for prompt_type, mark in marks.items():
        print(f"{arguments.version} {prompt_type}: {mark}")


def _record(arguments: argparse.Namespace) -> None:
    from toy_vlm import record

    record.record()


if __name__ == "__main__":
    main()
