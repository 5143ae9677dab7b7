"""The devices of a run and XLA's persistent cache of what was compiled for them."""

import glob
import os
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from mmed_jax.common.errors import UserError, WorkError, warn
from mmed_jax.common.output_files import check_writable
from mmed_jax.common.paths import expand_home
from mmed_jax.config.defaults import KEYS
from mmed_jax.config.recipes import OWN_MODEL

if TYPE_CHECKING:
    import jax

# The default: nobody asked for it, so it stops nobody.
COMPILE_CACHE: str = KEYS["compile_cache"].default


def start_devices() -> "list[jax.Device]":
    """All devices. Raises WorkError when jax cannot start its platform (another process holds the accelerator, say)."""
    import jax

    try:
        return jax.devices()
    except RuntimeError as e:
        raise WorkError(f"jax cannot start its devices; `python -m mmed_jax.doctor` looks for the cause: {e}") from e


# Device files of TPUs, of NVIDIA's and AMD's GPUs, and of GPUs under Windows' Linux.
_DEVICE_FILES = ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg")


def accelerator_attached() -> bool:
    """Whether jax is meant to compute on an accelerator here: as JAX_PLATFORMS says, else where there is one.

    Touches no device. That jax finds none all the same is said by check_platform.
    """
    if wanted := os.environ.get("JAX_PLATFORMS", "").split(",")[0].strip():
        return wanted != "cpu"
    return any(glob.glob(pattern) for pattern in _DEVICE_FILES)


def choose_devices(config: ConfigDict) -> "list[jax.Device]":
    """The devices of the run: all, or the first config.mesh.devices.

    Raises:
      UserError: more asked for than there are, or fewer with several processes.
      WorkError: as start_devices.
    """
    import jax

    devices = start_devices()
    wanted = config.mesh.devices
    if wanted > len(devices):
        raise UserError(f"config.mesh.devices={wanted} but there are {len(devices)} devices")
    if wanted and wanted != len(devices) and jax.process_count() > 1:
        raise UserError(f"config.mesh.devices={wanted}: several processes use all their {len(devices)}; set it to 0")
    return devices[:wanted] if wanted else devices


def check_platform(config: ConfigDict, platform: str) -> None:
    """Refuses a CPU where the variant is meant for an accelerator.

    Raises:
      UserError: with what to look at.
    """
    if config.platform == "accelerator" and platform == "cpu":
        go_on = "set --config.platform=any to go on"
        if config.variant in OWN_MODEL:
            go_on = "set JAX_PLATFORMS=cpu, for values that are chosen for a CPU"
        raise UserError(
            f"{config.name}:{config.variant} is meant for a TPU or GPU but jax found only the CPU: install the tpu or "
            f"cuda extra (`python -m mmed_jax.doctor` looks for the cause), or {go_on}"
        )


def enable_compile_cache(folder: str, processes: int = 1) -> None:
    """Turns on XLA's persistent cache; before the first compilation. Several processes on CPUs do without.

    Raises:
      UserError: a folder other than the default cannot be used; without the default, which is a convenience, a warning
        is said and all is compiled anew.
    """
    if not folder:
        return
    import jax

    if processes > 1 and jax.default_backend() == "cpu":
        # Only process 0 would write entries, which the others, whose programs are not its own, cannot use: it would
        # find its program at the next start and wait for them in the first collective, which fails after 30 s.
        if jax.process_index() == 0:
            warn(f"compile cache {folder}: not used by several processes on CPUs")
        return
    try:
        path = expand_home(folder)
        path.mkdir(parents=True, exist_ok=True)
        if folder == COMPILE_CACHE:
            check_writable(path)
    except (UserError, OSError) as e:
        why = str(e) if isinstance(e, UserError) else f"{folder}: cannot be written ({e.strerror or e})"
        if folder == COMPILE_CACHE:
            warn(f"compile cache {why}; it is not used")
            return
        raise UserError(f"config.compile_cache={why}; set another or ''") from e
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
