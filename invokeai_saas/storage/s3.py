"""The store on S3 or anything that speaks it (R2, MinIO, SeaweedFS): streaming multipart uploads, presigned addresses, cached downloads."""

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from s3transfer.exceptions import RetriesExceededError

from invokeai_saas.errors import BadSettings
from invokeai_saas.storage.cache import LocalCache
from invokeai_saas.storage.errors import ObjectMissing, StorageRefused, StorageUnavailable
from invokeai_saas.storage.keys import check_key
from invokeai_saas.storage.port import PIECE_BYTES, Found, ObjectStore

PART_BYTES = 8 * 1024 * 1024
# Bounded memory: two parts at a time, few blocks waiting for the disk. S3 wants 5 MiB or more for all parts but the last.
TRANSFER = TransferConfig(
    multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=2, max_io_queue=16, use_threads=True
)
DELETE_BATCH = 1000
_MISSING = {"NoSuchKey", "404", "NotFound", "NoSuchVersion"}
_LATER = {"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "Throttling", "OperationAborted"}


class S3Store(ObjectStore):
    """One bucket. `endpoint_url` None is Amazon's own."""

    def __init__(
        self,
        bucket: str,
        cache: LocalCache,
        *,
        endpoint_url: str | None = None,
        region: str = "us-east-1",
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
        timeout_seconds: float = 10.0,
    ) -> None:
        self._bucket, self._cache = bucket, cache
        self._client: Any = boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint_url,
            region_name=region,
            # Without keys: the instance's role, as the SDK finds it.
            aws_access_key_id=access_key_id,
            aws_secret_access_key=secret_access_key,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path" if endpoint_url else "auto"},
                connect_timeout=timeout_seconds,
                read_timeout=timeout_seconds,
                retries={"mode": "standard", "max_attempts": 3},
                max_pool_connections=32,
                # Other makers of S3 servers do not know the newer checksums.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def check(self) -> None:
        """Ask for the bucket with our credentials."""
        try:
            self._client.head_bucket(Bucket=self._bucket)
        except (NoCredentialsError, PartialCredentialsError):
            raise BadSettings("S3_ACCESS_KEY_ID, S3_SECRET_ACCESS_KEY: expected credentials, got none") from None
        except ClientError as error:
            raise BadSettings(_why_unusable(_status(error))) from None
        except BotoCoreError as error:
            raise BadSettings(f"S3_ENDPOINT_URL: expected a server that answers, got: {type(error).__name__}") from None

    def put(self, key: str, data: bytes, content_type: str) -> None:
        """See ObjectStore."""
        with _translated(key):
            self._client.put_object(Bucket=self._bucket, Key=check_key(key), Body=data, ContentType=content_type)

    def put_file(self, key: str, source: Path, content_type: str, *, keep: bool = False) -> None:
        """See ObjectStore. Larger files go in parts; a failed upload takes its parts back."""
        check_key(key)
        with _translated(key), _unwrapped():
            # By name, not as an open file: of those the SDK holds ten parts in memory.
            self._client.upload_file(str(source), self._bucket, key, ExtraArgs={"ContentType": content_type}, Config=TRANSFER)
        if not keep:
            source.unlink(missing_ok=True)

    def local_path(self, key: str) -> Path:
        """See ObjectStore: from the cache, downloaded when it is not there."""
        return self._cache.path_of(check_key(key), lambda path: self._download(key, path))

    def chunks(self, key: str, *, start: int = 0) -> Iterator[bytes]:
        """See ObjectStore. A range that begins at the object's end is empty; S3 calls it an error."""
        wanted = {"Bucket": self._bucket, "Key": check_key(key)} | ({"Range": f"bytes={start}-"} if start else {})
        with _translated(key):
            try:
                body = self._client.get_object(**wanted)["Body"]
            except ClientError as error:
                if start and _status(error) == 416:
                    return
                raise
            with closing(body):
                yield from body.iter_chunks(PIECE_BYTES)

    def size(self, key: str) -> int | None:
        """See ObjectStore."""
        try:
            with _translated(key):
                return int(self._client.head_object(Bucket=self._bucket, Key=check_key(key))["ContentLength"])
        except ObjectMissing:
            return None

    def delete(self, keys: Iterable[str]) -> None:
        """See ObjectStore, a thousand at a time."""
        wanted = [check_key(key) for key in keys]
        for start in range(0, len(wanted), DELETE_BATCH):
            batch = wanted[start : start + DELETE_BATCH]
            with _translated(batch[0]):
                objects = {"Objects": [{"Key": key} for key in batch], "Quiet": True}
                answer = self._client.delete_objects(Bucket=self._bucket, Delete=objects)
            _demand_all_deleted(answer.get("Errors", []))
            for key in batch:
                self._cache.forget(key)

    def list(self, prefix: str) -> Iterator[Found]:
        """See ObjectStore."""
        with _translated(prefix):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix):
                for item in page.get("Contents", []):
                    yield Found(item["Key"], int(item["Size"]), item["LastModified"])

    def signed_url(self, key: str, *, user_id: str, seconds: int) -> str:
        """See ObjectStore. Good for whoever holds it until it expires; supports Range."""
        with _translated(key):
            parameters = {"Bucket": self._bucket, "Key": check_key(key)}
            return str(self._client.generate_presigned_url("get_object", Params=parameters, ExpiresIn=seconds))

    def _download(self, key: str, path: Path) -> None:
        with _translated(key), path.open("wb") as file:
            self._client.download_fileobj(self._bucket, key, file, Config=TRANSFER)


@contextmanager
def _translated(key: str) -> Iterator[None]:
    """The SDK's errors in, the port's out. What it does not know goes on as it is."""
    try:
        yield
    except ClientError as error:
        code, status = _code(error), _status(error)
        if code in _MISSING:
            raise ObjectMissing(f"no object {key}") from error
        if code in _LATER or status >= 500 or status == 429:
            raise StorageUnavailable(f"the object store answered {code or status} for {key}") from error
        raise StorageRefused(f"the object store refused {key}: {code or status}") from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise StorageRefused("the object store needs credentials, there are none") from error
    except (BotoCoreError, RetriesExceededError) as error:
        raise StorageUnavailable(f"the object store did not answer for {key}: {type(error).__name__}") from error


@contextmanager
def _unwrapped() -> Iterator[None]:
    """An upload's failure holds what happened as its context."""
    try:
        yield
    except S3UploadFailedError as error:
        if isinstance(error.__context__, ClientError):
            raise error.__context__ from None
        raise StorageUnavailable("an upload failed for an unknown reason") from error


def _demand_all_deleted(errors: list[dict[str, str]]) -> None:
    left = [item for item in errors if item.get("Code") not in _MISSING]
    if left:
        raise StorageUnavailable(f"the object store kept {len(left)} objects that were to be deleted: {left[0].get('Code')}")


def _why_unusable(status: int) -> str:
    if status == 404:
        return "S3_BUCKET: expected a bucket that exists, got one that does not"
    if status in (400, 401, 403):
        return "S3_ACCESS_KEY_ID, S3_SECRET_ACCESS_KEY: expected credentials for S3_BUCKET, the server refused them"
    return f"S3_BUCKET: expected a bucket that answers, the server said {status}"


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
