"""What goes wrong in a run, in words for the person who deploys."""

from collections.abc import Mapping
from typing import Any

from django.core.management.base import CommandError


class CollectfastError(CommandError):
    """A run that did not do all that it was asked to.

    As a `CommandError`, it is a message without a traceback, and exit status 1:
    https://docs.djangoproject.com/en/stable/howto/custom-management-commands/#command-exceptions
    """


class BucketError(CollectfastError):
    """The bucket as a whole could not be used; no file was the reason."""

    def __init__(self, bucket_name: str, cause: BaseException) -> None:
        self.cause = cause
        reason = _without_secrets(cause)
        super().__init__(f"The bucket {bucket_name!r} cannot be used: {reason}")


class DeniedError(BucketError):
    """The bucket does not say what it holds, as a permission is missing."""


class ClearError(CollectfastError):
    """`--clear` would empty a whole bucket."""

    def __init__(self, bucket_name: str) -> None:
        super().__init__(
            f"--clear would delete everything in the bucket {bucket_name!r}, whoever "
            "put it there: this storage has no location. Set its option location "
            "(setting AWS_LOCATION) to the folder that holds nothing but static files."
        )


class FilesError(CollectfastError):
    """Some files failed; `failures` maps their names to an exception or a text."""

    summary = "Failed for {count}:"

    def __init__(self, failures: Mapping[str, object]) -> None:
        self.failures = dict(failures)
        count = "1 file" if len(failures) == 1 else f"{len(failures):,} files"
        lines = [self.summary.format(count=count)]
        lines += [f"  {name}: {_without_secrets(r)}" for name, r in failures.items()]
        super().__init__("\n".join(lines))


class UploadError(FilesError):
    """Some files did not arrive in the bucket."""

    summary = "Could not upload {count}; the next run will try again:"


class DeleteError(FilesError):
    """Some objects could not be deleted from the bucket."""

    summary = "Could not delete {count} from the bucket:"


def _without_secrets(reason: object) -> str:
    # http.client quotes the header that it refuses to send, such as a signature with an
    # access key in it that ends with a line break.
    text, refused, _ = str(reason).partition("Invalid header value ")
    remedy = "Invalid header value: is there a line break in the credentials?"
    return f"{text}{remedy}" if refused else _with_causes(text, reason)


def _with_causes(text: str, reason: object) -> str:
    """Add what may be behind an error that has no words, as the answer to a HEAD."""
    answer: Any = getattr(reason, "response", None) or {}
    code = str(answer.get("Error", {}).get("Code", "?"))
    # A redirection to nowhere botocore follows as deep as it can.
    if code and not (code.isdigit() and code < "500") and "recursion" not in text:
        return text
    return (
        f"{text.rstrip(' :')}. It gives no reason: there may be wrong credentials, a "
        "missing permission (s3:ListBucket, s3:GetObject, s3:PutObject, …), a wrong "
        "region or endpoint, a bucket of somebody else's, or a proxy in between"
    )
