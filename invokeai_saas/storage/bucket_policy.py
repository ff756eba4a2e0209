"""The rules that a bucket should have, as the SDK and the command line take them: life cycle and CORS. Printed, never applied by us."""

from collections.abc import Sequence
from typing import Any

from invokeai_saas.storage.keys import ZIPS

# S3 refuses an earlier move to Infrequent Access; what is smaller than 128 KiB (thumbnails) stays, and costs less so.
DAYS_TO_INFREQUENT_ACCESS = 30
DAYS_TO_ABORT_UPLOADS = 1
# They are served for an hour; nothing shorter than a day can be asked for.
DAYS_TO_EXPIRE_ZIPS = 1


def bucket_policy(origins: Sequence[str]) -> dict[str, Any]:
    """`lifecycle` and `cors` for put-bucket-lifecycle-configuration and put-bucket-cors. `origins` are the pages' own, never '*'.

    Infrequent Access only (decision 24): nothing moves to where a gallery would wait hours for it. Parts of uploads that a killed process
    left behind go after a day, and so do zips that nobody fetched.
    """
    if not origins or any(not origin.startswith(("https://", "http://")) or "*" in origin for origin in origins):
        raise ValueError(f"expected origins like https://studio.example.com, got {list(origins)}")
    return {"lifecycle": {"Rules": [_infrequent_access(), _abort_uploads(), _expire_zips()]}, "cors": {"CORSRules": [_playback(origins)]}}


def _infrequent_access() -> dict[str, Any]:
    return {
        "ID": "infrequent-access",
        "Status": "Enabled",
        "Filter": {"Prefix": "users/"},
        "Transitions": [{"Days": DAYS_TO_INFREQUENT_ACCESS, "StorageClass": "STANDARD_IA"}],
    }


def _abort_uploads() -> dict[str, Any]:
    return {
        "ID": "abort-broken-uploads",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": DAYS_TO_ABORT_UPLOADS},
    }


def _expire_zips() -> dict[str, Any]:
    return {"ID": "expire-zips", "Status": "Enabled", "Filter": {"Prefix": ZIPS}, "Expiration": {"Days": DAYS_TO_EXPIRE_ZIPS}}


def _playback(origins: Sequence[str]) -> dict[str, Any]:
    return {
        "ID": "playback",
        "AllowedOrigins": list(origins),
        "AllowedMethods": ["GET", "HEAD"],
        "AllowedHeaders": ["Range", "If-None-Match", "If-Range"],
        "ExposeHeaders": ["Accept-Ranges", "Content-Length", "Content-Range", "ETag"],
        "MaxAgeSeconds": 3600,
    }
