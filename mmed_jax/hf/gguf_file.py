"""A GGUF file of a Llama: keys, names and layouts of its tensors, written tensor by tensor and read back.

Format and names: docs/gguf.md of ggml and the `gguf` package, which writes the header and the quantised blocks.
llama.cpp rotates pairs that lie side by side, so that the rows of q and k are in another order than in Hugging Face
folders; the scaled frequencies of Llama 3.1 are a tensor of divisors (rope_freqs.weight).
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.hf.export_folder import describe_failure
from mmed_jax.hf.mapping import HFTensor, hf_tensors
from mmed_jax.hf.prompt_logits import PromptLogits
from mmed_jax.hf.verify import TOLERANCE, checksum
from mmed_jax.hf.weight_stream import Kinds, Weight, WeightStream
from mmed_jax.model.config import LlamaConfig
from mmed_jax.model.rope import inverse_frequencies

KINDS = ("f16", "bf16", "q8_0", "f32")
FREQUENCIES = "rope_freqs.weight"
_NAMES = {"embed": "token_embd", "final_norm": "output_norm", "head": "output"}
_LAYER_NAMES = {
    "attn_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_WIDTH = 32  # values of a block of Q8_0
_BLOCK = 1 << 22  # values whose squares are summed at a time


def load_gguf() -> Any:
    """The `gguf` package. Raises UserError: it is not installed."""
    try:
        import gguf
    except ImportError as e:
        raise UserError('--gguf: needs the package gguf: pip install "mmed_jax[gguf]", or pip install gguf') from e
    return gguf


def gguf_name(t: HFTensor) -> str:
    """What a tensor is called in the file."""
    if t.layer is None:
        return f"{_NAMES[t.path[0]]}.{t.path[-1]}"
    return f"blk.{t.layer}.{_LAYER_NAMES[t.path[1]]}.{t.path[2]}"


def swap_pairs(t: HFTensor, array: np.ndarray, cfg: LlamaConfig, back: bool = False) -> np.ndarray:
    """Rows of q and k in the order of the file (`back`: of Hugging Face); other tensors as they are.

    Within a head of H rows the file has row i, i + H/2 side by side.
    """
    if t.layer is None or t.path[1] not in ("q", "k"):
        return array
    half = cfg.head_dim // 2
    halves = (-1, half, 2) if back else (-1, 2, half)
    return array.reshape(*halves, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def tensor_kind(t: HFTensor, kind: str) -> str:
    """How a tensor is stored: vectors in float32, rows that make no whole blocks of Q8_0 in float16."""
    if len(t.shape) == 1:
        return "F32"
    return "F16" if kind == "q8_0" and t.shape[-1] % _WIDTH else kind.upper()


def file_bytes(cfg: LlamaConfig, kind: str) -> int:
    """Bytes of all tensors of the file."""
    gguf = load_gguf()
    return sum(_stored_bytes(gguf, t.size, tensor_kind(t, kind)) for t in hf_tensors(cfg))


def _stored_bytes(gguf: Any, size: int, code: str) -> int:
    width, stored = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[code]]
    return size // width * stored


def model_fields(cfg: LlamaConfig, kind: str) -> dict[str, Any]:
    """{key: value} of `general.*` and `llama.*`."""
    gguf = load_gguf()
    types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    return {
        "general.type": "model",
        "general.file_type": int(gguf.LlamaFileType[types[kind]]),
        "general.quantization_version": int(gguf.GGML_QUANT_VERSION),
        "llama.vocab_size": cfg.vocab_size,
        "llama.context_length": cfg.max_position_embeddings,
        "llama.embedding_length": cfg.hidden_size,
        "llama.block_count": cfg.num_layers,
        "llama.feed_forward_length": cfg.intermediate_size,
        "llama.rope.dimension_count": cfg.head_dim,
        "llama.rope.freq_base": float(cfg.rope_theta),
        "llama.attention.head_count": cfg.num_heads,
        "llama.attention.head_count_kv": cfg.num_kv_heads,
        "llama.attention.key_length": cfg.head_dim,
        "llama.attention.value_length": cfg.head_dim,
        "llama.attention.layer_norm_rms_epsilon": float(cfg.rms_norm_eps),
    }


def frequency_divisors(cfg: LlamaConfig) -> np.ndarray | None:
    """float32 [H/2], by which llama.cpp divides each unscaled frequency; None without scaling."""
    if cfg.rope_scaling is None:
        return None
    plain = inverse_frequencies(dataclasses.replace(cfg, rope_scaling=None))
    return (plain / inverse_frequencies(cfg)).astype(np.float32)


@dataclasses.dataclass
class Written:
    """What was written: {tensor: (kind, CRC-32)}, logits on a fixed prompt of what stands there (None: not in order).

    lost: [sum of squares of what rounding took from the matrices, sum of squares of these]. problem: why it was not
    written, as export_folder.describe_failure gives it.
    """

    tensors: dict[str, tuple[str, int]] = dataclasses.field(default_factory=dict)
    logits: np.ndarray | None = None
    lost: list[float] = dataclasses.field(default_factory=lambda: [0.0, 0.0])
    problem: str = ""

    @property
    def error(self) -> float:
        """||stored - W|| / ||W|| over all matrices."""
        return float(np.sqrt(self.lost[0] / self.lost[1])) if self.lost[1] else 0.0


def write_gguf(
    file: Path,
    stream: WeightStream,
    kind: str,
    fields: Mapping[str, Any],
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Writes a file; beside one tensor, its stored form and one layer are in memory.

    Args:
      stream: float32 tensors, in any order. kind: of KINDS. fields: metadata but general.architecture.
      progress: called with (bytes written, bytes in all).

    Raises:
      UserError, WorkError: the weights cannot be read (weight_stream); others are in `problem`.
    """

    def consume(_: Kinds, weights: Iterator[Weight]) -> Written:
        written = Written()
        try:
            _write(file, stream, kind, fields, weights, written, progress)
        except OSError as e:
            written.problem = describe_failure(e, file.parent)
        return written

    return stream.read(consume)


