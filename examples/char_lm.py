"""A character model: a recurrent network learns to write Python (or whatever text you give it).

    python examples/char_lm.py                              # the standard library's sources, a minute or two on 2 cores
    python examples/char_lm.py --text book.txt --layer gru
    python examples/char_lm.py --impl torch                 # the same model on torch.nn, to compare the time a step
    python examples/char_lm.py --load char_lm.pt            # only evaluate a checkpoint and sample from it

The only line that differs between the two implementations is the one that picks ``rnnkern.LSTM`` or ``torch.nn.LSTM``:
parameters have the same names and shapes, so a checkpoint of one loads into the other.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sysconfig
import time
from collections import Counter
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

UNKNOWN = "\ufffd"
LAYERS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}


class CharModel(nn.Module):
    """Embedding, recurrent layers, and a linear map to the next character."""

    def __init__(self, layer: str, impl: str, characters: int, hidden: int, embedding: int, layers: int):
        super().__init__()
        if impl == "rnnkern":
            import rnnkern as package
        else:
            package = nn
        self.embedding = nn.Embedding(characters, embedding)
        self.rnn = getattr(package, LAYERS[layer])(embedding, hidden, layers)
        self.head = nn.Linear(hidden, characters)

    def forward(self, text: Tensor, state=None):
        """``text [T, B]`` → scores of the next characters ``[T, B, characters]`` and the state to go on from."""
        output, state = self.rnn(self.embedding(text), state)
        return self.head(output), state

    def step(self, character: Tensor, state=None):
        """One character ``[B]`` at a time, for sampling."""
        embedded = self.embedding(character)
        if hasattr(self.rnn, "step"):
            output, state = self.rnn.step(embedded, state)
        else:
            output, state = self.rnn(embedded[None], state)
            output = output[0]
        return self.head(output), state


# ---------------------------------------------------------------- text


def read_text(path: Path | None) -> str:
    """The given file, or the modules of the standard library one after the other."""
    files = [path] if path else sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return "".join(file.read_text(encoding="utf-8", errors="replace") for file in files)


def hold_out(text: str) -> tuple[str, str]:
    """What to learn from, and the last twentieth to be judged by."""
    held_out = len(text) // 20
    return text[:-held_out], text[-held_out:]


def make_vocabulary(text: str, size: int = 256) -> list[str]:
    """The most frequent characters; all others share one symbol."""
    return [UNKNOWN] + sorted(c for c, _ in Counter(text).most_common(size - 1) if c != UNKNOWN)


def encode(text: str, vocabulary: list[str]) -> Tensor:
    index = {c: i for i, c in enumerate(vocabulary)}
    return torch.tensor([index.get(c, 0) for c in text])


def in_streams(text: Tensor, streams: int) -> tuple[Tensor, Tensor]:
    """Cuts a text into parallel streams: inputs and targets ``[T, streams]``; a target is the next character."""
    steps = (len(text) - 1) // streams
    cut = [part[: steps * streams].view(streams, steps).t().contiguous() for part in (text[:-1], text[1:])]
    return cut[0], cut[1]


# ---------------------------------------------------------------- the baseline


def bigram_bits(train: Tensor, inputs: Tensor, targets: Tensor, characters: int) -> float:
    """Bits per character of a bigram model with Witten-Bell smoothing."""
    pairs = torch.zeros(characters, characters, dtype=torch.float64)
    pairs.view(-1).index_add_(0, train[:-1] * characters + train[1:], torch.ones(len(train) - 1, dtype=torch.float64))
    unigram = pairs.sum(0) + 1
    unigram /= unigram.sum()
    followers = (pairs > 0).sum(1, keepdim=True).clamp_min(1)  # as much weight for the unseen as there were novelties
    bigram = (pairs + followers * unigram) / (pairs.sum(1, keepdim=True) + followers)
    return -bigram[inputs, targets].log2().mean().item()


# ---------------------------------------------------------------- training


@torch.no_grad()
def evaluate(model: CharModel, inputs: Tensor, targets: Tensor, steps: int = 256) -> float:
    """Bits per character over streams ``[T, B]``, the state carried along."""
    model.eval()
    total, state = 0.0, None
    for x, y in zip(inputs.split(steps), targets.split(steps), strict=True):
        scores, state = model(x, state)
        total += cross_entropy(scores.flatten(0, 1), y.flatten(), reduction="sum").item()
    return total / targets.numel() / math.log(2)


def detach(state):
    """Cuts the graph between two pieces of text: the state goes on, its gradient does not."""
    return tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()


def train(
    model: nn.Module, inputs: Tensor, targets: Tensor, steps: int, length: int, lr: float, show: bool = True
) -> list[float]:
    """Truncated backpropagation through time, with a progress bar or without; the seconds that each step took."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    pieces = list(zip(inputs.split(length), targets.split(length), strict=True))
    pieces = [piece for piece in pieces if len(piece[0]) == length] or pieces
    seconds, smooth, state = [], None, None
    model.train()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, disable=not show) as progress:
        task = progress.add_task("training", total=steps)
        for step in range(steps):
            if step % len(pieces) == 0:
                state = None
            x, y = pieces[step % len(pieces)]
            start = time.perf_counter()
            scores, state = model(x, state)
            loss = cross_entropy(scores.flatten(0, 1), y.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            state = detach(state)
            bits = loss.item() / math.log(2)
            seconds.append(time.perf_counter() - start)
            smooth = bits if smooth is None else 0.95 * smooth + 0.05 * bits
            progress.update(task, advance=1, description=f"training {smooth:.3f} bits per character")
    return seconds


@torch.no_grad()
def sample(model: CharModel, vocabulary: list[str], prompt: str, count: int, temperature: float = 0.7) -> str:
    model.eval()
    device = model.head.weight.device
    state, text = None, encode(prompt, vocabulary).tolist()
    for character in text[:-1]:
        _, state = model.step(torch.tensor([character], device=device), state)
    for _ in range(count):
        scores, state = model.step(torch.tensor([text[-1]], device=device), state)
        text.append(int(torch.multinomial((scores[0] / temperature).softmax(0), 1)))
    return "".join(vocabulary[i] for i in text)


def save(model: CharModel, path: Path, config: dict, vocabulary: list[str]) -> None:
    torch.save({"config": config, "vocabulary": vocabulary, "model": model.state_dict()}, path)


def load(path: Path, impl: str) -> tuple[CharModel, list[str]]:
    """The model of a checkpoint, on whichever implementation is asked for."""
    checkpoint = torch.load(path, map_location="cpu")
    model = CharModel(impl=impl, characters=len(checkpoint["vocabulary"]), **checkpoint["config"])
    model.load_state_dict(checkpoint["model"])
    return model, checkpoint["vocabulary"]


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments of this program, which `distributed_char_lm.py` takes too."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a UTF-8 file (default: the standard library's sources)")
    parser.add_argument("--layer", choices=LAYERS, default="lstm")
    parser.add_argument("--impl", choices=["rnnkern", "torch"], default="rnnkern")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--embedding", type=int, default=64)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1000, help="training steps")
    parser.add_argument("--length", type=int, default=128, help="characters a training step goes back in time")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=None, help="peak learning rate (default: 5e-3, for rnn 1e-3)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="use only so many characters of the text")
    parser.add_argument("--out", type=Path, default=Path("char_lm.pt"), help="where the checkpoint goes")
    parser.add_argument("--load", type=Path, help="evaluate this checkpoint instead of training")
    parser.add_argument("--prompt", default="def ")
    parser.add_argument("--sample", type=int, default=400, help="characters to write at the end")
    return parser


