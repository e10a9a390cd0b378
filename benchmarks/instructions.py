"""How many instructions the Triton kernels take for a candidate on an H100, which need not be there.

python -m benchmarks.instructions

The kernels are compiled for compute capability 9.0 and taken apart by the ``nvdisasm`` of triton's wheel. Counted is
each loop over the candidates, between a label and the branch back to it: ``general`` is the loop that takes any
block, ``background`` the one for blocks without an object. At 3 TB/s, reading leaves room for about 39 instructions a
candidate in float32 and 19 in bfloat16, reading and writing for twice as many.
"""

import json
import re
import subprocess
import tempfile
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.loss import RESULTS
from benchmarks.measure import surroundings

CLASSES, SHAPES, WARPS = 80, 9, 4
TARGET = 90
_TASKS = {"sums": 1, "gradient": 2}
_FIXED = {"labels": "*i64", "dense": "*u8"} | dict.fromkeys(
    ("pos_weights", "neg_weights", "first_pass", "slots", "factors", "coefficients", "losses"), "*fp32"
)
_LABEL = re.compile(r"\s*(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]+\*/\s+(.*);")
_BRANCH = re.compile(r"BRA.*`\((\.L_x_\d+)\)")
_LEAST = 5
"""Instructions a candidate below which a loop is not over the candidates."""


def count(loss: str, layout: str, task: str, dtype: str) -> dict[str, float]:
    """Instructions a candidate of each loop, by ``general`` and ``background``."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from drloss.losses.fused import triton as backend
    from drloss.losses.fused import triton_kernels as kernels

    kernel = kernels.pass_over_logits
    planes = layout == "planes"
    pointers = _FIXED | {f"{which}{i}": f"*{dtype}" for which in "xg" for i in range(kernels.LEVELS)}
    constants: dict[str, Any] = dict.fromkeys(
        ("DENSE", "POS_WEIGHTS", "NEG_WEIGHTS", "FIRST_PASS", "BY_CLASS"), False
    ) | {
        **{"K": CLASSES, "PITCH": CLASSES, "PER_PLACE": SHAPES if planes else 1, "PLANES": planes, "ALIGNED": planes},
        "WIDTH": 128,
        **{"FOCAL": loss == "focal", "TASK": _TASKS[task], "LEVELS": 5, "BLOCK": backend.BLOCK},
        **{"STEPS": backend.CLASSES if planes else backend.STEPS, "BACKGROUND": True, "ANCHORS": 256},
    }

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        return pointers.get(name) or ("fp32" if name.endswith("_rate") else "i32")

    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: kind(name) for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in pointers},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", TARGET, 32), options={"num_warps": WARPS})
    disassembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        done = subprocess.run([disassembler, "-c", file.name], capture_output=True, text=True, check=True)
    each = backend.BLOCK / (32 * WARPS)
    loops = sorted(length / each for length in _loops(done.stdout) if length / each > _LEAST)
    return {"general": round(loops[-1], 1), "background": round(loops[0], 1)}


def _loops(text: str) -> list[int]:
    """Number of instructions between each label and a branch back to it."""
    labels: dict[str, int] = {}
    found, number = [], 0
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = number
        elif instruction := _INSTRUCTION.match(line):
            number += 1
            branch = _BRANCH.search(instruction[1])
            if branch and branch[1] in labels:
                found.append(number - labels[branch[1]])
    return found


def main() -> None:
    rows = []
    for loss, layout, task, dtype in product(("dr", "focal"), ("rows", "planes"), _TASKS, ("fp32", "bf16")):
        found = count(loss, layout, task, dtype)
        rows.append({"loss": loss, "layout": layout, "task": task, "dtype": dtype} | found)
        print(f"{loss:6} {layout:7} {task:9} {dtype}  general {found['general']:5.1f}  ", end="")
        print(f"background {found['background']:5.1f}")
    path = RESULTS / f"{date.today()}-instructions-sm{TARGET}.json"
    path.write_text(json.dumps(surroundings("cpu") | {"classes": CLASSES, "rows": rows}, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
