"""Everything that only a GPU can show, in one command, within a few minutes.

    python -m benchmarks.gpu [--minutes 8] [--only PART ...] [--device cpu] [--out FILE]
    python -m benchmarks.gpu --table FILE

Each part is a process of its own with a limit of its own: one that fails, hangs or breaks the device leaves the
others alone, and what it had found until then stays. The record, ``benchmarks/results/DATE-gpu-DEVICE.json``, is
written after each part. Parts named by ``--only`` are measured again, and the others on record stay. With
``--device cpu`` everything is tried on small sizes. Outside a checkout, ``DRLOSS_COMMIT`` names the commit.

The parts:

- ``machine``: versions, packages, memory, and how fast it copies;
- ``correctness``: every loss, layout, dtype and number of classes against the definition in float64;
- ``large``: large sizes, equal repetitions, streams, graphs, waits, the compiler, mixed precision, memory checks;
- ``loss``: time of the losses and of their rivals, of each kernel and on the host, memory and compilations;
- ``step``: whole training steps of torchvision's RetinaNet and ours, and the loading of images alone;
- ``training``: DR and focal loss on generated shapes, same model and budget, three seeds.
"""
