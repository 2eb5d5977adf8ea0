"""What lies in the place of safetensors, told by its first bytes, and what to do about it."""

from __future__ import annotations

from pathlib import Path

_DAMAGED = "the file is truncated or damaged: copy or write the checkpoint again"
_TORCH = "load it and write it with safetensors.torch.save_file"
_BOM = b"\xef\xbb\xbf"
_READ = 512

# First bytes, and what to do. The first that fits counts.
_BEGINNINGS = {
    b"version https://git-lfs": "it is a Git LFS pointer, not the file: run `git lfs pull` in the checkpoint's repository",
    b"# xet version": "it is a pointer of Xet, not the file: download the checkpoint with `hf download`",
    b"<": "it is a web page, not the file: download it again, signed in where the server asks for it",
    b"GGUF": "it is a GGUF file: give the checkpoint that it was made from",
    b"\x80": f"it is a pickle, as torch.save writes: {_TORCH}",
    b"\x1f\x8b": "it is compressed: unpack it with gunzip",
    b"\x28\xb5\x2f\xfd": "it is compressed: unpack it with unzstd",
    b"\xfd7zXZ": "it is compressed: unpack it with unxz",
    b"BZh": "it is compressed: unpack it with bunzip2",
    b"\x89HDF": "it is an HDF5 file, as Keras writes: write its tensors with safetensors.numpy.save_file",
    b"\x93NUMPY": "it is a NumPy array: write the tensors with safetensors.numpy.save_file",
    b"PAR1": "it is a Parquet file: give the folder that holds the checkpoint",
    b"PK\x03\x04": f"it is a file of torch.save: {_TORCH}",
}
_TAR = slice(257, 262)
_NPZ = b".npy"


def hint_for(file: Path) -> str:
    """What to do about a file that cannot be read as safetensors."""
    try:
        with file.open("rb") as stream:
            first = stream.read(_READ)
    except OSError:
        return _DAMAGED
    if not first:
        return "the file is empty, truncated where a download or copy was stopped: get it again"
    if first[_TAR] == b"ustar":
        return "it is a tar archive: unpack it"
    if first.startswith(b"PK\x03\x04") and _NPZ in first[:64]:
        return "it is a NumPy archive: write its tensors with safetensors.numpy.save_file"
    shown = first.removeprefix(_BOM).lstrip()
    for beginning, hint in _BEGINNINGS.items():
        if shown.startswith(beginning):
            return hint
    return _DAMAGED if (words := _words(first)) is None else f"it is text, not the file: {words!r}; get the file again"


def _words(first: bytes) -> str | None:
    """The first words of a text, such as a server's message; None where it is no text."""
    try:
        text = first.decode("utf-8")
    except UnicodeDecodeError:
        return None
    words = text.split()
    return " ".join(words)[:80] if words and all(word.isprintable() for word in words) else None
