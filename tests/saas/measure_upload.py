"""Run by test_storage_stores.py in a process of its own: uploads and downloads one large file, prints how far memory grew in bytes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from invokeai_saas.storage.cache import LocalCache  # noqa: E402
from invokeai_saas.storage.s3 import S3Store  # noqa: E402


def peak_bytes() -> int:
    """The highest resident size since forget_peak(); getrusage would tell the parent's, from before the exec."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """Start measuring again."""
    Path("/proc/self/clear_refs").write_text("5")


url, bucket, key_id, secret, folder, megabytes = sys.argv[1:]
cache = LocalCache(Path(folder) / "cache", max_bytes=10**12)
store = S3Store(bucket, cache, endpoint_url=url, access_key_id=key_id, secret_access_key=secret)
store.put("users/ann/videos/warm.mp4", b"x" * 1000, "video/mp4")
store.local_path("users/ann/videos/warm.mp4")
source = Path(folder) / "large.mp4"
with source.open("wb") as file:
    for number in range(int(megabytes)):
        file.write(bytes([number % 256]) * 10**6)
forget_peak()
before = peak_bytes()
store.put_file("users/ann/videos/large.mp4", source, "video/mp4")
path = store.local_path("users/ann/videos/large.mp4")
assert path.stat().st_size == int(megabytes) * 10**6
print(peak_bytes() - before)
