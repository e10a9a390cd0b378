"""Compiles the Triton kernels for an H100 (compute capability 9.0), which need not be there."""

from itertools import product

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from drloss.losses.fused import triton_kernels as kernels


def build(kernel, pointers, constants):
    """The kernel for pointers to these types and these constants; what else it takes is a number."""

    def kind(name):
        if name in constants:
            return "constexpr"
        return pointers.get(name) or ("fp32" if name.endswith(("_rate", "_number")) else "i32")

    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: kind(name) for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
    )
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]


def main():
    fixed = {"labels": "*i64", "dense": "*u8"}
    fixed |= dict.fromkeys(
        ("pos_weights", "neg_weights", "first_pass", "slots", "factors", "coefficients", "losses"), "*fp32"
    )
    options = {"DENSE": False, "POS_WEIGHTS": False, "NEG_WEIGHTS": False, "FIRST_PASS": False, "FOCAL": False}
    options |= {"BY_CLASS": False, "WIDTH": 128, "BACKGROUND": False, "ANCHORS": 256, "PITCH": 80}
    cases = [
        {},
        {"FIRST_PASS": True},
        {"FOCAL": True},
        {"POS_WEIGHTS": True, "NEG_WEIGHTS": True},
        {"DENSE": True},
        {"BY_CLASS": True},
        {"BACKGROUND": True},
        {"BACKGROUND": True, "FOCAL": True},
        {"BACKGROUND": True, "PITCH": 91},
    ]
    for dtype, planes, task, case in product(("fp32", "bf16", "fp16"), (False, True), range(3), cases):
        if not task and (case.get("BY_CLASS") or case.get("BACKGROUND")):
            continue  # no first pass by class, and none of the background alone
        levels = {f"{which}{i}": f"*{dtype}" for which in "xg" for i in range(kernels.LEVELS)}
        shape = {
            "K": 80,
            "PER_PLACE": 9 if planes else 1,
            "PLANES": planes,
            "ALIGNED": planes,
            "TASK": task,
            "LEVELS": 5,
        }
        build(kernels.pass_over_logits, fixed | levels, shape | {"BLOCK": 1024, "STEPS": 16} | options | case)
    for surrogate, mode, focal in product(range(3), range(3), (False, True)):
        words = {"CHOICE": surrogate, "WEIGHTS_GRAD": mode, "FIRST_PASS": True, "FOCAL": focal, "BLOCK": 256}
        build(kernels.finish, fixed, words)


if __name__ == "__main__":
    main()
