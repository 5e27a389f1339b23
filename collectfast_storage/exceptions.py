"""The errors that end a command or a batch, and their messages."""

import re
from collections.abc import Mapping

from django.core.management.base import CommandError

# If more files fail for the same reason, the message names only one of them.
_MOST_NAMES = 10
# The path of a URL may contain a signature, and its user part a password.
_URL_PATH = '(https?://[^/ "]+)/[^ "]*'
_URL_USER = '(?<=://)[^/ "@]*@'
# The operating system's text for the limit of open files.
TOO_MANY_FILES = "(?i)too many open files"
# Advice, by a pattern of the error's text.
_ADVICE = {
    r"\(AccessControlListNotSupported\)": (
        "(The bucket has ACLs disabled: set the option default_acl to None.)"
    ),
    r"\(AccessDenied\) when calling the PutObject": (
        "(Grant s3:PutObject, and s3:PutObjectAcl if default_acl is set.)"
    ),
    r"\(AccessDenied\) when calling the Delete": (
        "(Grant the permission s3:DeleteObject.)"
    ),
    r"\(AccessDenied\) when calling the List": "(Grant the permission s3:ListBucket.)",
    "(?i)SSL validation failed.*(wrong.version|unknown.proto|record.layer|http.req)": (
        "(The server may use HTTP instead of HTTPS: check endpoint_url.)"
    ),
    TOO_MANY_FILES: (
        "(Increase the limit of open files, or decrease collectfast_threads.)"
    ),
    r"\(NoSuchKey\) when calling the List": (
        "(If the host in endpoint_url contains the bucket name, remove it there.)"
    ),
    "SSL validation failed.*(?i:certificate|hostname|no such file)": (
        "(If a private CA issued the certificate, set the option verify or the "
        "environment variable AWS_CA_BUNDLE to the path of its CA file.)"
    ),
    r"MissingContentLength|XAmzContentSHA256Mismatch|stored.\d+.bytes": (
        "(The server may not support trailing checksums: set the option client_config "
        "as in the README.)"
    ),
    "Parameter valid(?!(?s:.*)bucket name)": (
        "(Check the options object_parameters and collectfast_hashed_parameters.)"
    ),
    # botocore follows endless redirects until Python's recursion limit.
    r"\((|[1-4]\d\d)\) when calling|recursion": (
        "(The response gives no reason. Check credentials, region_name, endpoint_url, "
        "proxies, and permissions such as s3:ListBucket and s3:GetObject.)"
    ),
}


class CollectfastError(CommandError):
    """The base class of the errors that end a run.

    Because it is a `CommandError`, a command prints its message without a traceback,
    and exits with status 1:
    https://docs.djangoproject.com/en/stable/howto/custom-management-commands/#command-exceptions
    """


class BucketError(CollectfastError):
    """A failure that is about the bucket, and not about a single file."""

    def __init__(self, bucket_name: str, cause: BaseException) -> None:
        self.cause = cause
        super().__init__(f"Cannot use bucket {bucket_name!r}: {reason_of(cause)}")


class DeniedError(BucketError):
    """A request that the server denies or does not support."""


class ClearError(CollectfastError):
    """A refusal, because `--clear` might delete objects of other storages."""

    def __init__(self, bucket: str, reason: str) -> None:
        super().__init__(
            f"--clear would delete more than static files from bucket {bucket!r}: "
            f"{reason}. Set the option location of the static files storage to a "
            "separate folder. (The setting AWS_LOCATION applies to all storages.)"
        )


class FilesError(CollectfastError):
    """A failure of some files; `failures` maps their names to exceptions or texts."""

    summary = "Failed for {count}"

    def __init__(self, failures: Mapping[str, object], tried_all: bool = True) -> None:
        self.failures = dict(failures)
        names: dict[str, list[str]] = {}
        for name, failure in failures.items():
            names.setdefault(reason_of(failure), []).append(printable(name))
        lines = [self.summary.format(count=_count_of(failures))]
        lines[0] += ":" if tried_all else "; the other files were not tried:"
        for reason, alike in names.items():
            if len(alike) > _MOST_NAMES:
                alike = [f"{_count_of(alike)}, for example {alike[0]}"]
            lines += [f"  {name}: {reason}" for name in alike]
        super().__init__("\n".join(lines))


class UploadError(FilesError):
    """A failure to upload some files."""

    summary = "Could not upload {count}"


class DeleteError(FilesError):
    """A failure to delete some objects."""

    summary = "Could not delete {count} from the bucket"


def reason_of(failure: object) -> str:
    """Return the text of `failure` without secrets, and with advice if there is any."""
    # botocore wraps this error in one whose text does not contain it.
    limit = re.search(TOO_MANY_FILES, str(inner_error(failure)))
    text = limit[0] if limit else str(failure)
    # http.client quotes an invalid header. The quotation is left out, because a
    # signature contains the access key.
    text, invalid_header, _ = text.partition("Invalid header value ")
    text = re.sub(_URL_PATH, r"\1/…", re.sub(_URL_USER, "", text))
    text = printable(text.replace("\n", " "))
    if invalid_header:
        return f"{text}Invalid header value. Check the credentials for a line break."
    advice = [each for pattern, each in _ADVICE.items() if re.search(pattern, text)]
    return " ".join([text, *advice])


def inner_error(failure: object) -> object:
    """Return the error that botocore wrapped in `failure`, or an empty text."""
    # https://github.com/boto/botocore/blob/develop/botocore/exceptions.py
    return getattr(failure, "kwargs", {}).get("error", "")


def printable(text: str) -> str:
    """Return `text` with control characters escaped, as Python escapes them."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _count_of(files: Mapping[str, object] | list[str]) -> str:
    return "1 file" if len(files) == 1 else f"{len(files):,} files"
