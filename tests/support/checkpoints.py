"""A small state, a checkpointer and ways to damage what it wrote; also imported by the processes that tests start."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mmed_jax.checkpoints.checkpointer import Checkpointer

CONFIG = {"name": "t", "seed": 0, "optim": {"lr": 1e-3}, "data": {"train": ["a.jsonl"]}, "log_every": 10, "steps": 100}
ADAMW = optax.adamw(1e-2, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p))
TX = optax.chain(optax.clip_by_global_norm(1.0), ADAMW)


def mesh(*shape: int) -> jax.sharding.Mesh:
    axes = ("fsdp", "tensor")
    return jax.make_mesh(shape, axes, (AxisType.Auto,) * 2, devices=jax.devices()[: shape[0] * shape[1]])


def make_state(seed: int = 0, hidden: int = 16):
    """Random numbers in every leaf; drawn by numpy, so that nothing has to be compiled."""
    rng = np.random.default_rng(seed)

    def draw(x) -> np.ndarray:
        return np.asarray(rng.standard_normal(x.shape) * 100).astype(x.dtype)

    shapes = {
        "embed": {"weight": jax.ShapeDtypeStruct((32, hidden), jnp.float32)},
        "layers": {"q": {"weight": jax.ShapeDtypeStruct((2, hidden, hidden), jnp.bfloat16)}},
        "norm": {"weight": jax.ShapeDtypeStruct((hidden,), jnp.float32)},
    }
    state = {"params": shapes, "opt_state": jax.eval_shape(TX.init, shapes)}
    return jax.tree.map(lambda x: jax.device_put(draw(x)), state) | {"step": jax.device_put(np.int32(seed))}


def placed(state, on: jax.sharding.Mesh):
    """The state on a mesh: matrices split over both axes, the rest replicated."""

    def put(x):
        spec = P(*([None] * (x.ndim - 2)), "fsdp", "tensor") if x.ndim >= 2 else P()
        return jax.device_put(x, NamedSharding(on, spec))

    return jax.tree.map(put, state)


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype, path
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path


def checkpointer(run_dir, **changes) -> Checkpointer:
    settings = {"every_steps": 0, "every_minutes": 0, "keep_last": 3, "keep_best": 0} | changes
    return Checkpointer(run_dir, **settings)


def save(c: Checkpointer, *steps: int, metrics=None):
    for step in steps:
        state = make_state(step)
        assert c.maybe_save(step, state, data_state={"row": step}, config=CONFIG, metrics=metrics, force=True)
    c.wait()


def files_of(run_dir: Path, step: int, item: str = "") -> list[Path]:
    """The array data of a checkpoint, largest first."""
    found = [p for p in (run_dir / "checkpoints" / str(step) / item).rglob("d/*") if p.is_file()]
    return sorted(found, key=lambda p: -p.stat().st_size)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