def new_model(args: argparse.Namespace, vocabulary: list[str]) -> tuple[CharModel, dict]:
    """A model with random weights, and what `load` needs to make it again."""
    config = {name: getattr(args, name) for name in ("layer", "hidden", "embedding", "layers")}
    return CharModel(impl=args.impl, characters=len(vocabulary), **config), config


def peak_rate(args: argparse.Namespace) -> float:
    return args.lr or (1e-3 if args.layer == "rnn" else 5e-3)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    args = make_parser(__doc__).parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    learn, judge = hold_out(read_text(args.text)[: args.limit])
    if args.load:
        model, vocabulary = load(args.load, args.impl)
    else:
        vocabulary = make_vocabulary(learn)
        model, config = new_model(args, vocabulary)
    model.to(args.device)
    training, validation = encode(learn, vocabulary), encode(judge, vocabulary)
    held = in_streams(validation, args.batch)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(training):,} characters to learn from, {len(validation):,} held out, {parameters:,} parameters")

    results = {"bigram": bigram_bits(training, *held, len(vocabulary))}
    held = tuple(part.to(args.device) for part in held)
    if not args.load:
        streams = (part.to(args.device) for part in in_streams(training, args.batch))
        start = time.perf_counter()
        seconds = train(model, *streams, args.steps, args.length, peak_rate(args))
        took, step = time.perf_counter() - start, statistics.median(seconds)
        speed = f"{1e3 * step:.1f} ms a training step, {1e6 * step / args.length:.0f} µs a time step"
        print(f"{args.impl} {args.layer}: {speed}, {took:.0f} s in all")
        save(model, args.out, config, vocabulary)
        results["step_ms"] = 1e3 * step
    results["model"] = evaluate(model, *held)
    print(
        f"held-out text: {results['model']:.3f} bits per character, bigram model {results['bigram']:.3f}"
        f" ({results['model'] / results['bigram']:.2f}×)"
    )
    if not args.load:
        results["torch"] = evaluate(load(args.out, "torch")[0].to(args.device), *held)
        print(f"the checkpoint {args.out} in torch.nn: {results['torch']:.6f}, here {results['model']:.6f}")
    if args.sample:
        print("-" * 80, sample(model, vocabulary, args.prompt, args.sample), "-" * 80, sep="\n")
    return results


if __name__ == "__main__":
    main()
