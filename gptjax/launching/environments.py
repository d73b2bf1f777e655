"""What is set before JAX starts: one table for each accelerator, named as the extras of setup.cfg.

`python gptjax/launching/environments.py cpu` prints a table; launch.sh sets it, wherever the command runs. A
variable that is set already stays as it is.
"""

import sys

# Buffers of a step are kept and lie in huge pages, else the kernel clears and maps them anew for every step.
MEMORY = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=8589934592"
}

_CUDA = MEMORY | {
    # JAX takes three quarters of the GPU's memory otherwise.
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
    # Collectives run beside the arithmetic; parameters are gathered in few large pieces.
    "XLA_FLAGS": " ".join(
        (
            "--xla_gpu_enable_latency_hiding_scheduler=true",
            "--xla_gpu_all_gather_combine_threshold_bytes=134217728",
            "--xla_gpu_reduce_scatter_combine_threshold_bytes=134217728",
            "--xla_gpu_all_reduce_combine_threshold_bytes=134217728",
        )
    ),
}

ENVIRONMENTS: dict[str, dict[str, str]] = {
    "cpu": MEMORY,
    "cuda12": _CUDA,
    "cuda13": _CUDA,
    "tpu": MEMORY
    | {
        # Gathering of parameters is fused with the products that need them, over several steps of these.
        "LIBTPU_INIT_ARGS": " ".join(
            (
                "--xla_enable_async_all_gather=true",
                "--xla_tpu_enable_async_collective_fusion=true",
                "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
                "--xla_tpu_enable_async_collective_fusion_multiple_steps=true",
                "--xla_tpu_overlap_compute_collective_tc=true",
            )
        ),
    },
}


def table(accelerator: str) -> str:
    """The lines `NAME=value` of an accelerator."""
    return "".join(f"{name}={value}\n" for name, value in ENVIRONMENTS[accelerator].items())


if __name__ == "__main__":
    sys.stdout.write(table(sys.argv[1]))