def _write(
    file: Path,
    stream: WeightStream,
    kind: str,
    fields: Mapping[str, Any],
    weights: Iterator[Weight],
    written: Written,
    progress: Callable[[int, int], None] | None,
) -> None:
    gguf, cfg = load_gguf(), stream.cfg
    divisors = frequency_divisors(cfg)
    places = _write_head(gguf, file, cfg, kind, fields, divisors)
    total, done = sum(size for _, size in places.values()), 0
    logits = PromptLogits(cfg) if stream.in_order else None
    with file.open("r+b") as f:
        if divisors is not None:
            _put(f, FREQUENCIES, "F32", divisors, places, written)
        for t, array, finite in weights:
            code = tensor_kind(t, kind)
            with np.errstate(over="ignore"):  # found below, and named
                stored = gguf.quants.quantize(swap_pairs(t, array, cfg), gguf.GGMLQuantizationType[code])
            values = _values(gguf, stored, code)
            if not finite or not np.isfinite(values).all():
                written.problem = f"w{t.name} holds values that are not finite in {code}"
                return
            _put(f, gguf_name(t), code, stored, places, written)
            values = swap_pairs(t, values.reshape(t.shape), cfg, back=True)
            if len(t.shape) > 1:
                _add_squares(written.lost, values, array)
            if logits is not None:
                logits.add(t, values)
            done += stored.nbytes
            if progress:
                progress(done, total)
        f.flush()
        os.fsync(f.fileno())
    written.logits = logits.result() if logits is not None else None


