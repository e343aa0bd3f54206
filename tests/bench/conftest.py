from __future__ import annotations

import pytest
from ssh_server import connection, server

from edgekiln.bench.results import (
    Accuracy,
    Artifact,
    BoardFacts,
    Buffer,
    Comparison,
    Confusion,
    HostRun,
    MemoryPlan,
    NodeCost,
    Results,
)

__all__ = ["connection", "server"]


@pytest.fixture
def results() -> Results:
    """A small result whose numbers fit together, for tests that vary one thing."""
    return Results(
        board="mps2-an386",
        emulated=True,
        model="pets",
        macs=1000,
        instructions=3500,
        cycles=None,
        cycles_model=None,
        latency_us=None,
        flash_bytes=9000,
        flash_constants_bytes=5000,
        flash_code_bytes=4000,
        ram_bytes=1500,
        arena_bytes=1024,
        stack_bytes=300,
        per_node=(
            NodeCost(0, "CONV_2D", "net/conv/Relu;net/conv/BiasAdd", 1000, 3000, None),
            NodeCost(1, "SOFTMAX", "out", 0, 400, None),
        ),
        toolchain="arm-none-eabi-gcc 12.2.1",
        flags="-mcpu=cortex-m4 -O2",
        instructions_min=3400,
        instructions_max=3600,
        flash_app_bytes=1000,
        accuracy=Accuracy(0.9, 0.85, 0.8, 0.8, 20, True, "TensorFlow Lite Micro"),
        oracle="tflm",
        inputs="20 held-out pictures",
        comparisons=(
            Comparison("board", "generated C on host", 20, 40, 0),
            Comparison("board", "TensorFlow Lite Micro", 20, 40, 0),
        ),
        nodes_compared=2,
        host=(HostRun("LiteRT (XNNPACK)", 0.8, 0.95, 12.5, 14.0),),
        confusion=Confusion(("cat", "dog"), ((9, 1), (3, 7))),
        training={"accuracy": (0.5, 0.8, 0.9), "loss": (1.0, 0.5, 0.25)},
        memory_plan=MemoryPlan(
            1024,
            1024,
            "Node 0 CONV_2D",
            ("in", "0", "1", "out"),
            (Buffer("in", 0, 256, 0, 1), Buffer("c", 256, 768, 1, 3)),
        ),
        board_facts=BoardFacts("Arm MPS2+ AN386", "Cortex-M4F", 4 << 20, 4 << 20, "QEMU 7.2"),
        artifacts=(Artifact("pets/export/pets.tflite", "int8 model", 5120, "ab" * 32),),
        versions={"edgekiln": "0.1.0"},
        seeds={"training": 1},
        model_sha256="cd" * 32,
        created="2026-11-20 18:00 UTC",
    )
