"""The character model of char_lm.py on several processes, or machines, by PyTorch's own engine.

    torchrun --nproc-per-node 2 examples/distributed_char_lm.py            # a copy of the model in every process (DDP)
    torchrun --nproc-per-node 2 examples/distributed_char_lm.py --shard    # a share of it in every process (FSDP2)

The arguments are those of char_lm.py; a batch is shared out among the processes, so that the steps are those of one
process with the whole of it. The first process then loads the checkpoint alone, and writes it as one that char_lm.py
loads.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import char_lm


def shard(model: char_lm.CharModel, device: torch.device) -> nn.Module:
    """Every parameter is kept in shares; a layer has the whole of its own while it computes."""
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for module in (model.rnn, model):
        fully_shard(module, mesh=mesh)
    return model


def train_and_save(args, text: torch.Tensor, vocabulary: list[str], device: torch.device, folder: Path) -> None:
    """A function of its own, so that its model is gone when the process group is destroyed: DistributedDataParallel
    holds the group, and what drops a gloo group last, holding Python's lock, may wait for a thread that wants it."""
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    torch.manual_seed(args.seed)  # the same weights everywhere
    model, _ = char_lm.new_model(args, vocabulary)
    model.to(device)
    parallel = shard(model, device) if args.shard else DistributedDataParallel(model)
    streams = char_lm.in_streams(text, args.batch)
    share = [part.chunk(processes, dim=1)[rank].to(device) for part in streams]
    char_lm.train(parallel, *share, args.steps, args.length, char_lm.peak_rate(args), show=rank == 0)
    checkpoint.save(get_model_state_dict(parallel), checkpoint_id=folder)


def main(arguments: list[str] | None = None) -> None:
    parser = char_lm.make_parser(__doc__)
    parser.add_argument("--shard", action="store_true", help="FSDP2 instead of DistributedDataParallel")
    args = parser.parse_args(arguments)
    if args.load:
        parser.error("--load: char_lm.py evaluates checkpoints")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    if args.batch % processes:
        parser.error(f"--batch: {args.batch} cannot be shared out evenly among {processes} processes")

    learn, judge = char_lm.hold_out(char_lm.read_text(args.text)[: args.limit])
    vocabulary = char_lm.make_vocabulary(learn)
    folder = Path(f"{args.out}.distributed")
    train_and_save(args, char_lm.encode(learn, vocabulary), vocabulary, device, folder)
    distributed.destroy_process_group()
    if rank > 0:
        return
    alone, config = char_lm.new_model(args, vocabulary)
    state = alone.state_dict()
    checkpoint.load(state, checkpoint_id=folder, no_dist=True)  # in place
    char_lm.save(alone, args.out, config, vocabulary)
    held = char_lm.in_streams(char_lm.encode(judge, vocabulary), args.batch)
    bits = char_lm.evaluate(alone, *held)
    print(f"{processes} processes, {'FSDP2' if args.shard else 'DDP'}: {bits:.4f} bits per character of held-out text")


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    # A device mesh outlives its group, and with it gloo's threads; one that lets go of a tensor while the interpreter
    # ends aborts the process: end without.
    os._exit(0)