def _add_squares(lost: list[float], stored: np.ndarray, array: np.ndarray) -> None:
    """Adds the squares of what was lost and of what there was, in blocks of rows."""
    step = max(1, _BLOCK // array.shape[-1])
    for at in range(0, len(array), step):
        rows = slice(at, at + step)
        lost[0] += float(np.square(stored[rows] - array[rows], dtype=np.float64).sum())
        lost[1] += float(np.square(array[rows], dtype=np.float64).sum())


def _put(f: BinaryIO, name: str, code: str, stored: np.ndarray, places: Mapping, written: Written) -> None:
    position, size = places[name]
    assert stored.nbytes == size
    f.seek(position)
    f.write(np.ascontiguousarray(stored).reshape(-1).view(np.uint8).data)
    written.tensors[name] = code, checksum(stored)


def _values(gguf: Any, stored: np.ndarray, code: str) -> np.ndarray:
    """float32 values of stored blocks."""
    return gguf.quants.dequantize(stored.view(np.uint8) if code == "BF16" else stored, gguf.GGMLQuantizationType[code])


def _write_head(
    gguf: Any, file: Path, cfg: LlamaConfig, kind: str, fields: Mapping[str, Any], divisors: np.ndarray | None
) -> dict[str, tuple[int, int]]:
    """Writes all but the tensors' bytes: {tensor: (where its bytes begin, how many)}; the file has its whole length."""
    file.unlink(missing_ok=True)  # of a checkpoint that turned out to be damaged
    writer = gguf.GGUFWriter(file, "llama")
    for key, value in fields.items():
        _add(writer, key, value)
    tensors = [] if divisors is None else [(FREQUENCIES, divisors.shape, "F32")]
    tensors += [(gguf_name(t), t.shape, tensor_kind(t, kind)) for t in hf_tensors(cfg)]
    sizes = {}
    for name, shape, code in tensors:
        sizes[name] = _stored_bytes(gguf, int(np.prod(shape)), code)
        writer.add_tensor_info(name, shape, np.dtype(np.float32), sizes[name], gguf.GGMLQuantizationType[code])
    with contextlib.closing(writer):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        at = writer.fout[0].tell()
    places = {}
    for name, size in sizes.items():
        at = writer.ggml_pad(at, writer.data_alignment)
        places[name] = at, size
        at += size
    os.truncate(file, writer.ggml_pad(at, writer.data_alignment))
    return places


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def verify_gguf(
    file: Path,
    written: Written,
    cfg: LlamaConfig,
    kind: str,
    fields: Mapping[str, Any],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Reads a file back through the package: metadata, names, shapes, kinds, bytes and logits.

    Raises:
      WorkError: naming the first thing that is not as it should be.
    """
    gguf = load_gguf()
    try:
        reader = gguf.GGUFReader(file)
        found = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    except (OSError, ValueError, IndexError, KeyError) as e:
        raise WorkError(f"the GGUF file cannot be read back: {e}") from e
    for key, value in {"general.architecture": "llama", **fields}.items():
        if isinstance(value, float):
            value = float(np.float32(value))
        if found.get(key) != value and value not in ("", []):
            raise WorkError(f"the GGUF file says otherwise for {key} than was written")
    stored = {t.name: t for t in reader.tensors}
    if stored.keys() != written.tensors.keys():
        raise WorkError("the GGUF file holds other tensors than were written")
    logits, total, done = PromptLogits(cfg), sum(int(t.n_bytes) for t in reader.tensors), 0
    names = {gguf_name(t): t for t in hf_tensors(cfg)}
    for name in (*([FREQUENCIES] if FREQUENCIES in stored else []), *names):
        data, (code, crc) = stored[name].data, written.tensors[name]
        if stored[name].tensor_type.name != code or checksum(data) != crc:
            raise WorkError(f"the GGUF file reads back with other values of {name} than were written")
        if name in names:
            t = names[name]
            if tuple(reversed(stored[name].shape.tolist())) != t.shape:
                raise WorkError(f"the GGUF file holds {name} in another shape than was written")
            logits.add(t, swap_pairs(t, _values(gguf, data, code).reshape(t.shape), cfg, back=True))
        done += data.nbytes
        if progress:
            progress(done, total)
    result = logits.result()
    if not np.isfinite(result).all():
        raise WorkError("the GGUF file computes logits that are not finite")
    if written.logits is not None:
        difference = float(np.abs(result - written.logits).max())
        if not difference <= TOLERANCE * max(1.0, float(np.abs(written.logits).max())):
            raise WorkError(f"the GGUF file computes other logits than the model (largest difference {difference:g})")
