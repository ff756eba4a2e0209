"""Weight files read by their headers only: names, shapes, metadata, and whether the file is whole.

No tensor is loaded, so that a 12 GB checkpoint is judged in milliseconds. Works without InvokeAI.
"""

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# A header above this is no safetensors file: the format itself limits it to 100 MB.
MAX_HEADER_BYTES = 100_000_000
# Where widespread converters keep a tensor's own shape; InvokeAI's reader of GGUF goes by it too.
_ORIGINAL_SHAPE = "comfy.gguf.orig_shape."


class BrokenFile(ValueError):
    """A weight file so short that its tensors cannot even be listed; `header_text` is what could be read of its names."""

    def __init__(self, message: str, *, header_text: str = "") -> None:
        super().__init__(message)
        self.header_text = header_text


@dataclass(frozen=True)
class WeightHeader:
    """Tensor shapes by name (row-major, as torch has them), the file's string metadata, and what is wrong with the file.

    `dtypes` are a safetensors file's own words ("BF16", "F8_E4M3"); empty for GGUF, whose types say how a weight is quantized.
    """

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]
    problem: str | None = None
    dtypes: dict[str, str] = field(default_factory=dict)

    def config(self) -> dict[str, Any] | None:
        """The model config that the file carries as JSON under "config", None where it carries none."""
        text = self.metadata.get("config")
        if text is None:
            return None
        try:
            config = json.loads(text)
        except ValueError:
            return None
        return config if isinstance(config, dict) else None


def read_safetensors_header(path: Path) -> WeightHeader:
    """Read the header of a safetensors file.

    A file shorter than its header says has that as its `problem`. Raises BrokenFile when the header itself is cut off, and
    ValueError for another kind of file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= MAX_HEADER_BYTES:
            raise ValueError(f"{path.name} is no safetensors file")
        text = file.read(length).decode("utf-8", errors="replace")
    if size < 8 + length:
        raise BrokenFile(_truncated(path, expected=8 + length, got=size, at_least=True), header_text=text)
    entries = json.loads(text)
    metadata = entries.pop("__metadata__", None) or {}
    expected = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    problem = _truncated(path, expected=expected, got=size) if size < expected else None
    dtypes = {name: entry["dtype"] for name, entry in entries.items()}
    return WeightHeader({name: tuple(entry["shape"]) for name, entry in entries.items()}, metadata, problem, dtypes)


def read_gguf_header(path: Path) -> WeightHeader:
    """Read names, shapes and string fields of a GGUF file; raises BrokenFile when tensor data is missing at its end."""
    import gguf

    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError) as error:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ValueError(f"{path.name} is no GGUF file") from error
            text = file.read(1_000_000).decode("latin-1")
        message = f"{path.name} is truncated: its tensors end beyond its {path.stat().st_size} bytes; copy or download it again"
        raise BrokenFile(message, header_text=text) from error
    shapes = {tensor.name: tuple(int(size) for size in reversed(tensor.shape)) for tensor in reader.tensors}
    shapes |= {name: shape for name, shape in _shapes_before_packing(reader).items() if name in shapes}
    metadata = {
        name: field.contents()
        for name, field in reader.fields.items()
        if field.types and field.types[0] == gguf.GGUFValueType.STRING and isinstance(field.contents(), str)
    }
    del reader
    return WeightHeader(shapes, metadata)


def read_checkpoint_header(path: Path) -> WeightHeader:
    """Read names and shapes of a torch checkpoint (.ckpt, .pt, .pth, .bin); no code in it is run, no tensor is loaded.

    Raises BrokenFile for one that is cut off, damaged or holds more than tensors and plain values; its `header_text` has names.
    """
    import torch

    try:
        content = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except Exception as error:  # torch raises whatever the damage leads to
        with path.open("rb") as file:
            text = file.read(1_000_000).decode("latin-1")
        problem = f"{path.name} cannot be read as plain tensors: it is truncated, damaged or of an old kind; copy or download it again"
        raise BrokenFile(problem, header_text=text) from error
    tensors = tensors_in(content)
    return WeightHeader({name: tuple(value.shape) for name, value in tensors.items()}, {})


def tensors_in(content: Any) -> dict[str, Any]:
    """The tensors of a torch checkpoint by name; a training run's checkpoint has them one level down."""
    inner = content.get("state_dict", content) if isinstance(content, dict) else {}
    return {name: value for name, value in inner.items() if hasattr(value, "shape")}


def _shapes_before_packing(reader: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors that a converter flattened because GGUF's quantizers take two dimensions only."""
    return {
        name.removeprefix(_ORIGINAL_SHAPE): tuple(int(size) for size in field.contents())
        for name, field in reader.fields.items()
        if name.startswith(_ORIGINAL_SHAPE) and isinstance(field.contents(), list)
    }


def check_safetensors_folder(folder: Path) -> str | None:
    """What is wrong with the safetensors files of one sub-model folder, in words; None when they are whole.

    Checks each file's length and, where an index file lists shards, that every shard is there.
    """
    for index in sorted(folder.glob("*.safetensors.index.json")):
        names = sorted(set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            return f"{folder.name}/ lacks {', '.join(missing)} of the {len(names)} files that {index.name} lists"
    for path in sorted(folder.glob("*.safetensors")):
        try:
            problem = read_safetensors_header(path).problem
        except ValueError as error:
            problem = str(error)
        if problem:
            return f"{folder.name}/{problem}"
    return None


def _truncated(path: Path, *, expected: int, got: int, at_least: bool = False) -> str:
    words = "at least " if at_least else ""
    return f"{path.name} is truncated: expected {words}{expected} bytes, got {got}; copy or download it again"
