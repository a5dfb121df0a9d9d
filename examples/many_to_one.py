"""The two textbook many-to-one models, an LSTM and a GRU: a whole sequence in, one answer out.

    python examples/many_to_one.py                          # both tasks, both models, well under two minutes each
    python examples/many_to_one.py --task digits --layer gru
    python examples/many_to_one.py --impl torch             # the same on torch.nn

``digits``: scikit-learn's handwritten digits, each image read row by row, 10 classes.
``sunspots``: the yearly sunspot numbers since 1700 (statsmodels ships them); the last fifth of the years is predicted,
each from the 24 before it, and compared with "next year equals this year".
"""

from __future__ import annotations

import argparse
import time

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss


class LSTMModel(nn.Module):
    def __init__(self, package, inputs: int, hidden: int, layers: int, outputs: int):
        super().__init__()
        self.hidden, self.layers = hidden, layers
        self.lstm = package.LSTM(inputs, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h_0 = torch.zeros(self.layers, x.size(0), self.hidden).requires_grad_()
        c_0 = torch.zeros(self.layers, x.size(0), self.hidden).requires_grad_()
        out, (_h_n, _c_n) = self.lstm(x, (h_0, c_0))
        return self.head(out[:, -1, :])  # the last step alone


class GRUModel(nn.Module):
    def __init__(self, package, inputs: int, hidden: int, layers: int, outputs: int):
        super().__init__()
        self.hidden, self.layers = hidden, layers
        self.gru = package.GRU(inputs, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h_0 = torch.zeros(self.layers, x.size(0), self.hidden).requires_grad_()
        out, _h_n = self.gru(x, h_0)
        return self.head(out[:, -1, :])


MODELS = {"lstm": LSTMModel, "gru": GRUModel}


def digit_rows() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sequences of 8 rows of 8 pixels, and the digits: ``(x, y)`` to train on, ``(x, y)`` to test on."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    parts = train_test_split(digits.images / 16, digits.target, test_size=0.25, random_state=0, stratify=digits.target)
    x, x_test, y, y_test = (torch.as_tensor(part) for part in parts)
    return x.float(), y, x_test.float(), y_test


def sunspot_windows(window: int = 24) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Windows ``[N, window, 1]`` of the series and the value that follows each, in units of 100 sunspots."""
    from statsmodels.datasets import sunspots

    series = torch.tensor(sunspots.load_pandas().data["SUNACTIVITY"].to_numpy(), dtype=torch.float32) / 100
    windows = series.unfold(0, window + 1, 1)
    x, y = windows[:, :-1].unsqueeze(2), windows[:, -1:]
    split = len(x) - len(series) // 5
    return x[:split], y[:split], x[split:], y[split:]


def train(model: nn.Module, x: Tensor, y: Tensor, loss_of, epochs: int, batch: int, lr: float, name: str) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-2)
    steps_an_epoch = -(-len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps_an_epoch)
    model.train()
    for _ in track(range(epochs), description=name):
        for rows in torch.randperm(len(x)).split(batch):
            loss = loss_of(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval()


def digits(package, layer: str, epochs: int = 40) -> float:
    """The share of test images that are read right."""
    x, y, x_test, y_test = digit_rows()
    model = MODELS[layer](package, inputs=8, hidden=64, layers=2, outputs=10)
    train(model, x, y, cross_entropy, epochs, batch=64, lr=5e-3, name=f"digits, {layer}")
    with torch.no_grad():
        probabilities = model(x_test).softmax(1)
    return (probabilities.argmax(1) == y_test).double().mean().item()


def sunspots(package, layer: str, epochs: int = 100) -> float:
    """The root mean square error on the test years, over that of "next equals last"."""
    x, y, x_test, y_test = sunspot_windows()
    model = MODELS[layer](package, inputs=1, hidden=32, layers=2, outputs=1)
    train(model, x, y, mse_loss, epochs, batch=32, lr=5e-3, name=f"sunspots, {layer}")
    with torch.no_grad():
        error = mse_loss(model(x_test), y_test)
    return (error / mse_loss(x_test[:, -1], y_test)).sqrt().item()


def main(arguments: list[str] | None = None) -> dict[tuple[str, str], float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=["digits", "sunspots", "all"], default="all")
    parser.add_argument("--layer", choices=[*MODELS, "all"], default="all")
    parser.add_argument("--impl", choices=["rnnkern", "torch"], default="rnnkern")
    parser.add_argument("--epochs", type=int, help="default: 40 for digits, 100 for sunspots")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    if args.impl == "rnnkern":
        import rnnkern as package
    else:
        package = nn

    tasks = {
        "digits": (digits, "{:.1%} of the test images read right"),
        "sunspots": (sunspots, "{:.2f}× the error of 'next equals last'"),
    }
    results = {}
    for task in tasks if args.task == "all" else [args.task]:
        run, message = tasks[task]
        for layer in MODELS if args.layer == "all" else [args.layer]:
            torch.manual_seed(args.seed)
            start = time.perf_counter()
            results[task, layer] = run(package, layer, **({"epochs": args.epochs} if args.epochs else {}))
            seconds = time.perf_counter() - start
            print(f"{task}, {args.impl} {layer}: {message.format(results[task, layer])}, {seconds:.0f} s")
    return results


if __name__ == "__main__":
    main()
